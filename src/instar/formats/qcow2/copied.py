"""The copied flags of the active L1 and L2 tables: set where, and only where, the refcount is exactly one.

Law: the flags are compared with the refcounts that stand in the image, after these were compared with the
references (specification, "Cluster mapping"); a table is read once however often it is pointed to.
"""

from __future__ import annotations

from instar.formats.qcow2.clusters import PIECE
from instar.formats.qcow2.ondisk import COMPRESSED, COPIED, L1_OFFSET_MASK, L2_OFFSET_MASK
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
        for place, entry in self._clusters.l1_entries(image.l1_table_offset, image.l1_size):
            offset = entry & L1_OFFSET_MASK
            if not offset:
                continue
            one = self._is_one(offset >> image.cluster_bits)
            if one is None:
                continue
            if one != bool(entry & COPIED):
                self._wrong("Active L1 table", place, entry, one)
            if offset in self._done:
                if self._done[offset]:
                    detail = "the same L2 table again: its copied flags are wrong"
                    self._report.add("corruption", "L2 table", detail, offset=offset, count=self._done[offset])
                continue
            before = self._report.corruptions
            self._table(offset)
            if self._clusters.repeated(offset):
                self._done[offset] = self._report.corruptions - before

    def _table(self, offset: int) -> None:
        image = self._image
        whole = self._clusters.known_series(offset)
        if whole:
            self._series(offset, whole, image.entries)
            return
        data = self._clusters.read(offset)
        size = min(PIECE, image.entries)
        length = size * image.entry_size
        for start in range(0, len(data), length):
            piece = data[start : start + length]
            if piece.count(0) == length:
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
                self._count(place, count, "is not set, but clusters of a data file are used once")
            return
        cluster = (first & L2_OFFSET_MASK) >> image.cluster_bits
        if self._refcounts.unreadable:
            for index in range(count):
                one = self._is_one(cluster + index)
                if one is not None and one != copied:
                    self._wrong(
                        "L2 table", place + index * image.entry_size, first + (index << image.cluster_bits), one
                    )
            return
        wrong = 0
        for number, low, high in pieces(cluster, count):
            page = self._references.pages.get(number)
            if page is None:
                page = self._refcounts.window(number * PAGE, PAGE) or uniform(0)
            single = page.count(1, low, high)
            wrong += high - low - single if copied else single
        if wrong:
            self._count(
                place, wrong, "is set, but the refcount is not 1" if copied else "is not set, but the refcount is 1"
            )

    def _entries(self, place: int, data: bytes) -> None:
        entries, _ = self._clusters.split(data)
        image = self._image
        bits, has_data_file = image.cluster_bits, image.has_data_file
        pages = {} if self._refcounts.unreadable else self._references.pages
        one: bool | None
        for index, entry in enumerate(entries):
            if not entry or entry & COMPRESSED:
                continue
            offset = entry & L2_OFFSET_MASK
            if not offset and not self._clusters.maps_zero(entry):
                continue
            if has_data_file:
                one = True
            else:
                cluster = offset >> bits
                page = pages.get(cluster // PAGE)
                one = self._is_one(cluster) if page is None else page[cluster % PAGE] == 1
            if one is not None and one != entry >> 63:
                self._wrong("L2 table", place + index * image.entry_size, entry, one)

    def _is_one(self, cluster: int) -> bool | None:
        refcount = self._refcounts.get(cluster)
        return None if refcount is None else refcount == 1

    def _wrong(self, structure: str, place: int, entry: int, one: bool) -> None:
        state = "is not set, but the refcount is 1" if one else "is set, but the refcount is not 1"
        self._report.add("corruption", structure, f"the copied flag of {entry:#x} {state}", offset=place)

    def _count(self, place: int, count: int, state: str) -> None:
        self._report.add(
            "corruption", "L2 table", f"the copied flag of {count} entries {state}", offset=place, count=count
        )
