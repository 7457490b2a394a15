"""Walk over the grain directories, tables and grains of one sparse extent.

Law: first every table is placed (inside the file, in nobody else's place), then each placed table is read
once, in pieces of at most 1 MiB. A table that two entries share is read once, so no small file can ask for
a long walk; memory is bounded by the limits of ``ondisk``.
"""

from __future__ import annotations

from array import array

from instar.core.errors import ImageError
from instar.core.reader import MAX_READ, iter_table, read_padded, read_table, table
from instar.core.units import ceil_div
from instar.formats.vmdk.claims import Claims, Tally
from instar.formats.vmdk.ondisk import (
    GTE_ZEROED,
    MARKER_GRAIN_DIRECTORY,
    MARKER_GRAIN_TABLE,
    MAX_BITMAP_BYTES,
    MAX_CHECKED_GRAINS,
    MAX_LOOSE_GRAINS,
    MAX_TABLE_RUNS,
    SECTOR,
    SESPARSE_GDE_USED,
    SESPARSE_GTE_DATA,
    SESPARSE_GTE_UNMAPPED,
    SESPARSE_GTE_ZERO,
    SESPARSE_TABLE,
    GrainMarker,
    Marker,
)
from instar.formats.vmdk.visits import LOST, PAST_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader
    from instar.formats.vmdk.extent import Extent
    from instar.formats.vmdk.visits import Visits

#: Tables in the place of others that are read once more, as qemu-img reads them.
_MOST_SHARED = 4096
_ZEROS = bytes(MAX_READ)


