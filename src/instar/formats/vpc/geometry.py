"""Cylinders, heads and sectors: the geometry that a VHD carries, and the sizes that it can express.

Law: pure arithmetic on sectors of 512 bytes, the same for every number as the specification's appendix, with
the 255-sector tracks and the limits of QEMU.
"""

from __future__ import annotations

from instar.core.units import SECTOR, align_up
from instar.formats.vpc.ondisk import MAX_SECTORS

#: Largest geometry. It means: do not believe it, the footer's ``current_size`` counts (spec, "Appendix: CHS
#: Calculation": disks above it report this one).
MAX_GEOMETRY = (65535, 16, 255)
#: Its sectors, 127.5 GiB.
MAX_GEOMETRY_SECTORS = 65535 * 16 * 255
#: From here on tracks have 255 sectors; below, at most 63 (spec, appendix).
LONG_TRACK_SECTORS = 65535 * 16 * 63

#: Track lengths that the appendix tries; the geometry changes only where one of them divides the size.
_TRACKS = (17, 31, 63, 255)


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return ``(cylinders, heads, sectors per track)`` for a disk of ``sectors``; what it holds may be less.

    Spec, "Appendix: CHS Calculation". More than ``MAX_GEOMETRY_SECTORS`` give the largest geometry.

    >>> geometry(20480)
    (301, 4, 17)
    """
    sectors = min(sectors, MAX_GEOMETRY_SECTORS)
    if sectors >= LONG_TRACK_SECTORS:
        return sectors // 255 // 16, 16, 255
    track, tracks = 17, sectors // 17
    heads = max(4, -(-tracks // 1024))
    if tracks >= heads * 1024 or heads > 16:
        track, heads = 31, 16
        tracks = sectors // track
    if tracks >= heads * 1024:
        track, heads = 63, 16
        tracks = sectors // track
    return tracks // heads, heads, track


def volume(chs: tuple[int, int, int]) -> int:
    """Return the sectors that a geometry holds."""
    return chs[0] * chs[1] * chs[2]


def enclosing(sectors: int) -> tuple[int, int, int]:
    """Return the first geometry, counting up from ``sectors``, that holds at least so many.

    0 sectors have no geometry: ``(0, 0, 0)``. Never more than ``MAX_GEOMETRY``. As QEMU, which tries each
    number in turn; between two numbers that no track length divides nothing changes, so those are left out.

    >>> enclosing(20480), volume(enclosing(20480)) * 512
    ((302, 4, 17), 10514432)
    """
    wanted = trial = min(sectors, MAX_GEOMETRY_SECTORS)
    chs = (0, 0, 0)
    while volume(chs) < wanted:
        chs = geometry(trial)
        following = min(track - trial % track for track in _TRACKS)
        trial = min(trial + following, LONG_TRACK_SECTORS) if trial < LONG_TRACK_SECTORS else trial + following
    return chs


def fit(size: int, *, force: bool) -> tuple[int, tuple[int, int, int]]:
    """Return the bytes of the virtual disk made for a request of ``size`` bytes, and its geometry.

    With ``force`` the size is exact (to a sector) and the geometry the largest, so that nobody believes it.
    Without, the size is that of the geometry, unless it is too large for one. May exceed ``MAX_SIZE``.
    """
    sectors = align_up(size, SECTOR) // SECTOR
    chs = MAX_GEOMETRY if force else enclosing(sectors)
    if volume(chs) == MAX_GEOMETRY_SECTORS:
        return sectors * SECTOR, chs
    return volume(chs) * SECTOR, chs


def too_large(size: int) -> bool:
    """Tell whether a request of ``size`` bytes is above 2040 GiB, the largest VHD."""
    return align_up(size, SECTOR) > MAX_SECTORS * SECTOR
