"""Page tables of x86-64 with four levels (AMD64 APM volume 2, 5.3): from guest-virtual to guest-physical.

Law: the tables lie in memory that they themselves never map. Accessed and dirty bits are set beforehand, so the
processor has nothing to write into them.
"""

from __future__ import annotations

import struct

from instar.sandbox.kvm.memory import EXECUTE, HUGE, PAGE, WRITE

_PRESENT, _WRITABLE, _USER = 1, 2, 4
_ACCESSED, _DIRTY, _LARGE = 0x20, 0x40, 0x80
_NO_EXECUTE = 1 << 63
_ADDRESS = (1 << 52) - PAGE
_ROWS = 512
#: Shift of the top level's index, and of the two below it; the last level's is 12.
_SHIFTS = (39, 30, 21)
#: A table's rows as one number: 1 in each row, and each row's distance from the first.
_ONES = int.from_bytes(b"\1\0\0\0\0\0\0\0" * _ROWS, "little")
_STEPS = int.from_bytes(struct.pack(f"={_ROWS}Q", *range(0, _ROWS * PAGE, PAGE)), "little")


class PageTables:
    """Tables in ``view`` (zeroed, of whole pages), which the guest has at ``physical``.

    Raises:
        MemoryError: ``view`` is too short for what is mapped.
    """

    __slots__ = ("_last", "_next", "_physical", "_rows", "_view", "top")

    def __init__(self, view: memoryview, physical: int) -> None:
        self._view = view
        self._rows = view.cast("Q")
        self._physical = physical
        self._next = 0
        #: The last table that was looked up: number of its first address in units of its reach, and its offset.
        self._last = (-1, -1, 0)
        #: Guest-physical address of the top table (for CR3).
        self.top = physical + self._new()

    def _new(self) -> int:
        offset = self._next
        if offset + PAGE > len(self._view):
            raise MemoryError("the page tables are full")
        self._next += PAGE
        return offset

    def _table(self, address: int, levels: int) -> int:
        """Return the offset of the table that is ``levels`` below the top one on the way to ``address``."""
        reach = address >> _SHIFTS[levels - 1]
        if self._last[:2] == (levels, reach):
            return self._last[2]
        offset = 0
        rows = self._rows
        for shift in _SHIFTS[:levels]:
            index = (offset >> 3) + (address >> shift & _ROWS - 1)
            row = rows[index]
            if not row:
                row = self._physical + self._new() | _PRESENT | _WRITABLE | _USER | _ACCESSED
                rows[index] = row
            offset = (row & _ADDRESS) - self._physical
        self._last = (levels, reach, offset)
        return offset

    def map(self, start: int, end: int, physical: int, access: int, *, user: bool = True) -> None:
        """Map whole pages; in large pages where both addresses allow it. ``user`` is false for the kernel's own."""
        flags = _PRESENT | _ACCESSED | _DIRTY | (_USER if user else 0) | (_WRITABLE if access & WRITE else 0)
        if not access & EXECUTE:
            flags |= _NO_EXECUTE
        while start < end:
            row = physical | flags
            if not start % HUGE and not physical % HUGE and end - start >= HUGE:
                self._rows[(self._table(start, 2) >> 3) + (start >> 21 & _ROWS - 1)] = row | _LARGE
                done = HUGE
            else:
                first = start >> 12 & _ROWS - 1
                count = min(_ROWS - first, (end - start) // PAGE)
                offset = self._table(start, 3) + first * 8
                self._view[offset : offset + count * 8] = _rows(row, count)
                done = count * PAGE
            start += done
            physical += done


def _rows(first: int, count: int) -> bytes:
    """Return rows that map ``count`` pages in order. One multiplication instead of a number for each of them."""
    short = (1 << 64 * count) - 1
    return (first * (_ONES & short) + (_STEPS & short)).to_bytes(8 * count, "little")