class Walk:
    """One walk; call ``run`` once."""

    def __init__(self, extent: Extent, reader: Reader, tally: Tally, visits: Visits) -> None:
        self.extent = extent
        self.reader = reader
        self.tally = tally
        self.visits = visits
        #: By sector of a table in the place of others: which entry stops QEMU.
        self.shared: dict[int, int | None] = {}
        self.file_sectors = ceil_div(reader.size, SECTOR)
        #: Sectors held by metadata; and the first sector after the last of them.
        self.metadata = Claims(MAX_BITMAP_BYTES)
        self.metadata_end = 0
        #: Units held by grains: of a grain's size, or sectors where grains differ in length.
        self.held = Claims(MAX_BITMAP_BYTES)
        #: Remainder of the first grain's sector by the grain size: where the units start.
        self.phase: int | None = None
        self.loose = array("Q")
        #: Sectors from one table to the next when they are side by side.
        self.stride = ceil_div(extent.gtes * extent.entry_size, SECTOR)
        self.code = "Q" if extent.entry_size == 8 else "I"
        #: Placed tables, four numbers a run: first table's index, count, sector, sector of its copy (0: none).
        self.runs = array("Q")

    def run(self) -> None:
        """Find what is wrong.

        Raises:
            ImageError: ``too-large``, the walk would pass a limit; ``out-of-bounds``, the file became shorter.
        """
        if self.extent.grains > MAX_CHECKED_GRAINS:
            raise ImageError(
                "too-large",
                "sparse extent header",
                "the extent has more grains than a check walks over",
                field="grains",
                value=self.extent.grains,
                limit=MAX_CHECKED_GRAINS,
            )
        self._claim_headers()
        self._place_tables()
        for at in range(0, len(self.runs), 4):
            self._read_run(*self.runs[at : at + 4])
        self._judge_loose()

    def _corrupt(self, structure: str, detail: str, sector: int | None = None, count: int = 1) -> None:
        self.tally.hit("corruption", structure, detail, offset=None if sector is None else sector * SECTOR, count=count)

    def _lost(self, structure: str, detail: str, grain: int, sector: int, code: str) -> None:
        """Report what stops qemu-img at a grain."""
        seen = self.visits.sector_of(grain)
        self.tally.hit("corruption", structure, detail, offset=sector * SECTOR, code=code, seen=seen)

    # --- metadata ---------------------------------------------------------------------------------

    def _claim_metadata(self, structure: str, sector: int, count: int) -> None:
        """Claim sectors for one structure other than a table."""
        if sector + count > self.file_sectors:
            self._corrupt(structure, "it reaches past the end of the file", sector)
            count = max(0, self.file_sectors - sector)
        if not self.metadata.claim(sector, count):
            self._corrupt(structure, "it overlaps other metadata", sector)
        if count:
            self.metadata_end = max(self.metadata_end, sector + count)

    def _claim_headers(self) -> None:
        """Claim everything but the tables."""
        extent = self.extent
        self._claim_metadata("header", 0, 4 if extent.layout == "cowd" else 1)
        header = extent.header
        if header is not None and header.descriptor_offset and header.descriptor_size:
            self._claim_metadata("descriptor", header.descriptor_offset, header.descriptor_size)
        if extent.footer is not None:
            self._claim_metadata("footer", self.file_sectors - 3, 3)
        sectors = ceil_div(extent.gd_entries * extent.entry_size, SECTOR)
        self._claim_metadata("grain directory", extent.gd_offset // SECTOR, sectors)
        if sectors and extent.rgd_offset == extent.gd_offset:
            self.tally.hit("warning", "redundant grain directory", "it is the grain directory itself")
            extent.rgd_offset = 0
        if extent.rgd_offset:
            self._claim_metadata("redundant grain directory", extent.rgd_offset // SECTOR, sectors)
        if extent.footer is not None and sectors:
            self._judge_marker(extent.gd_offset // SECTOR - 1, MARKER_GRAIN_DIRECTORY, "grain directory")

    def _judge_marker(self, sector: int, kind: int, structure: str) -> None:
        """Look for the marker that precedes a structure of a stream."""
        marker = Marker.unpack(read_padded(self.reader, sector * SECTOR, Marker.SIZE)) if sector >= 0 else None
        if marker is None or marker.size or marker.type != kind:
            self._corrupt(structure, "there is no marker before it", sector)

    def _readable(self, offset: int, wanted: int, structure: str) -> int:
        """Return how many entries of a directory lie inside the file."""
        inside = max(0, min(wanted, (self.reader.size - offset) // self.extent.entry_size))
        if inside < wanted:
            self._corrupt(structure, "entries lie past the end of the file", offset // SECTOR, wanted - inside)
        return inside

    def _place_tables(self) -> None:
        """Read the directories; put the tables that are where they may be into ``runs``."""
        extent = self.extent
        wanted = ceil_div(extent.grains, extent.gtes)
        if wanted > extent.gd_entries:
            self._corrupt("grain directory", "it is too short for the disk", extent.gd_offset // SECTOR)
            wanted = extent.gd_entries
        count = self._readable(extent.gd_offset, wanted, "grain directory")
        copies = self._readable(extent.rgd_offset, count, "redundant grain directory") if extent.rgd_offset else 0
        if not count:
            return
        pieces = iter_table(self.reader, extent.gd_offset, count, self.code, "<", "grain directory")
        for first, entries in pieces:
            if self.extent.layout == "sesparse":
                self._decode_directory(first, entries)
            number = max(0, min(len(entries), copies - first))
            others = array("I")
            if number:
                others = read_table(
                    self.reader, extent.rgd_offset + 4 * first, number, "I", "<", "redundant grain directory"
                )
            others.extend([0] * (len(entries) - number))
            self._place_piece(first, entries, others, number)

    def _decode_directory(self, first: int, entries: array[int]) -> None:
        """Turn a seSparse directory's entries, from ``first`` on, into sectors."""
        for at, entry in enumerate(entries):
            if entry >> 32 == SESPARSE_GDE_USED:
                entries[at] = self.extent.tables_base + (entry & 0xFFFFFFFF) * SESPARSE_TABLE
            elif entry:
                detail, place = "an entry is neither empty nor in use", self.extent.gd_offset // SECTOR
                self._lost("grain directory", detail, (first + at) * self.extent.gtes, place, LOST)
                entries[at] = 0

    def _place_piece(self, first: int, entries: array[int], others: array[int], copied: int) -> None:
        """Join entries side by side into runs and place them. The first ``copied`` have a second entry."""
        start = count = sector = other = 0
        for at, (gt, rgt) in enumerate(zip(entries, others, strict=True)):
            if at < copied and bool(gt) != bool(rgt):
                self._corrupt("grain directory", "the two directories disagree on whether there is a table", gt or rgt)
                rgt = 0
            ahead = count * self.stride
            if count and gt == sector + ahead and rgt == (other + ahead if other else 0):
                count += 1
                continue
            if count:
                self._place(first + start, count, sector, other)
            start, count, sector, other = at, 1 if gt else 0, gt, rgt
        if count:
            self._place(first + start, count, sector, other)

    def _inside(self, sector: int, count: int) -> bool:
        return sector + count * self.stride <= self.file_sectors

    def _place(self, index: int, count: int, sector: int, other: int) -> None:
        """Claim the sectors of ``count`` tables, together if nothing stands in the way, else one by one."""
        length = count * self.stride
        if (
            self._inside(sector, count)
            and not self.metadata.taken(sector, length)
            and (not other or (self._inside(other, count) and not self.metadata.taken(other, length)))
            and (not other or abs(sector - other) >= length)
        ):
            self.metadata.claim(sector, length)
            self.metadata.claim(other, length if other else 0)
            self._remember(index, count, sector, other)
            return
        for at in range(count):
            place = self._place_one(sector + at * self.stride, "grain table", index + at)
            copy = self._place_one(other + at * self.stride, "redundant grain table") if other else 0
            if place:
                self._remember(index + at, 1, place, copy)

    def _place_one(self, sector: int, structure: str, index: int | None = None) -> int:
        """Claim one table's sectors; return its sector, or 0 if it cannot be there. QEMU uses those with an index."""
        if not self._inside(sector, 1):
            self._corrupt(structure, "it reaches past the end of the file", sector)
        elif self.metadata.taken(sector, self.stride):
            at = None if index is None else self._stops_at(sector)
            seen = None if index is None or at is None else self.visits.sector_of(index * self.extent.gtes + at)
            detail = "it overlaps other metadata, or two entries share it"
            self.tally.hit("corruption", structure, detail, offset=sector * SECTOR, code=PAST_END, seen=seen)
        else:
            self.metadata.claim(sector, self.stride)
            return sector
        return 0

    def _stops_at(self, sector: int) -> int | None:
        """Return the first entry that names a grain past the end, of a table in the place of others.

        QEMU reads such tables as they are.
        """
        if sector not in self.shared:
            if len(self.shared) >= _MOST_SHARED or self.extent.layout == "sesparse":
                return None
            entries = table(read_padded(self.reader, sector * SECTOR, 4 * self.extent.gtes), "I", "<")
            self.shared[sector] = next((at for at, place in enumerate(entries) if place >= self.file_sectors), None)
        return self.shared[sector]

    def _remember(self, index: int, count: int, sector: int, other: int) -> None:
        if len(self.runs) >= 4 * MAX_TABLE_RUNS:
            raise ImageError(
                "too-large", "grain directory", "the tables are too scattered to check", limit=MAX_TABLE_RUNS
            )
        self.runs.extend((index, count, sector, other))
        self.metadata_end = max(self.metadata_end, sector + count * self.stride, other + count * self.stride)

    # --- grains -----------------------------------------------------------------------------------

    def _read_run(self, index: int, count: int, sector: int, other: int) -> None:
        """Read tables side by side, compare them with their copies, and judge their entries."""
        size = self.stride * SECTOR
        step = max(1, MAX_READ // size)
        for first in range(0, count, step):
            number = min(step, count - first)
            start = sector + first * self.stride
            data = read_padded(self.reader, start * SECTOR, number * size)
            if self.extent.footer is not None:
                for at in range(number):
                    self._judge_marker(start + at * self.stride - 1, MARKER_GRAIN_TABLE, "grain table")
            if other:
                copy = read_padded(self.reader, (other + first * self.stride) * SECTOR, number * size)
                if copy != data:
                    self._judge_copies(data, copy, start)
            if data == (_ZEROS if len(data) == MAX_READ else bytes(len(data))):
                continue
            for at in range(number):
                piece = data[at * size : (at + 1) * size]
                if piece != _ZEROS[:size]:
                    entries = table(piece, self.code, "<")[: self.extent.gtes]
                    self._judge_table((index + first + at) * self.extent.gtes, entries)

    def _judge_copies(self, data: bytes, copy: bytes, sector: int) -> None:
        """Count the entries in which a table and its copy differ."""
        size = self.stride * SECTOR
        for at in range(0, len(data), size):
            if data[at : at + size] != copy[at : at + size]:
                pairs = zip(table(data[at : at + size], "I", "<"), table(copy[at : at + size], "I", "<"), strict=True)
                differ = sum(x != y for x, y in pairs)
                self._corrupt("grain table", "an entry differs from its redundant copy", sector + at // SECTOR, differ)

    def _judge_table(self, first: int, entries: array[int]) -> None:
        """Judge the entries of one table, the first of which is grain ``first``."""
        extent = self.extent
        if extent.layout == "sesparse":
            for at, entry in enumerate(entries):
                if entry:
                    self._judge_sesparse(first + at, entry)
            return
        zeroed = GTE_ZEROED if extent.zeroed else 0
        if extent.compressed:
            for at, sector in enumerate(entries):
                if sector and sector != zeroed:
                    self._judge_compressed(first + at, sector)
            return
        # The loop that a large image spends its time in: grains that follow one another are judged together.
        grain, begin, start, ahead = extent.grain, 0, 0, -1
        for at, sector in enumerate(entries):
            if sector == ahead:
                ahead += grain
                continue
            if start:
                self._judge_grains(first + begin, start, at - begin)
            if sector and sector != zeroed:
                begin, start, ahead = at, sector, sector + grain
            else:
                start, ahead = 0, -1
        if start:
            self._judge_grains(first + begin, start, len(entries) - begin)

    def _judge_grains(self, grain: int, sector: int, count: int) -> None:
        """Judge ``count`` entries whose grains follow one another."""
        size = self.extent.grain
        end = sector + count * size
        if self.phase is not None and self.metadata_end <= sector and end <= self.file_sectors:
            unit, rest = divmod(sector - self.phase, size)
            if not rest and grain + count <= self.extent.grains and not self.held.taken(unit, count):
                self.held.claim(unit, count)
                return
        for at in range(count):
            self._judge_grain(grain + at, sector + at * size)

    def _judge_grain(self, grain: int, sector: int) -> None:
        """Judge one entry of an extent whose grains all have one length."""
        size = self.extent.grain
        need = min(size, self.extent.sectors - grain * size)
        if need <= 0:
            self.tally.hit("warning", "grain table", "an entry lies past the end of the disk")
        elif sector >= self.file_sectors:
            self._lost("grain", "it starts past the end of the file", grain, sector, PAST_END)
        elif sector + need > self.file_sectors:
            self._corrupt("grain", "it reaches past the end of the file", sector)
        elif sector < self.metadata_end and self.metadata.taken(sector, need):
            self._corrupt("grain", "it overlaps metadata", sector)
        else:
            if self.phase is None:
                self.phase = sector % size
            unit, rest = divmod(sector - self.phase, size)
            if rest:
                if len(self.loose) >= MAX_LOOSE_GRAINS:
                    raise ImageError(
                        "too-large", "grain table", "too many grains are out of step", limit=MAX_LOOSE_GRAINS
                    )
                self.loose.append(sector)
            elif not self.held.claim_one(unit):
                self._corrupt("grain", "two entries share it", sector)

    def _judge_sesparse(self, grain: int, entry: int) -> None:
        """Judge one entry of a seSparse table."""
        kind = entry >> 60
        if kind == SESPARSE_GTE_DATA:
            number = (entry & 0x0FFF000000000000) >> 48 | (entry & 0x0000FFFFFFFFFFFF) << 12
            self._judge_grain(grain, self.extent.grains_base + number * self.extent.grain)
        elif kind not in (SESPARSE_GTE_UNMAPPED, SESPARSE_GTE_ZERO):
            self._lost("grain table", "an entry is of no known kind", grain, self.extent.gd_offset // SECTOR, LOST)

    def _judge_compressed(self, grain: int, sector: int) -> None:
        """Judge one entry of an extent with compressed grains: each has its own length, said by its marker."""
        lba = grain * self.extent.grain
        if lba >= self.extent.sectors:
            self.tally.hit("warning", "grain table", "an entry lies past the end of the disk")
            return
        if sector >= self.file_sectors:
            self._lost("grain", "it starts past the end of the file", grain, sector, PAST_END)
            return
        count = 1
        if self.extent.markers:
            marker = GrainMarker.unpack(read_padded(self.reader, sector * SECTOR, GrainMarker.SIZE))
            length = GrainMarker.SIZE + marker.size
            if marker.lba != lba:
                self._corrupt("grain marker", "it belongs to another place of the disk", sector)
                return
            if not 0 < marker.size <= 2 * self.extent.grain * SECTOR:
                self._corrupt("grain marker", "its size is impossible", sector)
                return
            if sector * SECTOR + length > self.reader.size:
                self._corrupt("grain", "it reaches past the end of the file", sector)
                return
            count = ceil_div(length, SECTOR)
        if self.metadata.taken(sector, count):
            self._corrupt("grain", "it overlaps metadata", sector)
        elif not self.held.claim(sector, count):
            self._corrupt("grain", "it overlaps another grain", sector)

    def _judge_loose(self) -> None:
        """Compare the grains that are out of step with their neighbours."""
        if not self.loose or self.phase is None:
            return
        size = self.extent.grain
        self.tally.hit("warning", "grain", "it is out of step with the first grain", count=len(self.loose))
        before = -size
        for sector in sorted(self.loose):
            if sector - before < size or self.held.taken((sector - self.phase) // size, 2):
                self._corrupt("grain", "it overlaps another grain", sector)
            before = sector
