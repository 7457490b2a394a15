from __future__ import annotations

import shutil

import pytest
from tests.compat.versions import generations
from tests.formats.vmdk.images import MiB, cid_of, descriptor_of, judge, make, plan, theirs
from tests.support import needs_qemu_img, needs_qemu_io, qemu_img, qemu_info, run, same_bytes, same_holes

from instar.core.errors import OptionError
from instar.core.plan import Backing, Seed
from instar.formats.vmdk.plan import create

GiB = 1 << 30
SIZES = [0, 1, 511, 512, 513, 65536, MiB, MiB + 1, GiB, GiB + 512, (10 << 30) + 512, (2 << 40) + 1, 1 << 40]
LARGEST = ((1 << 32) - 512) * 65536
CHOICES = [
    "",
    "subformat=streamOptimized",
    "zeroed_grain=on",
    "subformat=streamOptimized,zeroed_grain=on",
    "compat6",
    "hwversion=19,toolsversion=12345",
    "hwversion=,toolsversion=",
    "adapter_type=ide",
    "adapter_type=buslogic",
    "adapter_type=lsilogic",
    "adapter_type=legacyESX",
]
GOLDEN = """\
virtual_size 10485760  grain 65536  files 65536
0 0x000000000000 0x00000200 header: write  \
4b444d560100000003000000005000000000000080000000000000000100000000000000140000000000000000020000150000000000000\
01a00000000000000… +435 zeros
0 0x000000000200 0x00000150 descriptor: write  \
23204469736b2044657363726970746f7246696c650a76657273696f6e3d310a4349443d31323334353637380a706172656e744349443d6\
6666666666666660a…
0 0x000000002a00 0x00000004 redundant grain directory: series 0x16 + k·0x4, 1 × 32 bit <
0 0x000000002a04 0x000001fc redundant grain directory, unused end: fill   00 × 508
0 0x000000003400 0x00000004 grain directory: series 0x1b + k·0x4, 1 × 32 bit <
0 0x000000003404 0x000001fc grain directory, unused end: fill   00 × 508"""


def compare(tmp_path, size: int, text: str) -> None:
    ours, real = tmp_path / "a/t.vmdk", tmp_path / "b/t.vmdk"
    ours.parent.mkdir()
    real.parent.mkdir()
    theirs(real, size, text)
    make(ours, size, text, cid=cid_of(real))
    same_bytes(ours, real)
    same_holes(ours, real)
    shutil.rmtree(ours.parent)
    shutil.rmtree(real.parent)


@needs_qemu_img
@pytest.mark.parametrize("text", CHOICES)
def test_makes_the_bytes_and_holes_that_qemu_makes(tmp_path, text: str) -> None:
    for size in SIZES:
        compare(tmp_path, size, text)


@needs_qemu_img
def test_makes_the_largest_disk_as_qemu_does(tmp_path) -> None:
    compare(tmp_path, LARGEST, "")


@needs_qemu_img
def test_records_the_parent_as_qemu_does(tmp_path) -> None:
    ours, real = tmp_path / "a/t.vmdk", tmp_path / "b/t.vmdk"
    for folder in (ours.parent, real.parent):
        folder.mkdir()
    parent = theirs(tmp_path / "p.vmdk", MiB)
    theirs(real, MiB, "", "-b", "../p.vmdk", "-F", "vmdk")
    backing = Backing("../p.vmdk", "vmdk", virtual_size=MiB, content_id=cid_of(parent))
    make(ours, MiB, cid=cid_of(real), backing=backing)
    same_bytes(ours, real)
    shown = qemu_info(ours)
    assert shown["backing-filename"] == "../p.vmdk"
    assert shown["format-specific"]["data"]["parent-cid"] == cid_of(parent)


@needs_qemu_img
@pytest.mark.parametrize("cid", [0, 1, 0xABC, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE])
def test_cid_is_written_unpadded_and_read_back(tmp_path, cid: int) -> None:
    make(tmp_path / "t", MiB, cid=cid)
    assert f"\nCID={cid:x}\n".encode() in descriptor_of(tmp_path / "t")
    assert qemu_info(tmp_path / "t")["format-specific"]["data"]["cid"] == cid


def test_cid_is_never_the_one_that_means_no_disk(tmp_path) -> None:
    make(tmp_path / "t", MiB, cid=0xFFFFFFFF)
    assert cid_of(tmp_path / "t") == 0xFFFFFFFE


@needs_qemu_img
@pytest.mark.parametrize("text", ["", "subformat=streamOptimized", "zeroed_grain=on"])
def test_every_generation_of_qemu_sees_a_sound_disk_of_the_planned_size(tmp_path, text: str) -> None:
    for size in (1, MiB, GiB + 512):
        made = make(tmp_path / "t", size, text)
        for program in generations().values():
            done = run(program, "info", "--output=json", tmp_path / "t")
            assert f'"virtual-size": {made.virtual_size},' in done.stdout, done.stderr
            assert run(program, "check", tmp_path / "t").returncode == 0


