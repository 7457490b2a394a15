"""Check a qcow image of version 1. qemu-img has no check for this format; here is what one should look at.

Law: memory is bounded by ``MAX_SECTORS``, reading by the L1 table inside the file and ``MAX_TABLE_BYTES``. What a
reader relies on is a corruption, lost space a leak, an oddity a warning.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

from instar.core.bits import Bits
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.reader import read_exact, table
from instar.core.units import align_up, ceil_div
from instar.formats.qcow.ondisk import (
    COMPRESSED,
    ENTRY_SIZE,
    MAX_SECTORS,
    MAX_TABLE_BYTES,
    PIECE,
    SECTOR,
    Header,
    compressed_place,
)
from instar.formats.qcow.parse import open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from instar.core.reader import Reader
    from instar.formats.qcow.parse import Opened

#: Tables are looked at in stretches of so many entries: an empty one, or one that maps a run of clusters, costs little.
_STRETCH = 64
_EMPTY = bytes(_STRETCH * ENTRY_SIZE)


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of a qcow image.

    Totals: ``total_clusters`` of the virtual disk, ``allocated_clusters`` that the tables name, among them
    ``compressed_clusters``; ``fragmented_clusters`` do not follow their predecessor; ``image_end_offset`` is the host
    offset behind everything.

    Raises:
        ImageError: the image cannot be opened; see ``parse.open_image``.
    """
    opened = open_image(image)
    report = Report()
    report.total_clusters = ceil_div(opened.header.size, 1 << opened.header.cluster_bits)
    if opened.header.size % SECTOR:
        report.add("warning", "header", "the size of the disk is no multiple of 512: its last bytes cannot be reached")
    if ceil_div(image.size, SECTOR) > MAX_SECTORS:
        report.add("error", "file", f"the file is longer than {MAX_SECTORS} sectors: nothing was checked")
        return report
    _Walk(image, opened, report).run()
    return report


