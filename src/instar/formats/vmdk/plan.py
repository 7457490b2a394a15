"""The writes that make a VMDK of one file: monolithicSparse and streamOptimized.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes, but for the CID.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.plan import Fill, Plan, Series, Write
from instar.core.units import align_up, ceil_div
from instar.formats.vmdk.ondisk import (
    COMPRESSION_DEFLATE,
    COMPRESSION_NONE,
    DESCRIPTOR_OFFSET,
    DESCRIPTOR_SECTORS,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINES,
    FLAG_REDUNDANT,
    FLAG_ZEROED_GRAIN,
    GT_SECTORS,
    GTES_PER_GT,
    MAX_BACKING_NAME,
    MAX_DESCRIPTOR,
    MAX_EXTENT_NAME,
    NO_CID,
    SECTOR,
    SparseExtentHeader,
)
from instar.formats.vmdk.options import descriptor_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed

#: Sectors of a track in every geometry QEMU writes.
_TRACK = 63


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a VMDK for a request of ``size`` bytes, rounded up to a sector, with the options ``resolve`` gave.

    Bytes 0-3 of ``seed.entropy`` become the CID (ffffffff, which stands for no disk, becomes fffffffe).
    ``seed.file_name`` stands in the extent line, ``seed.backing`` (name and CID) in the parent's lines.
    Tables are left as holes, as qemu-img does: a hole in a grain table reads as "not allocated".

    >>> from instar.core.plan import Seed
    >>> options = {"subformat": "monolithicSparse", "adapter_type": "ide", "hwversion": "4",
    ...            "toolsversion": "2147483647", "zeroed_grain": False, "grain_size": 65536}
    >>> plan = create(1 << 30, options, Seed(entropy=bytes(64), file_name="disk.vmdk"))
    >>> plan.virtual_size, plan.sizes
    (1073741824, (196608,))
    >>> for item in plan.items:
    ...     print(item.offset, item.length, item.label)
    0 512 header
    512 336 descriptor
    10752 128 redundant grain directory
    10880 384 redundant grain directory, unused end
    76800 128 grain directory
    76928 384 grain directory, unused end

    Raises:
        OptionError: ``vmdk-file-name``, ``vmdk-backing-name``, ``vmdk-descriptor-size``: a name cannot stand in
            the descriptor, or the descriptor does not fit its 20 sectors.
    """
    size = align_up(size, SECTOR)
    grain_size = int(options["grain_size"])
    header = _header(size // SECTOR, grain_size // SECTOR, options)
    tables = ceil_div(ceil_div(size, grain_size), GTES_PER_GT)
    directory = _directory_sectors(tables)
    items: list[Item] = [
        Write(0, header.pack(), "header"),
        Write(DESCRIPTOR_OFFSET, _descriptor(size, options, seed), "descriptor"),
    ]
    for sector, label in (
        (header.rgd_offset, "redundant grain directory"),
        (header.gd_offset, "grain directory"),
    ):
        offset, used, end = sector * SECTOR, 4 * tables, directory * SECTOR
        items.append(Series(offset, tables, label, first=sector + directory, step=GT_SECTORS, width=4, endian="<"))
        items.append(Fill(offset + used, end - used, f"{label}, unused end"))
    return Plan(
        [item for item in items if item.length],
        sizes=(header.overhead * SECTOR,),
        virtual_size=size,
        unit=grain_size,
        unit_name="grain",
    )


def _directory_sectors(tables: int) -> int:
    """Return the sectors of a grain directory of so many tables."""
    return ceil_div(4 * tables, SECTOR)


def _header(capacity: int, grain: int, options: Mapping[str, int | bool | str]) -> SparseExtentHeader:
    """Return the header of an extent of ``capacity`` sectors in grains of ``grain`` sectors.

    Header, descriptor, redundant grain directory and its tables, grain directory and its tables; then, from
    the next multiple of a grain on, the grains.
    """
    tables = ceil_div(ceil_div(capacity, grain), GTES_PER_GT)
    copy = _directory_sectors(tables) + GT_SECTORS * tables
    compressed = options["subformat"] == "streamOptimized"
    zeroed = bool(options["zeroed_grain"])
    rgd_offset = 1 + DESCRIPTOR_SECTORS
    return SparseExtentHeader(
        version=3 if compressed else 2 if zeroed else 1,
        flags=FLAG_NEWLINES
        | FLAG_REDUNDANT
        | (FLAG_COMPRESSED | FLAG_MARKERS if compressed else 0)
        | (FLAG_ZEROED_GRAIN if zeroed else 0),
        capacity=capacity,
        grain_size=grain,
        descriptor_size=DESCRIPTOR_SECTORS,
        num_gtes_per_gt=GTES_PER_GT,
        rgd_offset=rgd_offset,
        gd_offset=rgd_offset + copy,
        overhead=align_up(rgd_offset + 2 * copy, grain),
        compress_algorithm=COMPRESSION_DEFLATE if compressed else COMPRESSION_NONE,
    )


def _descriptor(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> bytes:
    """Return the text of the descriptor (spec, "The Descriptor File"), in qemu-img's order of lines."""
    cid = int.from_bytes(seed.entropy[:4], "big")
    parent_cid, parent_line = NO_CID, ""
    if seed.backing is not None:
        name = seed.backing.name
        _judge_name("vmdk-backing-name", "the backing file's name", name, MAX_BACKING_NAME)
        parent_cid = NO_CID if seed.backing.content_id is None else seed.backing.content_id
        parent_line = f'parentFileNameHint="{name}"'
    _judge_name("vmdk-file-name", "the image file's name", seed.file_name, MAX_EXTENT_NAME)
    heads = 16 if options["adapter_type"] == "ide" else 255
    text = "\n".join(
        [
            "# Disk DescriptorFile",
            "version=1",
            f"CID={NO_CID - 1 if cid == NO_CID else cid:x}",
            f"parentCID={parent_cid:x}",
            f'createType="{options["subformat"]}"',
            parent_line,
            "# Extent description",
            f'RW {size // SECTOR} SPARSE "{seed.file_name}"',
            "",
            "# The Disk Data Base",
            "#DDB",
            "",
            f'ddb.virtualHWVersion = "{options["hwversion"]}"',
            f'ddb.geometry.cylinders = "{size // (_TRACK * heads * SECTOR)}"',
            f'ddb.geometry.heads = "{heads}"',
            f'ddb.geometry.sectors = "{_TRACK}"',
            f'ddb.adapterType = "{options["adapter_type"]}"',
            f'ddb.toolsVersion = "{options["toolsversion"]}"',
            "",
        ]
    ).encode("utf-8", "surrogateescape")
    if len(text) > MAX_DESCRIPTOR:
        raise OptionError(
            "vmdk-descriptor-size",
            f"the descriptor would take {len(text)} bytes of its {MAX_DESCRIPTOR};"
            " shorten hwversion, toolsversion or the names",
            limit=MAX_DESCRIPTOR,
            value=len(text),
        )
    return text


def _judge_name(code: str, what: str, name: str, limit: int) -> None:
    """Refuse a name that could not be read back from the descriptor as it is.

    Raises:
        OptionError: ``code``.
    """
    try:
        descriptor_text(what, name)
        length = len(name.encode("utf-8", "surrogateescape"))
    except OptionError:
        raise OptionError(
            code,
            f"{what}, '{printable(name, 80)}', cannot be written into a VMDK descriptor: it holds a quote,"
            " a control character, or the word parentFileNameHint; rename the file",
            value=name,
        ) from None
    if not 0 < length <= limit:
        raise OptionError(
            code,
            f"{what} is {length} bytes long; a VMDK descriptor holds 1 to {limit}",
            value=name,
            limit=limit,
        )
