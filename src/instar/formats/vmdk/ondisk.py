"""VMDK on disk: the structures of sparse extents, magics, flags and limits.

Law: every number that stands in an image file, and every limit a reader compares one with, is here and
nowhere else. "Spec" is VMware's "Virtual Disk Format 5.0" (technical note, 2011); "QEMU" marks a limit or
reading of block/vmdk.c (QEMU 7.2 to 10.2) that the specification leaves open. All numbers are little endian.
"""

from __future__ import annotations

from instar.core.image import MAX_REFERENCES
from instar.core.record import Record
from instar.core.units import KiB, MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u8 = int
    u16 = int
    u32 = int
    u64 = int
    b4 = bytes
    b304 = bytes
    b433 = bytes
    b480 = bytes
    b496 = bytes

FORMAT = "vmdk"
SECTOR = 512

# --- hosted sparse extents (spec, "Hosted Sparse Extents") ----------------------------------------------

#: "KDMV", the bytes of SPARSE_MAGICNUMBER 0x564d444b in the file.
MAGIC = b"KDMV"
#: 1; 2 with zeroed grains; 3 stream-optimised, or changed block tracking (VMware KB 2064959).
MAX_VERSION = 3
FLAG_NEWLINES = 1 << 0
#: The redundant grain directory is used.
FLAG_REDUNDANT = 1 << 1
#: A grain table entry of 1 means "reads as zeros".
FLAG_ZEROED_GRAIN = 1 << 2
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17
COMPRESSION_NONE = 0
COMPRESSION_DEFLATE = 1
#: singleEndLineChar … doubleEndLineChar2: damaged by a transfer in text mode.
NEWLINES = b"\n \r\n"
#: gdOffset of a file written as a stream: the grain directory is named by the footer instead.
GD_AT_END = 0xFFFFFFFFFFFFFFFF
#: Grain table entry of a zeroed grain.
GTE_ZEROED = 1


class SparseExtentHeader(Record, endian="<"):
    """First sector of a hosted sparse extent; also its footer (spec, "Hosted Sparse Extent Header")."""

    magic: b4 = MAGIC
    version: u32 = 1
    flags: u32 = FLAG_NEWLINES | FLAG_REDUNDANT
    #: Sectors of the extent.
    capacity: u64
    #: Sectors of a grain.
    grain_size: u64 = 128
    #: Sector of the embedded descriptor; 0 if there is none.
    descriptor_offset: u64 = 1
    descriptor_size: u64 = 20
    #: Entries of one grain table.
    num_gtes_per_gt: u32 = 512
    #: Sector of the redundant grain directory.
    rgd_offset: u64
    #: Sector of the grain directory.
    gd_offset: u64
    #: Sectors of metadata before the first grain ("overHead").
    overhead: u64
    unclean_shutdown: u8 = 0
    newlines: b4 = NEWLINES
    compress_algorithm: u16 = COMPRESSION_NONE
    pad: b433 = b""


# --- stream-optimised extents (spec, "Stream-Optimized Compressed Sparse Extents", "Markers") --------------

MARKER_END_OF_STREAM = 0
MARKER_GRAIN_TABLE = 1
MARKER_GRAIN_DIRECTORY = 2
MARKER_FOOTER = 3


class Marker(Record, endian="<"):
    """A metadata marker; one sector."""

    #: Sectors of the structure that follows.
    sectors: u64 = 0
    #: 0 for all markers but a grain's.
    size: u32 = 0
    type: u32
    pad: b496 = b""


class GrainMarker(Record, endian="<"):
    """What stands before the data of a compressed grain; the data follows at once."""

    #: First sector of the grain in the extent's virtual space.
    lba: u64
    #: Bytes of compressed data.
    size: u32


#: Footer marker, footer, end-of-stream marker: the last three sectors.
FOOTER_BYTES = 3 * SECTOR

# --- COWD, the sparse extents of ESX Server (spec, "ESX Server Sparse Extents") ----------------------------

COWD_MAGIC = b"COWD"
COWD_GTES_PER_GT = 4096


class CowdHeader(Record, endian="<"):
    """Start of COWDisk_Header; the names that follow it say nothing about the layout."""

    magic: b4 = COWD_MAGIC
    version: u32 = 1
    flags: u32 = 3
    #: Sectors of the extent.
    num_sectors: u32
    #: Sectors of a grain.
    grain_size: u32
    #: Sector of the grain directory.
    gd_offset: u32
    num_gd_entries: u32
    #: Next free sector of the file.
    free_sector: u32
    cylinders: u32 = 0
    heads: u32 = 0
    sectors: u32 = 0


# --- seSparse extents (not published; as QEMU reads them) ----------------------------------------------

SESPARSE_MAGIC = 0x00000000CAFEBABE
SESPARSE_VOLATILE_MAGIC = 0x00000000CAFECAFE
SESPARSE_VERSION = 0x0000000200000001
#: The only grain size, in sectors, and size of a grain table, in sectors, that QEMU knows.
SESPARSE_GRAIN = 8
SESPARSE_TABLE = 64
#: Grain directory entry: top 32 bits of one that is in use; the low 32 bits count tables.
SESPARSE_GDE_USED = 0x10000000
#: Grain table entry: the top nibble says what the grain is.
SESPARSE_GTE_UNMAPPED = 1
SESPARSE_GTE_ZERO = 2
SESPARSE_GTE_DATA = 3


