"""Check a VHDX image: both copies of everything, every region, every metadata item, every block.

Law: the table is streamed, the map of used space has one byte for each mebibyte of the file up to a limit, and
counting stops after ``MAX_COUNTED`` faults, so that no image makes a check long or large.
Source: [MS-VHDX] 2.2 to 2.6. What must be fixed is a corruption; what is only unusual, or needs no more than the
next writer's care, is a warning and leaves the exit code alone.
"""

from __future__ import annotations

from itertools import compress

from instar.core.errors import ImageError
from instar.core.finding import UNSEEN, Report
from instar.core.units import SECTOR, MiB, align_up, ceil_div
from instar.formats.vhdx import bat, ondisk
from instar.formats.vhdx.metadata import REQUIRED_ITEMS
from instar.formats.vhdx.ondisk import ENTRY_SIZE, OFFSET_MASK, STATE_MASK
from instar.formats.vhdx.parse import linkages, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.formats.vhdx.parse import Disk

#: Faults of the table that are counted; a table of nothing but faults would take minutes to count.
MAX_COUNTED = 1_000_000
#: Faults of one kind that are told one by one; the others are only counted.
MAX_TOLD = 50

_KNOWN_FLAGS = ondisk.ITEM_IS_USER | ondisk.ITEM_IS_VIRTUAL_DISK | ondisk.ITEM_REQUIRED
#: Low bytes of entries that are as they should be, those of states without an offset, reserved bits of the third byte.
_SOUND = bytes([0, 1, 2, 3, 5, 6])
_EMPTY = bytes(low in (0, 2) for low in range(256))
_RESERVED_BITS = bytes(byte & 0xF for byte in range(256))
#: What the map of used space holds.
_BLOCK, _REGION = b"\1", b"\2"
#: States of absent blocks whose entry may still say where the block was.
_REMEMBERING = (ondisk.UNDEFINED, ondisk.UNMAPPED, ondisk.UNMAPPED_0_95)
_PLAIN = (ondisk.NOT_PRESENT, ondisk.ZERO)
_PAYLOAD_STATES = {
    ondisk.NOT_PRESENT,
    ondisk.UNDEFINED,
    ondisk.ZERO,
    ondisk.UNMAPPED,
    ondisk.UNMAPPED_0_95,
    ondisk.FULLY_PRESENT,
}


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check an image's metadata; the same for all generations.

    qemu-img looks at the places of present blocks only; what else is found is ``unseen``. Blocks that no entry names
    are no leaks: a fixed image consists of them, and qemu-img counts none.

    Raises:
        ImageError: the image cannot be opened at all, as by ``load``.
    """
    disk = load(image)
    image = disk.image
    report = Report()
    _check_headers(report, disk)
    _check_regions(report, image, disk)
    _check_metadata(report, disk)
    if disk.metadata.has_parent:
        _check_locator(report, disk)
        if parts:
            _check_lineage(report, disk, parts[0])
    if _opens_in_qemu(disk):
        report.mark_unseen()
    if not _is_sound(image, disk):
        _Table(report, image, disk).run()
    return report


def _opens_in_qemu(disk: Disk) -> bool:
    """Tell whether QEMU opens the image; if not, nothing is hidden from those who ask for its verdict."""
    found = disk.metadata
    return not (found.has_parent or disk.replayed or disk.tables[0].fault or found.logical_sector != SECTOR)


def _check_locator(report: Report, disk: Disk) -> None:
    """Look at how a differencing disk names its parent (2.6.2.6.3)."""
    locator = disk.metadata.locator
    offset = disk.metadata_region.file_offset
    if not linkages(disk):
        report.add("corruption", "parent locator", "there is no parent_linkage that is a GUID", offset=offset)
    if not any(locator.get(key.encode()) for key in ondisk.PARENT_PATHS):
        report.add("corruption", "parent locator", "there is no path to the parent", offset=offset)


def _check_lineage(report: Report, disk: Disk, parent: Reader | None) -> None:
    """Compare a differencing disk with its parent (2.6.2.6.3, 2.6.1.2)."""
    if parent is None:
        report.add("warning", "parent", "the parent could not be opened, so it was not compared")
        return
    try:
        above = load(parent)
    except ImageError as error:
        report.add("corruption", "parent", f"it cannot be read as a VHDX: {error.structure}: {error.detail}")
        return
    accepted, given = linkages(disk), above.current.data_write_guid
    if accepted and given not in accepted:
        report.add(
            "corruption",
            "parent",
            f"the parent's data write GUID is {ondisk.guid_text(given)}, but the disk was made for"
            f" {ondisk.guid_text(accepted[0])}: the parent was written to or replaced",
        )
    sector = above.metadata.logical_sector
    if sector != disk.metadata.logical_sector:
        report.add("corruption", "parent", f"the parent has sectors of {sector} bytes")
    if above.virtual_size != disk.virtual_size:
        report.add("warning", "parent", f"the parent has {above.virtual_size} bytes, the disk {disk.virtual_size}")


def _is_sound(image: Reader, disk: Disk) -> bool:
    """Tell, without a look at single entries, whether nothing at all can be wrong with the table.

    It is when every entry has a state that a disk without parent has, an offset only where one belongs, no sector
    bitmap is present, and the blocks start at places that are all different, far enough apart, and in no region.
    """
    placement = bat.Placement(image, disk)
    size = disk.metadata.block_size // MiB
    stride = disk.ratio + 1
    starts = bytearray(ceil_div(min(image.size, ondisk.MAX_TRACKED), MiB))
    blocks = 0
    for first, piece in bat.pieces(image, disk):
        low = piece[::ENTRY_SIZE]
        if low.count(ondisk.ZERO) + piece.count(0) != len(piece):  # else: no block, and no offset
            words = bat.words(piece)
            if words is None or low.translate(None, _SOUND) or piece[1::ENTRY_SIZE].strip(b"\0"):
                return False
            if piece[2::ENTRY_SIZE].translate(_RESERVED_BITS).strip(b"\0") or any(
                compress(words, low.translate(_EMPTY))
            ):
                return False
            places = bat.present(piece)
            if places:
                if max(places) // 16 >= len(starts) or max(places) // 16 * MiB > placement.high:
                    return False
                for place in places:
                    starts[place >> 4] = 1
                blocks += len(places)
        if any(bat.decode(piece)[(disk.ratio - first) % stride :: stride]):
            return False
    return starts.count(1) == blocks and _are_apart(starts, size) and _avoid_regions(starts, size, disk)


def _are_apart(starts: bytearray, size: int) -> bool:
    """Tell whether blocks of ``size`` mebibytes that start as marked do not overlap."""
    at = starts.find(1)
    if at < 0 or starts[at % size :: size].count(1) == starts.count(1):
        return True
    while (after := starts.find(1, at + 1)) >= 0:
        if after - at < size:
            return False
        at = after
    return True


def _avoid_regions(starts: bytearray, size: int, disk: Disk) -> bool:
    """Tell whether blocks of ``size`` mebibytes that start as marked keep clear of all that is no block."""
    return all(
        starts.find(1, max(0, start // MiB - size + 1), ceil_div(end, MiB)) < 0
        for start, end, _ in [(0, ondisk.HEADER_SECTION, ""), *disk.regions.rows]
    )


def _check_headers(report: Report, disk: Disk) -> None:
    first, second = disk.copies
    for number, copy in enumerate(disk.copies, 1):
        if copy.fault:
            # A writer that was interrupted leaves one copy like this; the other one counts.
            report.add("warning", "header", f"copy {number} is not valid: {copy.fault}", offset=copy.offset)
    if not first.fault and not second.fault and first.header.sequence_number == second.header.sequence_number:
        report.add("warning", "header", "both copies have the same sequence number", offset=second.offset)
    header = disk.current
    offset = next(copy.offset for copy in disk.copies if copy.header is header)
    for field in ("file_write_guid", "data_write_guid"):
        if getattr(header, field) == ondisk.NO_GUID:
            report.add("warning", "header", f"{field} is all zeros", offset=offset)
    if header.log_length % ondisk.UNIT or not header.log_length:
        report.add("warning", "header", f"the length of the log is {header.log_length} bytes", offset=offset)
    if disk.replayed:
        report.add(
            "warning",
            "log",
            f"the log holds changes (entries: {disk.replayed}) that are still to be made; they were taken as made",
            offset=header.log_offset,
        )
    elif header.log_guid != ondisk.NO_GUID and header.log_length:
        report.add("corruption", "log", "the log is not empty, but has no valid entry", offset=header.log_offset)


def _check_regions(report: Report, image: Reader, disk: Disk) -> None:
    for number, table in enumerate(disk.tables, 1):
        if table.fault:
            report.add("corruption", "region table", f"copy {number} is not valid: {table.fault}", offset=table.offset)
    first, second = disk.tables
    if not first.fault and not second.fault and first.entries != second.entries:
        report.add("corruption", "region table", "the two copies differ", offset=second.offset)
    for start, end, name in disk.regions.rows:
        if end > image.size:
            report.add("corruption", "region table", f"the {name} ends past the end of the file", offset=start)
        if start < ondisk.HEADER_SECTION:
            report.add("corruption", "region table", f"the {name} overlaps the header section", offset=start)
    for entry in disk.table.entries:
        if entry.file_offset % ondisk.UNIT or entry.length % ondisk.UNIT or not entry.length:
            report.add(
                "corruption",
                "region table",
                f"region {ondisk.guid_text(entry.guid)} is not whole mebibytes",
                offset=entry.file_offset,
            )


def _check_metadata(report: Report, disk: Disk) -> None:
    region = disk.metadata_region
    spans = []
    seen = set()
    users = 0
    for entry in disk.metadata.entries:
        name, length = REQUIRED_ITEMS.get(entry.item_id, (f"item {ondisk.guid_text(entry.item_id)}", None))
        where = region.file_offset + entry.offset
        user = bool(entry.flags & ondisk.ITEM_IS_USER)
        users += user
        if (entry.item_id, user) in seen:
            report.add("corruption", "metadata table", f"{name} is there twice", offset=where)
        seen.add((entry.item_id, user))
        if length is not None and entry.length != length:
            report.add(
                "corruption", "metadata table", f"{name} is {entry.length} bytes long, not {length}", offset=where
            )
        if entry.flags & ~_KNOWN_FLAGS:
            report.add("warning", "metadata table", f"{name} has unknown flags {entry.flags:#x}", offset=where)
        if entry.length > ondisk.MAX_ITEM:
            report.add("corruption", "metadata table", f"{name} is longer than 1 MiB", offset=where)
        if entry.length or entry.offset:
            spans.append((entry.offset, entry.offset + entry.length, name))
    if users > ondisk.MAX_USER_ITEMS:
        report.add("corruption", "metadata table", f"there are {users} user items", offset=region.file_offset)
    reach = ondisk.METADATA_TABLE_SIZE
    before = "metadata table"
    for start, end, name in sorted(spans):
        if start < reach:
            report.add(
                "corruption", "metadata region", f"{name} overlaps the {before}", offset=region.file_offset + start
            )
        if end > region.length:
            report.add(
                "corruption", "metadata region", f"{name} ends past the region", offset=region.file_offset + start
            )
        if end > reach:
            reach, before = end, name
    found = disk.metadata
    if found.physical_sector not in (512, 4096):
        report.add("corruption", "physical sector size", f"it is {found.physical_sector} bytes, not 512 or 4096")
    if found.virtual_size % found.logical_sector:
        report.add("corruption", "virtual disk size", f"{found.virtual_size} bytes are not whole sectors")


class _Table:
    """One pass over the block allocation table, entry by entry."""

    def __init__(self, report: Report, image: Reader, disk: Disk) -> None:
        self.report = report
        self.image = image
        self.disk = disk
        self.placement = bat.Placement(image, disk)
        self.has_parent = disk.metadata.has_parent
        self.opens_in_qemu = _opens_in_qemu(disk)
        self.told: dict[str, int] = {}
        self.counted = 0
        #: One byte for each mebibyte of the file: what lies there.
        self.used = bytearray(ceil_div(min(image.size, ondisk.MAX_TRACKED), MiB))
        for start, end, _ in [(0, ondisk.HEADER_SECTION, ""), *disk.regions.rows]:
            first, last = start // MiB, min(ceil_div(end, MiB), len(self.used))
            if first < last:
                self.used[first:last] = _REGION * (last - first)
        self.untracked = False
        #: Of differencing disks: a block of the current chunk needs its sector bitmap.
        self.needs_bitmap = False

    def run(self) -> None:
        """Look at each entry."""
        for first, piece in bat.pieces(self.image, self.disk):
            self._piece(first, piece)
            if self.counted >= MAX_COUNTED:
                self.report.add("error", "block allocation table", f"more than {MAX_COUNTED} faults; not all looked at")
                break
        for what, number in self.told.items():
            if number > MAX_TOLD:
                self.report.add("warning", "block allocation table", f"{number} entries in all: {what}")
        if self.untracked:
            self.report.add(
                "error",
                "block allocation table",
                f"blocks past byte {ondisk.MAX_TRACKED} of the file were not compared with one another",
            )

    def _piece(self, first: int, piece: bytes) -> None:
        stride = self.disk.ratio + 1
        size = self.disk.metadata.block_size
        high = self.placement.high
        tracked = min(high, len(self.used) * MiB - size)
        units = size // MiB
        block, nothing = _BLOCK * units, bytes(units)
        used = self.used
        for index, entry in enumerate(bat.decode(piece), first):
            state = entry & STATE_MASK
            if index % stride == stride - 1:
                self._bitmap(index, entry)
            elif entry & ondisk.RESERVED_MASK:
                self._payload(index, entry, state)
            elif state == ondisk.FULLY_PRESENT or (state == ondisk.PARTIALLY_PRESENT and self.has_parent):
                if state == ondisk.PARTIALLY_PRESENT:
                    self.needs_bitmap = True
                unit = (entry & OFFSET_MASK) // MiB
                if used[unit : unit + units] == nothing and entry <= high | STATE_MASK:
                    used[unit : unit + units] = block
                elif tracked < entry & OFFSET_MASK <= high:
                    self.untracked = True
                else:
                    self._payload(index, entry, state)
            elif state in _REMEMBERING or entry in _PLAIN:
                continue
            else:
                self._payload(index, entry, state)
            if self.counted >= MAX_COUNTED:
                break

    def _payload(self, index: int, entry: int, state: int) -> None:
        """Judge an entry that is not plainly right."""
        if entry & ondisk.RESERVED_MASK:
            self._tell("warning", index, "reserved bits are set")
        if state == ondisk.PARTIALLY_PRESENT and self.has_parent:
            self.needs_bitmap = True
        elif state not in _PAYLOAD_STATES:
            self._tell("corruption", index, f"a block of a disk of this kind has no state {state}")
            return
        if state in (ondisk.FULLY_PRESENT, ondisk.PARTIALLY_PRESENT):
            self._place(index, entry)
        elif entry & OFFSET_MASK and state in (ondisk.NOT_PRESENT, ondisk.ZERO):
            # Hyper-V refuses a zero block with an offset.
            self._tell("warning", index, f"a block in state {state} has an offset")

    def _bitmap(self, index: int, entry: int) -> None:
        """Judge a sector bitmap entry."""
        state = entry & STATE_MASK
        if not self.has_parent:
            if state == ondisk.BITMAP_PRESENT and (entry & OFFSET_MASK) + ondisk.BITMAP_BLOCK > self.image.size:
                self._place(index, entry)
            elif entry:
                # QEMU before 8.0 wrote such entries; nothing reads them.
                self._tell("warning", index, "a sector bitmap entry of a disk without parent is in use")
            return
        if state == ondisk.BITMAP_PRESENT:
            self._place(index, entry)
        elif state != ondisk.BITMAP_NOT_PRESENT:
            self._tell("corruption", index, f"a sector bitmap has no state {state}")
        elif self.needs_bitmap:
            self._tell("corruption", index, "the sector bitmap of partially present blocks is missing")
        self.needs_bitmap = False

    def _place(self, index: int, entry: int) -> None:
        """Judge where a present block lies, and remember that it lies there."""
        fault = self.placement.fault(index, entry)
        if fault is not None:
            # QEMU counts a file in whole sectors.
            seen = self.placement.fault(index, entry, align_up(self.image.size, SECTOR))
            self._tell("corruption", index, f"the block {fault[0]}", offset=entry & OFFSET_MASK, seen=bool(seen))
            return
        first = (entry & OFFSET_MASK) // MiB
        end = first + ceil_div(self.placement.length(index), MiB)
        if end > len(self.used):
            self.untracked = True
            return
        if _BLOCK in self.used[first:end]:
            self._tell("corruption", index, "the block overlaps another one", offset=entry & OFFSET_MASK)
        self.used[first:end] = _BLOCK * (end - first)

    def _tell(self, severity: str, index: int, what: str, *, offset: int | None = None, seen: bool = False) -> None:
        """Count a fault, and tell it if not too many of its kind were told. ``seen``: qemu-img sees it, too."""
        seen = seen or not self.opens_in_qemu
        self.counted += 1
        number = self.told[what] = self.told.get(what, 0) + 1
        detail = f"entry {index}: {what}" if number <= MAX_TOLD else ""
        if not detail and severity == "corruption":
            self.report.corruptions += 1
            self.report.unseen += not seen
        elif detail:
            code = UNSEEN if severity == "corruption" and not seen else ""
            self.report.add(severity, "block allocation table", detail, offset=offset, code=code)
