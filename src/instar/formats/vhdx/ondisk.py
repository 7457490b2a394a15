"""What a VHDX file is made of: structures, identifiers, masks and limits, as the specification names them.

Law: this is the only place that knows a layout or a constant of the format. Everything is little-endian.
Source: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", revision 8.0; section numbers are of that edition.
"""

from __future__ import annotations

from instar.core.record import Record, b4, b8, b16, b512, u16, u32, u64
from instar.core.units import GiB, KiB, MiB, TiB, ceil_div

FORMAT = "vhdx"

# -- identifiers -------------------------------------------------------------------------------------------


def guid(text: str) -> bytes:
    """Return the 16 bytes of a GUID as they stand in the file: three little-endian numbers, then 8 bytes."""
    raw = bytes.fromhex(text.replace("-", ""))
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


def guid_text(raw: bytes) -> str:
    """Return the usual text of a GUID as it stands in the file.

    >>> guid_text(guid("2dc27766-f623-4200-9d64-115e9bfd4a08"))
    '2dc27766-f623-4200-9d64-115e9bfd4a08'
    """
    digits = (raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:16]).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def random_guid(entropy: bytes) -> bytes:
    """Return a random (version 4) GUID out of 16 random bytes (RFC 9562, section 5.4)."""
    return entropy[:7] + bytes([entropy[7] & 0x0F | 0x40, entropy[8] & 0x3F | 0x80]) + entropy[9:16]


