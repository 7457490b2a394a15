"""qcow2 on disk: the structures, magics, masks and limits of versions 2 and 3.

Law: every number that stands in an image file, and every limit a reader compares one with, is here and
nowhere else. "Spec" is docs/interop/qcow2.rst of QEMU 10.2 ("Qcow2 Image File Format"); "QEMU" marks a
limit of that implementation, which the specification only notes or leaves open. All numbers are big endian.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import KiB, MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u8 = int
    u16 = int
    u32 = int
    u64 = int
    b7 = bytes
    b46 = bytes

FORMAT = "qcow2"

# --- header (spec, "Header") ---------------------------------------------------------------------------

#: "QFI\xfb".
MAGIC = 0x514649FB
VERSIONS = (2, 3)

#: Values of ``crypt_method``.
CRYPT_NONE = 0
CRYPT_AES = 1
CRYPT_LUKS = 2

#: ``incompatible_features`` (spec, "Header", bytes 72-79): an unknown bit means the image must not be opened.
INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
INCOMPATIBLE_KNOWN = 0x1F
#: ``compatible_features`` (bytes 80-87): unknown bits may be ignored.
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0
COMPATIBLE_KNOWN = 0x1
#: ``autoclear_features`` (bytes 88-95): unknown bits are cleared before writing.
AUTOCLEAR_BITMAPS = 1 << 0
AUTOCLEAR_DATA_FILE_RAW = 1 << 1
AUTOCLEAR_KNOWN = 0x3

#: ``compression_type`` (spec, "Additional fields", byte 104).
COMPRESSION_ZLIB = 0
COMPRESSION_ZSTD = 1
COMPRESSION_NAMES = ("zlib", "zstd")


class Header(Record, endian=">"):
    """The 72 bytes that both versions start with; all there is of a version 2 header (spec, "Header")."""

    magic: u32 = MAGIC
    version: u32 = 3
    #: Host offset of the backing file name; 0 if there is none.
    backing_file_offset: u64 = 0
    #: Bytes of the backing file name, without a terminator.
    backing_file_size: u32 = 0
    cluster_bits: u32 = 16
    #: Virtual disk size in bytes.
    size: u64
    crypt_method: u32 = CRYPT_NONE
    #: Entries of the active L1 table.
    l1_size: u32
    l1_table_offset: u64
    refcount_table_offset: u64
    refcount_table_clusters: u32
    nb_snapshots: u32 = 0
    snapshots_offset: u64 = 0


class HeaderV3(Record, endian=">"):
    """What version 3 adds at byte ``HEADER_V3_OFFSET`` (spec, "Header", bytes 72-103)."""

    incompatible_features: u64 = 0
    compatible_features: u64 = 0
    autoclear_features: u64 = 0
    #: A refcount is ``1 << refcount_order`` bits wide; version 2: always 4.
    refcount_order: u32 = 4
    #: Bytes of the whole header: at least 104, a multiple of 8; version 2: always 72.
    header_length: u32 = 112


class HeaderAdditional(Record, endian=">"):
    """Optional fields at byte ``HEADER_ADDITIONAL_OFFSET``, there if ``header_length`` says so.

    A field that is cut off by ``header_length`` reads as zero (spec, "Additional fields (version 3 and higher)").
    """

    compression_type: u8 = COMPRESSION_ZLIB
    padding: b7 = b""


#: Header lengths: version 2; the least of version 3; what QEMU 5.1 and later write.
HEADER_V2_LENGTH = 72
HEADER_V3_LENGTH = 104
HEADER_FULL_LENGTH = 112
HEADER_V3_OFFSET = HEADER_V2_LENGTH
HEADER_ADDITIONAL_OFFSET = HEADER_V3_LENGTH
#: ``refcount_order`` of every version 2 image.
REFCOUNT_ORDER_V2 = 4
#: Spec, "Header", bytes 96-99: no wider than 64 bits.
MAX_REFCOUNT_ORDER = 6

#: Spec, "Header", bytes 20-23: not below 9; QEMU opens none above 21 (2 MiB).
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
#: Spec, "Header", bytes 20-23: extended L2 entries need 16 KiB clusters, so that a subcluster is a sector.
MIN_CLUSTER_BITS_EXTENDED_L2 = 14

#: Spec, "Header", bytes 16-19: longest backing file name.
MAX_BACKING_NAME = 1023
#: QEMU: longest name in the backing format extension, which it keeps in 16 bytes with a terminator.
MAX_BACKING_FORMAT = 15

# --- header extensions (spec, "Header extensions") -----------------------------------------------------

EXTENSION_END = 0x00000000
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_CRYPTO_HEADER = 0x0537BE77
EXTENSION_DATA_FILE = 0x44415441
#: The area of extensions ends with the first cluster; each starts at a multiple of 8 bytes.
EXTENSION_ALIGNMENT = 8


class Extension(Record, endian=">"):
    """Head of one header extension; ``length`` bytes of data follow, padded to a multiple of 8."""

    type: u32
    length: u32


#: Values of ``FeatureName.type``: the bitmap the name belongs to (spec, "Feature name table").
FEATURE_INCOMPATIBLE = 0
FEATURE_COMPATIBLE = 1
FEATURE_AUTOCLEAR = 2


class FeatureName(Record, endian=">"):
    """One entry of the feature name table (spec, "Feature name table")."""

    type: u8
    bit: u8
    #: Padded with zeros; without terminator if it has the full length.
    name: b46


#: The table as QEMU writes it, in its order: (type, bit, name).
FEATURE_NAMES: tuple[tuple[int, int, bytes], ...] = (
    (FEATURE_INCOMPATIBLE, 0, b"dirty bit"),
    (FEATURE_INCOMPATIBLE, 1, b"corrupt bit"),
    (FEATURE_INCOMPATIBLE, 2, b"external data file"),
    (FEATURE_INCOMPATIBLE, 3, b"compression type"),
    (FEATURE_INCOMPATIBLE, 4, b"extended L2 entries"),
    (FEATURE_COMPATIBLE, 0, b"lazy refcounts"),
    (FEATURE_AUTOCLEAR, 0, b"bitmaps"),
    (FEATURE_AUTOCLEAR, 1, b"raw external data"),
)
#: QEMU writes the feature name table only into clusters larger than this, to leave room for the rest.
MAX_CLUSTER_WITHOUT_FEATURE_NAMES = 4 * KiB


class BitmapsExtension(Record, endian=">"):
    """Data of the bitmaps extension (spec, "Bitmaps extension")."""

    nb_bitmaps: u32
    reserved: u32 = 0
    #: Bytes of all directory entries together.
    bitmap_directory_size: u64
    bitmap_directory_offset: u64


class CryptoHeaderExtension(Record, endian=">"):
    """Where the encryption header lies (spec, "Full disk encryption header pointer")."""

    offset: u64
    length: u64


#: QEMU: an encryption header occupies at most so many clusters.
MAX_CRYPTO_CLUSTERS = 32

# --- refcounts (spec, "Host cluster management") -------------------------------------------------------

REFCOUNT_TABLE_ENTRY_SIZE = 8
REFCOUNT_TABLE_OFFSET_MASK = 0xFFFFFFFFFFFFFE00
REFCOUNT_TABLE_RESERVED_MASK = 0x1FF
#: Spec, note to "Host cluster management": QEMU's limit, so that the table fits in memory.
MAX_REFCOUNT_TABLE_SIZE = 8 * MiB

# --- mapping (spec, "Cluster mapping", "Extended L2 Entries") ------------------------------------------

L1_ENTRY_SIZE = 8
L1_OFFSET_MASK = 0x00FFFFFFFFFFFE00
L1_RESERVED_MASK = 0x7F000000000001FF

L2_ENTRY_SIZE = 8
L2_ENTRY_SIZE_EXTENDED = 16
#: Offset of a standard cluster, bits 9-55.
L2_OFFSET_MASK = 0x00FFFFFFFFFFFE00
L2_RESERVED_MASK = 0x3F000000000001FE
#: Bit 63 of an L1 or L2 entry: what it points to has a refcount of exactly one.
COPIED = 1 << 63
#: Bit 62 of an L2 entry.
COMPRESSED = 1 << 62
#: Bit 0 of a standard cluster descriptor: reads as zeros. Version 3 without extended L2 only.
ZERO = 1 << 0

SUBCLUSTERS = 32
#: Halves of the subcluster bitmap: bit x, subcluster x is allocated; bit 32 + x, it reads as zeros.
SUBCLUSTERS_ALLOCATED_MASK = 0x00000000FFFFFFFF
SUBCLUSTERS_ZERO_MASK = 0xFFFFFFFF00000000

#: Compressed data is counted in sectors of this many bytes (spec, "Compressed Clusters Descriptor").
COMPRESSED_SECTOR = 512

#: Spec, note to "Header", bytes 24-31: QEMU's limit to the L1 table, so that it fits in memory.
MAX_L1_SIZE = 32 * MiB
MAX_L1_ENTRIES = MAX_L1_SIZE // L1_ENTRY_SIZE
#: Spec, "Cluster mapping": an entry holds offsets below 2^56.
MAX_CLUSTER_OFFSET = (1 << 56) - 1


def compressed_offset_bits(cluster_bits: int) -> int:
    """Return *x* of the compressed cluster descriptor: the bits of its host offset.

    Bits *x* to 61 count the sectors beyond the first (spec, "Compressed Clusters Descriptor").
    """
    return 62 - (cluster_bits - 8)


# --- snapshots (spec, "Snapshots") ---------------------------------------------------------------------


class SnapshotEntry(Record, endian=">"):
    """Fixed part of a snapshot table entry; extra data, ID, name and padding to 8 bytes follow."""

    l1_table_offset: u64
    l1_size: u32
    id_str_size: u16
    name_size: u16
    date_sec: u32
    date_nsec: u32
    vm_clock_nsec: u64
    vm_state_size: u32
    extra_data_size: u32


class SnapshotExtra(Record, endian=">"):
    """Extra data of a snapshot, so far as it is defined; what ``extra_data_size`` cuts off is absent."""

    vm_state_size_large: u64 = 0
    disk_size: u64 = 0
    #: All ones: not recorded.
    icount: u64 = (1 << 64) - 1


SNAPSHOT_ALIGNMENT = 8
#: Spec, "Snapshots": version 3 has extra data up to byte 55 of the entry, so at least 16 bytes.
MIN_SNAPSHOT_EXTRA_V3 = 16
#: QEMU: more snapshots are refused.
MAX_SNAPSHOTS = 65536
#: QEMU: an average of 1 KiB for each of ``MAX_SNAPSHOTS`` entries.
MAX_SNAPSHOT_TABLE_SIZE = 1024 * MAX_SNAPSHOTS
#: QEMU: extra data beyond this is refused (a repair cuts it off).
MAX_SNAPSHOT_EXTRA = 1024

# --- bitmaps (spec, "Bitmaps") -------------------------------------------------------------------------


class BitmapDirectoryEntry(Record, endian=">"):
    """Fixed part of a bitmap directory entry; extra data, name and padding to 8 bytes follow."""

    bitmap_table_offset: u64
    #: Entries of the bitmap table.
    bitmap_table_size: u32
    flags: u32
    type: u8
    granularity_bits: u8
    name_size: u16
    extra_data_size: u32


BITMAP_IN_USE = 1 << 0
BITMAP_AUTO = 1 << 1
BITMAP_EXTRA_DATA_COMPATIBLE = 1 << 2
BITMAP_RESERVED_FLAGS = 0xFFFFFFF8
BITMAP_TYPE_DIRTY_TRACKING = 1
BITMAP_ENTRY_ALIGNMENT = 8

BITMAP_TABLE_ENTRY_SIZE = 8
BITMAP_TABLE_OFFSET_MASK = 0x00FFFFFFFFFFFE00
BITMAP_TABLE_RESERVED_MASK = 0xFF000000000001FE
#: Bit 0 of a bitmap table entry without offset: the bits are all ones, not all zeros.
BITMAP_TABLE_ALL_ONES = 1 << 0

#: Spec, note to "Bitmaps extension": QEMU's limit.
MAX_BITMAPS = 65535
#: QEMU: an average of 1 KiB for each of ``MAX_BITMAPS`` entries.
MAX_BITMAP_DIRECTORY_SIZE = 1024 * MAX_BITMAPS
#: Spec, notes to "Bitmap directory": QEMU's limits to granularity and name.
MIN_BITMAP_GRANULARITY_BITS = 9
MAX_BITMAP_GRANULARITY_BITS = 31
MAX_BITMAP_NAME = 1023
#: QEMU: most entries of one bitmap table (1 GiB of table), and most bytes of one bitmap's clusters.
MAX_BITMAP_TABLE_ENTRIES = 0x8000000
MAX_BITMAP_BYTES = 0x20000000

# --- limits of a reader --------------------------------------------------------------------------------

#: What is shown of snapshots and bitmaps together, in characters of their names and ``SHOWN_ROW`` for each: as many
#: snapshots as there may be, with names of 64. A character may take six bytes in the output, and four in memory.
MAX_SHOWN = 8 * MiB
SHOWN_ROW = 64

#: QEMU: no file or disk is longer; INT64_MAX rounded down to 1 GiB, its largest alignment.
MAX_LENGTH = 0x7FFFFFFFC0000000
#: QEMU counts the clusters of a file in an int when it checks references.
MAX_CHECKED_CLUSTERS = (1 << 31) - 1
#: A check reads at most so many bytes of L2 tables: what an image of 128 TiB in 64 KiB clusters has. Zeros
#: in a sparse file cost an attacker nothing, and reading them costs us time.
MAX_CHECKED_L2_BYTES = 1 << 34
#: A check reads at most so many L1 entries, those of all snapshots together (1 GiB of tables).
MAX_CHECKED_L1_ENTRIES = 1 << 27
#: Bytes of bitmap tables that are read to judge the bitmaps of one image.
MAX_BITMAP_TABLE_BYTES = 256 * MiB
#: Pages of references that are not uniform, of ``REFERENCE_PAGE`` clusters (a byte each): 40 MiB, the memory
#: for 2.5 TiB of 64 KiB clusters filled in random order. Uniform pages cost nothing.
REFERENCE_PAGE = 1024
MAX_REFERENCE_PAGES = 40 * 1024
#: Clusters with more than 254 references are counted aside.
MAX_LARGE_REFERENCES = 1 << 18
#: L2 tables that are pointed at from several places, or are not aligned to a cluster, are remembered.
MAX_SHARED_TABLES = 1 << 19
MAX_UNALIGNED_TABLES = 1 << 12
