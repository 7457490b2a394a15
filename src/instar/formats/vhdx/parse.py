"""From bytes to what a VHDX image says: headers, regions, metadata, and whether its table can be trusted.

Law: any bytes give a value or an ``ImageError``. The redundant copies of the header section are read here in
one place; ``check`` looks at the same copies and reports what is wrong with each.
Source: [MS-VHDX] 2.2, 2.5.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts, Reference
from instar.core.reader import read_padded
from instar.core.units import INT64_MAX
from instar.core.winpath import from_windows
from instar.formats.vhdx import metadata, ondisk
from instar.formats.vhdx.bat import Placement, Regions
from instar.formats.vhdx.crc32c import checksum
from instar.formats.vhdx.log import Log
from instar.formats.vhdx.ondisk import ENTRY_SIZE, Header, RegionTableEntry, RegionTableHeader
from instar.formats.vhdx.replay import Replayed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire
    from instar.formats.vhdx.metadata import Metadata

#: Bytes of a parent linkage that are told; a GUID in braces has 38.
_MAX_LINKAGE = 64


class Copy:
    """One of two copies of a header: where it stands, what is wrong with it ("" if nothing), what it says."""

    __slots__ = ("fault", "header", "offset")

    def __init__(self, offset: int, header: Header, fault: str) -> None:
        self.offset = offset
        self.header = header
        self.fault = fault


class RegionTable:
    """One of two copies of the region table: where it stands, what is wrong with it ("" if nothing), its rows."""

    __slots__ = ("entries", "fault", "offset")

    def __init__(self, offset: int, entries: list[RegionTableEntry], fault: str) -> None:
        self.offset = offset
        self.entries = entries
        self.fault = fault


class Disk:
    """An image as far as it must be understood before its blocks can be looked at.

    ``image`` is the file to read on, with the changes of its log, of which there are ``replayed`` entries.
    """

    __slots__ = (
        "bat",
        "bat_length",
        "copies",
        "current",
        "image",
        "metadata",
        "metadata_region",
        "regions",
        "replayed",
        "table",
        "tables",
    )

    def __init__(
        self,
        image: Reader,
        replayed: int,
        copies: tuple[Copy, Copy],
        current: Header,
        tables: tuple[RegionTable, RegionTable],
        table: RegionTable,
        regions: Regions,
        bat: RegionTableEntry,
        metadata_region: RegionTableEntry,
        found: Metadata,
    ) -> None:
        self.image = image
        self.replayed = replayed
        self.copies = copies
        self.current = current
        self.tables = tables
        self.table = table
        self.regions = regions
        self.bat = bat.file_offset
        self.bat_length = bat.length
        self.metadata_region = metadata_region
        self.metadata = found

    @property
    def virtual_size(self) -> int:
        """Size of the disk in whole logical sectors, in bytes."""
        return self.metadata.virtual_size // self.metadata.logical_sector * self.metadata.logical_sector

    @property
    def ratio(self) -> int:
        """Payload entries between two sector bitmap entries."""
        return ondisk.chunk_ratio(self.metadata.block_size, self.metadata.logical_sector)

    @property
    def bat_entries(self) -> int:
        """How many entries the table of the disk has."""
        return ondisk.bat_entries(
            self.metadata.virtual_size,
            self.metadata.block_size,
            sector_size=self.metadata.logical_sector,
            has_parent=self.metadata.has_parent,
        )


def read_header(image: Reader, offset: int) -> Copy:
    """Read the copy of the header at ``offset``."""
    data = read_padded(image, offset, ondisk.HEADER_BLOCK)
    header = Header.unpack(data)
    fault = ""
    if header.signature != b"head":
        fault = "the signature is not 'head'"
    elif header.checksum != checksum(data):
        fault = "the checksum does not match"
    elif header.version != 1:
        fault = f"the version is {header.version}, not 1"
    return Copy(offset, header, fault)


def current_header(copies: tuple[Copy, Copy]) -> Header:
    """Return the header that counts: valid, and with the higher sequence number (2.2.2).

    Raises:
        ImageError: ``corrupt``, none is valid, or two differ and have the same number.
    """
    valid = [copy.header for copy in copies if not copy.fault]
    if not valid:
        raise ImageError(
            "corrupt",
            "header",
            f"neither copy is valid: in the first {copies[0].fault}, in the second {copies[1].fault}",
            field="header",
            offset=copies[0].offset,
        )
    if len(valid) == 2:
        first, second = valid
        if first.sequence_number == second.sequence_number and first.pack() != second.pack():
            raise ImageError(
                "corrupt",
                "header",
                "two different headers have the same sequence number",
                value=first.sequence_number,
                field="sequence_number",
            )
        if second.sequence_number > first.sequence_number:
            return second
    return valid[0]


def read_region_table(image: Reader, offset: int) -> RegionTable:
    """Read the copy of the region table at ``offset``; rows are read only if its checksum matches."""
    data = read_padded(image, offset, ondisk.REGION_TABLE_SIZE)
    header = RegionTableHeader.unpack(data)
    if header.signature != b"regi":
        return RegionTable(offset, [], "the signature is not 'regi'")
    if header.checksum != checksum(data):
        return RegionTable(offset, [], "the checksum does not match")
    if header.entry_count > ondisk.MAX_REGIONS:
        return RegionTable(offset, [], f"the table has {header.entry_count} entries, and room for {ondisk.MAX_REGIONS}")
    rows = range(header.entry_count)
    entries = [RegionTableEntry.unpack(data, RegionTableHeader.SIZE + n * RegionTableEntry.SIZE) for n in rows]
    return RegionTable(offset, entries, "")


def _read_log(image: Reader, header: Header) -> tuple[Reader, int]:
    """Return the image with the changes of its log (2.3.3), and how many entries that has; refuse an odd log."""
    if header.log_offset < ondisk.HEADER_SECTION or header.log_offset % ondisk.UNIT:
        raise ImageError(
            "corrupt",
            "header",
            "the log does not start at a whole mebibyte after the header section",
            field="log_offset",
            value=header.log_offset,
        )
    if header.log_version != 0:
        raise ImageError(
            "corrupt",
            "header",
            "the log has an unknown version",
            field="log_version",
            value=header.log_version,
            expected=0,
        )
    if header.log_guid == ondisk.NO_GUID or not header.log_length:
        return image, 0
    if header.log_length % ondisk.UNIT:
        raise ImageError(
            "corrupt", "header", "the log is not whole mebibytes long", field="log_length", value=header.log_length
        )
    log = Log(image, header.log_offset, header.log_length, header.log_guid)
    entries = log.active_sequence()
    if not entries:
        return image, 0
    flushed = max(entry.header.flushed_file_offset for entry in entries)
    if flushed > image.size:
        raise ImageError(
            "out-of-bounds",
            "log",
            "the log was written when the file was longer: the file has been truncated",
            field="flushed_file_offset",
            value=flushed,
            limit=image.size,
            offset=header.log_offset,
        )
    return Replayed(log, entries), len(entries)


def _regions(header: Header, table: RegionTable) -> tuple[Regions, RegionTableEntry, RegionTableEntry]:
    """Judge the rows of a region table; return all ranges, and the two regions that every image has."""
    names = {ondisk.BAT_REGION: "block allocation table", ondisk.METADATA_REGION: "metadata region"}
    known: dict[bytes, RegionTableEntry] = {}
    rows = [(header.log_offset, header.log_offset + header.log_length, "log")]
    for entry in table.entries:
        name = names.get(entry.guid, f"region {ondisk.guid_text(entry.guid)}")
        rows.append((entry.file_offset, entry.file_offset + entry.length, name))
        if entry.guid in names:
            if entry.guid in known:
                raise ImageError("corrupt", "region table", f"the {name} is there twice", field="guid")
            if entry.file_offset + entry.length > INT64_MAX:
                raise ImageError(
                    "out-of-bounds",
                    "region table",
                    f"the {name} ends past what a file can hold",
                    field="region_end",
                    value=entry.file_offset + entry.length,
                    limit=INT64_MAX,
                    offset=table.offset,
                )
            known[entry.guid] = entry
        elif entry.flags & ondisk.REGION_REQUIRED:
            raise ImageError(
                "unsupported-feature",
                "region table",
                f"{name} is required to read the image, and unknown",
                field="guid",
                offset=table.offset,
            )
    regions = Regions(rows)
    for (_, end, name), (start, _, other) in zip(regions.rows, regions.rows[1:], strict=False):
        if start < end:
            raise ImageError(
                "corrupt",
                "region table",
                f"{name} and {other} overlap",
                field="file_offset",
                value=start,
                offset=table.offset,
            )
    for guid, name in names.items():
        if guid not in known:
            raise ImageError("corrupt", "region table", f"there is no {name}", field="guid", offset=table.offset)
    return regions, known[ondisk.BAT_REGION], known[ondisk.METADATA_REGION]


def load(image: Reader) -> Disk:
    """Read everything that comes before the block allocation table's entries.

    Raises:
        ImageError: the image cannot be opened; see the kinds at each step.
    """
    signature = read_padded(image, ondisk.FILE_ID_OFFSET, 8)
    if signature != ondisk.FILE_SIGNATURE:
        raise ImageError(
            "invalid-format",
            "file identifier",
            "the signature is not 'vhdxfile'",
            field="signature",
            value=int.from_bytes(signature, "big"),
            expected=int.from_bytes(ondisk.FILE_SIGNATURE, "big"),
            offset=0,
        )
    first, second = ondisk.HEADER_OFFSETS
    copies = (read_header(image, first), read_header(image, second))
    current = current_header(copies)
    image, replayed = _read_log(image, current)
    first, second = ondisk.REGION_TABLE_OFFSETS
    tables = (read_region_table(image, first), read_region_table(image, second))
    table = tables[1] if tables[0].fault and not tables[1].fault else tables[0]
    if table.fault:
        raise ImageError(
            "corrupt",
            "region table",
            f"neither copy is valid: in the first {tables[0].fault}, in the second {tables[1].fault}",
            field="region_table",
            offset=table.offset,
        )
    regions, bat, metadata_region = _regions(current, table)
    found = metadata.read(image, metadata_region.file_offset)
    disk = Disk(image, replayed, copies, current, tables, table, regions, bat, metadata_region, found)
    if disk.bat_entries * ENTRY_SIZE > disk.bat_length:
        raise ImageError(
            "corrupt",
            "block allocation table",
            "the table is too short for the disk",
            field="length",
            value=disk.bat_length,
            limit=disk.bat_entries * ENTRY_SIZE,
            offset=disk.bat,
        )
    return disk


def linkages(disk: Disk) -> list[bytes]:
    """Return the identities that a differencing disk accepts of its parent, as they stand in the parent's header."""
    found = []
    for key in ondisk.PARENT_LINKAGES:
        digits = disk.metadata.locator.get(key.encode(), b"").strip(b"{}").replace(b"-", b"")
        if len(digits) == 32 and not digits.strip(b"0123456789abcdefABCDEF"):
            found.append(ondisk.guid(digits.decode()))
    return found


