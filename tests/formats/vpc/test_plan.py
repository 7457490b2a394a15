from __future__ import annotations

import itertools
import os
import uuid

import pytest
from tests.compat.versions import generations
from tests.formats.vpc.images import MiB, image, plan, reader
from tests.support import apply_plan, needs_qemu_img, qemu_img, qemu_info, run, same_bytes, same_holes

from instar.core.plan import Backing, Seed
from instar.formats.vpc.ondisk import EPOCH, Footer, Header, Identity, checksum_of
from instar.formats.vpc.parse import info
from instar.formats.vpc.plan import create

SIZES = [0, 1, 511, 512, 513, 4096, 34816, 34817, MiB, MiB + 1, 10 * MiB, 504 * MiB, 1 << 30, (10 << 30) + 512]
CHOICES = list(itertools.product(("dynamic", "fixed"), (False, True)))
HUGE = [127 << 30, 136899993600, 136899993601, 1 << 40, 2040 << 30]

# Timestamp, checksum and identifier are dated or random.
DATED = [(24, 28), (64, 84)]


def dated(size: int, *, fixed: bool) -> tuple[tuple[int, int], ...]:
    ranges = [(size - 512 + low, size - 512 + high) for low, high in DATED]
    return tuple(ranges if fixed else ranges + DATED)


@needs_qemu_img
@pytest.mark.parametrize("size", SIZES + HUGE)
@pytest.mark.parametrize(("subformat", "force"), CHOICES)
def test_makes_the_bytes_that_qemu_makes(tmp_path, size: int, subformat: str, force: bool) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    made = plan(size, subformat=subformat, force_size=force)
    apply_plan(made, ours)
    switch = "on" if force else "off"
    qemu_img("create", "-q", "-f", "vpc", "-o", f"subformat={subformat},force_size={switch}", theirs, str(size))
    same_bytes(ours, theirs, ignore=dated(made.sizes[0], fixed=subformat == "fixed"))
    same_holes(ours, theirs)


@needs_qemu_img
# An empty fixed disk is left out: qemu-img cannot open it, not even its own; it takes the footer for a copy.
@pytest.mark.parametrize("size", [1, MiB, (10 << 30) + 512, 1 << 40])
@pytest.mark.parametrize(("subformat", "force"), CHOICES)
def test_every_generation_of_qemu_sees_the_planned_size(tmp_path, size: int, subformat: str, force: bool) -> None:
    made = plan(size, subformat=subformat, force_size=force)
    apply_plan(made, tmp_path / "t")
    for program in generations().values():
        done = run(program, "info", "-f", "vpc", "--output=json", tmp_path / "t")
        assert f'"virtual-size": {made.virtual_size},' in done.stdout, done.stderr


@needs_qemu_img
@pytest.mark.parametrize("block_size", [512 << 10, MiB, 2 * MiB, 4 * MiB, 256 * MiB])
def test_qemu_uses_images_with_other_block_sizes(tmp_path, block_size: int) -> None:
    path, raw = tmp_path / "t", tmp_path / "raw"
    made = plan(600 * MiB, block_size=block_size, force_size=True)
    apply_plan(made, path)
    assert qemu_info(path)["cluster-size"] == block_size == made.unit
    with raw.open("wb") as file:
        file.truncate(600 * MiB)
        os.pwrite(file.fileno(), b"first", 0)
        os.pwrite(file.fileno(), b"last", 600 * MiB - 4)
    qemu_img("convert", "-n", "-f", "raw", "-O", "vpc", raw, path)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "vpc", raw, path).stdout


@pytest.mark.parametrize("size", SIZES + HUGE)
def test_invariants_hold_and_plans_stay_small(size: int) -> None:
    for subformat, force in CHOICES:
        made = plan(size, subformat=subformat, force_size=force)
        made.check()
        assert len(list(made.items)) <= 4
        assert made.virtual_size >= size
        assert made.virtual_size % 512 == 0
    for block_size in (512 << 10, 256 * MiB):
        plan(size, block_size=block_size).check()


def test_footer_copy_equals_footer_and_checksums_are_right() -> None:
    data = image(plan(10 * MiB))
    assert data[:512] == data[-512:]
    footer, header = Footer.unpack(data), Header.unpack(data, 512)
    assert footer.checksum == checksum_of(footer)
    assert header.checksum == checksum_of(header)


