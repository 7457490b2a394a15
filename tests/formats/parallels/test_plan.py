from __future__ import annotations

import pytest
from tests.formats.parallels.images import NOW
from tests.support import apply_plan, needs_qemu_img, qemu_img, qemu_info, reader, run, same_bytes, same_holes

from instar.core.plan import Plan, Seed
from instar.formats.parallels.check import check
from instar.formats.parallels.ondisk import MAX_BAT_ENTRIES
from instar.formats.parallels.plan import create

MiB, GiB, TiB = 1 << 20, 1 << 30, 1 << 40
SIZES = [0, 1, 511, 513, MiB, 10 * MiB + 1, GiB, TiB, 3 * TiB + 12345]
CLUSTERS = [MiB, 64 << 10, 3072, 32256]


def plan(size: int, *, cluster_size: int = MiB, preallocation: str = "off") -> Plan:
    return create(size, {"cluster_size": cluster_size, "preallocation": preallocation}, Seed())


@needs_qemu_img
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cluster_size", CLUSTERS)
def test_makes_the_bytes_that_qemu_makes(tmp_path, size: int, cluster_size: int) -> None:
    if size // cluster_size > 4 * MiB:
        size = size % GiB
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(size, cluster_size=cluster_size), ours)
    qemu_img("create", "-q", "-f", "parallels", "-o", f"cluster_size={cluster_size}", theirs, str(size))
    same_bytes(ours, theirs)
    same_holes(ours, theirs)


@pytest.mark.parametrize("size", [*SIZES, MAX_BAT_ENTRIES * MiB])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_invariants_hold_and_plans_stay_small(size: int, preallocation: str) -> None:
    made = plan(size, preallocation=preallocation)
    made.check()
    assert len(list(made.items)) <= 4
    assert made.virtual_size == -(-size // 512) * 512


@needs_qemu_img
@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", [MiB, 64 << 10, 512])
def test_qemu_finds_every_cluster_of_a_preallocated_image_and_all_zero(
    tmp_path, preallocation: str, cluster_size: int
) -> None:
    path, size = tmp_path / "t", 10 * MiB + 512
    made = plan(size, cluster_size=cluster_size, preallocation=preallocation)
    apply_plan(made, path)
    clusters = -(-size // cluster_size)
    assert qemu_info(path)["virtual-size"] == size
    assert f"{clusters}/{clusters} = 100.00% allocated, 0.00% fragmented" in qemu_img("check", path).stdout
    qemu_img("create", "-q", "-f", "raw", tmp_path / "zeros", str(size))
    assert run("qemu-img", "compare", "-F", "raw", path, tmp_path / "zeros").returncode == 0
    with reader(path) as file:
        found = check(file, (), generation=NOW)
    assert (found.findings, found.allocated_clusters) == ([], clusters)


def test_nothing_is_random() -> None:
    first, second = (
        create(MiB, {"cluster_size": MiB, "preallocation": "off"}, Seed(entropy=bytes([n] * 64))).text() for n in (0, 1)
    )
    assert first == second


def test_golden_preallocated() -> None:
    lines = plan(3 * MiB, preallocation="falloc").text().splitlines()
    assert lines[:2] + lines[3:] == [
        "virtual_size 3145728  cluster 1048576  files 4194304",
        "0 0x000000000000 0x00100000 header and BAT: alloc  full",
        "0 0x000000000040 0x0000000c BAT: series 0x1 + k·0x1, 3 × 32 bit <",
        "0 0x000000100000 0x00300000 clusters: alloc  falloc",
    ]
