"""The L1 and L2 tables of an image: every entry judged, every cluster behind it counted.

Law: a table is read once for all that point to it, and a piece of it that maps clusters one after the other
is judged as a whole; work and memory are bounded by named limits (specification, "Cluster mapping").
"""

from __future__ import annotations

from instar.core.finding import MAX_FINDINGS
from instar.core.reader import MAX_READ, Ahead, read_padded, table
from instar.formats.qcow2.bulk import ones, ramp
from instar.formats.qcow2.header import bad
from instar.formats.qcow2.ondisk import (
    COMPRESSED,
    COMPRESSED_SECTOR,
    COPIED,
    L1_ENTRY_SIZE,
    L1_OFFSET_MASK,
    L1_RESERVED_MASK,
    L2_OFFSET_MASK,
    L2_RESERVED_MASK,
    MAX_CHECKED_L1_ENTRIES,
    MAX_CHECKED_L2_BYTES,
    MAX_LENGTH,
    MAX_SHARED_TABLES,
    MAX_UNALIGNED_TABLES,
    SUBCLUSTERS_ALLOCATED_MASK,
    ZERO,
    compressed_offset_bits,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from instar.core.finding import Report
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.references import References

#: Entries that are judged together where a whole table cannot be.
PIECE = 64
#: L2 tables whose first entry stands for all are remembered, so that they need not be read again.
_MAX_SERIES = 1 << 16
_OFFSETS_END = 1 << 56
#: From so many entries for each table on, a piece of an L1 table is judged by the tables that it names.
_REPEATS = 2
#: Pieces of up to so many entries are judged one by one: 8 TiB in clusters of 64 KiB.
_ONE_BY_ONE = 1 << 14


class Clusters:
    """Walks the tables of an image.

    Attributes:
        allocated, fragmented, compressed: clusters of the active tables, as QEMU counts them.
        twice: host clusters of active L2 tables that something else had been found to use before.
    """

    __slots__ = (
        "_image",
        "_l1_budget",
        "_l2_budget",
        "_references",
        "_report",
        "_rows",
        "_series",
        "_shared",
        "_start",
        "_tables",
        "_unaligned",
        "allocated",
        "compressed",
        "fragmented",
        "twice",
    )

    def __init__(self, image: Image, references: References, report: Report) -> None:
        self._image = image
        self._references = references
        self._report = report
        self._l1_budget = MAX_CHECKED_L1_ENTRIES
        self._l2_budget = MAX_CHECKED_L2_BYTES
        #: Further pointers to an L2 table, by host cluster: from active L1 entries, from those of snapshots.
        self._shared: tuple[dict[int, int], dict[int, int]] = ({}, {})
        #: The same for tables that do not start at a cluster, by host offset.
        self._unaligned: dict[int, list[int]] = {}
        #: First entries of the active tables that map clusters one after the other, by host offset.
        self._series: dict[int, int] = {}
        #: By number of entries: the last series, as first entry and table; what was added to get there.
        self._rows: dict[int, tuple[int, int, int, int]] = {}
        #: Host offset of the table whose entries are judged.
        self._start = 0
        self._tables = Ahead(image.reader)
        self.allocated = 0
        self.fragmented = 0
        self.compressed = 0
        self.twice: list[int] = []

    def walk(self, structure: str, offset: int, size: int, *, active: bool) -> bool:
        """Count an L1 table of ``size`` entries at ``offset``, its L2 tables, and what they map.

        Returns whether the table itself was counted (``References.region``).
        """
        if not size:
            return False
        if offset + size * L1_ENTRY_SIZE > MAX_LENGTH:
            self._report.add("error", structure, "the table lies where no file can reach", offset=offset)
            return False
        counted = self._references.region(structure, offset, size * L1_ENTRY_SIZE)
        self._l1_budget -= size
        if self._l1_budget < 0:
            limit = MAX_CHECKED_L1_ENTRIES
            raise bad("too-large", structure, "the L1 tables of all snapshots together are too large", limit=limit)
        for place, entry, count in self.l1_rows(offset, size):
            while count > 1 and len(self._report.findings) < MAX_FINDINGS and self._is_odd(entry, count):
                self._l1_entry(structure, place, entry, 1, active)
                count -= 1
            if count:
                self._l1_entry(structure, place, entry, count, active)
        return counted

    def _is_odd(self, entry: int, count: int) -> bool:
        """Tell whether so many pointers to a table make findings, each of which is to be seen."""
        start = entry & L1_OFFSET_MASK
        unaligned = start & self._image.cluster_size - 1
        references = self._references
        cluster = start >> self._image.cluster_bits
        if entry & L1_RESERVED_MASK or unaligned or cluster >= references.inside:
            return True
        return references.get(cluster) + count > references.maximum

    def _l1_entry(self, structure: str, place: int, entry: int, count: int, active: bool) -> None:
        """Judge ``count`` L1 entries that are alike, and count what they name; the first of them is at ``place``."""
        image = self._image
        bits, mask = image.cluster_bits, image.cluster_size - 1
        if entry & L1_RESERVED_MASK:
            detail = f"an L1 entry has reserved bits ({entry:#x})"
            code = "qcow2-l1-reserved"
            self._report.add("corruption", structure, detail, offset=place, count=count, code=code, values=(entry,))
        start = entry & L1_OFFSET_MASK
        before = self._references.get(start >> bits)
        inside = self._references.region("L2 table", start, image.cluster_size, count)
        if start & mask:
            detail = f"an L1 entry is not a multiple of the cluster size ({entry:#x})"
            code = "qcow2-l1-unaligned"
            self._report.add("corruption", structure, detail, offset=place, count=count, code=code, values=(start,))
            self._remember_unaligned(start, count, active)
            return
        if not (before and inside):
            count -= inside
            self._table(start, 1 if inside else count, int(active) * (1 if inside else count))
        if count and inside:
            self._share(start >> bits, count, active)

    def finish(self) -> None:
        """Count what the tables map that several entries point to. No table may be walked afterwards."""
        mine, others = self._shared
        for cluster in mine.keys() | others.keys():
            first = mine.get(cluster, 0)
            self._table(cluster << self._image.cluster_bits, first + others.get(cluster, 0), first)
        for offset, (first, other) in self._unaligned.items():
            self._table(offset, first + other, first)

    def expected(self, cluster: int) -> int:
        """Return how many L1 entries point to the L2 table in a cluster, if an active one does."""
        mine, others = self._shared
        return 1 + mine.get(cluster, 0) + others.get(cluster, 0)

    def known_series(self, offset: int) -> int:
        """Return the first entry of an active table that was found to be one series; else 0."""
        return self._series.get(offset, 0)

    def repeated(self, offset: int) -> bool:
        """Tell whether several entries of the active L1 table may point to the L2 table at ``offset``."""
        return offset >> self._image.cluster_bits in self._shared[0] or offset in self._unaligned

    def active_tables(self) -> Iterator[int]:
        """Yield the host cluster of each L2 table that the active L1 table names, perhaps more than once."""
        image = self._image
        for _, entry, _ in self.l1_rows(image.l1_table_offset, image.l1_size):
            start = entry & L1_OFFSET_MASK
            if start and not start & image.cluster_size - 1:
                yield start >> image.cluster_bits

    def l1_rows(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield host offset and value of the entries that are not zero, and how many.

        That is one, but for a large piece of a table that has the same entries again and again: what it has is yielded
        once, with its first place.
        """
        for start, entries in self._l1_pieces(offset, size):
            rows = _repeated(entries) if len(entries) > _ONE_BY_ONE else None
            if rows is None:
                for index, entry in enumerate(entries):
                    if entry:
                        yield start + index * L1_ENTRY_SIZE, entry, 1
            else:
                for entry, (index, count) in rows.items():
                    yield start + index * L1_ENTRY_SIZE, entry, count

    def _l1_pieces(self, offset: int, size: int) -> Iterator[tuple[int, array[int]]]:
        """Yield the parts of an L1 table that are not all zeros, and where they start."""
        end = min(offset + size * L1_ENTRY_SIZE, self._image.file_end)
        for start in range(offset, end, MAX_READ):
            data = read_padded(self._image.reader, start, min(MAX_READ, end - start))
            if data != bytes(len(data)):
                yield start, table(data, "Q", ">")

    def _share(self, cluster: int, count: int, active: bool) -> None:
        if active and len(self.twice) < MAX_UNALIGNED_TABLES:
            self.twice.append(cluster)
        shared = self._shared[not active]
        shared[cluster] = shared.get(cluster, 0) + count
        if len(shared) > MAX_SHARED_TABLES:
            detail = "too many L2 tables are used more than once"
            raise bad("too-large", "L2 table", detail, limit=MAX_SHARED_TABLES)

    def _remember_unaligned(self, offset: int, count: int, active: bool) -> None:
        counts = self._unaligned.setdefault(offset, [0, 0])
        counts[not active] += count
        if len(self._unaligned) > MAX_UNALIGNED_TABLES:
            detail = "too many L2 tables do not start at a multiple of the cluster size"
            raise bad("too-large", "L2 table", detail, limit=MAX_UNALIGNED_TABLES)

    def read(self, offset: int) -> bytes:
        """Read an L2 table; return nothing if it is all zeros, or behind the end of the file."""
        size = self._image.cluster_size
        if offset >= self._image.reader.size:
            return b""
        self._l2_budget -= size
        if self._l2_budget < 0:
            detail = "the L2 tables together are too large"
            raise bad("too-large", "L2 table", detail, limit=MAX_CHECKED_L2_BYTES)
        data = self._tables.read(offset, size)
        return b"" if data == bytes(size) else data

    def _table(self, offset: int, weight: int, active: int) -> None:
        """Count what one L2 table maps, ``weight`` times; ``active`` of them are from the active L1 table."""
        data = self.read(offset)
        if not data:
            return
        whole = self.series_of(data, self._image.entries)
        if whole:
            if active and len(self._series) < _MAX_SERIES:
                self._series[offset] = whole
            self._count_series(whole, self._image.entries, weight, active, 0)
            return
        self._start = offset
        size = min(PIECE, self._image.entries)
        length = size * self._image.entry_size
        zeros = bytes(length)
        expected = 0
        for start in range(0, len(data), length):
            piece = data[start : start + length]
            if piece == zeros:
                continue
            first = self.series_of(piece, size)
            if first:
                expected = self._count_series(first, size, weight, active, expected)
            else:
                expected = self._entries(offset + start, piece, weight, active, expected)

    def series_of(self, data: bytes, count: int) -> int:
        """Return the first entry if all map clusters one after the other, with equal flags; else 0."""
        image = self._image
        stride = image.entry_size
        first = int.from_bytes(data[:8], "big")
        offset = first & L2_OFFSET_MASK
        step = image.cluster_size
        if (
            not offset
            or first & (COMPRESSED | L2_RESERVED_MASK)
            or offset & step - 1
            or offset + count * step > _OFFSETS_END
            or int.from_bytes(data[-stride : len(data) - stride + 8], "big") != first + (count - 1) * step
        ):
            return 0
        entries = int.from_bytes(data, "big")
        if image.extended_l2:
            each = ones(count, stride)
            bitmaps = entries & 0xFFFFFFFFFFFFFFFF * each
            if bitmaps >> 32 & bitmaps & SUBCLUSTERS_ALLOCATED_MASK * each:
                return 0
            entries = entries >> 64 & 0xFFFFFFFFFFFFFFFF * each
        return first if entries == self._row(first, count) else 0

    def _row(self, first: int, count: int) -> int:
        """Return the table of a series as one integer.

        The tables of an image often lie equally far apart: the last one plus a constant is found much faster
        than a product.
        """
        stride = self._image.entry_size
        if count in self._rows:
            before, row, delta, step = self._rows[count]
            if first - before != delta:
                delta = first - before
                step = delta * ones(count, stride)
            row += step
        else:
            row = first * ones(count, stride) + self._image.cluster_size * ramp(count, stride)
            delta = step = 0
        self._rows[count] = first, row, delta, step
        return row

    def _count_series(self, first: int, count: int, weight: int, active: int, expected: int) -> int:
        """Count a series; ``expected`` is the offset that would not be a fragment. Return the next such."""
        offset = first & L2_OFFSET_MASK
        self.allocated += count * active
        if expected and offset != expected:
            self.fragmented += active
        if not self._image.has_data_file:
            self._references.run("Data cluster", offset >> self._image.cluster_bits, count, weight)
        return offset + count * self._image.cluster_size

    def split(self, data: bytes) -> tuple[array[int], Iterable[int]]:
        """Return entries and subcluster bitmaps of a piece of an L2 table."""
        entries = table(data, "Q", ">")
        if self._image.extended_l2:
            return entries[0::2], entries[1::2]
        return entries, bytes(len(entries))

    def _entries(self, place: int, data: bytes, weight: int, active: int, expected: int) -> int:
        """Judge entries one by one; arguments and result as in ``_count_series``."""
        image, references = self._image, self._references
        bits, step, mask, has_data_file = (
            image.cluster_bits,
            image.cluster_size,
            image.cluster_size - 1,
            image.has_data_file,
        )
        shift = compressed_offset_bits(bits)
        sectors = (1 << bits - 8) - 1
        inside = references.inside
        start = end = 0  # clusters that follow one another and are not counted yet
        alone: list[int] = []
        compressed: list[int] = []
        entries, bitmaps = self.split(data)
        if not has_data_file and self._all_compressed(entries, bitmaps, weight, active):
            return expected
        allocated = fragmented = packed = 0
        for index, (entry, bitmap) in enumerate(zip(entries, bitmaps, strict=True)):
            if not entry and not bitmap:
                continue
            if entry & COMPRESSED:
                if not (entry & COPIED or bitmap or has_data_file):
                    offset = entry & (1 << shift) - 1
                    first = offset >> bits
                    last = (offset // COMPRESSED_SECTOR + (entry >> shift & sectors)) * COMPRESSED_SECTOR >> bits
                    if last < inside:
                        packed += 1
                        compressed.append(first)
                        if last > first:
                            compressed.extend(range(first + 1, last + 1))
                        continue
                self._compressed(place, index, entry, bitmap, weight, active)
                continue
            if entry & L2_RESERVED_MASK:
                detail = f"an L2 entry has reserved bits ({entry:#x})"
                self._corrupt(detail, place, index, weight, "reserved", entry)
            offset = entry & L2_OFFSET_MASK
            if not offset and not self.maps_zero(entry):
                if bitmap & SUBCLUSTERS_ALLOCATED_MASK:
                    detail = "a cluster without host offset has allocated subclusters"
                    self._corrupt(detail, place, index, weight, "subclusters-unallocated")
                continue
            if bitmap >> 32 & bitmap & SUBCLUSTERS_ALLOCATED_MASK:
                detail = "a subcluster is both allocated and zero"
                self._corrupt(detail, place, index, weight, "subclusters", offset)
            allocated += 1
            if expected and offset != expected:
                fragmented += 1
            expected = offset + step
            if offset & mask:
                detail = f"an L2 entry is not a multiple of the cluster size ({entry:#x})"
                empty = not bitmap & SUBCLUSTERS_ALLOCATED_MASK if image.extended_l2 else entry & ZERO
                code = "unaligned-preallocated" if empty else "unaligned"
                self._corrupt(detail, place, index, weight, code, offset)
                if not has_data_file:
                    references.region("Data cluster", offset, step, weight)
            elif not has_data_file:
                cluster = offset >> bits
                if cluster != end:
                    if end - start > 1:
                        references.run("Data cluster", start, end - start, weight)
                    elif end > start:
                        alone.append(start)
                    start = cluster
                end = cluster + 1
        if start != end:
            references.run("Data cluster", start, end - start, weight)
        references.singles("Data cluster", alone, weight)
        references.singles("Compressed cluster", compressed, weight)
        self.allocated += (allocated + packed) * active
        # A compressed cluster shares a sector with the next, so that each is a fragment (QEMU).
        self.fragmented += (fragmented + packed) * active
        self.compressed += packed * active
        return expected

    def _all_compressed(self, entries: array[int], bitmaps: Iterable[int], weight: int, active: int) -> bool:
        """Count a piece in which all are compressed and in order, as one that ``convert -c`` made; else do nothing."""
        flags = COMPRESSED | COPIED
        if entries[0] & flags != COMPRESSED or any(bitmaps):
            return False
        if min(entries) & flags != COMPRESSED or max(entries) & flags != COMPRESSED:
            return False  # they are the two highest bits, so all entries have what the least and the greatest have
        bits = self._image.cluster_bits
        shift = compressed_offset_bits(bits)
        mask, sectors = (1 << shift) - 1, (1 << bits - 8) - 1
        part = COMPRESSED_SECTOR.bit_length() - 1
        firsts = [(entry & mask) >> bits for entry in entries]
        lasts = [((entry & mask) >> part) + (entry >> shift & sectors) >> bits - part for entry in entries]
        if max(lasts) >= self._references.inside:
            return False
        if firsts != lasts:
            for first, last in zip(firsts[:], lasts, strict=True):
                if first != last:
                    firsts.extend(range(first + 1, last + 1))
        self._references.singles("Compressed cluster", firsts, weight)
        self.allocated += len(entries) * active
        self.fragmented += len(entries) * active
        self.compressed += len(entries) * active
        return True

    def maps_zero(self, entry: int) -> bool:
        """Tell whether an entry with host offset 0 maps a cluster: only a data file has one there."""
        if entry & ZERO and not self._image.extended_l2:
            return False
        return self._image.has_data_file and bool(entry & COPIED)

    def _compressed(self, place: int, index: int, entry: int, bitmap: int, weight: int, active: int) -> None:
        """Judge an entry of a compressed cluster that is not in order, or reaches behind the end of the file."""
        image = self._image
        place += index * image.entry_size
        number = (place - self._start) // image.entry_size
        if entry & COPIED:
            detail = f"the entry of a compressed cluster has the copied flag ({entry:#x})"
            offset = entry & (1 << compressed_offset_bits(image.cluster_bits)) - 1
            self._corrupt(detail, place, 0, weight, "compressed-copied", offset)
            entry &= ~COPIED
        if image.has_data_file:
            detail = f"an image with a data file has a compressed cluster ({entry:#x})"
            self._corrupt(detail, place, 0, weight, "compressed-data-file", number, entry)
            return
        if bitmap:
            detail = f"a compressed cluster has a subcluster bitmap ({bitmap:#x})"
            self._corrupt(detail, place, 0, weight, "compressed-subclusters", number, entry)
            return
        shift = compressed_offset_bits(image.cluster_bits)
        offset = entry & (1 << shift) - 1
        sectors = (entry >> shift & (1 << image.cluster_bits - 8) - 1) + 1
        size = sectors * COMPRESSED_SECTOR - offset % COMPRESSED_SECTOR
        self._references.region("Compressed cluster", offset, size, weight)
        self.allocated += active
        self.compressed += active
        self.fragmented += active

    def _corrupt(self, detail: str, place: int, index: int, weight: int, code: str, *values: int) -> None:
        offset = place + index * self._image.entry_size
        code = f"qcow2-l2-{code}"
        self._report.add("corruption", "L2 table", detail, offset=offset, count=weight, code=code, values=values)


def _repeated(entries: array[int]) -> dict[int, tuple[int, int]] | None:
    """Return the entries that are not zero, each with its first place and how often it is there.

    ``None`` if they are not the same again and again, as in all images that nobody wants to cost time with.
    """
    if len(set(entries)) * _REPEATS > len(entries):
        return None
    found: dict[int, tuple[int, int]] = {}
    for index, entry in enumerate(entries):
        if entry:
            first, count = found.get(entry, (index, 0))
            found[entry] = first, count + 1
    return found
