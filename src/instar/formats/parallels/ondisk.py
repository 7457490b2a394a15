"""A Parallels image on disk: the structures, magics and limits.

Law: every number that stands in a file, and every limit a reader compares one with, is here and nowhere else.
"Spec" is QEMU's docs/interop/parallels.rst ("Parallels Expandable Image File Format"); "QEMU" marks a rule of that
implementation. All numbers are little endian, all sectors have 512 bytes.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import INT64_MAX, GiB, MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u32 = int
    u64 = int
    b16 = bytes

FORMAT = "parallels"
SECTOR = 512

# --- header (spec, "Header") ---------------------------------------------------------------------------

#: BAT entries count clusters; ``nb_sectors`` has 64 bits.
MAGIC = b"WithouFreSpacExt"
#: The older kind: BAT entries count sectors; ``nb_sectors`` has 32 bits; ``data_off`` may be 0.
MAGIC_OLD = b"WithoutFreeSpace"
VERSION = 2

#: ``inuse``: a writer has the image open, or did not close it; it was closed by one that knows extensions.
IN_USE = 0x746F6E59
CLOSED = 0x312E3276
#: ``flags``: the image should be taken for an empty one.
FLAG_EMPTY = 1

#: Geometry as QEMU writes it; nothing reads it.
HEADS = 16
SECTORS_PER_TRACK = 32

#: Sectors of the largest cluster that QEMU opens (its own limit: a request of less than 2 GiB).
MAX_TRACKS = 0x7FFFFFFF // 513
MAX_CLUSTER = MAX_TRACKS * SECTOR
DEFAULT_CLUSTER = 1 * MiB
#: Most BAT entries that QEMU opens.
MAX_BAT_ENTRIES = 0x7FFFFFFF // 4
#: Largest virtual disk that QEMU has, in bytes.
MAX_SIZE = INT64_MAX // GiB * GiB
#: ``ext_off`` is below this.
MAX_EXT_OFF = INT64_MAX // SECTOR


class Header(Record, endian="<"):
    """The first 64 bytes; the BAT follows."""

    magic: b16 = MAGIC
    version: u32 = VERSION
    heads: u32 = HEADS
    cylinders: u32 = 0
    #: Sectors of a cluster.
    tracks: u32
    bat_entries: u32
    #: Sectors of the virtual disk.
    nb_sectors: u64
    inuse: u32 = 0
    #: Sector where the data area starts.
    data_off: u32
    flags: u32 = 0
    #: Sector of the Format Extension; 0 if there is none.
    ext_off: u64 = 0


# --- Format Extension (spec, "Format Extension") -------------------------------------------------------

EXTENSION_MAGIC = 0xAB234CEF23DCEA87
FEATURE_END = 0
FEATURE_BITMAP = 0x20385FAE252CB34A
#: Most bitmaps that we list; an image of 2 GiB clusters could hold millions.
MAX_BITMAPS = 4096


class Extension(Record, endian="<"):
    """Starts the extension's cluster; features follow."""

    magic: u64 = EXTENSION_MAGIC
    #: MD5 of the rest of the cluster.
    checksum: b16


class Feature(Record, endian="<"):
    """Starts a feature; ``data_size`` bytes follow, padded to 8."""

    magic: u64
    flags: u64 = 0
    data_size: u32
    unused: u32 = 0


class Bitmap(Record, endian="<"):
    """Starts the data of a dirty bitmap (spec, "Dirty bitmaps feature"); its L1 table follows, 8 bytes an entry."""

    #: Sectors of the disk.
    size: u64
    id: b16
    #: Sectors that one bit stands for; a power of two.
    granularity: u32
    l1_size: u32


# --- what versions of QEMU judge -----------------------------------------------------------------------

#: From here on ``data_off``, clusters that are cut off, and clusters used twice are checked. Measured on 7.2 and
#: 10.0; the changes came in 8.1 and 8.2.
STRICT_SINCE = (8, 2)
#: From here on clusters before the data area are found too, entries of 0 are left alone, and the BAT must be long
#: enough for the disk. Measured on 10.0 and 11.1.
STRICTER_SINCE = (11, 0)
