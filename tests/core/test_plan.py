"""Plans as values."""

from __future__ import annotations

import sys

import pytest

from instar.core.errors import InternalError
from instar.core.plan import PIECE, Allocate, Fill, Plan, Series, Write


def joined(item):
    data = b""
    for offset, piece in item.pieces():
        assert offset == item.offset + len(data)
        assert len(piece) <= PIECE
        data += piece
    assert len(data) == item.length
    return data


def plan(*items, size=1 << 30):
    return Plan(items, sizes=(size,), virtual_size=0)


def test_every_item_yields_its_bytes_in_bounded_pieces():
    assert joined(Write(5, b"x" * (PIECE + 3), "w")) == b"x" * (PIECE + 3)
    assert joined(Fill(0, 3 * PIECE + 6, "f", pattern=b"abc")) == b"abc" * (PIECE + 2)
    assert joined(Fill(0, 0, "f")) == b""


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("width", "endian"), [(8, ">"), (8, "<"), (4, ">"), (4, "<")])
def test_a_series_grows_evenly_with_and_without_the_array_module(width, endian, fast, monkeypatch):
    import array  # noqa: F401

    if not fast:
        monkeypatch.delitem(sys.modules, "array")
    count = PIECE // width + 5
    data = joined(Series(0, count, "s", first=1 << 24, step=3, width=width, endian=endian))
    order = "big" if endian == ">" else "little"
    entries = [int.from_bytes(data[i : i + width], order) for i in range(0, len(data), width)]
    assert entries == [(1 << 24) + 3 * k for k in range(count)]


def test_a_series_may_stand_still():
    assert joined(Series(0, 3, "s", first=7, step=0, width=4)) == bytes.fromhex("00000007" * 3)


def test_items_that_touch_are_fine_and_items_that_overlap_are_not():
    plan(Write(0, b"abc", "a"), Write(3, b"d", "b"), Allocate(4, 10, "c", mode="full")).check()
    with pytest.raises(InternalError, match=r"'b' at 2\.\.3 overlaps 'a' at 0\.\.3"):
        plan(Write(0, b"abc", "a"), Write(2, b"d", "b")).check()


def test_an_item_past_the_files_final_size_is_refused():
    with pytest.raises(InternalError, match="outside file 0"):
        plan(Write(6, b"abc", "a"), size=8).check()
    with pytest.raises(InternalError, match="outside file 1"):
        plan(Write(0, b"abc", "a", file=1)).check()


def test_metadata_counts_what_is_written_not_what_is_reserved():
    assert plan(Write(0, b"abc", "a"), Fill(8, 8, "f"), Allocate(16, 100, "c", mode="falloc")).metadata_bytes() == 11


def test_text_of_a_plan_is_one_line_an_item():
    text = plan(Write(0, b"ab\0\0", "head"), Series(8, 2, "table", first=16, step=1), Fill(24, 8, "rest")).text()
    assert text.splitlines() == [
        "virtual_size 0  cluster 0  files 1073741824",
        "0 0x000000000000 0x00000004 head: write  6162 +2 zeros",
        "0 0x000000000008 0x00000010 table: series 0x10 + k·0x1, 2 × 64 bit >",
        "0 0x000000000018 0x00000008 rest: fill   00 × 8",
    ]