def test_identifier_is_a_random_uuid_from_the_seed() -> None:
    made = create(MiB, {"subformat": "fixed", "force_size": False}, Seed(entropy=b"\xff" * 64))
    read = uuid.UUID(bytes=Footer.unpack(image(made)[-512:]).unique_id)
    assert (read.version, read.variant) == (4, uuid.RFC_4122)
    assert read.hex == "ffffffffffff4fffbfffffffffffffff"


@pytest.mark.parametrize(
    ("time", "stamp"), [(0, 0), (EPOCH, 0), (EPOCH + 1, 1), (1_700_000_000, 753315200), (1 << 40, 0xFFFFFFFF)]
)
def test_date_counts_from_2000_and_stays_in_its_field(time: int, stamp: int) -> None:
    made = create(MiB, {"subformat": "fixed", "force_size": False}, Seed(time=time))
    assert Footer.unpack(image(made)[-512:]).timestamp == stamp


def test_same_seed_same_bytes() -> None:
    assert image(plan(10 * MiB)) == image(plan(10 * MiB))


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("size", [1, 10 * MiB, 2040 << 30])
def test_plans_of_preallocated_disks_name_each_block_once(size: int, mode: str) -> None:
    options = {"subformat": "dynamic", "force_size": True, "block_size": 256 * MiB, "preallocation": mode}
    made = create(size, options, Seed())
    made.check()
    blocks = -(-size // (256 * MiB))
    bitmaps = [item for item in made.items if item.label == "sector bitmap"]
    assert [item.length for item in bitmaps] == [65536] * blocks
    assert bitmaps[-1].offset + 65536 + 256 * MiB + 512 == made.sizes[0] <= 1 << 41


@pytest.mark.parametrize(
    ("chs", "sectors", "creator"),
    [((302, 4, 17), 302 * 4 * 17, b"qemu"), ((302, 4, 17), 20480, b"qem2"), ((65535, 16, 255), 20480, b"qem2")],
)
def test_a_child_means_its_parents_size_to_all_programs(
    chs: tuple[int, int, int], sectors: int, creator: bytes
) -> None:
    identity = Identity(
        unique_id=b"p" * 16, current_size=sectors * 512, cylinders=chs[0], heads=chs[1], sectors_per_track=chs[2]
    )
    backing = Backing("p", "vpc", identity=identity.pack(), relative="p", absolute="/p")
    options = {"subformat": "dynamic", "force_size": False, "block_size": 2 * MiB, "preallocation": "off"}
    data = image(create(MiB, options, Seed(backing=backing)))
    footer = Footer.unpack(data)
    assert (footer.current_size, footer.original_size, footer.creator_app) == (sectors * 512, sectors * 512, creator)
    for generation in ((7, 2), (10, 0)):
        found = info(reader(data), (), generation=generation)
        assert found.virtual_size == sectors * 512
        assert found.extra["parent_identity"] == b"p" * 16


def test_golden_dynamic() -> None:
    assert plan(10 * MiB).text() == GOLDEN_DYNAMIC


def test_golden_fixed() -> None:
    assert plan(MiB, subformat="fixed", force_size=True).text() == GOLDEN_FIXED


GOLDEN_DYNAMIC = """\
virtual_size 10514432  block 2097152  files 2560
0 0x000000000000 0x00000200 footer copy: write  \
636f6e6563746978000000020001000000000000000002002ce6ad8071656d75\
000500035769326b0000000000a070000000000000a07000012e041100000003… +428 zeros
0 0x000000000200 0x00000400 dynamic disk header: write  \
6378737061727365ffffffffffffffff00000000000006000001000000000006\
00200000fffff471 +984 zeros
0 0x000000000600 0x00000200 BAT: fill   ffffffff × 128
0 0x000000000800 0x00000200 footer: write  \
636f6e6563746978000000020001000000000000000002002ce6ad8071656d75\
000500035769326b0000000000a070000000000000a07000012e041100000003… +428 zeros"""
GOLDEN_FIXED = """\
virtual_size 1048576  block 0  files 1049088
0 0x000000000000 0x00001000 start of data: fill   00 × 4096
0 0x000000100000 0x00000200 footer: write  \
636f6e65637469780000000200010000ffffffffffffffff2ce6ad8071656d32\
000500035769326b00000000001000000000000000100000ffff10ff00000002… +428 zeros"""
