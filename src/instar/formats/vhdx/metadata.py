"""The metadata region: a table of items by GUID, the five that every disk has, and the parent locator.

Law: items are read where the table says, a few bytes each; what lies past the end of the file reads as zeros.
Source: [MS-VHDX] 2.6.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import MAX_NAME
from instar.core.reader import read_padded
from instar.core.units import is_power_of_two
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.ondisk import MetadataTableEntry, MetadataTableHeader, ParentLocatorEntry, ParentLocatorHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader

#: Items that must be there, with the length each has (2.6.2).
REQUIRED_ITEMS = {
    ondisk.FILE_PARAMETERS: ("file parameters", 8),
    ondisk.VIRTUAL_DISK_SIZE: ("virtual disk size", 8),
    ondisk.VIRTUAL_DISK_ID: ("virtual disk id", 16),
    ondisk.LOGICAL_SECTOR_SIZE: ("logical sector size", 4),
    ondisk.PHYSICAL_SECTOR_SIZE: ("physical sector size", 4),
}


class Metadata:
    """What the metadata region says.

    Attributes:
        entries: the table.
        block_size, virtual_size, logical_sector, physical_sector: bytes.
        leave_allocated: the disk is a fixed one.
        has_parent: the disk is a differencing one.
        disk_id: the "page 83" GUID.
        locator: pairs of the parent locator, texts as UTF-8 (lone surrogates kept).
    """

    __slots__ = (
        "block_size",
        "disk_id",
        "entries",
        "has_parent",
        "leave_allocated",
        "locator",
        "logical_sector",
        "physical_sector",
        "virtual_size",
    )

    def __init__(self, entries: list[MetadataTableEntry]) -> None:
        self.entries = entries
        self.block_size = 0
        self.virtual_size = 0
        self.logical_sector = 0
        self.physical_sector = 0
        self.leave_allocated = False
        self.has_parent = False
        self.disk_id = b""
        self.locator: dict[bytes, bytes] = {}


def _table(image: Reader, region: int) -> list[MetadataTableEntry]:
    """Return the rows of the table."""
    data = read_padded(image, region, ondisk.METADATA_TABLE_SIZE)
    header = MetadataTableHeader.unpack(data)
    if header.signature != ondisk.METADATA_SIGNATURE:
        raise ImageError(
            "corrupt",
            "metadata table",
            "the signature is not 'metadata'",
            field="signature",
            value=int.from_bytes(header.signature, "big"),
            expected=int.from_bytes(ondisk.METADATA_SIGNATURE, "big"),
            offset=region,
        )
    if header.entry_count > ondisk.MAX_ITEMS:
        raise ImageError(
            "too-large",
            "metadata table",
            "the table has more entries than it has room for",
            field="entry_count",
            offset=region,
            value=header.entry_count,
            limit=ondisk.MAX_ITEMS,
        )
    return [
        MetadataTableEntry.unpack(data, MetadataTableHeader.SIZE + number * MetadataTableEntry.SIZE)
        for number in range(header.entry_count)
    ]


def read(image: Reader, region: int) -> Metadata:
    """Read the metadata region at host offset ``region``.

    Raises:
        ImageError: ``corrupt`` (signature, an item twice, a value that cannot be), ``unsupported-feature`` (an
            unknown item marked required, an item missing, logical sectors of an odd size), ``too-large``.
    """
    entries = _table(image, region)
    items: dict[bytes, MetadataTableEntry] = {}
    for entry in entries:
        if entry.item_id in REQUIRED_ITEMS or entry.item_id == ondisk.PARENT_LOCATOR:
            if entry.item_id in items:
                raise ImageError(
                    "corrupt",
                    "metadata table",
                    f"item {ondisk.guid_text(entry.item_id)} is there twice",
                    field="item_id",
                    offset=region,
                )
            items[entry.item_id] = entry
        elif entry.flags & ondisk.ITEM_REQUIRED:
            raise ImageError(
                "unsupported-feature",
                "metadata table",
                f"item {ondisk.guid_text(entry.item_id)} is required to read the image, and unknown",
                field="item_id",
                offset=region,
            )
    for item_id, (name, _) in REQUIRED_ITEMS.items():
        if item_id not in items:
            raise ImageError(
                "unsupported-feature",
                "metadata table",
                f"the item '{name}' is missing",
                field="entry_count",
                offset=region,
            )

    def item(item_id: bytes) -> bytes:
        return read_padded(image, region + items[item_id].offset, REQUIRED_ITEMS[item_id][1])

    found = Metadata(entries)
    parameters = ondisk.FileParameters.unpack(item(ondisk.FILE_PARAMETERS))
    found.block_size = parameters.block_size
    found.leave_allocated = bool(parameters.flags & ondisk.LEAVE_BLOCKS_ALLOCATED)
    found.has_parent = bool(parameters.flags & ondisk.HAS_PARENT)
    found.virtual_size = int.from_bytes(item(ondisk.VIRTUAL_DISK_SIZE), "little")
    found.disk_id = item(ondisk.VIRTUAL_DISK_ID)
    found.logical_sector = int.from_bytes(item(ondisk.LOGICAL_SECTOR_SIZE), "little")
    found.physical_sector = int.from_bytes(item(ondisk.PHYSICAL_SECTOR_SIZE), "little")
    _judge(found)
    if found.has_parent:
        if ondisk.PARENT_LOCATOR not in items:
            raise ImageError(
                "corrupt",
                "metadata table",
                "the disk has a parent, but no parent locator",
                field="has_parent",
                offset=region,
            )
        found.locator = _parent_locator(image, region, items[ondisk.PARENT_LOCATOR])
    elif ondisk.PARENT_LOCATOR in items:
        raise ImageError(
            "unsupported-feature",
            "metadata table",
            "the disk has a parent locator, but no parent",
            field="has_parent",
            offset=region,
        )
    return found


def _judge(found: Metadata) -> None:
    """Refuse values that make no disk, or none that can be read."""
    size = found.block_size
    if not (is_power_of_two(size) and ondisk.BLOCK_SIZE_MIN <= size <= ondisk.BLOCK_SIZE_MAX):
        raise ImageError(
            "corrupt",
            "file parameters",
            "the block size is not a power of two from 1 MiB to 256 MiB",
            field="block_size",
            value=size,
        )
    if found.logical_sector not in ondisk.SECTOR_SIZES:
        raise ImageError(
            "unsupported-feature",
            "logical sector size",
            "logical sectors have 512 or 4096 bytes",
            field="logical_sector_size",
            value=found.logical_sector,
        )
    if found.virtual_size > ondisk.VIRTUAL_SIZE_MAX:
        raise ImageError(
            "too-large",
            "virtual disk size",
            "a disk holds at most 64 TiB",
            field="virtual_disk_size",
            value=found.virtual_size,
            limit=ondisk.VIRTUAL_SIZE_MAX,
        )


def _parent_locator(image: Reader, region: int, entry: MetadataTableEntry) -> dict[bytes, bytes]:
    """Read the pairs of the parent locator (2.6.2.6)."""
    start = region + entry.offset

    def fail(kind: str, detail: str, field: str, value: int, limit: int) -> ImageError:
        return ImageError(kind, "parent locator", detail, field=field, offset=start, value=value, limit=limit)

    if entry.length > ondisk.MAX_ITEM:
        raise fail("too-large", "the item is too long", "length", entry.length, ondisk.MAX_ITEM)
    header = ParentLocatorHeader.unpack(read_padded(image, start, ParentLocatorHeader.SIZE))
    if header.locator_type != ondisk.VHDX_PARENT:
        raise ImageError(
            "unsupported-feature",
            "parent locator",
            f"the parent is of the unknown kind {ondisk.guid_text(header.locator_type)}",
            field="locator_type",
            offset=start,
        )
    count = header.key_value_count
    if count > ondisk.MAX_LOCATOR_PAIRS:
        raise fail("too-large", "there are too many pairs", "key_value_count", count, ondisk.MAX_LOCATOR_PAIRS)
    rows = read_padded(image, start + ParentLocatorHeader.SIZE, count * ParentLocatorEntry.SIZE)
    pairs: dict[bytes, bytes] = {}
    for number in range(count):
        row = ParentLocatorEntry.unpack(rows, number * ParentLocatorEntry.SIZE)
        end = max(row.key_offset + row.key_length, row.value_offset + row.value_length)
        if end > entry.length:
            raise fail("out-of-bounds", "a pair reaches past the end of the item", "end", end, entry.length)
        key = _text(read_padded(image, start + row.key_offset, row.key_length))
        value = _text(read_padded(image, start + row.value_offset, row.value_length))
        for text, field in ((key, "key_length"), (value, "value_length")):
            if len(text) > MAX_NAME:
                raise fail("too-large", "a text is too long", field, len(text), MAX_NAME)
        if key in pairs:
            raise ImageError("corrupt", "parent locator", "a key is there twice", field="key_offset", offset=start)
        pairs[key] = value
    return pairs


def _text(data: bytes) -> bytes:
    """Return UTF-16LE as UTF-8; a lone surrogate becomes the three bytes that would encode it."""
    return data[: len(data) & ~1].decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
