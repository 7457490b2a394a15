"""Page tables say what was asked for and nothing else: walked here as the processor does (AMD64 APM volume 2, 5.3)."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.sandbox.kvm.memory import EXECUTE, HUGE, PAGE, READ, USER_END, WRITE
from instar.sandbox.kvm.tables import PageTables

PHYSICAL = 0x1234_5000


class Leaf(NamedTuple):
    """What a walk finds."""

    physical: int
    size: int
    writable: bool
    user: bool
    executable: bool


class Tables:
    """Room for tables, and a walker of its own."""

    def __init__(self, pages: int) -> None:
        self.room = bytearray(pages * PAGE)
        self.tables = PageTables(memoryview(self.room), PHYSICAL)

    def _rows(self, table: int) -> list[tuple[int, int]]:
        offset = table - PHYSICAL
        assert 0 <= offset <= len(self.room) - PAGE, "a table lies outside the room"
        assert offset % PAGE == 0
        return [
            (index, row)
            for index in range(512)
            if (row := int.from_bytes(self.room[offset + index * 8 :][:8], "little"))
        ]

    def leaves(self) -> dict[int, Leaf]:
        """Return every mapping by its address; rights are those that all levels allow."""
        found: dict[int, Leaf] = {}
        seen = {self.tables.top}
        work = [(self.tables.top, 39, 0, True, True, True)]
        while work:
            table, shift, base, writable, user, executable = work.pop()
            for index, row in self._rows(table):
                assert row & 1, "a row that is not present is not zero"
                assert row & 0x20, "the processor would have to write that it was here"
                address = base | index << shift
                target = row & 0x000F_FFFF_FFFF_F000
                rights = (writable and bool(row & 2), user and bool(row & 4), executable and not row >> 63)
                large = shift > 12 and bool(row & 0x80)
                if shift == 12 or large:
                    assert row & 0x40, "the processor would have to write that it wrote"
                    assert row & 0x118 == 0, "caching or global bits"
                    assert shift <= 21
                    assert target % (1 << shift) == 0
                    found[address] = Leaf(target, 1 << shift, *rights)
                else:
                    assert target not in seen, "a table is used twice"
                    seen.add(target)
                    work.append((target, shift - 9, address, *rights))
        return found


def by_page(leaves: dict[int, Leaf]) -> dict[int, tuple[int, bool, bool, bool]]:
    """Return what each small page is mapped to."""
    return {
        address + at: (leaf.physical + at, leaf.writable, leaf.user, leaf.executable)
        for address, leaf in leaves.items()
        for at in range(0, leaf.size, PAGE)
    }


@st.composite
def _mappings(draw: st.DrawFn) -> list[tuple[int, int, int, int, bool]]:
    """Draw ranges that do not overlap: near the edges of tables, congruent to physical memory or not."""
    made = []
    at = draw(
        st.sampled_from([0, PAGE, HUGE - PAGE, (1 << 30) - HUGE - 3 * PAGE, (1 << 39) - 2 * PAGE, 0x7F00_0000_0000])
    )
    for _ in range(draw(st.integers(1, 5))):
        at += draw(st.sampled_from([0, 0, PAGE, 5 * PAGE, HUGE, 1 << 30])) + PAGE * draw(st.integers(0, 3))
        if draw(st.booleans()):
            at = at + HUGE - 1 & -HUGE
        length = draw(st.sampled_from([PAGE, 2 * PAGE, 513 * PAGE, HUGE, 2 * HUGE + PAGE, 600 * PAGE]))
        physical = draw(st.integers(0, 1 << 14)) * HUGE
        physical += draw(st.sampled_from([at % HUGE, at % HUGE, 0, 7 * PAGE]))
        access = READ | draw(st.sampled_from([0, WRITE, EXECUTE, WRITE | EXECUTE]))
        if at + length <= USER_END:
            made.append((at, at + length, physical, access, draw(st.booleans())))
        at += length
    return made


@settings(max_examples=40, deadline=None)
@given(_mappings())
def test_every_page_is_mapped_as_asked_and_no_other(mappings: list[tuple[int, int, int, int, bool]]) -> None:
    made = Tables(64)
    wanted = {}
    for start, end, physical, access, user in mappings:
        made.tables.map(start, end, physical, access, user=user)
        for page in range(start, end, PAGE):
            wanted[page] = (physical + page - start, bool(access & WRITE), user, bool(access & EXECUTE))
    leaves = made.leaves()
    assert by_page(leaves) == wanted
    for start, end, physical, *_ in mappings:
        large = [at for at, leaf in sorted(leaves.items()) if start <= at < end and leaf.size == HUGE]
        if (start - physical) % HUGE:
            assert large == []
        else:
            assert large == list(range(start + HUGE - 1 & -HUGE, end - HUGE + 1, HUGE))


def test_what_is_never_mapped_is_the_tables_themselves() -> None:
    made = Tables(16)
    made.tables.map(0x40_0000, 0x40_0000 + 700 * PAGE, 0x9000_0000, READ | WRITE)
    own = range(PHYSICAL, PHYSICAL + len(made.room))
    assert not [leaf for leaf in made.leaves().values() if leaf.physical in own]


def test_takes_no_more_room_than_it_has() -> None:
    made = Tables(4)
    made.tables.map(0, PAGE, 0, READ)  # three levels below the top
    with pytest.raises(MemoryError, match="full"):
        made.tables.map(HUGE, HUGE + PAGE, 0, READ)
    assert by_page(made.leaves()) == {0: (0, False, True, False)}


def test_needs_room_for_the_top_table() -> None:
    with pytest.raises(MemoryError):
        PageTables(memoryview(bytearray(PAGE - 8)), 0)


def test_ranges_that_share_a_table_do_not_need_another() -> None:
    made = Tables(4)
    for number in range(0, 512, 2):
        made.tables.map(number * PAGE, (number + 1) * PAGE, number * PAGE, READ)
    assert len(made.leaves()) == 256