def _parent(disk: Disk) -> Reference | None:
    for key in ondisk.PARENT_PATHS:
        name = disk.metadata.locator.get(key.encode())
        if name:
            return Reference("backing", from_windows(name), format=ondisk.FORMAT)
    return None


def lineage(image: Reader, *, generation: tuple[int, int]) -> Reference | None:
    """Return whom a differencing disk names as its parent, ``None`` for another disk or without a name.

    Raises:
        ImageError: see ``load``.
    """
    return _parent(load(image))


def _identity(disk: Disk) -> bytes:
    """Return what a child of the disk takes over."""
    found = disk.metadata
    others = sum(
        bool(entry.flags & ondisk.ITEM_IS_VIRTUAL_DISK) and entry.item_id not in metadata.REQUIRED_ITEMS
        for entry in found.entries
    )
    return ondisk.Identity(
        data_write_guid=disk.current.data_write_guid,
        disk_id=found.disk_id,
        logical_sector=found.logical_sector,
        physical_sector=found.physical_sector,
        other_items=others,
    ).pack()


def _facts(disk: Disk) -> ImageFacts:
    found = disk.metadata
    subformat = "differencing" if found.has_parent else "fixed" if found.leave_allocated else "dynamic"
    creator = read_padded(disk.image, ondisk.FILE_ID_OFFSET + 8, 512).decode("utf-16-le", "replace").partition("\0")[0]
    extra: dict[str, Wire] = {
        "subformat": subformat,
        "creator": creator,
        "log_size": disk.current.log_length,
        "logical_sector_size": found.logical_sector,
        "physical_sector_size": found.physical_sector,
        "virtual_disk_id": ondisk.guid_text(found.disk_id),
        "identity": _identity(disk),
    }
    parent = _parent(disk)
    if found.has_parent:
        extra["parent_linkage"] = found.locator.get(b"parent_linkage", b"")[:_MAX_LINKAGE].decode("utf-8", "replace")
        if accepted := linkages(disk):
            extra["parent_identity"] = accepted[0]
    return ImageFacts(
        ondisk.FORMAT,
        disk.virtual_size,
        cluster_size=found.block_size,
        dirty=disk.replayed > 0,
        references=[] if parent is None else [parent],
        extra=extra,
    )


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe an image as ``qemu-img info`` of any generation does; it names no required files.

    A differencing disk, which qemu-img refuses, is described too: ``extra["subformat"]`` says what it is, and its
    parent is a ``backing`` reference, named as in the parent locator but for the separators. So is an image whose
    log must be replayed: as it will be after that, and ``dirty``.

    Raises:
        ImageError: the image cannot be opened: what ``load`` raises, and ``corrupt`` if a block lies outside the
            file or inside a region.
    """
    disk = load(image)
    Placement(disk.image, disk).verify()
    return _facts(disk)
