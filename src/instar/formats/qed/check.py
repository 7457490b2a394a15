"""Check a QED image: each cluster is referenced once, and each reference leads into the file.

Law: the totals are qemu-img's, but for leaks that are none (``Report.false_leaks``). Memory is bounded by
``MAX_CLUSTERS`` (one bit each), reading by the L1 table and ``MAX_TABLE_BYTES``: no cluster of a table is read twice,
as a table that shares one with another is not read at all.
"""

from __future__ import annotations

from array import array

from instar.core.bits import Bits
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.reader import MAX_READ, read_padded, table
from instar.core.units import ceil_div
from instar.formats.qed.ondisk import (
    ENTRY_SIZE,
    F_NEED_CHECK,
    MAX_CLUSTERS,
    MAX_TABLE_BYTES,
    UNALLOCATED,
    ZERO_CLUSTER,
)
from instar.formats.qed.parse import backing_name, open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from instar.core.reader import Reader
    from instar.formats.qed.parse import Opened

#: Tables are looked at in stretches of so many entries: an empty one, or one that maps a run of clusters, costs little.
_STRETCH = 512
_EMPTY = bytes(_STRETCH * ENTRY_SIZE)


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of a QED image; all generations check alike.

    Totals: ``total_clusters`` of the virtual disk, ``allocated_clusters`` that the tables name,
    ``fragmented_clusters`` those that do not follow their predecessor in the table.

    Raises:
        ImageError: the image cannot be opened; see ``parse.open_image`` and ``parse.backing_name``.
    """
    opened = open_image(image)
    backing_name(image, opened)
    report = Report()
    header = opened.header
    report.total_clusters = ceil_div(header.image_size, header.cluster_size)
    if header.features & F_NEED_CHECK:
        report.add("warning", "header", "the image was not closed cleanly", code="qed-need-check")
    for name in ("compat_features", "autoclear_features"):
        bits = getattr(header, name)
        if bits:
            report.add("warning", "header", f"{name} has the unknown bits {bits:#x}", code="qed-unknown-bits")
    clusters = opened.end // header.cluster_size
    if clusters > MAX_CLUSTERS:
        report.add("error", "file", f"the file has {clusters} clusters, more than {MAX_CLUSTERS}: nothing was checked")
        return report
    # QEMU divides offsets by the cluster size less one, so its numbers of clusters soon are one too high, then two. The
    # numbers left out are nobody's, and it takes them for leaked clusters.
    report.false_leaks = clusters // (header.cluster_size - 1)
    _Walk(image, opened, report, Bits(clusters)).run()
    return report


class _Walk:
    """One descent from the L1 table to the last data cluster."""

    __slots__ = ("budget", "image", "opened", "report", "shift", "size", "table_bytes", "used")

    def __init__(self, image: Reader, opened: Opened, report: Report, used: Bits) -> None:
        self.image = image
        self.opened = opened
        self.report = report
        self.used = used
        self.size = opened.header.cluster_size
        self.shift = self.size.bit_length() - 1
        self.table_bytes = self.size * opened.header.table_size
        self.budget = MAX_TABLE_BYTES
        report.allocated_clusters = report.fragmented_clusters = 0

    def run(self) -> None:
        """Check both levels, then look for clusters that nothing refers to."""
        header = self.opened.header
        self.used.take(header.l1_table_offset >> self.shift, header.table_size)
        for place, entries in self._stretches(header.l1_table_offset):
            for index, entry in enumerate(entries):
                if entry != UNALLOCATED and not self._l2(place + ENTRY_SIZE * index, entry):
                    return
        lost, first = self.used.gaps(header.header_size)
        if lost:
            self.report.add(
                "leak",
                "file",
                f"{lost} clusters that no table refers to; this is the first",
                offset=first << self.shift,
                count=lost,
                code="qed-leak",
            )

    def _stretches(self, offset: int) -> Iterator[tuple[int, array[int]]]:
        """Yield the parts of a table that are not empty, each with its place in the file.

        A file counts in whole sectors, so the last bytes of a table may be missing: they are zeros.
        """
        for start in range(offset, offset + self.table_bytes, min(MAX_READ, self.table_bytes)):
            data = memoryview(read_padded(self.image, start, min(MAX_READ, self.table_bytes)))
            for at in range(0, len(data), len(_EMPTY)):
                piece = data[at : at + len(_EMPTY)]
                if piece != _EMPTY:
                    yield start + at, table(bytes(piece), "Q", "<")

    def _corruption(self, structure: str, detail: str, entry: int, offset: int, *, count: int = 1) -> None:
        """Report an entry; beyond the findings that are kept, only count it: there may be millions."""
        if len(self.report.findings) < MAX_FINDINGS:
            self.report.add(
                "corruption",
                structure,
                f"offset {entry:#x} {detail}",
                offset=offset,
                count=count,
                code="qed-reference",
            )
        else:
            self.report.corruptions += count

    def _l2(self, place: int, offset: int) -> bool:
        """Check the L2 table at ``offset``, which the L1 entry at ``place`` names; tell whether to go on."""
        if not self.opened.holds_table(offset):
            self._corruption("L1 table", "leads to no place for an L2 table", offset, place)
            return True
        taken = self.used.take(offset >> self.shift, self.opened.header.table_size)
        if taken:
            self._corruption("L1 table", "leads to an L2 table over other clusters", offset, place, count=taken)
            return True
        self.budget -= self.table_bytes
        if self.budget < 0:
            self.report.add(
                "error", "L2 table", f"the check ended here: it reads at most {MAX_TABLE_BYTES} bytes of tables"
            )
            return False
        self._entries(offset)
        return True

    def _entries(self, offset: int) -> None:
        """Check all entries of an L2 table."""
        opened, used, report = self.opened, self.used, self.report
        size, shift, first, end = self.size, self.shift, opened.first, opened.end
        run = _STRETCH * size
        previous = allocated = fragmented = 0
        bits = used.data
        for place, entries in self._stretches(offset):
            start = entries[0]
            if (
                entries[-1] - start == run - size
                and opened.holds_cluster(start)
                and start + run <= end
                and entries == array("Q", range(start, start + run, size))
                and not used.taken(start >> shift, _STRETCH)
            ):
                used.take(start >> shift, _STRETCH)
                allocated += _STRETCH
                fragmented += 0 != previous != start - size
                previous = start + run - size
                continue
            for index, entry in enumerate(entries):
                if entry <= ZERO_CLUSTER:
                    continue
                allocated += 1
                fragmented += 0 != previous != entry - size
                previous = entry
                if entry & (size - 1) or not first <= entry < end:
                    self._corruption("L2 table", "leads to no place for a cluster", entry, place + ENTRY_SIZE * index)
                    continue
                # ``Bits.take`` of one cluster, without the call.
                at, bit = entry >> shift >> 3, 1 << (entry >> shift & 7)
                if bits[at] & bit:
                    self._corruption("L2 table", "leads to a cluster in use", entry, place + ENTRY_SIZE * index)
                bits[at] |= bit
        report.allocated_clusters = (report.allocated_clusters or 0) + allocated
        report.fragmented_clusters = (report.fragmented_clusters or 0) + fragmented
