"""Which sectors of a disk qemu-img's check looks at: one for each grain, counted on from extent to extent.

Law: pure numbers. Where an extent does not end with a grain, the next is looked at from a sector within it on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.formats.vmdk.extent import Extent

#: Codes of what stops qemu-img: a grain that starts past the end of its file, and one whose place cannot be told.
PAST_END = "vmdk-past-end"
LOST = "vmdk-lost"


class Visits:
    """The sectors at which one extent is looked at.

    Args:
        first: the first of them, unless it lies behind the extent.
        start: sector of the disk at which the extent starts.
    """

    __slots__ = ("_end", "_first", "_skipped", "_step", "start")

    def __init__(self, first: int, start: int, extent: Extent) -> None:
        self.start = start
        self._end = start + extent.sectors
        self._step = extent.grain or max(1, extent.sectors)
        self._first = first
        self._skipped = (first - start) // self._step

    def sector_of(self, grain: int) -> int | None:
        """Return the sector at which a grain of the extent is looked at; ``None`` if it is not."""
        sector = self._first + (grain - self._skipped) * self._step
        return sector if grain >= self._skipped and sector < self._end else None

    def behind(self) -> int:
        """Return the first sector behind the extent that is looked at."""
        left = self._end - self._first
        return self._first + max(0, -(-left // self._step)) * self._step
