"""The guest's memory as its monitor sees it: which guest-virtual ranges there are, and where their bytes lie here.

Law: a guest's pointer becomes an address of this process through ``pieces`` and in no other way. Ranges that wrap,
leave the map, or are read-only where the guest's data would change, give nothing.
"""

from __future__ import annotations

from bisect import bisect_right

PAGE = 1 << 12
HUGE = 1 << 21
#: Addresses of programs end here (four-level paging).
USER_END = 1 << 47

READ, WRITE, EXECUTE = 1, 2, 4


class Region:
    """Guest-virtual ``start`` to ``end``, whose bytes are at ``host`` here and at ``physical`` for its page tables.

    ``name`` and ``offset`` (of ``start`` in the file of that name) are for people.
    """

    __slots__ = ("access", "end", "host", "name", "offset", "physical", "start")

    def __init__(
        self, start: int, end: int, access: int, *, host: int, physical: int, name: str = "", offset: int = 0
    ) -> None:
        self.start = start
        self.end = end
        self.access = access
        self.host = host
        self.physical = physical
        self.name = name
        self.offset = offset


class GuestMemory:
    """The regions of a guest, none of which overlap."""

    __slots__ = ("_regions", "_starts")

    def __init__(self, regions: list[Region]) -> None:
        self._regions = sorted(regions, key=lambda region: region.start)
        self._starts = [region.start for region in self._regions]

    def find(self, address: int) -> Region | None:
        """Return the region that an address is in."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._regions[index].end:
            return None
        return self._regions[index]

    def pieces(self, address: int, length: int, access: int) -> list[tuple[int, int]] | None:
        """Return ``(host address, length)`` of each piece of a guest's range, in order.

        ``None`` if any byte of it is no memory of the guest's, or lacks ``access``. A range of no bytes has no pieces.
        """
        if length < 0 or address < 0 or address + length > USER_END:
            return None
        found: list[tuple[int, int]] = []
        index = bisect_right(self._starts, address) - 1
        while length:
            if index < 0 or index >= len(self._regions):
                return None
            region = self._regions[index]
            if not region.start <= address < region.end or region.access & access != access:
                return None
            size = min(length, region.end - address)
            host = region.host + address - region.start
            if found and sum(found[-1]) == host:
                found[-1] = (found[-1][0], found[-1][1] + size)
            else:
                found.append((host, size))
            address += size
            length -= size
            index += 1
        return found
