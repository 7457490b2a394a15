"""qcow version 1 on disk: the header, table entries and limits.

Law: every number that stands in a file, and every limit a reader compares one with, is here and nowhere else. There
is no specification; "QEMU" is its ``block/qcow.c``, "McLoughlin" is Mark McLoughlin, "The QCOW Image Format" (2006).
Big endian.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import KiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u8 = int
    u16 = int
    u32 = int
    u64 = int

FORMAT = "qcow"

# --- header (McLoughlin, "The QCOW Header", version 1; QEMU, QCowHeader) ----------------------------------

MAGIC = 0x514649FB
VERSION = 1

#: Clusters and L2 tables have 512 bytes to 64 KiB (QEMU).
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 16
MIN_L2_BITS = 6
MAX_L2_BITS = 13

#: What QEMU makes: small clusters over a backing file, so that little of it is copied. An L1 entry always maps 2 MiB.
CLUSTER_BITS, L2_BITS = 12, 9
CLUSTER_BITS_BACKED, L2_BITS_BACKED = 9, 12
L1_ENTRY_SPAN = 1 << (CLUSTER_BITS + L2_BITS)

CRYPT_NONE = 0
CRYPT_AES = 1

#: Smallest size in the header that QEMU opens.
MIN_SIZE = 2
#: Most L1 entries: a table of 2^31 - 1 bytes (QEMU).
MAX_L1_ENTRIES = ((1 << 31) - 1) // 8
#: Longest name of a backing file (QEMU).
MAX_BACKING_NAME = 1023
#: QEMU reads nothing at or behind this host offset (BDRV_MAX_LENGTH).
MAX_LENGTH = (1 << 63) - (1 << 30)

#: The name of a backing file that QEMU does not record: a sign that the image belongs to a virtual FAT disk.
VIRTUAL_FAT = "fat:"


class Header(Record, endian=">"):
    """The first 48 bytes of the file."""

    magic: u32 = MAGIC
    version: u32 = VERSION
    #: Host offset of the name of the backing file; 0 if there is none.
    backing_file_offset: u64 = 0
    backing_file_size: u32 = 0
    #: Time of the backing file's last change; nobody writes or reads it.
    mtime: u32 = 0
    #: Bytes of the virtual disk.
    size: u64
    cluster_bits: u8 = CLUSTER_BITS
    #: An L2 table has 2^l2_bits entries.
    l2_bits: u8 = L2_BITS
    padding: u16 = 0
    crypt_method: u32 = CRYPT_NONE
    l1_table_offset: u64


# --- tables ----------------------------------------------------------------------------------------------

ENTRY_SIZE = 8
SECTOR = 512
#: QEMU writes the L1 table in pieces of this size, and so makes the file longer than the table.
L1_ALIGNMENT = SECTOR
#: L2 entry: the cluster is compressed (deflate). Below this bit stands the compressed length, below that the offset.
COMPRESSED = 1 << 63

#: Most sectors of a file whose use a check can note: 512 GiB; two bits each.
MAX_SECTORS = 1 << 30
#: Most bytes of L2 tables that a check reads: those of a full disk of 4 TiB in clusters of 4 KiB.
MAX_TABLE_BYTES = 8 << 30
#: Piece in which tables are read: the largest L2 table, and a part of any L1 table.
PIECE = 64 * KiB


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Return ``(host offset, length)`` in bytes of a compressed cluster (QEMU, ``decompress_cluster``)."""
    shift = 63 - cluster_bits
    return entry & ((1 << shift) - 1), entry >> shift & ((1 << cluster_bits) - 1)
