"""Into which files a disk is split, and what they are called.

Law: pure; names and lengths are qemu-img's (QEMU, vmdk_co_create and vmdk_co_create_opts_cb).
"""

from __future__ import annotations

from instar.core.units import ceil_div
from instar.formats.vmdk.ondisk import SECTOR, SPLIT_BYTES

FLAT = ("monolithicFlat", "twoGbMaxExtentFlat")
SPLIT = ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat")


def has_files(subformat: str) -> bool:
    """Tell whether the descriptor is a file of its own."""
    return subformat in FLAT + SPLIT


def count(size: int, subformat: str) -> int:
    """Return how many files hold the data of a disk of ``size`` bytes."""
    return ceil_div(size, SPLIT_BYTES) if subformat in SPLIT else min(size, 1)


def lengths(size: int, subformat: str) -> list[int]:
    """Return the bytes of disk in each extent; ``size`` is a multiple of a sector."""
    step = SPLIT_BYTES if subformat in SPLIT else max(size, SECTOR)
    return [min(step, size - start) for start in range(0, size, step)]


def names(file_name: str, size: int, subformat: str) -> list[str]:
    """Return the extents' file names, made from that of the descriptor.

    >>> names("a.b.vmdk", 5 << 30, "twoGbMaxExtentSparse")
    ['a.b-s001.vmdk', 'a.b-s002.vmdk', 'a.b-s003.vmdk']
    >>> names("disk", 1 << 20, "monolithicFlat")
    ['disk-flat']
    """
    stem, dot, suffix = file_name.rpartition(".")
    if not dot:
        stem, suffix = file_name, ""
    if subformat == "monolithicFlat":
        return [f"{stem}-flat{dot}{suffix}"] * count(size, subformat)
    letter = "f" if subformat in FLAT else "s"
    return [f"{stem}-{letter}{number + 1:03}{dot}{suffix}" for number in range(count(size, subformat))]