NO_GUID = bytes(16)
#: Regions (2.2.3.2).
BAT_REGION = guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
#: Metadata items (2.6.2).
FILE_PARAMETERS = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = guid("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = guid("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
#: The one defined kind of parent locator (2.6.2.6.3).
VHDX_PARENT = guid("b04aefb7-d19e-4a81-b789-25b8e9445913")

# -- header section: 1 MiB, five structures at fixed places (2.2) ------------------------------------------

FILE_ID_OFFSET = 0
HEADER_OFFSETS = (64 * KiB, 128 * KiB)
REGION_TABLE_OFFSETS = (192 * KiB, 256 * KiB)
HEADER_SECTION = 1 * MiB
#: The checksum of a header covers this much, though only ``Header.SIZE`` bytes have a meaning (2.2.2).
HEADER_BLOCK = 4 * KiB
REGION_TABLE_SIZE = 64 * KiB
#: Offsets and lengths of everything outside the header section are multiples of this (2.1).
UNIT = MiB

FILE_SIGNATURE = b"vhdxfile"
#: What we call ourselves in the file identifier. It is for diagnosis only.
CREATOR = "instar".encode("utf-16-le")


class FileIdentifier(Record, endian="<"):
    """File type identifier (2.2.1)."""

    signature: b8 = FILE_SIGNATURE
    #: Who made the file; UTF-16LE, ended by a zero if shorter.
    creator: b512 = CREATOR


class Header(Record, endian="<"):
    """Header (2.2.2). There are two; of those that are valid, the higher sequence number counts."""

    signature: b4 = b"head"
    checksum: u32 = 0
    sequence_number: u64
    file_write_guid: b16
    data_write_guid: b16
    #: All zero: the log is empty.
    log_guid: b16 = NO_GUID
    log_version: u16 = 0
    version: u16 = 1
    log_length: u32
    log_offset: u64


class RegionTableHeader(Record, endian="<"):
    """Head of a region table (2.2.3.1); the checksum covers 64 KiB."""

    signature: b4 = b"regi"
    checksum: u32 = 0
    entry_count: u32
    reserved: u32 = 0


class RegionTableEntry(Record, endian="<"):
    """One region (2.2.3.2)."""

    guid: b16
    file_offset: u64
    length: u32
    #: Bit 0, required: a reader that does not know the region must refuse the file.
    flags: u32 = 0


REGION_REQUIRED = 1
#: 2.2.3.1: that many fit into 64 KiB.
MAX_REGIONS = 2047

# -- log: a ring of 4 KiB sectors (2.3) --------------------------------------------------------------------

LOG_SECTOR = 4 * KiB
LOG_ENTRY_SIGNATURE = b"loge"
DATA_DESCRIPTOR_SIGNATURE = b"desc"
ZERO_DESCRIPTOR_SIGNATURE = b"zero"
DATA_SECTOR_SIGNATURE = b"data"


class LogEntryHeader(Record, endian="<"):
    """Head of a log entry (2.3.1.1); the checksum covers the whole entry."""

    signature: b4 = LOG_ENTRY_SIGNATURE
    checksum: u32 = 0
    entry_length: u32
    #: Where in the log the sequence starts that this entry ends.
    tail: u32
    sequence_number: u64
    descriptor_count: u32
    reserved: u32 = 0
    log_guid: b16
    #: The file was at least this long, and flushed, when the entry was written.
    flushed_file_offset: u64
    last_file_offset: u64


class LogDescriptor(Record, endian="<"):
    """Descriptor of a data sector (2.3.1.3) or, with the signature ``zero``, of a run of zeros (2.3.1.2)."""

    signature: b4 = DATA_DESCRIPTOR_SIGNATURE
    #: Data: the last 4 bytes of the sector. Zero: reserved.
    trailing_bytes: b4 = bytes(4)
    #: Data: the first 8 bytes of the sector. Zero: the length of the run.
    leading_bytes: u64
    file_offset: u64
    sequence_number: u64


class DataSectorHead(Record, endian="<"):
    """First 8 bytes of a data sector (2.3.1.4); the low half of the sequence number is its last 4 bytes."""

    signature: b4 = DATA_SECTOR_SIGNATURE
    sequence_high: u32


#: Bytes of log entries that are read to tell whether a log is active. Hyper-V and QEMU make logs of 1 MiB; the
#: field allows 4 GiB, and entries that claim to overlap could otherwise be read again for each 4 KiB sector.
MAX_LOG_EXAMINED = 64 * MiB

# -- block allocation table (2.5) --------------------------------------------------------------------------

ENTRY_SIZE = 8
STATE_MASK = 0x7
OFFSET_MASK = 0xFFFF_FFFF_FFF0_0000
RESERVED_MASK = 0x000F_FFF8

#: Payload block states (2.5.1.1). 5 was "unmapped" in specification 0.95.
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, UNMAPPED_0_95, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 5, 6, 7
#: Sector bitmap block states (2.5.1.2).
BITMAP_NOT_PRESENT, BITMAP_PRESENT = 0, 6
#: A sector bitmap block is this long, whatever the payload block size (2.4.2), and so covers this many sectors.
BITMAP_BLOCK = MiB
SECTORS_PER_BITMAP = 1 << 23

BLOCK_SIZE_MIN = 1 * MiB
BLOCK_SIZE_MAX = 256 * MiB
#: 2.6.2.4, 2.6.2.5: of logical and physical sectors.
SECTOR_SIZES = (512, 4096)
#: 2.6.2.2.
VIRTUAL_SIZE_MAX = 64 * TiB
#: Largest host offset up to which a check compares blocks with one another: twice the largest disk. One byte is
#: kept for each mebibyte of it.
MAX_TRACKED = 128 * TiB


def chunk_ratio(block_size: int, sector_size: int = 512) -> int:
    """Return how many payload entries stand between two sector bitmap entries (2.5)."""
    return SECTORS_PER_BITMAP * sector_size // block_size


def bat_entries(virtual_size: int, block_size: int, *, sector_size: int = 512, has_parent: bool = False) -> int:
    """Return how many entries the table of a disk has, sector bitmap entries included (2.5).

    >>> bat_entries(10 * 2**30, 2**25), bat_entries(10 * 2**30, 2**25, has_parent=True)
    (322, 387)
    """
    ratio = chunk_ratio(block_size, sector_size)
    blocks = ceil_div(virtual_size, block_size)
    if has_parent:
        return ceil_div(blocks, ratio) * (ratio + 1)
    return blocks + (blocks - 1) // ratio if blocks else 0


def created_bat_entries(virtual_size: int, block_size: int) -> int:
    """Return how many entries qemu-img makes room for in a new disk.

    For a disk of size 0 it computes "blocks − 1" in 32 bits, and its reader insists on the room that follows from it.
    """
    if not virtual_size:
        return 0xFFFF_FFFF // chunk_ratio(block_size)
    return bat_entries(virtual_size, block_size)


# -- metadata region (2.6) ---------------------------------------------------------------------------------

METADATA_TABLE_SIZE = 64 * KiB
METADATA_SIGNATURE = b"metadata"
#: 2.6.1.1: that many fit into 64 KiB.
MAX_ITEMS = 2047
#: 2.6.1.2: of user items, and of the bytes of one item.
MAX_USER_ITEMS = 1024
MAX_ITEM = 1 * MiB


class MetadataTableHeader(Record, endian="<"):
    """Head of the metadata table (2.6.1.1)."""

    signature: b8 = METADATA_SIGNATURE
    reserved: u16 = 0
    entry_count: u16
    reserved2: b4 = bytes(4)
    reserved3: b16 = bytes(16)


class MetadataTableEntry(Record, endian="<"):
    """One metadata item (2.6.1.2); ``offset`` counts from the start of the region."""

    item_id: b16
    offset: u32
    length: u32
    flags: u32
    reserved: u32 = 0


ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK, ITEM_REQUIRED = 1, 2, 4


class FileParameters(Record, endian="<"):
    """File parameters (2.6.2.1)."""

    block_size: u32
    flags: u32 = 0


LEAVE_BLOCKS_ALLOCATED, HAS_PARENT = 1, 2


class ParentLocatorHeader(Record, endian="<"):
    """Head of the parent locator (2.6.2.6.1)."""

    locator_type: b16 = VHDX_PARENT
    reserved: u16 = 0
    key_value_count: u16


class ParentLocatorEntry(Record, endian="<"):
    """One pair (2.6.2.6.2); offsets count from the start of the item, both texts are UTF-16LE."""

    key_offset: u32
    value_offset: u32
    key_length: u16
    value_length: u16


#: 2.6.2.6.3 defines five keys; files of other makers may add some.
MAX_LOCATOR_PAIRS = 64
#: Keys that name the parent, in the order in which a reader tries them (2.6.2.6.3).
PARENT_PATHS = ("relative_path", "volume_path", "absolute_win32_path")
#: Keys of the parent's identity: its data write GUID, in braces. Any one that fits will do.
PARENT_LINKAGES = ("parent_linkage", "parent_linkage2")


class Identity(Record, endian="<"):
    """What a child takes over of its parent. Not on disk in this form: made by ``parse``, read by ``plan``.

    2.6.1.2: a child is given copies of all items of the virtual disk.
    """

    data_write_guid: b16
    disk_id: b16
    logical_sector: u32
    physical_sector: u32
    #: How many further items of the virtual disk there are, which are not known here.
    other_items: u32


# -- what creation chooses ---------------------------------------------------------------------------------

DEFAULT_LOG_SIZE = 1 * MiB
#: The field is 32 bits wide and counts whole mebibytes.
LOG_SIZE_MAX = 4 * GiB - MiB
METADATA_REGION_SIZE = 1 * MiB
#: Room that qemu-img leaves between the end of the table and the first block: metadata, and 4 MiB to spare.
DATA_GAP = 5 * MiB
