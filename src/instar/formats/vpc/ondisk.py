"""VHD on disk: the structures, magics, masks and limits.

Law: every number that stands in a file, and every limit a reader compares one with, is here and nowhere
else. "Spec" is Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0 of October 11, 2006;
"QEMU" marks a rule of that implementation. All numbers are big endian, all sectors have 512 bytes.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import KiB, MiB, align_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u8 = int
    u16 = int
    u32 = int
    u64 = int
    b4 = bytes
    b8 = bytes
    b16 = bytes
    b192 = bytes
    b256 = bytes
    b427 = bytes
    b512 = bytes

FORMAT = "vpc"
SECTOR = 512

# --- hard disk footer (spec, "Hard Disk Footer Format") ------------------------------------------------

COOKIE = b"conectix"
#: ``features``: bit 1 is reserved and always set; bit 0 says that the disk is temporary.
FEATURES_RESERVED = 1 << 1
FEATURES_KNOWN = 0x3
VERSION = 0x00010000
#: ``data_offset`` of a fixed disk. The specification shows 32 bits; the tools write all 64 (QEMU too).
NO_OFFSET = (1 << 64) - 1

#: ``disk_type``. 0, 1, 5 and 6 are "none" and "reserved (deprecated)".
TYPE_FIXED = 2
TYPE_DYNAMIC = 3
TYPE_DIFFERENCING = 4
TYPE_NAMES = {TYPE_FIXED: "fixed", TYPE_DYNAMIC: "dynamic", TYPE_DIFFERENCING: "differencing"}

#: Unix time of 2000-01-01 00:00:00 UTC, from which ``timestamp`` counts seconds.
EPOCH = 946684800

#: What QEMU writes: creator "qemu" where CHS gives the size, "qem2" where ``current_size`` does; "Wi2k" and
#: version 5.3, that of Virtual PC 2007.
CREATOR_QEMU = b"qemu"
CREATOR_QEMU_EXACT = b"qem2"
CREATOR_OS_WINDOWS = b"Wi2k"
CREATOR_VERSION = 0x00050003

#: Creators whose disks QEMU before 10.0 sizes by ``current_size`` (all others by CHS).
SIZED_BY_FOOTER = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0")
#: Creators whose disks QEMU 10.0 and later size by CHS (all others by ``current_size``).
SIZED_BY_GEOMETRY = (b"vpc ", b"qemu")
FOOTER_SIZE_SINCE = (10, 0)

#: Largest disk: 2040 GiB in sectors (QEMU; Virtual PC's own limit too). BAT entries are 32-bit sector
#: numbers, so 2 TiB is what a file can address, and the rest is left for bitmaps and headers.
MAX_SECTORS = 0xFF000000
MAX_SIZE = MAX_SECTORS * SECTOR


class Footer(Record, endian=">"):
    """The last sector of every VHD; its copy is the first one, unless the disk is fixed."""

    cookie: b8 = COOKIE
    features: u32 = FEATURES_RESERVED
    version: u32 = VERSION
    #: Host offset of the dynamic disk header.
    data_offset: u64
    #: Seconds since ``EPOCH``.
    timestamp: u32 = 0
    creator_app: b4 = CREATOR_QEMU
    #: Major version in the upper half, minor in the lower.
    creator_version: u32 = CREATOR_VERSION
    creator_os: b4 = CREATOR_OS_WINDOWS
    #: Bytes of the virtual disk when it was made.
    original_size: u64
    #: Bytes of the virtual disk now.
    current_size: u64
    cylinders: u16
    heads: u8
    sectors_per_track: u8
    disk_type: u32
    #: Ones' complement of the sum of all other bytes of the footer.
    checksum: u32 = 0
    unique_id: b16 = b""
    #: 1 if the virtual machine was saved while running.
    saved_state: u8 = 0
    reserved: b427 = b""


# --- dynamic disk header (spec, "Dynamic Disk Header Format") ------------------------------------------

HEADER_COOKIE = b"cxsparse"
HEADER_VERSION = 0x00010000
#: Where QEMU, and every writer that was seen, puts them.
HEADER_OFFSET = 512
BAT_OFFSET = 1536

#: Spec: "default value is 0x00200000 (indicating a block size of 2 MB)", a power of two.
DEFAULT_BLOCK = 2 * MiB
#: Smallest block a reader accepts: one sector (QEMU; the specification names no bound).
MIN_READ_BLOCK = SECTOR
#: Blocks we make: Virtual PC and Hyper-V offer 512 KiB and 2 MiB; up to 256 MiB the bitmap stays at 64 KiB,
#: which QEMU and others keep in memory whole.
MIN_BLOCK = 512 * KiB
MAX_BLOCK = 256 * MiB

#: BAT entry of a block that is not in the file (spec, "Block Allocation Table and Data Blocks").
UNUSED = 0xFFFFFFFF
#: Most BAT entries we read: a disk of 2040 GiB in blocks of 64 KiB, an eighth of the smallest block that
#: is offered anywhere; a table of 128 MiB. QEMU stops at 2^29, with 2 GiB of memory.
MAX_TABLE_ENTRIES = MAX_SIZE // (64 * KiB)


class Header(Record, endian=">"):
    """The dynamic disk header: two sectors that say where the blocks are, and who the parent is."""

    cookie: b8 = HEADER_COOKIE
    #: Unused; all ones.
    data_offset: u64 = NO_OFFSET
    #: Host offset of the BAT.
    table_offset: u64 = BAT_OFFSET
    version: u32 = HEADER_VERSION
    max_table_entries: u32
    #: Bytes of a block, not counting its sector bitmap.
    block_size: u32 = DEFAULT_BLOCK
    #: Ones' complement of the sum of all other bytes of the header.
    checksum: u32 = 0
    #: ``unique_id`` of the parent's footer.
    parent_unique_id: b16 = b""
    #: Time of the parent's last change, seconds since ``EPOCH``.
    parent_timestamp: u32 = 0
    reserved: u32 = 0
    #: File name of the parent, UTF-16 big endian, ended by a zero.
    parent_name: b512 = b""
    #: Eight of ``ParentLocator``.
    parent_locators: b192 = b""
    reserved2: b256 = b""


class Identity(Record, endian=">"):
    """What a child takes over of its parent. Not on disk in this form: made by ``parse``, read by ``plan``."""

    unique_id: b16
    current_size: u64
    cylinders: u16
    heads: u8
    sectors_per_track: u8


# --- parent locators (spec, "Dynamic Disk Header Format", Parent Locator Entry) ------------------------

PLATFORM_NONE = 0
#: Path on Windows, UTF-16 little endian, relative to the folder of the child; the same, absolute.
PLATFORM_W2RU = 0x57327275
PLATFORM_W2KU = 0x57326B75
#: Deprecated paths on Windows; an alias of Mac OS; a file URL in UTF-8.
PLATFORM_WI2R = 0x57693272
PLATFORM_WI2K = 0x5769326B
PLATFORM_MAC = 0x4D616320
PLATFORM_MACX = 0x4D616358
PLATFORM_KNOWN = (
    PLATFORM_NONE,
    PLATFORM_W2RU,
    PLATFORM_W2KU,
    PLATFORM_WI2R,
    PLATFORM_WI2K,
    PLATFORM_MAC,
    PLATFORM_MACX,
)
LOCATORS = 8
#: Longest locator we read, in bytes: twice what a reported name may hold in UTF-16.
MAX_LOCATOR = 8 * KiB


class ParentLocator(Record, endian=">"):
    """One of eight pointers to a name of the parent, each for one platform."""

    platform_code: u32 = PLATFORM_NONE
    #: Sectors reserved for the name (some writers: bytes).
    data_space: u32 = 0
    #: Bytes of the name.
    data_length: u32 = 0
    reserved: u32 = 0
    #: Host offset of the name.
    data_offset: u64 = 0


def checksum(data: bytes) -> int:
    """Return the ones' complement of the sum of ``data``, whose checksum field must be zero (spec, "Checksum")."""
    return ~sum(data) & 0xFFFFFFFF


def sealed(record: Footer | Header) -> bytes:
    """Return a footer or header packed with its right checksum."""
    record.checksum = 0
    record.checksum = checksum(record.pack())
    return record.pack()


def checksum_of(record: Footer | Header) -> int:
    """Return the checksum a footer or header should carry."""
    return checksum(record.replace(checksum=0).pack())


def bitmap_bytes(block_size: int) -> int:
    """Return the bytes of the sector bitmap that stands before each block: one bit a sector, padded to a sector.

    Spec, "Block Allocation Table and Data Blocks".
    """
    return align_up(-(-block_size // (8 * SECTOR)), SECTOR)
