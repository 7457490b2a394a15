"""MD5 (RFC 1321), as the Format Extension's checksum needs it.

Law: no import. The standard library's would cost every ``info`` of any image its loading time before the walls
close, for the rare image with an extension. A mebibyte takes some tenths of a second.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Shift amounts of the four rounds (RFC 1321, 3.4), and which word of the block a step takes: (factor, start).
_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_WORDS = ((1, 0), (5, 1), (3, 5), (7, 0))
#: 2^32 times the absolute sine of 1 to 64 (RFC 1321, 3.4).
_SINES = struct.unpack(
    "<64I",
    bytes.fromhex(
        "78a46ad756b7c7e8db702024eecebdc1af0f7cf52ac68747134630a8019546fd"
        "d8988069aff7448bb15bffffbed75c892211906b937198fd8e4379a62108b449"
        "62251ef640b340c0515a5e26aac7b6e95d102fd65314440281e6a1d8c8fbd3e7"
        "e6cde121d60737c3870dd5f4ed145a4505e9e3a9f8a3effcd9026f678a4c2a8d"
        "4239faff81f6718722619d6d0c38e5fd44eabea4a9cfde4b604bbbf670bcbfbe"
        "c67e9b28fa27a1ea8530efd4051d880439d0d4d9e599dbe6f87ca21f6556acc4"
        "442229f497ff2a43a72394ab39a093fcc3595b6592cc0c8f7df4efffd15d8485"
        "4f7ea86fe0e62cfe144301a3a111084e827e53f735f23abdbbd2d72a91d386eb"
    ),
)


def _steps(round_: int) -> tuple[tuple[int, int, int, int], ...]:
    """Return ``(word, sine, shift, 32 - shift)`` of the 16 steps of a round."""
    factor, start = _WORDS[round_]
    return tuple(
        ((factor * i + start) % 16, _SINES[16 * round_ + i], shift, 32 - shift)
        for i in range(16)
        for shift in (_SHIFTS[round_][i % 4],)
    )


_ROUNDS = tuple(_steps(number) for number in range(4))
_BLOCKS = struct.Struct("<16I")


def md5(pieces: Iterable[bytes]) -> bytes:
    """Return the digest of all pieces one after the other; each but the last has a multiple of 64 bytes.

    >>> md5([b"abc"]).hex()
    '900150983cd24fb0d6963f7d28e17f72'
    """
    state = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
    length, rest = 0, b""
    for piece in pieces:
        length += len(piece)
        whole = len(piece) & ~63
        state = _update(state, piece[:whole])
        rest = piece[whole:]
    padding = b"\x80" + bytes((55 - len(rest)) % 64)
    state = _update(state, rest + padding + struct.pack("<Q", 8 * length & 0xFFFFFFFFFFFFFFFF))
    return struct.pack("<4I", *state)


def _update(state: tuple[int, int, int, int], data: bytes) -> tuple[int, int, int, int]:
    """Return the state after whole blocks of 64 bytes (RFC 1321, 3.4)."""
    mask = 0xFFFFFFFF
    first, second, third, fourth = _ROUNDS
    for words in _BLOCKS.iter_unpack(data):
        a, b, c, d = state
        for word, sine, left, right in first:
            sum_ = a + (d ^ (b & (c ^ d))) + words[word] + sine & mask
            a, d, c, b = d, c, b, b + (sum_ << left | sum_ >> right) & mask
        for word, sine, left, right in second:
            sum_ = a + (c ^ (d & (b ^ c))) + words[word] + sine & mask
            a, d, c, b = d, c, b, b + (sum_ << left | sum_ >> right) & mask
        for word, sine, left, right in third:
            sum_ = a + (b ^ c ^ d) + words[word] + sine & mask
            a, d, c, b = d, c, b, b + (sum_ << left | sum_ >> right) & mask
        for word, sine, left, right in fourth:
            sum_ = a + (c ^ (b | ~d & mask)) + words[word] + sine & mask
            a, d, c, b = d, c, b, b + (sum_ << left | sum_ >> right) & mask
        state = (state[0] + a & mask, state[1] + b & mask, state[2] + c & mask, state[3] + d & mask)
    return state
