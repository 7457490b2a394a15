"""The copied flags of the active L1 and L2 tables: set where, and only where, the refcount is exactly one.

Law: the flags are compared with the refcounts that stand in the image, after these were compared with the
references (specification, "Cluster mapping"); a table is read once however often it is pointed to.
"""

from __future__ import annotations

from instar.core.finding import MAX_FINDINGS
from instar.formats.qcow2.clusters import PIECE
from instar.formats.qcow2.ondisk import COMPRESSED, COPIED, L1_ENTRY_SIZE, L1_OFFSET_MASK, L2_OFFSET_MASK
from instar.formats.qcow2.references import PAGE, pieces, uniform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.finding import Report
    from instar.formats.qcow2.clusters import Clusters
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.refcount import Refcounts
    from instar.formats.qcow2.references import References


class CopiedFlags:
    """Compares flags with refcounts. ``references`` holds refcounts by now, where it has pages."""

    __slots__ = ("_clusters", "_done", "_image", "_refcounts", "_references", "_report")

    def __init__(
        self, image: Image, clusters: Clusters, refcounts: Refcounts, references: References, report: Report
    ) -> None:
        self._image = image
        self._clusters = clusters
        self._refcounts = refcounts
        self._references = references
        self._report = report
        #: Wrong flags of tables that several entries point to, by host offset.
        self._done: dict[int, int] = {}

    def run(self) -> None:
        """Report every flag that is wrong."""
        image = self._image
        for place, entry, count in self._clusters.l1_rows(image.l1_table_offset, image.l1_size):
            offset = entry & L1_OFFSET_MASK
            if not offset:
                continue
            refcount = self._refcounts.get(offset >> image.cluster_bits)
            if refcount is None:
                continue
            if (refcount == 1) != bool(entry & COPIED):
                index = (place - image.l1_table_offset) // L1_ENTRY_SIZE
                self._wrong("Active L1 table", place, entry, refcount, "l1", (index, entry, refcount), count)
            if offset not in self._done:
                before = self._report.corruptions
                self._table(offset)
                if self._clusters.repeated(offset):
                    self._done[offset] = self._report.corruptions - before
                count -= 1
            again = self._done.get(offset, 0) * count
            if again:
                detail = "the same L2 table again: its copied flags are wrong"
                self._report.add("corruption", "L2 table", detail, offset=offset, count=again)

    def _table(self, offset: int) -> None:
        image = self._image
        whole = self._clusters.known_series(offset)
        if whole:
            self._series(offset, whole, image.entries)
            return
        data = self._clusters.read(offset)
        size = min(PIECE, image.entries)
        length = size * image.entry_size
        zeros = bytes(length)
        for start in range(0, len(data), length):
            piece = data[start : start + length]
            if piece == zeros:
                continue
            first = self._clusters.series_of(piece, size)
            if first:
                self._series(offset + start, first, size)
            else:
                self._entries(offset + start, piece)

    def _series(self, place: int, first: int, count: int) -> None:
        copied = bool(first & COPIED)
        image = self._image
        if image.has_data_file:
            if not copied:
                self._each(place, first, count)
            return
        if self._refcounts.unreadable:
            self._each(place, first, count)
            return
        cluster = (first & L2_OFFSET_MASK) >> image.cluster_bits
        for number, low, high in pieces(cluster, count):
            page = self._references.pages.get(number)
            if page is None:
                page = self._refcounts.window(number * PAGE, PAGE) or uniform(0)
            single = page.count(1, low, high)
            wrong = high - low - single if copied else single
            if not wrong:
                continue
            if len(self._report.findings) >= MAX_FINDINGS:
                self._report.add("corruption", "L2 table", "further copied flags are wrong", count=wrong)
            else:
                index = number * PAGE + low - cluster
                self._each(place + index * image.entry_size, first + index * image.cluster_size, high - low)

    def _each(self, place: int, first: int, count: int) -> None:
        """Judge the entries of a series one by one."""
        image = self._image
        for index in range(count):
            self._entry(place + index * image.entry_size, first + index * image.cluster_size)

    def _entries(self, place: int, data: bytes) -> None:
        entries, _ = self._clusters.split(data)
        image = self._image
        bits, maps_zero = image.cluster_bits, self._clusters.maps_zero
        # With a data file there are no pages for what it holds; with unreadable blocks, each must be asked.
        pages = {} if image.has_data_file or self._refcounts.unreadable else self._references.pages
        for index, entry in enumerate(entries):
            if entry & COMPRESSED or not entry:
                continue
            cluster = (entry & L2_OFFSET_MASK) >> bits
            page = pages.get(cluster // PAGE)
            wrong = page is None or (page[cluster % PAGE] == 1) != entry >> 63
            if wrong and (entry & L2_OFFSET_MASK or maps_zero(entry)):
                self._entry(place + index * image.entry_size, entry)

    def _entry(self, place: int, entry: int) -> None:
        """Judge the entry of a cluster that is not compressed."""
        cluster = (entry & L2_OFFSET_MASK) >> self._image.cluster_bits
        refcount = 1 if self._image.has_data_file else self._refcounts.get(cluster)
        if refcount is not None and (refcount == 1) != bool(entry & COPIED):
            self._wrong("L2 table", place, entry, refcount, "l2", (entry, refcount))

    def _wrong(
        self,
        structure: str,
        place: int,
        entry: int,
        refcount: int,
        code: str,
        values: tuple[int, ...],
        count: int = 1,
    ) -> None:
        state = "is set" if entry & COPIED else "is not set"
        detail = f"the copied flag of {entry:#x} {state}, but the refcount is {refcount}"
        code = f"qcow2-copied-{code}"
        self._report.add("corruption", structure, detail, offset=place, count=count, code=code, values=values)
