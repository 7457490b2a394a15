"""Check a VHD. qemu-img has no check for this format; here is what one should look at.

A differencing disk is compared with its parent, if that could be opened: ``parts[0]``.

Law: memory is bounded whatever the image says (``MAX_SLOTS``), time is linear in the BAT and in the length
of the file in blocks. What a reader relies on is a corruption, lost space a leak, an oddity a warning.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

from instar.core.errors import ImageError
from instar.core.finding import Report
from instar.core.reader import iter_table, read_padded
from instar.core.units import align_up, ceil_div
from instar.formats.vpc.geometry import MAX_GEOMETRY_SECTORS, geometry, volume
from instar.formats.vpc.ondisk import (
    COOKIE,
    FEATURES_KNOWN,
    FEATURES_RESERVED,
    HEADER_VERSION,
    PLATFORM_KNOWN,
    PLATFORM_NONE,
    SECTOR,
    TYPE_DIFFERENCING,
    TYPE_FIXED,
    TYPE_NAMES,
    UNUSED,
    VERSION,
    Footer,
    Header,
    bitmap_bytes,
    checksum_of,
)
from instar.formats.vpc.parse import (
    bat_end,
    file_end,
    locators,
    open_image,
    padded,
    parent_name,
    require_bat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.formats.vpc.parse import Opened

#: Most block-sized slots of the file that are kept in memory to find overlaps: 2 TiB in the smallest blocks
#: of ``MAX_TABLE_ENTRIES``; two bytes each.
MAX_SLOTS = 1 << 25
#: A slot without a block. A block's place in its slot is below it, or the wider array is taken.
_EMPTY = {"H": 0xFFFF, "I": 0xFFFFFFFF}


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of a VHD; ``generation`` only decides which virtual size counts.

    Totals: ``total_clusters`` blocks of the virtual disk, ``allocated_clusters`` those in the file,
    ``fragmented_clusters`` those that do not follow their predecessor, ``image_end_offset`` the end of the
    footer that belongs to the data. For a fixed disk only the last.

    Raises:
        ImageError: the image cannot be opened; see ``parse.open_image``, and ``out-of-bounds`` for the BAT.
    """
    opened = open_image(image, generation)
    report = Report()
    _check_footer(opened, report)
    if opened.header is None:
        _check_fixed(image, opened, report)
    else:
        if opened.footer.disk_type == TYPE_FIXED:
            report.add(
                "corruption",
                "footer",
                "the disk says that it is fixed but starts with a footer: its first sectors read as data",
                offset=Footer.field("disk_type").offset,
            )
        _check_dynamic(image, opened, opened.header, report)
        if opened.footer.disk_type == TYPE_DIFFERENCING and parts:
            _check_lineage(opened, opened.header, parts[0], generation, report)
    return report


def _check_lineage(
    opened: Opened, header: Header, parent: Reader | None, generation: tuple[int, int], report: Report
) -> None:
    """Compare a differencing disk with its parent (spec, "Identification of the Parent Hard Disk Image").

    The parent's time of change, which is recorded too, is left alone: copying a file changes it.
    """
    if parent is None:
        report.add("warning", "parent", "the parent could not be opened, so it was not compared")
        return
    try:
        above = open_image(parent, generation)
    except ImageError as error:
        report.add("corruption", "parent", f"it cannot be read as a VHD: {error.structure}: {error.detail}")
        return
    if above.footer.unique_id != header.parent_unique_id:
        report.add(
            "corruption",
            "parent",
            f"the parent has the identifier {above.footer.unique_id.hex()}, but the disk was made for"
            f" {header.parent_unique_id.hex()}: the data would be mixed up",
            offset=opened.footer.data_offset + Header.field("parent_unique_id").offset,
        )
    if above.footer.current_size != opened.footer.current_size:
        report.add(
            "warning",
            "parent",
            f"the parent has {above.footer.current_size} bytes, the disk {opened.footer.current_size}:"
            " some programs refuse that",
        )


def _check_footer(opened: Opened, report: Report) -> None:
    """Look at what the footer says of itself. Its checksum was right, or the image would not have opened."""
    footer = opened.footer
    if footer.disk_type not in TYPE_NAMES:
        report.add("corruption", "footer", f"there is no disk type {footer.disk_type}")
    if footer.version != VERSION:
        report.add("warning", "footer", f"file format version {footer.version:#010x} is not 1.0")
    if footer.features & ~FEATURES_KNOWN or not footer.features & FEATURES_RESERVED:
        report.add(
            "warning", "footer", f"features {footer.features:#x} are unknown, or lack the bit that is always set"
        )
    if footer.current_size % SECTOR:
        report.add("warning", "footer", f"the current size, {footer.current_size}, is not a multiple of 512")
    held = volume(opened.geometry)
    sectors = footer.current_size // SECTOR
    if held != MAX_GEOMETRY_SECTORS and held != sectors and opened.geometry != geometry(sectors):
        report.add(
            "warning",
            "footer",
            f"the geometry holds {held * SECTOR} bytes, the current size is {footer.current_size}:"
            " programs will not agree on the size of the disk",
        )


