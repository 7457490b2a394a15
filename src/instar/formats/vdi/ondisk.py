"""VDI on disk: the header, magics and limits.

Law: every number that stands in a file, and every limit a reader compares one with, is here and nowhere else.
"Spec" is VirtualBox's own header, VDICore.h (pre-header and header of version 1.1), as described in its forum
("All about VDIs"); "QEMU" marks a rule of that implementation. All numbers are little endian.
"""

from __future__ import annotations

from instar.core.record import Record
from instar.core.units import MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Widths for the record's metaclass, plain types for a checker.
    u32 = int
    u64 = int
    b16 = bytes
    b56 = bytes
    b64 = bytes
    b256 = bytes

FORMAT = "vdi"
SECTOR = 512

#: What QEMU writes in ``text``; VirtualBox has "<<< Oracle VM VirtualBox Disk Image >>>" and older names. It is for
#: people: nothing reads it.
TEXT_QEMU = b"<<< QEMU VM Virtual Disk Image >>>\n"
SIGNATURE = 0xBEDA107F
#: Major version in the upper half, minor in the lower.
VERSION = 0x00010001
#: Bytes of the header from ``header_size`` up to and with ``uuid_parent``; later versions are longer.
HEADER_SIZE = 0x180

#: ``image_type`` (spec, VDIIMAGETYPE).
TYPE_DYNAMIC = 1
TYPE_STATIC = 2
TYPE_NAMES = {TYPE_DYNAMIC: "dynamic", TYPE_STATIC: "static", 3: "undo", 4: "differencing"}
#: Bytes of a block: what all programs make, and the only size QEMU reads.
BLOCK = 1 * MiB

#: Block map entries: a block that was never written, and one that was discarded. Both read as zeros.
UNALLOCATED = 0xFFFFFFFF
DISCARDED = 0xFFFFFFFE

#: Most blocks of a disk: a block map that QEMU reads in one piece of less than 2 GiB.
MAX_BLOCKS = (0x80000000 - SECTOR) // 4
MAX_SIZE = MAX_BLOCKS * BLOCK

#: Where QEMU puts the block map.
MAP_OFFSET = SECTOR
NO_UUID = bytes(16)


class Header(Record, endian="<"):
    """The first sector."""

    text: b64 = TEXT_QEMU
    signature: u32 = SIGNATURE
    version: u32 = VERSION
    header_size: u32 = HEADER_SIZE
    image_type: u32 = TYPE_DYNAMIC
    image_flags: u32 = 0
    description: b256 = b""
    #: Host offset of the block map.
    offset_bmap: u32 = MAP_OFFSET
    #: Host offset of block 0 of the file.
    offset_data: u32
    #: Geometry; zero where nobody set one.
    cylinders: u32 = 0
    heads: u32 = 0
    sectors: u32 = 0
    sector_size: u32 = SECTOR
    unused1: u32 = 0
    #: Bytes of the virtual disk.
    disk_size: u64
    block_size: u32 = BLOCK
    #: Bytes that stand before each block; always 0.
    block_extra: u32 = 0
    #: Blocks of the virtual disk: entries of the block map.
    blocks_in_image: u32
    #: Blocks that are in the file.
    blocks_allocated: u32 = 0
    uuid_image: b16
    #: Changes when the disk is written to.
    uuid_last_snap: b16
    #: Image and last change of the parent of a differencing image.
    uuid_link: b16 = NO_UUID
    uuid_parent: b16 = NO_UUID
    unused2: b56 = b""
