"""QED on disk: the header, feature bits, special offsets and limits.

Law: every number that stands in a file, and every limit a reader compares one with, is here and nowhere
else. "Spec" is QEMU's ``docs/interop/qed_spec.rst``; "QEMU" marks a rule of that implementation. Little endian.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import KiB, MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u32 = int
    u64 = int

FORMAT = "qed"

# --- header (spec, "Header") ---------------------------------------------------------------------------

#: "QED\0" read as a little-endian number.
MAGIC = 0x00444551

MIN_CLUSTER = 4 * KiB
MAX_CLUSTER = 64 * MiB
DEFAULT_CLUSTER = 64 * KiB
#: Clusters of a table.
MIN_TABLE = 1
MAX_TABLE = 16
DEFAULT_TABLE = 4

#: Spec, "Feature bits".
F_BACKING_FILE = 1 << 0
F_NEED_CHECK = 1 << 1
F_BACKING_FORMAT_NO_PROBE = 1 << 2
FEATURES_KNOWN = F_BACKING_FILE | F_NEED_CHECK | F_BACKING_FORMAT_NO_PROBE

#: Longest name of a backing file that QEMU reads: its buffer is Linux's PATH_MAX with the final zero.
MAX_BACKING_NAME = 4095


class Header(Record, endian="<"):
    """The first bytes of the first cluster; 64 bytes."""

    magic: u32 = MAGIC
    cluster_size: u32 = DEFAULT_CLUSTER
    #: Clusters of the L1 table and of each L2 table.
    table_size: u32 = DEFAULT_TABLE
    #: Clusters before the first regular one.
    header_size: u32 = 1
    #: An image with an unknown bit must not be opened.
    features: u64 = 0
    #: Unknown bits do no harm.
    compat_features: u64 = 0
    #: Unknown bits are cleared by whoever opens the image for writing.
    autoclear_features: u64 = 0
    l1_table_offset: u64
    #: Bytes of the virtual disk; a multiple of 512.
    image_size: u64
    #: Bytes from the start of the file; only with ``F_BACKING_FILE``, like the next.
    backing_filename_offset: u32 = 0
    backing_filename_size: u32 = 0


# --- tables (spec, "Tables") ---------------------------------------------------------------------------

ENTRY_SIZE = 8
#: Table entries that are no offset: not allocated; in an L2 table, a cluster of zeros.
UNALLOCATED = 0
ZERO_CLUSTER = 1

#: Most clusters of a file whose use a check can note: 64 TiB in clusters of 64 KiB; one bit each.
MAX_CLUSTERS = 1 << 30
#: Most bytes of L2 tables that a check reads: twice those of a full disk of 64 TiB in clusters of 64 KiB.
MAX_TABLE_BYTES = 16 << 30


def table_entries(cluster_size: int, table_size: int) -> int:
    """Return the entries of a table of ``table_size`` clusters (spec, "Tables", TABLE_NOFFSETS)."""
    return cluster_size * table_size // ENTRY_SIZE


def max_image_size(cluster_size: int, table_size: int) -> int:
    """Return the largest virtual disk in bytes that QEMU makes or opens with this geometry.

    The specification allows as many clusters as an L1 table of full L2 tables has entries. QEMU computes that
    modulo 2^64, so where it would be 2^64 or more, nothing is left.
    """
    entries = table_entries(cluster_size, table_size)
    return entries * entries * cluster_size % (1 << 64)
