"""Tables of a planned image: what is written in one go is what is written entry by entry."""

from __future__ import annotations

import pytest

from instar.formats.qcow2 import tables


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_refcounts_of_a_range_are_ones_and_all_others_as_they_were(bits: int) -> None:
    size = 64
    per_block = size * 8 // bits
    ones = tables._ones(per_block, size)
    for start, end in {(0, per_block), (0, 1), (1, 2), (3, per_block - 1), (5, 6), (7, 7), (per_block - 1, per_block)}:
        if not 0 <= start <= end <= per_block:
            continue
        block = bytearray(size)
        tables._count_in(block, start, end, per_block, ones)
        for index in range(per_block):
            if bits < 8:
                found = block[index * bits // 8] >> index * bits % 8 & (1 << bits) - 1
            else:
                found = int.from_bytes(block[index * bits // 8 : (index + 1) * bits // 8], "big")
            assert found == (start <= index < end), (start, end, index)


@pytest.mark.parametrize(
    ("bits", "ones"), [(1, "ff"), (2, "55"), (4, "11"), (8, "01"), (16, "0001"), (64, "00" * 7 + "01")]
)
def test_a_byte_of_refcounts_holds_as_many_ones_as_fit(bits: int, ones: str) -> None:
    assert tables._ones(512 * 8 // bits, 512) == bytes.fromhex(ones)


@pytest.mark.parametrize(("first", "count", "name"), [(0, 1, "refcount block 0"), (3, 2, "refcount blocks 3 to 4")])
def test_full_refcount_blocks_are_named_by_their_numbers(first: int, count: int, name: str) -> None:
    made = tables._full_blocks([7, count, first], 512, b"\1")
    assert (made.label, made.offset, made.length, made.pattern) == (name, 7 * 512, count * 512, b"\1")
