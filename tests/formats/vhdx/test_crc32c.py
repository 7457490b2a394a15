from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.formats.vhdx.crc32c import _TABLE, POLYNOMIAL, checksum, crc32c


def plain(data: bytes) -> int:
    """Compute the CRC bit by bit, as the definition says."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (POLYNOMIAL if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, appendix B.4 (its values are printed byte by byte).
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_gives_the_published_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_table_holds_the_crc_of_each_byte() -> None:
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (POLYNOMIAL if register & 1 else 0)
        assert _TABLE[byte] == register


@pytest.mark.parametrize("length", [*range(100, 200), 511, 512, 513, 1000, 1023, 4095, 4096, 4097, 20000])
def test_folding_changes_nothing_at_any_length(length: int) -> None:
    data = bytes((7 * i + i // 251) & 0xFF for i in range(length))
    assert crc32c(data) == plain(data)


def test_folds_zeros_and_ones() -> None:
    for data in (bytes(4096), b"\xff" * 4096, b"\1" + bytes(4095), bytes(4095) + b"\x80"):
        assert crc32c(data) == plain(data)


@given(st.binary(max_size=2000), st.binary(max_size=600))
def test_continues_from_what_came_before(left: bytes, right: bytes) -> None:
    assert crc32c(right, crc32c(left)) == plain(left + right)


def test_long_input_goes_in_pieces() -> None:
    data = bytes(range(256)) * 1024
    crc = 0
    for start in range(0, len(data), 1000):
        crc = crc32c(data[start : start + 1000], crc)
    assert crc32c(data) == crc


def test_checksum_takes_its_own_field_for_zero() -> None:
    data = b"head" + b"\xaa" * 4 + b"rest" * 20
    assert checksum(data) == plain(b"head" + bytes(4) + b"rest" * 20)