class SeSparseHeader(Record, endian="<"):
    """Constant header of a seSparse extent; all offsets and sizes in sectors."""

    magic: u64 = SESPARSE_MAGIC
    version: u64 = SESPARSE_VERSION
    capacity: u64
    grain_size: u64 = SESPARSE_GRAIN
    grain_table_size: u64 = SESPARSE_TABLE
    flags: u64 = 0
    reserved1: u64 = 0
    reserved2: u64 = 0
    reserved3: u64 = 0
    reserved4: u64 = 0
    volatile_header_offset: u64
    volatile_header_size: u64 = 1
    journal_header_offset: u64 = 0
    journal_header_size: u64 = 0
    journal_offset: u64 = 0
    journal_size: u64 = 0
    grain_dir_offset: u64
    grain_dir_size: u64
    grain_tables_offset: u64
    grain_tables_size: u64
    free_bitmap_offset: u64 = 0
    free_bitmap_size: u64 = 0
    backmap_offset: u64 = 0
    backmap_size: u64 = 0
    grains_offset: u64
    grains_size: u64
    pad: b304 = b""


class SeSparseVolatileHeader(Record, endian="<"):
    """Volatile header of a seSparse extent."""

    magic: u64 = SESPARSE_VOLATILE_MAGIC
    free_gt_number: u64 = 0
    next_txn_seq_number: u64 = 0
    #: Not 0: the journal must be replayed first.
    replay_journal: u64 = 0
    pad: b480 = b""


# --- the descriptor (spec, "The Descriptor File") -----------------------------------------------------

#: Where the embedded descriptor is: QEMU reads it from the second sector whatever the header says.
DESCRIPTOR_OFFSET = SECTOR
#: QEMU looks for CID, parentCID and parentFileNameHint in the first 20 sectors, and overwrites the last byte.
DESCRIPTOR_BYTES = 20 * SECTOR
#: QEMU reads no more of a descriptor file, to bound the memory.
MAX_DESCRIPTOR_FILE = (1 << 20) - 1
#: QEMU's buffers, without the terminator: createType, the name in an extent line, parentFileNameHint.
MAX_CREATE_TYPE = 127
MAX_EXTENT_NAME = 511
MAX_PARENT_NAME = 4095
#: One of the references that an image may have is its parent's.
MAX_EXTENTS = MAX_REFERENCES - 1

#: CID of no disk: a parentCID of this says that there is no parent.
NO_CID = 0xFFFFFFFF
#: createType of a disk that is one file with a header.
EMBEDDED_TYPES = ("monolithicSparse", "streamOptimized")
#: createType of a disk whose descriptor names its extents, as QEMU knows it.
QEMU_TYPES = ("monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
#: Those that QEMU refuses, and that differ from the others in nothing that a reader sees: how ESXi reserved the space,
#: older names, and descriptors that were taken out of their file.
FURTHER_TYPES = (
    *("vmfsThin", "vmfsPreallocated", "vmfsEagerZeroedThick", "custom"),
    *("2GbMaxExtentSparse", "2GbMaxExtentFlat", *EMBEDDED_TYPES),
)
#: createType of a disk whose data is on a device, with what that device is.
DEVICE_TYPES = {
    **dict.fromkeys(("fullDevice", "partitionedDevice"), "a device of the machine that it was made on"),
    **dict.fromkeys(
        ("vmfsRDM", "vmfsRDMP", "vmfsRaw", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap"),
        "a device that only VMware's ESXi reaches (raw device mapping)",
    ),
}

# --- limits of readers ------------------------------------------------------------------------------

#: Largest grain in sectors, 1 GiB (QEMU).
MAX_GRAIN_SECTORS = 0x200000
#: Most entries of a grain directory (QEMU): bounds the memory of who loads it whole.
MAX_GD_ENTRIES = 32 << 20
#: Most entries of a grain table (QEMU; spec: always 512).
MAX_GTES_PER_GT = 512
#: Grains that a check walks over: what QEMU can create, 256 TiB of 64 KiB grains.
MAX_CHECKED_GRAINS = 1 << 32
#: Pieces of contiguous grain tables that a check remembers (32 bytes each); QEMU writes one.
MAX_TABLE_RUNS = 1 << 20
#: Bytes of bitmap that a check may use: a bit per grain, so 2 TiB (all that 32-bit sectors reach) of 4 KiB grains.
MAX_BITMAP_BYTES = 64 * MiB
#: Grains out of step with the others that a check remembers (4 bytes each).
MAX_LOOSE_GRAINS = 1 << 20

# --- what we create ---------------------------------------------------------------------------------

DEFAULT_GRAIN = 64 * KiB
#: Spec, "Hosted Sparse Extent Header", grainSize: "a power of 2 and must be greater than 8" sectors.
MIN_GRAIN = 8 * KiB
#: QEMU reads grains of up to 1 GiB, but copies one whole, in memory, on the first write to it.
MAX_GRAIN = 64 * MiB
GTES_PER_GT = 512
GT_SECTORS = 4 * GTES_PER_GT // SECTOR
#: QEMU counts in 32 bits, rounding up to whole tables: from 2^32 - 511 grains on it wraps without a word and
#: writes no tables at all. The last size that works is 256 TiB less 32 MiB, with 64 KiB grains.
MAX_CREATED_GRAINS = (1 << 32) - GTES_PER_GT
#: Bytes of disk in each file of a split one (spec, "Layout Basics": 2 GB).
SPLIT_BYTES = 1 << 31
#: Sector numbers in grain tables have 32 bits.
MAX_SPARSE_FILE = SECTOR << 32
DESCRIPTOR_SECTORS = 20
#: Longest descriptor: QEMU's reader loses the 20th sector's last byte. (Its writer spills over the grain directory.)
MAX_DESCRIPTOR = DESCRIPTOR_BYTES - 1
#: Longest backing file name: QEMU writes parentFileNameHint through a buffer of 4,096 bytes.
MAX_BACKING_NAME = 4096 - 1 - len('parentFileNameHint=""')
