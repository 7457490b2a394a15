"""The writes that make one hosted sparse extent, empty or with every grain in its place.

Law: pure. Header, place of the descriptor, redundant grain directory and its tables, grain directory and its
tables; then, from the next multiple of a grain on, the grains.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Series, Write
from instar.core.units import align_up, ceil_div
from instar.formats.vmdk.ondisk import (
    COMPRESSION_DEFLATE,
    COMPRESSION_NONE,
    DESCRIPTOR_SECTORS,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINES,
    FLAG_REDUNDANT,
    FLAG_ZEROED_GRAIN,
    GT_SECTORS,
    GTES_PER_GT,
    SECTOR,
    SparseExtentHeader,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item


def file_size(length: int, options: Mapping[str, int | bool | str]) -> int:
    """Return the bytes of the file of an extent of ``length`` bytes."""
    grain = int(options["grain_size"])
    grains = 0 if options["preallocation"] == "off" else align_up(length, grain)
    return _header(length // SECTOR, grain // SECTOR, options).overhead * SECTOR + grains


def extent(length: int, options: Mapping[str, int | bool | str], *, file: int = 0) -> list[Item]:
    """Return the writes for an extent of ``length`` bytes, a multiple of a sector, in file number ``file``.

    Tables without entries are left as holes, as qemu-img does: a hole in one reads as "not allocated".
    """
    grain = int(options["grain_size"]) // SECTOR
    header = _header(length // SECTOR, grain, options)
    grains = ceil_div(length, grain * SECTOR)
    tables = ceil_div(grains, GTES_PER_GT)
    directory = _directory_sectors(tables)
    mode = str(options["preallocation"])
    items: list[Item] = [Write(0, header.pack(), "header", file=file)]
    for sector, label in (
        (header.rgd_offset, "redundant grain directory"),
        (header.gd_offset, "grain directory"),
    ):
        offset, used, end = sector * SECTOR, 4 * tables, directory * SECTOR
        items.append(
            Series(offset, tables, label, first=sector + directory, step=GT_SECTORS, width=4, endian="<", file=file)
        )
        items.append(Fill(offset + used, end - used, f"{label}, unused end", file=file))
        if mode != "off":
            items.append(
                Series(
                    offset + end,
                    grains,
                    f"{label}'s grain tables",
                    first=header.overhead,
                    step=grain,
                    width=4,
                    endian="<",
                    file=file,
                )
            )
    if mode in ("falloc", "full"):
        start = header.overhead * SECTOR
        items.append(Allocate(start, align_up(length, grain * SECTOR), "grains", mode=mode, file=file))
    return [item for item in items if item.length]


def _directory_sectors(tables: int) -> int:
    """Return the sectors of a grain directory of so many tables."""
    return ceil_div(4 * tables, SECTOR)


def _header(capacity: int, grain: int, options: Mapping[str, int | bool | str]) -> SparseExtentHeader:
    """Return the header of an extent of ``capacity`` sectors in grains of ``grain`` sectors."""
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
