"""Check a VDI: each entry of the block map, and whether the parts of the file keep clear of each other.

Law: memory is one bit a block (64 MiB at most), time linear in the block map; long stretches of it that are all
alike, or in order, are looked at in one go. What ``qemu-img check`` counts is counted as it does; beyond that, what
makes data unreadable is a corruption, all else a warning.
"""

from __future__ import annotations

from array import array

from instar.core.bits import Bits
from instar.core.finding import MAX_FINDINGS, UNSEEN, Report
from instar.core.reader import MAX_READ, read_padded, table
from instar.core.units import ceil_div
from instar.formats.vdi.ondisk import BLOCK, DISCARDED, NO_UUID, SECTOR, TYPE_DYNAMIC, TYPE_STATIC, Header
from instar.formats.vdi.parse import open_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from instar.core.reader import Reader

_PER_PIECE = MAX_READ // 4


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of a VDI; the same for all generations. There are no totals, for QEMU counts none.

    Raises:
        ImageError: the image cannot be opened; see ``parse.open_image``.
    """
    header, size = open_image(image)
    report = Report()
    _check_header(image, header, size, report)
    report.mark_unseen()
    _Map(image, header, size, report).run()
    return report


def _check_header(image: Reader, header: Header, size: int, report: Report) -> None:
    """Look at what QEMU does not: where the parts are, and values that other programs rely on."""
    needed = ceil_div(size, BLOCK)
    map_end = header.offset_bmap + 4 * header.blocks_in_image
    if header.blocks_in_image:
        if header.offset_bmap < SECTOR:
            report.add("corruption", "header", "the block map overlaps the header", offset=header.offset_bmap)
        if map_end > image.size:
            report.add(
                "corruption",
                "block map",
                "it reaches past the end of the file: what is missing reads as block 0",
                offset=header.offset_bmap,
            )
    if (
        header.blocks_allocated
        and header.offset_data < max(SECTOR, map_end)
        and header.offset_bmap < header.offset_data + BLOCK
    ):
        report.add("corruption", "header", "the data overlaps the header or the block map", offset=header.offset_data)
    if header.blocks_in_image > needed:
        report.add("warning", "block map", f"it has {header.blocks_in_image} entries, the disk needs {needed}")
    if header.image_type not in (TYPE_DYNAMIC, TYPE_STATIC):
        report.add(
            "warning",
            "header",
            f"image type {header.image_type} is neither dynamic nor static",
            offset=Header.field("image_type").offset,
        )
    if header.block_extra:
        report.add(
            "warning",
            "header",
            f"{header.block_extra} bytes stand before each block, which QEMU takes for data",
            offset=Header.field("block_extra").offset,
        )
    if header.uuid_image == NO_UUID:
        report.add("warning", "header", "the identifier of the image is zero", offset=Header.field("uuid_image").offset)


class _Map:
    """One pass over the block map."""

    __slots__ = ("blocks", "header", "held", "image", "report", "room", "size", "taken", "used")

    def __init__(self, image: Reader, header: Header, size: int, report: Report) -> None:
        self.image = image
        self.header = header
        self.size = size
        self.report = report
        self.blocks = header.blocks_in_image
        #: Entries that name a block the map has room for: what ``blocks_allocated`` should be.
        self.used = 0
        #: Different blocks among those.
        self.held = 0
        self.taken = Bits(self.blocks)
        #: Blocks that are wholly in the file.
        self.room = max(0, image.size - header.offset_data) // BLOCK

    def run(self) -> None:
        """Check all entries and what they add up to."""
        for first in range(0, self.blocks, _PER_PIECE):
            count = min(_PER_PIECE, self.blocks - first)
            data = read_padded(self.image, self.header.offset_bmap + 4 * first, 4 * count)
            if data != data[:4] * count:
                self._entries(first, data, count)
            elif (entry := int.from_bytes(data[:4], "little")) < DISCARDED:
                self._alike(first, entry, count)
        if self.used != self.header.blocks_allocated:
            self.report.add(
                "corruption",
                "header",
                f"{self.used} blocks are allocated, the header says {self.header.blocks_allocated}",
                offset=Header.field("blocks_allocated").offset,
                code="vdi-allocated",
                values=(self.used, self.header.blocks_allocated),
            )
        lost = min(self.room, self.blocks) - self.held
        if lost > 0:
            self.report.add("warning", "file", f"there is room for {lost} blocks that the block map does not name")

    def _entries(self, first: int, data: bytes, count: int) -> None:
        """Check entries of any kind."""
        start = int.from_bytes(data[:4], "little")
        if (
            start + count <= min(self.blocks, self.room)
            and table(data, "I", "<") == array("I", range(start, start + count))
            and not self.taken.taken(start, count)
        ):
            self.taken.take(start, count)
            self.used += count
            self.held += count
            return
        bits, blocks, room = self.taken.data, self.blocks, self.room
        for index, entry in enumerate(table(data, "I", "<"), first):
            if entry >= DISCARDED:
                continue
            if entry >= blocks:
                self._too_large((index,), entry)
                continue
            self.used += 1
            if bits[entry >> 3] >> (entry & 7) & 1:
                self._twice((index,), entry)
            else:
                bits[entry >> 3] |= 1 << (entry & 7)
                self.held += 1
            if entry >= room:
                self._judge_end((index,), entry)

    def _alike(self, first: int, entry: int, count: int) -> None:
        """Check entries that all name the same block."""
        indices = range(first, first + count)
        if entry >= self.blocks:
            self._too_large(indices, entry)
            return
        self.used += count
        if not self.taken.take(entry, 1):
            self.held += 1
            self._twice(indices[1:], entry)
        else:
            self._twice(indices, entry)
        if entry >= self.room:
            self._judge_end(indices, entry)

    def _tell(self, indices: Iterable[int], count: int, detail: str, code: str, values: tuple[int, ...]) -> None:
        """Report one corruption for each index; those beyond what a report keeps are only counted."""
        for number, index in enumerate(indices):
            if len(self.report.findings) >= MAX_FINDINGS:
                self.report.corruptions += count - number
                self.report.unseen += count - number if code == UNSEEN else 0
                return
            self.report.add(
                "corruption",
                "block map",
                f"entry {index} {detail}",
                offset=self.header.offset_bmap + 4 * index,
                code=code,
                values=(index, *values) if code == "vdi-too-large" else values,
            )

    def _too_large(self, indices: Sequence[int], entry: int) -> None:
        self._tell(
            indices,
            len(indices),
            f"names block {entry} of the file, the disk has {self.blocks}",
            "vdi-too-large",
            (entry,),
        )

    def _twice(self, indices: Sequence[int], entry: int) -> None:
        self._tell(
            indices,
            len(indices),
            f"names block {entry} of the file, which another entry names too",
            "vdi-duplicate",
            (entry, entry),
        )

    def _judge_end(self, indices: Sequence[int], entry: int) -> None:
        """Report those entries whose block is not in the file as far as the disk reaches."""
        there = self.image.size - self.header.offset_data - entry * BLOCK
        # The last block of a disk may go on behind it, and only there be cut off.
        short = [i for i in (indices[0], indices[-1]) if there < min(BLOCK, self.size - i * BLOCK)]
        if short:
            count = len(indices) if short[0] == indices[0] else 1
            detail = f"names block {entry} of the file, which reaches past its end"
            self._tell(indices[:count], count, detail, UNSEEN, (entry,))
