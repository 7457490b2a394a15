"""Check a Parallels image: the header, each BAT entry, and what lies behind the last cluster.

Law: memory is one bit a cluster of the file, at most ``_WINDOW`` of them at once; time is linear in the BAT, and
stretches of it that are empty or in order are looked at in one go. What ``qemu-img check`` of the asked generation
counts is counted as it does, also where it is mistaken; what else is unusual is a warning.
"""

from __future__ import annotations

from array import array

from instar.core.bits import Bits
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.reader import MAX_READ, read_padded, table
from instar.core.units import align_up, ceil_div
from instar.formats.parallels.ondisk import (
    CLOSED,
    FLAG_EMPTY,
    IN_USE,
    MAGIC,
    SECTOR,
    STRICT_SINCE,
    STRICTER_SINCE,
    Header,
)
from instar.formats.parallels.parse import open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from instar.core.reader import Reader
    from instar.formats.parallels.parse import Opened

_PER_PIECE = MAX_READ // 4
#: Clusters of the file that are compared with each other in one pass: 128 MiB of bits.
_WINDOW = 1 << 30
_ZEROS = bytes(MAX_READ)


def _is_empty(data: bytes) -> bool:
    """Tell whether a piece of the BAT names no cluster."""
    return data == (_ZEROS if len(data) == MAX_READ else bytes(len(data)))


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of a Parallels image as ``qemu-img check`` of a generation does.

    Totals: ``total_clusters`` BAT entries, ``allocated_clusters`` those in use, ``fragmented_clusters`` those that do
    not follow their predecessor, ``image_end_offset`` the end of the last cluster.

    Raises:
        ImageError: the image cannot be opened; see ``parse.open_image``.
    """
    opened = open_image(image, generation)
    report = Report()
    if opened.header.inuse == IN_USE:
        report.add(
            "corruption",
            "header",
            "the image was not closed correctly, or is in use",
            offset=Header.field("inuse").offset,
            code="parallels-unclean",
        )
    pass_ = _Bat(image, opened, generation, report)
    if generation < STRICT_SINCE:
        pass_.run_before_8_2()
    else:
        pass_.run()
    _check_oddities(image, opened, report)
    return report


def _check_oddities(image: Reader, opened: Opened, report: Report) -> None:
    """Look at what QEMU does not."""
    header = opened.header

    def warn(field: str, detail: str) -> None:
        report.add("warning", "header", detail, offset=Header.field(field).offset)

    if header.inuse not in (0, IN_USE, CLOSED):
        warn("inuse", f"it is {header.inuse:#x}, which has no meaning")
    if header.flags & FLAG_EMPTY and report.allocated_clusters:
        warn("flags", "the image says that it is empty, and has clusters")
    if header.magic == MAGIC and header.data_off % header.tracks:
        warn("data_off", f"sector {header.data_off} is not at a multiple of the cluster size")
    needed = ceil_div(opened.sectors, header.tracks)
    if needed != header.bat_entries:
        rest = "; the rest reads as zeros" if needed > header.bat_entries else ""
        warn("bat_entries", f"the BAT has {header.bat_entries} entries, the disk needs {needed}{rest}")
    if Header.SIZE + 4 * header.bat_entries > image.size:
        report.add("warning", "BAT", "it reaches past the end of the file: what is missing reads as 0")


class _Bat:
    """The passes over the BAT."""

    __slots__ = (
        "allocated",
        "cluster",
        "data_start",
        "fragmented",
        "generation",
        "image",
        "misaligned",
        "opened",
        "previous",
        "report",
        "size",
        "step",
        "unit",
    )

    def __init__(self, image: Reader, opened: Opened, generation: tuple[int, int], report: Report) -> None:
        self.image = image
        self.opened = opened
        self.generation = generation
        self.report = report
        #: Length of the file as QEMU sees it.
        self.size = align_up(image.size, SECTOR)
        self.cluster = opened.cluster
        self.data_start = opened.data_start * SECTOR
        #: Bytes that a BAT entry counts in; how far entries of neighbours are apart.
        self.unit = opened.unit * SECTOR
        self.step = opened.header.tracks // opened.unit
        self.allocated = self.fragmented = self.misaligned = 0
        #: Where the last cluster in use was; 0 behind one that is not.
        self.previous = 0

    def _pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(first index, entries, bytes)``; what lies past the end of the file reads as zeros."""
        entries = self.opened.header.bat_entries
        for first in range(0, entries, _PER_PIECE):
            count = min(_PER_PIECE, entries - first)
            yield first, count, read_padded(self.image, Header.SIZE + 4 * first, 4 * count)

    def _run_of(self, count: int, data: bytes) -> tuple[int, int] | None:
        """Return the first and last host offset if all entries of a piece follow each other, else ``None``."""
        entry = int.from_bytes(data[:4], "little")
        last = entry + (count - 1) * self.step
        if not entry or last >= 1 << 32:
            return None
        if int.from_bytes(data[-4:], "little") != last:
            return None
        if table(data, "I", "<") != array("I", range(entry, last + 1, self.step)):
            return None
        return entry * self.unit, last * self.unit

    # --- before 8.2 ---

    def run_before_8_2(self) -> None:
        """Count clusters as QEMU 7.2 does: those that start past the end of the file are the only fault."""
        highest = 0
        for first, count, data in self._pieces():
            if _is_empty(data):
                self.previous = 0
                continue
            run = self._run_of(count, data)
            if run is not None and run[1] <= self.size:
                highest = max(highest, run[1])
                self._use(run[0], run[1], count)
                continue
            for index, entry in enumerate(table(data, "I", "<"), first):
                offset = entry * self.unit
                if not offset:
                    self.previous = 0
                    continue
                if offset > self.size:
                    self._outside(range(index, index + 1))
                highest = max(highest, offset)
                self._use(offset, offset, 1)
        self._finish(highest + self.cluster)
        self._check_end()

    # --- from 8.2 on ---

    def run(self) -> None:
        """Check as QEMU 8.2 and later do."""
        if self.opened.data_off_fault:
            self.report.add(
                "corruption",
                "header",
                f"data_off is {self.opened.header.data_off}; by QEMU's reckoning data starts at"
                f" {self.opened.data_start} or later, and inside of the file",
                offset=Header.field("data_off").offset,
                code="parallels-data-off",
            )
        end = self._find_end()
        self.report.image_end_offset = end
        self._check_end()
        bits = self._index(end)
        if bits and end % self.cluster:
            bits += 1
        for low in range(0, max(bits, 1), _WINDOW):
            self._compare(low, min(bits, low + _WINDOW), bits, end)
        self._finish(end)

    def _find_end(self) -> int:
        """Report clusters that are not, or not wholly, in the file; return the end of the last one that is."""
        newer = self.generation >= STRICTER_SINCE
        lowest = self.data_start if newer else 0
        room = self.size - self.cluster
        highest = 0
        # Before 11.0 an entry of 0 is judged as if it named the start of the file.
        end = max(self.data_start, 0 if newer else self.cluster if self.opened.header.bat_entries else 0)
        for first, count, data in self._pieces():
            if _is_empty(data):
                if room < 0 and not newer:
                    self._outside(range(first, first + count))
                continue
            run = self._run_of(count, data)
            if run is not None and lowest <= run[0] and run[1] <= room:
                highest = max(highest, run[1])
                continue
            entries = table(data, "I", "<")
            least = min(filter(None, entries) if newer else entries) * self.unit
            most = max(entries) * self.unit
            if not newer:
                end = max(end, most + self.cluster)
            if lowest <= least and most <= room:
                highest = max(highest, most)
                continue
            for index, entry in enumerate(entries, first):
                offset = entry * self.unit
                if not offset and newer:
                    continue
                if offset > room or offset < lowest:
                    self._outside(range(index, index + 1))
                else:
                    highest = max(highest, offset)
        return highest + self.cluster if highest else end

    def _index(self, offset: int) -> int:
        """Return which cluster of the data area lies at a host offset, as QEMU reckons: in 32 bits, towards zero."""
        behind = offset - self.data_start
        number = abs(behind) // self.cluster
        return (number if behind >= 0 else -number) & 0xFFFFFFFF

    def _compare(self, low: int, high: int, bits: int, end: int) -> None:
        """Report clusters from ``low`` to ``high`` of the data area that are used twice; first pass: the totals."""
        taken = Bits(high - low)
        flags = taken.data
        data_start, cluster, unit, last = self.data_start, self.cluster, self.unit, end - self.cluster
        for first, count, data in self._pieces():
            if _is_empty(data):
                self.previous = 0
                continue
            run = self._run_of(count, data)
            if run is not None and run[0] >= data_start and run[1] + cluster <= end:
                start = self._index(run[0]) - low
                if start >= 0 and start + count <= high - low and not taken.taken(start, count):
                    taken.take(start, count)
                    if not low:
                        self._use(run[0], run[1], count)
                    continue
            # Written out: fragmented images are large, and with calls for each entry it takes three times as long.
            previous, allocated, fragmented, misaligned = self.previous, 0, 0, 0
            for index, entry in enumerate(table(data, "I", "<"), first):
                offset = entry * unit
                if not offset:
                    previous = 0
                    continue
                behind = offset - data_start
                place = behind // cluster if behind >= 0 else self._index(offset)
                if offset > last:
                    previous = 0
                else:
                    allocated += 1
                    if previous and previous + cluster != offset:
                        fragmented += 1
                    if behind % cluster:
                        misaligned += 1
                    previous = offset
                if low <= place < high:
                    at = (place - low) >> 3
                    bit = 1 << (place - low & 7)
                    if flags[at] & bit:
                        self._duplicate(index)
                    else:
                        flags[at] |= bit
                elif place >= bits and bits and not low and behind < 0 and self.generation < STRICTER_SINCE:
                    # QEMU gives up here (an assertion fails); what it would say is what later versions say.
                    self._outside(range(index, index + 1))
            if not low:
                self.previous = previous
                self.allocated += allocated
                self.fragmented += fragmented
                self.misaligned += misaligned

    # --- both ---

    def _use(self, first: int, last: int, count: int) -> None:
        """Count clusters that follow each other."""
        self.allocated += count
        self.fragmented += self.previous != 0 and self.previous + self.cluster != first
        self.misaligned += count if (first - self.data_start) % self.cluster else 0
        self.previous = last

    def _finish(self, end: int) -> None:
        """Fill in the totals."""
        report = self.report
        report.total_clusters = self.opened.header.bat_entries
        report.allocated_clusters = self.allocated
        report.fragmented_clusters = self.fragmented
        report.compressed_clusters = 0
        report.image_end_offset = end
        if self.misaligned:
            report.add(
                "warning",
                "BAT",
                f"{self.misaligned} clusters do not lie at a multiple of the cluster size from the start of the data",
            )

    def _check_end(self) -> None:
        """Report room behind the last cluster."""
        end = self.report.image_end_offset or 0
        if self.size > end:
            lost = self.size - end
            there = self.opened.header.ext_off * SECTOR
            clusters = ceil_div(lost, self.cluster)
            detail = f"{lost} bytes lie behind the last cluster that the BAT names"
            if end <= there < self.size:
                # The header names that cluster. QEMU counts it all the same.
                detail += ", the format extension among them"
                clusters -= 1
                self.report.false_leaks += 1
            severity = "leak" if clusters else "warning"
            self.report.add(severity, "file", detail, offset=end, count=clusters, code="parallels-leak", values=(lost,))

    def _outside(self, indices: range) -> None:
        """Report clusters that are not in the file; those beyond what a report keeps are only counted."""
        for index in indices:
            if len(self.report.findings) >= MAX_FINDINGS:
                self.report.corruptions += indices.stop - index
                return
            self.report.add(
                "corruption",
                "BAT",
                f"cluster {index} is not, or not wholly, in the data area of the file",
                offset=Header.SIZE + 4 * index,
                code="parallels-outside",
                values=(index,),
            )

    def _duplicate(self, index: int) -> None:
        """Report a cluster that an earlier entry names too."""
        if len(self.report.findings) >= MAX_FINDINGS:
            self.report.corruptions += 1
            return
        self.report.add(
            "corruption",
            "BAT",
            f"entry {index} names a cluster that another entry names too",
            offset=Header.SIZE + 4 * index,
            code="parallels-duplicate",
            values=(index,),
        )