def _check_fixed(image: Reader, opened: Opened, report: Report) -> None:
    """Compare a fixed disk's size with the data before its footer."""
    data = file_end(image) - SECTOR
    report.image_end_offset = image.size
    if opened.virtual_size > data:
        report.add(
            "corruption", "file", f"the disk has {opened.virtual_size} bytes, the file holds only {data}", offset=data
        )
    elif data > max(opened.virtual_size, opened.footer.current_size):
        report.add("warning", "file", f"the file holds {data} bytes, the disk has only {opened.virtual_size}")


def _check_dynamic(image: Reader, opened: Opened, header: Header, report: Report) -> None:
    """Check header, BAT, blocks and the footer at the end."""
    _check_header(opened, header, report)
    regions = _metadata(image, opened, header, report)
    require_bat(image, header)
    data_end = _check_blocks(image, opened, header, regions, report)
    _check_end(image, opened.footer, data_end, report, span=bitmap_bytes(header.block_size) + header.block_size)


def _check_header(opened: Opened, header: Header, report: Report) -> None:
    """Look at the dynamic disk header."""
    offset = opened.footer.data_offset
    expected = checksum_of(header)
    if header.checksum != expected:
        report.add(
            "corruption",
            "dynamic disk header",
            f"the checksum is {header.checksum}, it should be {expected}",
            offset=offset + Header.field("checksum").offset,
        )
    if header.version != HEADER_VERSION:
        report.add("warning", "dynamic disk header", f"version {header.version:#010x} is not 1.0", offset=offset)
    needed = ceil_div(opened.virtual_size, header.block_size)
    # By geometry a disk may be smaller than by its size, which is what writers make the table for.
    needed = max(needed, ceil_div(opened.footer.current_size, header.block_size))
    if header.max_table_entries > needed:
        report.add(
            "warning",
            "dynamic disk header",
            f"the BAT has {header.max_table_entries} entries, the disk needs {needed}",
            offset=offset + Header.field("max_table_entries").offset,
        )


def _metadata(image: Reader, opened: Opened, header: Header, report: Report) -> list[tuple[int, int, str]]:
    """Return the sorted ranges ``(start, end, name)`` of all metadata but the last footer; report overlaps."""
    offset = opened.footer.data_offset
    regions = [
        (0, Footer.SIZE, "footer copy"),
        (offset, offset + Header.SIZE, "dynamic disk header"),
    ]
    if header.max_table_entries:
        regions.append((header.table_offset, align_up(bat_end(header), SECTOR), "BAT"))
    if opened.footer.disk_type == TYPE_DIFFERENCING:
        regions += _check_parent(image, header, report)
    regions.sort()
    for (_, end, name), (start, _, other) in pairwise(regions):
        if start < end:
            report.add("corruption", other, f"the {other} overlaps the {name}", offset=start)
    return regions


def _check_parent(image: Reader, header: Header, report: Report) -> list[tuple[int, int, str]]:
    """Look at how a differencing disk names its parent; return the ranges of the names."""
    regions = []
    for number, entry in enumerate(locators(header)):
        if entry.platform_code not in PLATFORM_KNOWN:
            report.add(
                "warning", "parent locator", f"locator {number} is for the unknown platform {entry.platform_code:#x}"
            )
        if entry.platform_code == PLATFORM_NONE or not entry.data_length:
            continue
        end = entry.data_offset + entry.data_length
        if end > image.size:
            report.add(
                "corruption",
                "parent locator",
                f"locator {number} reaches to byte {end}, past the end of the file",
                offset=entry.data_offset,
            )
        else:
            regions.append((entry.data_offset, end, f"parent locator {number}"))
    if parent_name(image, header) is None:
        report.add("corruption", "dynamic disk header", "the disk has a parent but no name for it")
    if not any(header.parent_unique_id):
        report.add("warning", "dynamic disk header", "the identifier of the parent is zero, so any disk fits")
    return regions


