from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.formats.qed.images import MiB, plan
from tests.support import apply_plan, extents, needs_qemu_img, qemu_img, qemu_info, same_bytes

from instar.core.plan import Backing

if TYPE_CHECKING:
    from pathlib import Path

GEOMETRIES = [(12, 1), (12, 2), (12, 16), (13, 4), (15, 8), (16, 1), (16, 2), (16, 4), (16, 16), (17, 4), (20, 4)]


@needs_qemu_img
@pytest.mark.parametrize(("power", "table_size"), GEOMETRIES)
@pytest.mark.parametrize("size", [0, 513, 1 << 30])
def test_makes_the_bytes_that_qemu_makes(tmp_path: Path, power: int, table_size: int, size: int) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(size, cluster_size=1 << power, table_size=table_size), ours)
    options = f"cluster_size={1 << power},table_size={table_size}"
    qemu_img("create", "-q", "-f", "qed", "-o", options, theirs, str(size))
    same_bytes(ours, theirs)
    assert extents(ours) == extents(theirs)


@needs_qemu_img
@pytest.mark.parametrize("format", ["raw", "nbd"])
@pytest.mark.parametrize("name", ["x", "sub/dir/ü.img", "n" * 4032, "json:{}", "fat:"])
def test_records_a_backing_file_as_qemu_does(tmp_path: Path, name: str, format: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(5 * MiB, cluster_size=4096, table_size=4, backing=Backing(name, format)), ours)
    words = ["-q", "-u", "-f", "qed", "-o", "cluster_size=4k", "-b", name, "-F", format]
    qemu_img("create", *words, theirs, "5M")
    same_bytes(ours, theirs)
    found = qemu_info(ours)
    assert found["backing-filename"] == name
    assert found.get("backing-filename-format") == ("raw" if format == "raw" else None)


def test_a_name_that_is_no_text_is_recorded_byte_for_byte(tmp_path: Path) -> None:
    apply_plan(plan(backing=Backing("a\udcff", "raw")), tmp_path / "t")
    assert (tmp_path / "t").read_bytes()[64:67] == b"a\xff\0"


def test_golden() -> None:
    assert plan(3 * MiB, cluster_size=65536, table_size=4, backing=Backing("base", "raw")).text() == GOLDEN


@pytest.mark.parametrize("power", range(12, 27))
@pytest.mark.parametrize("table_size", [1, 2, 4, 8, 16])
def test_invariants_hold_and_plans_stay_small(power: int, table_size: int) -> None:
    made = plan(512, cluster_size=1 << power, table_size=table_size, backing=Backing("base", None))
    made.check()
    assert len(list(made.items)) == 3
    assert made.sizes == ((1 << power) * (1 + table_size),)


GOLDEN = """\
virtual_size 3145728  cluster 65536  files 327680
0 0x000000000000 0x00000040 header: write  \
514544000000010004000000010000000500000000000000000000000000000000000000000000000000010000000000000030000000000040000000\
04 +3 zeros
0 0x000000000040 0x00000004 backing file name: write  62617365
0 0x000000010000 0x00040000 L1 table: fill   00 × 262144"""
