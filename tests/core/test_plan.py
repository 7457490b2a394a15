"""Plans as values."""

from __future__ import annotations

import sys

import pytest

from instar.core.errors import InternalError
from instar.core.plan import PIECE, Allocate, Backing, Companion, Fill, Plan, Seed, Series, Write


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


def test_what_is_written_is_told_shortly_and_what_is_reserved_by_its_mode():
    assert Write(0, b"\1" * 64, "w").describe() == "write  " + "01" * 64
    assert Write(0, b"\1" * 65 + b"\0", "w").describe() == "write  " + "01" * 64 + "… +1 zeros"
    assert Fill(0, 8, "f", pattern=b"\xff\xff").describe() == "fill   ffff × 4"
    assert Allocate(0, 8, "a", mode="falloc").describe() == "alloc  falloc"
    assert Series(0, 2, "s", first=0, step=0, width=4, endian="<").describe() == "series 0x0 + k·0x0, 2 × 32 bit <"


def test_items_belong_to_the_first_file_unless_another_is_named():
    items = [Write, lambda *a, **k: Series(a[0], 1, a[2], first=0, step=0, **k), Fill, Allocate]
    for make in items:
        data = b"12345678" if make is Write else 8
        more = {"mode": "full"} if make is Allocate else {}
        assert make(8, data, "x", **more).file == 0
        item = make(8, data, "x", file=3, **more)
        assert (item.file, item.offset, item.length, item.label) == (3, 8, 8, "x")


def test_a_series_is_of_big_endian_words_of_8_bytes_unless_told_otherwise():
    assert joined(Series(0, 2, "s", first=1, step=1)) == bytes.fromhex("00000000000000010000000000000002")


@pytest.mark.parametrize(("length", "pattern"), [(PIECE, b"\0"), (PIECE + 1, b"\0"), (2 * PIECE, b"ab"), (6, b"abc")])
def test_a_fill_repeats_its_pattern_to_its_end(length, pattern):
    assert joined(Fill(7, length, "f", pattern=pattern)) == pattern * (length // len(pattern))


def test_a_pattern_longer_than_a_piece_is_one_piece():
    pattern = bytes(range(256)) * (PIECE // 256 + 1)
    assert list(Fill(0, len(pattern), "f", pattern=pattern).pieces()) == [(0, pattern)]


def test_what_is_reserved_may_be_written_to_later_and_not_before():
    plan(Allocate(0, 10, "a", mode="full"), Write(0, b"abc", "w"), Allocate(10, 5, "b", mode="full")).check()
    plan(Write(0, b"abc", "w"), Allocate(3, 5, "a", mode="full")).check()
    plan(Write(8, b"abc", "w"), Allocate(3, 5, "a", mode="full")).check()
    late = Plan([Write(0, b"abc", "w", file=1), Allocate(0, 5, "a", mode="full")], sizes=(9, 9), virtual_size=0)
    late.check()
    with pytest.raises(InternalError, match=r"^internal error, please report it: plan: 'a' would be reserved after"):
        plan(Write(0, b"abc", "w"), Allocate(2, 5, "a", mode="full")).check()
    with pytest.raises(InternalError, match="would be reserved after"):
        plan(Write(5, b"abc", "w"), Allocate(2, 4, "a", mode="full")).check()
    with pytest.raises(InternalError, match=r"'b' at 4\.\.9 overlaps 'a' at 0\.\.5"):
        plan(Allocate(0, 5, "a", mode="full"), Allocate(4, 5, "b", mode="full")).check()


def test_items_may_end_where_the_file_does_and_empty_ones_lie_anywhere():
    plan(Write(5, b"abc", "a"), size=8).check()
    plan(Fill(100, 0, "nothing"), size=8).check()
    with pytest.raises(InternalError, match=r"'a' at -1\.\.2 is outside file 0"):
        plan(Write(-1, b"abc", "a"), size=8).check()


def test_files_do_not_overlap_one_another():
    items = [Write(0, b"abc", "a", file=1), Write(0, b"abc", "b")]
    Plan(items, sizes=(3, 3), virtual_size=0).check()


def test_text_names_each_file_and_the_unit_in_the_fields_word():
    made = Plan([Allocate(0, 5, "a", mode="full", file=1)], sizes=(3, 5), virtual_size=7, unit=2, unit_name="grain")
    assert made.text() == "virtual_size 7  grain 2  files 3 5\n1 0x000000000000 0x00000005 a: alloc  full"
    assert Plan([], sizes=(0,), virtual_size=0).text() == "virtual_size 0  cluster 0  files 0"


def test_what_a_planner_is_not_told_is_zero_or_nothing():
    seed, backing, companion = Seed(), Backing("b", None), Companion("c")
    assert (seed.entropy, seed.time, seed.file_name, seed.pbkdf_rate) == (bytes(64), 0, "", 0)
    assert (seed.backing, seed.secret) == (None, None)
    assert (backing.virtual_size, backing.content_id, backing.identity) == (None, None, None)
    assert (backing.modified, backing.relative, backing.absolute) == (0, "", "")
    assert (companion.keep, companion.from_cwd) == (False, False)


def test_a_planner_is_told_what_was_given():
    base = Backing("b", "raw", virtual_size=1, content_id=2, identity=b"3", modified=4, relative="5", absolute="6")
    assert [getattr(base, name) for name in ("name", "format", "virtual_size", "content_id")] == ["b", "raw", 1, 2]
    assert (base.identity, base.modified, base.relative, base.absolute) == (b"3", 4, "5", "6")
    seed = Seed(entropy=b"1", time=2, file_name="3", backing=base, secret=b"4", pbkdf_rate=5)
    assert (seed.entropy, seed.time, seed.file_name, seed.pbkdf_rate) == (b"1", 2, "3", 5)
    assert (seed.backing, seed.secret) == (base, b"4")
    companion = Companion("c", keep=True, from_cwd=True)
    assert (companion.name, companion.keep, companion.from_cwd) == ("c", True, True)
