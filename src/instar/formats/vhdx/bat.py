"""The block allocation table: reading it in pieces, and judging where its blocks lie.

Law: a table of any length is read a mebibyte at a time, and no more than one piece is held.
Source: [MS-VHDX] 2.5.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from itertools import compress

from instar.core.errors import ImageError
from instar.core.reader import MAX_READ, read_padded
from instar.core.units import MiB
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.ondisk import ENTRY_SIZE, FULLY_PRESENT, OFFSET_MASK, STATE_MASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.reader import Reader
    from instar.formats.vhdx.parse import Disk

#: Maps the low byte of an entry to whether its block is fully present.
_PRESENT = bytes(low & STATE_MASK == FULLY_PRESENT for low in range(256))


class Regions:
    """Ranges of the file that hold no blocks, as ``(start, end, name)`` in order; empty ones are left out."""

    __slots__ = ("_ends", "rows")

    def __init__(self, rows: list[tuple[int, int, str]]) -> None:
        self.rows = sorted(row for row in rows if row[0] < row[1])
        self._ends = [end for _, end, _ in self.rows]

    @property
    def end(self) -> int:
        """Where the last region ends."""
        return max(self._ends, default=0)

    def overlap(self, start: int, end: int) -> str | None:
        """Return the name of a region that shares a byte with ``start`` .. ``end``, or ``None``.

        The regions must not overlap one another.
        """
        index = bisect_right(self._ends, start)
        if index < len(self.rows) and self.rows[index][0] < end:
            return self.rows[index][2]
        return None


def pieces(image: Reader, disk: Disk) -> Iterator[tuple[int, bytes]]:
    """Yield ``(index of the first entry, entries as bytes)`` in pieces of at most 1 MiB."""
    length = disk.bat_entries * ENTRY_SIZE
    for start in range(0, length, MAX_READ):
        yield start // ENTRY_SIZE, read_padded(image, disk.bat + start, min(MAX_READ, length - start))


def decode(piece: bytes) -> array[int]:
    """Return the entries of a piece."""
    entries = array("Q", piece)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def words(piece: bytes) -> memoryview | None:
    """Return bits 16 to 47 of each entry of a piece: 16 times the mebibyte where its block starts.

    ``None`` if an entry has a bit above those, as no block below 256 TiB needs. Nothing is done entry by entry, so
    this costs next to nothing.
    """
    if piece[6::ENTRY_SIZE].strip(b"\0") or piece[7::ENTRY_SIZE].strip(b"\0") or sys.byteorder == "big":
        return None
    return memoryview(piece[2:] + bytes(2)).cast("I")[::2]


def present(piece: bytes) -> list[int]:
    """Return 16 times the mebibyte where each fully present block of a piece starts, perhaps plus reserved bits."""
    chosen = piece[::ENTRY_SIZE].translate(_PRESENT)
    if 1 not in chosen:
        return []
    return list(compress(words(piece) or [entry >> 16 for entry in decode(piece)], chosen))


class Placement:
    """Judges where blocks lie: inside the file, and outside the header section and every region.

    Attributes:
        low, high: a whole block that starts at or between these is well placed, without a further look.
    """

    __slots__ = ("_disk", "_image", "high", "low")

    def __init__(self, image: Reader, disk: Disk) -> None:
        self._image = image
        self._disk = disk
        self.low = max(ondisk.HEADER_SECTION, disk.regions.end)
        self.high = image.size - disk.metadata.block_size

    def length(self, index: int) -> int:
        """Return how many bytes the block of entry ``index`` takes.

        The last block may end with the disk, before the block does: QEMU makes such files.
        """
        disk = self._disk
        if index % (disk.ratio + 1) == disk.ratio:
            return ondisk.BITMAP_BLOCK
        size = disk.metadata.block_size
        block = index - index // (disk.ratio + 1)
        return max(0, min(size, disk.virtual_size - block * size))

    def fault(self, index: int, entry: int, size: int | None = None) -> tuple[str, int, int] | None:
        """Say what is wrong with where the present block of entry ``index`` lies: text, value, limit.

        ``size`` is how long the file is taken to be, if not as long as it is.
        """
        start = entry & OFFSET_MASK
        length = self.length(index)
        size = self._image.size if size is None else size
        if start >= size:
            return "starts past the end of the file", start, size
        if start + length > size:
            return "ends past the end of the file", start + length, size
        if start < ondisk.HEADER_SECTION:
            return "overlaps the header section", start, ondisk.HEADER_SECTION
        region = self._disk.regions.overlap(start, start + length)
        if region is not None:
            return f"overlaps the {region}", start, start + length
        return None

    def verify(self) -> None:
        """Refuse an image with a misplaced block, as QEMU does whenever it opens one other than for a check.

        Raises:
            ImageError: ``corrupt``, field ``file_offset``; names the first such entry.
        """
        for first, piece in pieces(self._image, self._disk):
            starts = present(piece)
            if not starts or self.all_well(starts):
                continue
            for index, entry in enumerate(decode(piece), first):
                if entry & STATE_MASK != FULLY_PRESENT:
                    continue
                fault = self.fault(index, entry)
                if fault is not None:
                    detail, value, limit = fault
                    raise ImageError(
                        "corrupt",
                        "block allocation table",
                        f"the block of entry {index} {detail}",
                        field="file_offset",
                        value=value,
                        limit=limit,
                        offset=self._disk.bat + index * ENTRY_SIZE,
                    )

    def all_well(self, starts: list[int]) -> bool:
        """Tell whether whole blocks that start where ``present`` says are all well placed.

        A partial last block counts as not.
        """
        if self.low <= min(starts) // 16 * MiB and max(starts) // 16 * MiB <= self.high:
            return True
        places = sorted(start // 16 * MiB for start in starts)
        if places[0] < ondisk.HEADER_SECTION or places[-1] > self.high:
            return False
        size = self._disk.metadata.block_size
        return all(
            bisect_right(places, start - size) == bisect_left(places, end) for start, end, _ in self._disk.regions.rows
        )