@needs_qemu_img
@needs_qemu_io
@pytest.mark.parametrize("grain_size", [8192, 16384, 131072, MiB, 64 * MiB])
def test_qemu_uses_disks_with_other_grain_sizes(tmp_path, grain_size: int) -> None:
    path = tmp_path / "t"
    made = make(path, 300 * MiB + 512, f"grain_size={grain_size}")
    assert qemu_info(path)["cluster-size"] == grain_size == made.unit
    pattern = ["-c", "write -P 7 299M 1M", "-c", "write -P 9 5000 600", "-c", "read -P 9 5000 600"]
    done = run("qemu-io", *pattern, "-c", "read -P 7 299M 1M", path)
    assert "failed" not in done.stdout + done.stderr
    assert run("qemu-img", "check", path).returncode == 0


@needs_qemu_img
def test_qemu_compresses_into_other_grain_sizes(tmp_path) -> None:
    (tmp_path / "raw").write_bytes(b"some data " * 200000 + bytes(-2000000 % 512))
    size = (tmp_path / "raw").stat().st_size
    make(tmp_path / "t", size, "subformat=streamOptimized,grain_size=128k")
    qemu_img("convert", "-n", "-f", "raw", "-O", "vmdk", tmp_path / "raw", tmp_path / "t")
    qemu_img("compare", "-f", "raw", "-F", "vmdk", tmp_path / "raw", tmp_path / "t")


@pytest.mark.parametrize("text", [*CHOICES, "grain_size=8k", "grain_size=64M"])
def test_plans_do_not_overlap(text: str) -> None:
    for size in [*SIZES, 31 << 20, 32 << 20, (32 << 20) + 1, 4 << 30, (4 << 30) + 1, 16 << 40]:
        made = plan(size, text)
        made.check()
        assert made.virtual_size == -(-size // 512) * 512
        assert len(list(made.items)) <= 6


def test_plan_of_the_largest_disk_is_small() -> None:
    made = plan(LARGEST)
    made.check()
    assert len(list(made.items)) <= 6


def test_golden_plan_of_a_small_disk() -> None:
    assert plan(10 * MiB).text() == GOLDEN


def test_names_that_are_not_utf_8_are_kept() -> None:
    made = plan(MiB, name="d\udcff.vmdk")
    assert b'"d\xff.vmdk"' in list(made.items)[1].data  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\rb", "", "parentFileNameHint.vmdk", "x" * 512, "\ud800"])
def test_refuses_names_that_a_descriptor_cannot_hold(name: str) -> None:
    with pytest.raises(OptionError, match="image file's name") as caught:
        plan(MiB, name=name)
    assert caught.value.code == "vmdk-file-name"


@pytest.mark.parametrize("name", ['a"\nCID=1', "p\n", "", "y" * 4075])
def test_refuses_parents_that_a_descriptor_cannot_hold(name: str) -> None:
    with pytest.raises(OptionError, match="backing file's name") as caught:
        plan(MiB, backing=Backing(name, "vmdk", content_id=1))
    assert caught.value.code == "vmdk-backing-name"


def test_longest_parent_name_is_read_back(tmp_path) -> None:
    make(tmp_path / "t", MiB, backing=Backing("y" * 4074, "vmdk", content_id=1))
    assert f'parentFileNameHint="{"y" * 4074}"'.encode() in descriptor_of(tmp_path / "t")


def test_descriptor_fits_its_sectors_or_is_refused() -> None:
    room = 10239 - (len(list(plan(MiB, "hwversion=").items)[1].data))  # type: ignore[union-attr]
    made = plan(MiB, f"hwversion={'9' * room}")
    made.check()
    with pytest.raises(OptionError) as caught:
        plan(MiB, f"hwversion={'9' * (room + 1)}")
    assert caught.value.code == "vmdk-descriptor-size"


@needs_qemu_img
def test_qemu_writes_a_long_descriptor_over_its_grain_directory(tmp_path) -> None:
    """The reason for the limit."""
    path = theirs(tmp_path / "t", MiB, f"hwversion={'9' * 10300}")
    with path.open("rb") as file:
        file.seek(21 * 512)
        assert file.read(4) == b"9999"


def test_entropy_beyond_the_first_four_bytes_is_not_used() -> None:
    left = create(MiB, judge(MiB), Seed(entropy=b"abcd" + bytes(60), file_name="t"))
    right = create(MiB, judge(MiB), Seed(entropy=b"abcd" + b"\xff" * 60, time=9, file_name="t"))
    assert left.text() == right.text()