def _check_blocks(
    image: Reader, opened: Opened, header: Header, regions: list[tuple[int, int, str]], report: Report
) -> int:
    """Check each BAT entry; return the host offset behind all blocks and metadata."""
    blocks = ceil_div(opened.virtual_size, header.block_size)
    span = bitmap_bytes(header.block_size) + header.block_size
    file_limit = file_end(image)
    occupied = _Occupied(file_limit, span)
    data_end = max(end for _, end, _ in regions)
    # A block behind the last table cannot meet any, and nearly every block is one.
    metadata_end = data_end
    first_block = file_limit
    allocated = fragmented = 0
    previous_end = -1
    if not occupied.possible:
        report.add("error", "BAT", "blocks were not compared with each other: too many fit into the file")
    for first, entries in iter_table(padded(image), header.table_offset, header.max_table_entries, "I", ">", "BAT"):
        if entries.count(UNUSED) == len(entries):
            continue
        for index, entry in enumerate(entries, first):
            if entry == UNUSED:
                continue
            start = entry * SECTOR
            end = start + span
            place = header.table_offset + 4 * index
            if index < blocks:
                allocated += 1
                fragmented += 0 <= previous_end != start
                previous_end = end
            else:
                report.add("leak", "BAT", f"block {index} lies behind the end of the disk", offset=place)
            if end > file_limit:
                report.add(
                    "corruption",
                    "BAT",
                    f"block {index} at byte {start} reaches past the end of the file",
                    offset=place,
                )
                continue
            if start < metadata_end:
                for low, high, name in regions:
                    if start < high and end > low:
                        report.add(
                            "corruption", "BAT", f"block {index} at byte {start} overlaps the {name}", offset=place
                        )
            if not occupied.take(entry):
                report.add("corruption", "BAT", f"block {index} at byte {start} overlaps another block", offset=place)
            data_end = max(data_end, end)
            first_block = min(first_block, start)
    report.total_clusters = blocks
    report.allocated_clusters = allocated
    report.fragmented_clusters = fragmented
    report.image_end_offset = data_end + SECTOR
    # Before the first block nothing was ever in use: a writer may leave room there, to align the blocks or for the BAT.
    for start, lost in occupied.gaps(max(metadata_end, first_block), data_end):
        report.add("leak", "file", f"room for {lost} blocks that no BAT entry points to", offset=start, count=lost)
    return data_end


class _Occupied:
    """Which block-sized slots of the file a block starts in, and where in the slot.

    Two blocks overlap exactly if they start in one slot, or in neighbouring slots less than a block apart.
    """

    __slots__ = ("code", "possible", "slots", "span")

    def __init__(self, file_limit: int, span: int) -> None:
        #: Sectors of a block with its bitmap.
        self.span = span // SECTOR
        self.code = "H" if self.span < 0xFFFF else "I"
        # No BAT entry points past 2 TiB, however long the file is.
        count = min(file_limit, UNUSED * SECTOR) // span + 1
        self.possible = count <= MAX_SLOTS
        # One more at either side, so that each slot has two neighbours.
        self.slots = array(self.code, [_EMPTY[self.code]]) * (count + 2 if self.possible else 0)

    def take(self, sector: int) -> bool:
        """Note a block that starts at ``sector``, inside the file; tell whether its place was free."""
        if not self.possible:
            return True
        slot, place = divmod(sector, self.span)
        slots, empty = self.slots, _EMPTY[self.code]
        if slots[slot + 1] != empty:
            return False
        before, after = slots[slot], slots[slot + 2]
        slots[slot + 1] = place
        return not ((before != empty and before > place) or (after != empty and after < place))

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the gaps between ``start`` and ``end`` that blocks would fit into: ``(host offset, blocks)``.

        Smaller gaps are how writers align their blocks. At most 1000 are told apart, the last takes the rest.
        """
        found: list[tuple[int, int]] = []
        position = start // SECTOR
        empty = _EMPTY[self.code]
        for slot, place in enumerate(self.slots):
            if place == empty:
                continue
            sector = (slot - 1) * self.span + place
            self._gap(found, position, sector)
            position = max(position, sector + self.span)
        self._gap(found, position, end // SECTOR)
        return found

    def _gap(self, found: list[tuple[int, int]], position: int, until: int) -> None:
        """Add the gap between two sectors, if a block fits into it."""
        lost = (until - position) // self.span
        if lost <= 0:
            return
        if len(found) < 1000:
            found.append((position * SECTOR, lost))
        else:
            found[-1] = (found[-1][0], found[-1][1] + lost)


def _check_end(image: Reader, copy: Footer, data_end: int, report: Report, *, span: int) -> None:
    """Compare the footer at the end of the file with its copy at the start, and look for lost room before it."""
    end = file_end(image)
    offset = max(0, end - SECTOR)
    last = Footer.unpack(read_padded(image, offset, SECTOR))
    if offset < data_end:
        report.add("corruption", "footer", "the file ends without a footer", offset=offset)
        return
    if last.cookie != COOKIE:
        found = read_padded(image, data_end, SECTOR)[: len(COOKIE)] == COOKIE
        where = f"; there is one at byte {data_end}, and more behind it" if found else ""
        report.add("corruption", "footer", f"the file does not end with a footer{where}", offset=offset)
        return
    if last.checksum != checksum_of(last):
        report.add("corruption", "footer", "the checksum of the footer at the end is wrong", offset=offset)
    names = [
        name
        for (name, value), (_, other) in zip(copy.items(), last.items(), strict=True)
        if value != other and name != "checksum"
    ]
    if names:
        report.add("corruption", "footer", f"footer and copy of the footer differ in {', '.join(names)}", offset=offset)
    lost = (offset - data_end) // span
    if lost:
        report.add("leak", "file", f"room for {lost} blocks before the footer", offset=data_end, count=lost)
