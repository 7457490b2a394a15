"""CRC-32C (Castagnoli; RFC 3720 appendix B.4), as every VHDX checksum uses it, without any library.

Law: exact for any bytes, and fast enough that neither creating an image nor checking one has to wait for
it: about a hundred megabytes a second in plain Python, because long input is folded with whole integers.

How: a message is a polynomial over GF(2), and its CRC is what remains after division by P (degree 32).
Anything divisible by P may be added freely, and this sparse polynomial is:

    x^290 + x^136 + x^113 + x^107 + x^32 + 1

so the leading 154 bits of a message may be replaced by five shifted copies of them further down. Squaring
over GF(2) doubles every exponent, so the same holds with all numbers times 2^k: the leading half of a
megabyte folds onto the rest with a few shifts. The last few dozen bytes go through the usual table.
"""

from __future__ import annotations

from array import array

#: P without its leading term, lowest power in the highest bit (RFC 3720, appendix B.4).
POLYNOMIAL = 0x82F63B78

#: Bits that one fold removes, and how far down their copies land: 290 − 136, and 136 minus the other exponents.
_FOLD = 154
_COPIES = (23, 29, 104, 136)
#: A fold needs this many bits, or its copies would fall off the end: 290 + 154.
_REACH = 444
#: Shorter input goes straight through the table.
_SHORT = 128
#: Longer input is folded in pieces of this many bytes, which stay in the processor's cache.
_PIECE = 1 << 16


def _make_table() -> array[int]:
    """Return the CRC of each single byte; entries are linear, so eight of them make the rest."""
    entries = array("I", [0]) * 256
    crc = 1
    bit = 128
    while bit:
        crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
        for low in range(0, 256, 2 * bit):
            entries[low + bit] = entries[low] ^ crc
        bit >>= 1
    return entries


_TABLE = _make_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """Return the CRC-32C of ``data``, continuing from ``crc``, the CRC of what came before.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    >>> crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
    True
    """
    if len(data) > _PIECE:
        for start in range(0, len(data), _PIECE):
            crc = crc32c(data[start : start + _PIECE], crc)
        return crc
    register = crc ^ 0xFFFFFFFF
    if len(data) >= _SHORT:
        data = _fold(int.from_bytes(data, "little") ^ register, 8 * len(data))
        register = 0
    table = _TABLE
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def _fold(message: int, bits: int) -> bytes:
    """Return a message of fewer than 56 bytes that leaves the same remainder.

    Bit 0 of ``message`` is its leading coefficient, the order in which a reflected CRC takes bits in.
    """
    for k in range(max(0, (bits // _REACH).bit_length() - 1), -1, -1):
        width = _FOLD << k
        mask = (1 << width) - 1
        while bits >= _REACH << k:
            head = message & mask
            message = message >> width ^ head
            for distance in _COPIES:
                message ^= head << (distance << k)
            bits -= width
    padding = -bits % 8  # leading zeros leave the remainder as it is
    return (message << padding).to_bytes((bits + padding) // 8, "little")


def checksum(structure: bytes, at: int = 4) -> int:
    """Return the CRC-32C of a structure whose own 4-byte checksum field, at ``at``, counts as zero.

    All of VHDX's checksums are made so ([MS-VHDX] 2.2.2, 2.2.3.1, 2.3.1.1).
    """
    return crc32c(structure[:at] + bytes(4) + structure[at + 4 :])