class _Walk:
    """One descent from the L1 table to the last cluster."""

    __slots__ = (
        "bits",
        "budget",
        "cluster",
        "compressed",
        "end",
        "first",
        "header",
        "image",
        "l1_bytes",
        "l2_bytes",
        "metadata",
        "metadata_end",
        "partial",
        "previous",
        "report",
        "whole",
    )

    def __init__(self, image: Reader, opened: Opened, report: Report) -> None:
        self.image = image
        self.header = header = opened.header
        self.report = report
        self.bits = header.cluster_bits
        self.cluster = 1 << header.cluster_bits
        self.l2_bytes = ENTRY_SIZE << header.l2_bits
        self.l1_bytes = ENTRY_SIZE * opened.l1_entries
        self.budget = MAX_TABLE_BYTES
        sectors = ceil_div(image.size, SECTOR)
        #: Sectors that belong to one table or cluster alone, and those that compressed clusters may share.
        self.whole, self.partial = Bits(sectors), Bits(sectors)
        self.metadata = [(0, Header.SIZE, "header")]
        if opened.backing is not None:
            start = header.backing_file_offset
            self.metadata.append((start, start + header.backing_file_size, "backing file name"))
        self.metadata.append((header.l1_table_offset, header.l1_table_offset + self.l1_bytes, "L1 table"))
        self.metadata_end = max(end for _, end, _ in self.metadata)
        self.end = self.previous = 0
        #: Where the first table or cluster behind the L1 table lies.
        self.first = image.size
        report.allocated_clusters = report.fragmented_clusters = report.compressed_clusters = 0

    def run(self) -> None:
        """Check what lies before the clusters, then both levels, then look for lost space."""
        report, image = self.report, self.image
        for (_, end, name), (start, _, other) in pairwise(sorted(self.metadata)):
            if start < end:
                report.add("corruption", other, f"the {other} overlaps the {name}", offset=start)
        for start, end, name in self.metadata:
            if end > image.size:
                report.add("corruption", name, f"the {name} reaches past the end of the file", offset=start)
        self.end = min(self.metadata_end, image.size)
        inside = max(0, min(self.l1_bytes, image.size - self.header.l1_table_offset))
        span = self.cluster << self.header.l2_bits
        for place, entries in self._stretches(self.header.l1_table_offset, inside // ENTRY_SIZE * ENTRY_SIZE):
            first = (place - self.header.l1_table_offset) // ENTRY_SIZE
            for index, entry in enumerate(entries):
                if entry and not self._l2(place + ENTRY_SIZE * index, entry, (first + index) * span):
                    return
        report.image_end_offset = self.end
        self._leaks()

    def _stretches(self, offset: int, length: int) -> Iterator[tuple[int, array[int]]]:
        """Yield the parts of a table that are not empty, each with its place in the file."""
        for start in range(0, length, PIECE):
            data = memoryview(read_exact(self.image, offset + start, min(PIECE, length - start), "table"))
            for at in range(0, len(data), len(_EMPTY)):
                piece = data[at : at + len(_EMPTY)]
                if piece != _EMPTY[: len(piece)]:
                    yield offset + start + at, table(bytes(piece), "Q", ">")

    def _add(self, severity: str, structure: str, detail: str, place: int) -> None:
        """Report an entry; beyond the findings that are kept, only count it: there may be millions."""
        report = self.report
        if len(report.findings) < MAX_FINDINGS:
            report.add(severity, structure, detail, offset=place)
        elif severity == "corruption":
            report.corruptions += 1
        else:
            report.leaks += 1

    def _claim(self, start: int, end: int) -> str | None:
        """Note the bytes of a table or cluster, which lie inside the file; return what was there before, if anything.

        Compressed clusters may share a sector. Whether their bytes in it overlap is not looked at.
        """
        self.end = max(self.end, end)
        self.first = min(self.first, start)
        found = None
        if start < self.metadata_end:
            found = next((f"the {name}" for low, high, name in self.metadata if start < high and end > low), None)
        low, high = ceil_div(start, SECTOR), end // SECTOR
        clash = 0
        if low < high:
            clash += self.whole.take(low, high - low) + self.partial.taken(low, high - low)
        for sector in {start // SECTOR, (end - 1) // SECTOR}:
            if not low <= sector < high:
                clash += self.whole.taken(sector, 1)
                self.partial.take(sector, 1)
        return found or ("another table or cluster" if clash else None)

    def _l2(self, place: int, offset: int, guest: int) -> bool:
        """Check the L2 table that the L1 entry at ``place`` names; tell whether to go on.

        ``guest`` is where in the disk its clusters begin.
        """
        end = offset + self.l2_bytes
        if offset % SECTOR or end > self.image.size:
            why = "is not aligned to 512" if offset % SECTOR else "reaches past the end of the file"
            self._add("corruption", "L1 table", f"the L2 table at byte {offset} {why}", place)
            return True
        found = self._claim(offset, end)
        if found is not None:
            self._add("corruption", "L1 table", f"the L2 table at byte {offset} overlaps {found}", place)
            return True
        self.budget -= self.l2_bytes
        if self.budget < 0:
            self.report.add(
                "error", "L2 table", f"the check ended here: it reads at most {MAX_TABLE_BYTES} bytes of tables"
            )
            return False
        for at, entries in self._stretches(offset, self.l2_bytes):
            position = guest + (at - offset) // ENTRY_SIZE * self.cluster
            if not self._run(entries, position):
                for index, entry in enumerate(entries):
                    if entry:
                        self._entry(at + ENTRY_SIZE * index, entry, position + index * self.cluster)
        return True

    def _run(self, entries: array[int], guest: int) -> bool:
        """Take a whole stretch of clusters that follow each other in the file; tell whether it was one."""
        start, length = entries[0], len(entries) * self.cluster
        sectors = length // SECTOR
        if (
            start % SECTOR
            or start < self.metadata_end
            or start + length > self.image.size
            or guest + length > self.header.size
            or entries != array("Q", range(start, start + length, self.cluster))
            or self.whole.taken(start // SECTOR, sectors)
            or self.partial.taken(start // SECTOR, sectors)
        ):
            return False
        self.whole.take(start // SECTOR, sectors)
        self.end = max(self.end, start + length)
        self.first = min(self.first, start)
        self._count(len(entries), start, start + length)
        return True

    def _count(self, clusters: int, start: int, end: int) -> None:
        report = self.report
        report.allocated_clusters = (report.allocated_clusters or 0) + clusters
        if self.previous and align_up(self.previous, SECTOR) != start:
            report.fragmented_clusters = (report.fragmented_clusters or 0) + 1
        self.previous = end

    def _entry(self, place: int, entry: int, guest: int) -> None:
        """Check one L2 entry that is not empty."""
        start, length = entry, self.cluster
        what = "cluster"
        if entry & COMPRESSED:
            start, length = compressed_place(entry, self.bits)
            what = "compressed cluster"
            self.report.compressed_clusters = (self.report.compressed_clusters or 0) + 1
        name = f"the {what} at byte {start}"
        self._count(1, start, start + length)
        if guest >= self.header.size:
            self._add("leak", "L2 table", f"{name} lies behind the end of the disk", place)
        if not length:
            self._add("corruption", "L2 table", f"{name} has no length", place)
        elif start + length > self.image.size:
            self._add("corruption", "L2 table", f"{name} reaches past the end of the file", place)
        elif start % SECTOR and not entry & COMPRESSED:
            self._add("corruption", "L2 table", f"{name} is not aligned to 512", place)
        else:
            found = self._claim(start, start + length)
            if found is not None:
                self._add("corruption", "L2 table", f"{name} overlaps {found}", place)

    def _leaks(self) -> None:
        """Look for gaps behind the first table or cluster that a cluster and a table would fit into.

        Smaller ones are how writers align either. Before the first nothing was ever in use: VirtualBox gives the
        header and the L1 table whole clusters.
        """
        for at in range(0, len(self.partial.data), PIECE):
            both = int.from_bytes(self.whole.data[at : at + PIECE], "little")
            both |= int.from_bytes(self.partial.data[at : at + PIECE], "little")
            piece = len(self.whole.data[at : at + PIECE])
            self.whole.data[at : at + PIECE] = both.to_bytes(piece, "little")
        sectors = self.cluster // SECTOR
        first = ceil_div(max(self.metadata_end, self.first), SECTOR)
        lost, place = self.whole.gaps(first, max(sectors, self.l2_bytes // SECTOR))
        if lost:
            self.report.add(
                "leak",
                "file",
                f"room for {lost // sectors} clusters that no table refers to; this is the first",
                offset=place * SECTOR,
                count=lost // sectors,
            )
