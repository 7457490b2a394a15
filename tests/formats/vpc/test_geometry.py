from __future__ import annotations

import random
import struct

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.formats.vpc.geometry import MAX_GEOMETRY, MAX_GEOMETRY_SECTORS, enclosing, fit, geometry, volume

G = MAX_GEOMETRY_SECTORS * 512

# Where the rule changes its mind, in sectors.
EDGES = [17 * 4 * 1024, 17 * 16 * 1024, 31 * 16 * 1024, 63 * 16 * 1024, 65535 * 16 * 63, MAX_GEOMETRY_SECTORS]


def every_number_in_turn(sectors: int) -> tuple[int, int, int]:
    """Search as QEMU does, one sector at a time."""
    wanted = min(sectors, MAX_GEOMETRY_SECTORS)
    chs = (0, 0, 0)
    trial = wanted
    while wanted > volume(chs):
        chs = geometry(trial)
        trial += 1
    return chs


def sizes_in_sectors() -> list[int]:
    pick = random.Random(42)
    near = [edge + delta for edge in EDGES for delta in (-4081, -1009, -256, -64, -18, -2, -1, 0, 1, 2, 17, 255)]
    small = [0, 1, 2, 16, 17, 67, 68, 69, 2047, 2048, 2049]
    spread = [int(2 ** pick.uniform(3, 28)) for _ in range(120)]
    return sorted({n for n in near + small + spread if 0 <= n <= MAX_GEOMETRY_SECTORS})


@pytest.mark.parametrize(
    ("sectors", "chs"),
    [
        (17 * 4 - 1, (0, 4, 17)),
        (17 * 4, (1, 4, 17)),
        (204800, (1003, 12, 17)),
        (1032192, (1024, 16, 63)),
        (2097152, (2080, 16, 63)),
        (65535 * 16 * 63 - 1, (65534, 16, 63)),
        (65535 * 16 * 63, (16191, 16, 255)),
        (MAX_GEOMETRY_SECTORS, MAX_GEOMETRY),
        (MAX_GEOMETRY_SECTORS * 9, MAX_GEOMETRY),
    ],
)
def test_geometry_of_the_appendix(sectors: int, chs: tuple[int, int, int]) -> None:
    assert geometry(sectors) == chs


def test_search_finds_what_trying_every_number_finds() -> None:
    # Where the number of heads grows, a search that steps too far is wrong a little below.
    more_heads = [17 * 1024 * heads - below for heads in range(4, 17) for below in range(0, 400, 13)]
    for sectors in sizes_in_sectors() + more_heads:
        assert enclosing(sectors) == every_number_in_turn(sectors), sectors


def test_a_disk_is_never_smaller_than_asked() -> None:
    for sectors in sizes_in_sectors():
        size, _ = fit(sectors * 512, force=False)
        assert size >= sectors * 512


def test_a_rounded_size_is_kept_when_asked_for() -> None:
    for sectors in sizes_in_sectors():
        size, chs = fit(sectors * 512, force=False)
        assert fit(size, force=False) == (size, chs)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, G - 1, G, G + 1, 2040 << 30])
def test_forced_sizes_are_rounded_to_a_sector_only(size: int) -> None:
    assert fit(size, force=True) == (-(-size // 512) * 512, MAX_GEOMETRY)


@pytest.mark.parametrize("size", [G - 511, G, G + 1, 130 << 30, 2040 << 30])
def test_sizes_above_the_largest_geometry_are_exact(size: int) -> None:
    assert fit(size, force=False) == (-(-size // 512) * 512, MAX_GEOMETRY)


@needs_qemu_img
def test_rounds_as_qemu_does(tmp_path) -> None:
    byte_sizes = [n * 512 for n in sizes_in_sectors()]
    byte_sizes += [1, 511, 513, (1 << 20) + 1, (10 << 30) + 512, G - 1, G + 1, (1 << 40) + 3, 2040 << 30]
    byte_sizes += [n << 20 for n in (1, 10, 100, 127, 128, 504, 505)] + [n << 30 for n in (1, 2, 4, 8, 32, 127, 128)]
    assert len(byte_sizes) > 190
    path = tmp_path / "t"
    for size in byte_sizes:
        path.unlink(missing_ok=True)
        # A fixed disk: no BAT to write, so the largest sizes cost nothing.
        qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, str(size))
        with path.open("rb") as file:
            file.seek(-512, 2)
            footer = file.read()
        current_size, cylinders, heads, track = struct.unpack_from(">QHBB", footer, 48)
        assert fit(size, force=False) == (current_size, (cylinders, heads, track)), size
