"""The refcounts that stand in an image: the refcount table, its blocks, and their comparison with references.

Law: blocks are read in windows of at most 32768 refcounts, whatever their size (specification, "Host cluster
management"). A refcount is handed out as one byte, 255 meaning "255 or more", as references are counted.
"""

from __future__ import annotations

from array import array

from instar.core.finding import MAX_FINDINGS
from instar.core.reader import Ahead, read_padded, table
from instar.core.units import align_up
from instar.formats.qcow2.ondisk import (
    MAX_LENGTH,
    REFCOUNT_TABLE_ENTRY_SIZE,
    REFCOUNT_TABLE_OFFSET_MASK,
    REFCOUNT_TABLE_RESERVED_MASK,
)
from instar.formats.qcow2.references import LARGE, PAGE, uniform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.finding import Report
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.references import References

#: Refcounts that are read at once; a multiple of a page, and of the entries of the smallest block.
WINDOW = 32 * PAGE
#: For refcounts below 8 bits: each byte to the counts in it, lowest bits first, by ``(bits, place)``.
_narrow: dict[tuple[int, int], bytes] = {}


class Refcounts:
    """The refcount table of an image, and its blocks.

    Attributes:
        table: the entries of the table, without the zeros at its end.
        block_entries: refcounts in one block.
        unreadable: some block has a place at which no block can be.
    """

    __slots__ = ("_ahead", "_bits", "_cluster_size", "block_entries", "table", "unreadable")

    def __init__(self, image: Image) -> None:
        self._ahead = Ahead(image.reader)
        self._bits = image.refcount_bits
        self._cluster_size = image.cluster_size
        self.block_entries = image.cluster_size * 8 // image.refcount_bits
        length = image.refcount_table_clusters * image.cluster_size
        there = max(0, min(length, image.file_end - image.refcount_table_offset))
        data = read_padded(image.reader, image.refcount_table_offset, there)
        used = align_up(len(data.rstrip(b"\0")), REFCOUNT_TABLE_ENTRY_SIZE)
        self.table = table(data[:used], "Q", ">")
        self.unreadable = any(self.block(index) is None for index in range(len(self.table)))

    def block(self, index: int) -> int | None:
        """Return the host offset of a block, 0 if there is none, ``None`` if none can be where the table says."""
        if index >= len(self.table):
            return 0
        offset = self.table[index] & REFCOUNT_TABLE_OFFSET_MASK
        if offset % self._cluster_size or offset + self._cluster_size > MAX_LENGTH:
            return None
        return offset

    def get(self, cluster: int) -> int | None:
        """Return the refcount of one cluster; ``None`` if its block cannot be read."""
        index, place = divmod(cluster, self.block_entries)
        offset = self.block(index)
        if not offset:
            return offset
        bit = place * self._bits
        width = max(1, self._bits // 8)
        value = int.from_bytes(self._ahead.read(offset + bit // 8, width), "big")
        return value >> bit % 8 & (1 << self._bits) - 1 if self._bits < 8 else value

    def window(self, first: int, count: int) -> bytes | None:
        """Return the refcounts of ``count`` clusters, a byte each; ``None`` if no block holds any.

        ``first`` and ``count`` are multiples of ``PAGE``. The refcounts of unreadable blocks are given as zeros.
        """
        found = None
        step = min(self.block_entries, count)
        for start in range(first, min(first + count, len(self.table) * self.block_entries), step):
            offset = self.block(start // self.block_entries)
            if not offset:
                continue
            place = start % self.block_entries * self._bits // 8
            data = self._ahead.read(offset + place, step * self._bits // 8)
            if data == bytes(len(data)):
                continue
            if step == count:
                return self._bytes(data)
            if found is None:
                found = bytearray(count)
            found[start - first : start - first + step] = self._bytes(data)
        return None if found is None else bytes(found)

    def _bytes(self, data: bytes) -> bytes:
        """Bring refcounts of any width to one byte."""
        bits = self._bits
        if bits == 8:
            return data
        if bits < 8:
            out = bytearray(len(data) * 8 // bits)
            for place in range(8 // bits):
                out[place :: 8 // bits] = data.translate(_counts(bits, place))
            return bytes(out)
        width = bits // 8
        count = len(data) // width
        if any(data[place::width] != bytes(count) for place in range(width - 1)):
            codes = {2: "H", 4: "I", 8: "Q"}
            return bytes([min(count, LARGE) for count in table(data, codes[width], ">")])
        return data[width - 1 :: width]

    def unreadable_in(self, first: int, count: int) -> list[tuple[int, int]]:
        """Return the parts of a range, as ``(first, end)``, whose blocks cannot be read."""
        if not self.unreadable:
            return []
        end = first + count
        indexes = range(first // self.block_entries, -(-end // self.block_entries))
        size = self.block_entries
        return [
            (max(first, index * size), min(end, index * size + size))
            for index in indexes
            if index < len(self.table) and self.block(index) is None
        ]


def _counts(bits: int, place: int) -> bytes:
    """Return the translation of a byte to the refcount at ``place`` in it."""
    key = bits, place
    if key not in _narrow:
        _narrow[key] = bytes(byte >> place * bits & (1 << bits) - 1 for byte in range(256))
    return _narrow[key]


def check_blocks(image: Image, refcounts: Refcounts, references: References, report: Report) -> None:
    """Judge the entries of the refcount table, and count the blocks as referenced."""
    structure = "Refcount block"
    entries: array[int] = refcounts.table
    for index, entry in enumerate(entries):
        if not entry:
            continue
        offset = entry & REFCOUNT_TABLE_OFFSET_MASK
        place = image.refcount_table_offset + index * REFCOUNT_TABLE_ENTRY_SIZE
        cluster = offset >> image.cluster_bits
        wrong = None
        if entry & REFCOUNT_TABLE_RESERVED_MASK:
            wrong = "reserved", "has reserved bits"
        elif offset % image.cluster_size:
            wrong = "unaligned", "is not a multiple of the cluster size"
        elif cluster >= references.clusters:
            wrong = "outside", "points behind the end of the file"
        if wrong is not None:
            detail = f"entry {index} of the refcount table {wrong[1]} ({entry:#x})"
            code = f"qcow2-refcount-table-{wrong[0]}"
            report.add("corruption", "Refcount table", detail, offset=place, code=code, values=(index,))
        elif offset:
            references.region(structure, offset, image.cluster_size)
            count = references.get(cluster)
            if count != 1:
                detail = f"refcount block {index} is in a cluster that is referenced {count} times"
                code = "qcow2-refcount-block-shared"
                report.add("corruption", structure, detail, offset=offset, code=code, values=(index, count))


class Comparison:
    """Compares refcounts with references, cluster by cluster, from the start of the file.

    Attributes:
        end: the cluster behind the last one that is referenced or has a refcount; at least 1.
    """

    __slots__ = ("_bits", "_refcounts", "_references", "_report", "end")

    def __init__(self, image: Image, refcounts: Refcounts, references: References, report: Report) -> None:
        self._bits = image.cluster_bits
        self._refcounts = refcounts
        self._references = references
        self._report = report
        self.end = 1

    def run(self) -> None:
        """Report leaks and wrong refcounts. Afterwards ``references`` holds refcounts, where it has pages."""
        clusters = self._references.clusters
        pages = self._references.pages
        covered = min(clusters, len(self._refcounts.table) * self._refcounts.block_entries)
        for first in range(0, covered, WINDOW):
            stored = self._refcounts.window(first, WINDOW)
            holes = self._refcounts.unreadable_in(first, min(WINDOW, clusters - first))
            for low, high in holes:
                self._unreadable(low, high)
            for at in range(0, min(WINDOW, clusters - first), PAGE):
                number = (first + at) // PAGE
                page = pages.get(number)
                if stored is not None:
                    self._page(number, stored[at : at + PAGE], page, holes)
                elif page is not None:
                    self._page(number, uniform(0), page, holes)
        border = -(-covered // WINDOW) * WINDOW // PAGE
        for number in sorted(number for number in pages if number >= border):
            self._page(number, uniform(0), pages[number], [])

    def _unreadable(self, low: int, high: int) -> None:
        """Report clusters whose refcounts cannot be read: one by one at first, then the rest together."""
        last = min(high, low + MAX_FINDINGS - len(self._report.findings)) - 1
        for cluster in range(low, max(low, last) + 1):
            count = high - cluster if cluster >= last else 1
            detail, code = f"the refcount of cluster {cluster} cannot be read", "qcow2-refcount-unreadable"
            self._report.add("error", "Refcount block", detail, count=count, code=code, values=(cluster,))

    def _page(self, number: int, stored: bytes, page: bytes | bytearray | None, holes: list[tuple[int, int]]) -> None:
        counts = uniform(0) if page is None else page
        # What stands there counts for copied flags, also behind the end of the file.
        all_stored = stored
        first = number * PAGE
        if first + PAGE > self._references.clusters:
            kept = self._references.clusters - first
            stored = stored[:kept] + bytes(PAGE - kept)
        for low, high in holes:
            low, high = max(low - first, 0), min(high - first, PAGE)
            if low < high:
                counts = counts[:low] + bytes(high - low) + counts[high:]
                stored = stored[:low] + bytes(high - low) + stored[high:]
        if stored != counts or LARGE in stored:
            self._differences(first, stored, counts)
        last = max(len(stored.rstrip(b"\0")), len(counts.rstrip(b"\0")))
        if last:
            self.end = max(self.end, first + last)
        if page is not None and all_stored != page:
            self._references.settle(number, all_stored)

    def _differences(self, first: int, stored: bytes, counts: bytes | bytearray) -> None:
        """Report the clusters of one page that differ: one by one at first, then the rest of a page together."""
        full = len(self._report.findings) >= MAX_FINDINGS
        if full and stored[0] != counts[0] and LARGE not in (stored[0], counts[0]):
            if stored.count(stored[0]) == counts.count(counts[0]) == PAGE:
                self._difference(first, stored[0], counts[0], PAGE)
                return
            if counts.count(0) == PAGE:
                self._difference(first, 1, 0, PAGE - stored.count(0))
                return
        for at in range(PAGE):
            if stored[at] != counts[at] or stored[at] == LARGE:
                cluster = first + at
                refcount = self._refcounts.get(cluster) if stored[at] == LARGE else stored[at]
                count = self._references.get(cluster) if counts[at] == LARGE else counts[at]
                if refcount is not None and refcount != count:
                    self._difference(cluster, refcount, count)

    def _difference(self, cluster: int, refcount: int, count: int, number: int = 1) -> None:
        severity = "leak" if refcount > count else "corruption"
        self._report.add(
            severity,
            "Refcounts",
            f"cluster {cluster}: refcount {refcount}, references {count}",
            offset=cluster << self._bits,
            count=number,
            code=f"qcow2-refcount-{severity}",
            values=(cluster, refcount, count),
        )
