from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from tests.formats.vhdx.images import GiB, MiB, TiB, planned, settings
from tests.support import apply_plan, needs_qemu_img, qemu_img, qemu_info, run, same_bytes, same_holes

from instar.core.plan import Seed
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.options import resolve
from instar.formats.vhdx.plan import create

SIZES = [1, 511, 512, 513, MiB, MiB + 1, GiB, GiB + 1, 4 * GiB, 10 * GiB + 512, TiB]
CHOICES: list[dict[str, str]] = [
    *({"subformat": s, "block_state_zero": z} for s, z in itertools.product(("dynamic", "fixed"), ("on", "off"))),
    {"block_size": "1M"},
    {"block_size": "2M", "subformat": "fixed", "block_state_zero": "off"},
    {"block_size": "256M", "subformat": "fixed", "block_state_zero": "off"},
    {"block_size": "300M", "block_state_zero": "off"},
    {"log_size": "3M"},
    {"log_size": "1", "block_size": "4000000"},
]
EMPTY: list[dict[str, str]] = [
    {},
    {"block_state_zero": "off"},
    {"subformat": "fixed", "block_state_zero": "off", "block_size": "1M"},
    {"block_size": "256M", "block_state_zero": "off"},
]


def typed(given: dict[str, str]) -> list[str]:
    return ["-o", ",".join(f"{key}={value}" for key, value in given.items())] if given else []


def compare(tmp_path: Path, size: int, given: dict[str, str]) -> None:
    """Make the same image twice, and compare all but what is random or names its maker."""
    made = planned(size, **given)
    made.check()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(made, ours)
    qemu_img("create", "-q", "-f", "vhdx", *typed(given), theirs, str(size))
    items = next(item.offset for item in made.items if item.label == "metadata items")
    headers = [(at + low, at + high) for at in ondisk.HEADER_OFFSETS for low, high in ((4, 48),)]
    same_bytes(ours, theirs, ignore=((8, 64), *headers, (items + 16, items + 32)))
    same_holes(ours, theirs)


@needs_qemu_img
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("given", CHOICES, ids=lambda given: ",".join(given.values()))
def test_makes_the_bytes_that_qemu_makes(tmp_path: Path, size: int, given: dict[str, str]) -> None:
    compare(tmp_path, size, given)


@needs_qemu_img
@pytest.mark.parametrize("given", EMPTY, ids=lambda given: ",".join(given.values()))
def test_makes_empty_disks_as_qemu_does(tmp_path: Path, given: dict[str, str]) -> None:
    compare(tmp_path, 0, given)


@needs_qemu_img
@pytest.mark.parametrize("given", [{}, {"subformat": "dynamic", "block_state_zero": "off", "block_size": "1M"}])
def test_makes_the_largest_disk_as_qemu_does(tmp_path: Path, given: dict[str, str]) -> None:
    compare(tmp_path, 64 * TiB, given)


@needs_qemu_img
@pytest.mark.parametrize("size", [0, 513, GiB + 1, 4 * GiB + 512, 64 * TiB])
def test_qemu_reads_and_checks_what_we_make(tmp_path: Path, size: int) -> None:
    path = tmp_path / "t"
    made = planned(size)
    apply_plan(made, path)
    facts = qemu_info(path)
    assert (facts["virtual-size"], facts["cluster-size"]) == (made.virtual_size, made.unit)
    assert "No errors" in qemu_img("check", path).stdout


@needs_qemu_img
def test_a_cut_last_block_is_what_qemu_makes_and_cannot_open_above_4_gib(tmp_path: Path) -> None:
    given = {"subformat": "fixed", "block_state_zero": "off"}
    for size, opens in ((MiB + 512, True), (10 * GiB + 512, False)):
        path = tmp_path / str(size)
        qemu_img("create", "-q", "-f", "vhdx", *typed(given), path, str(size))
        assert (run("qemu-img", "info", path).returncode == 0) is opens


SWEEP = [0, 1, 4 * GiB - 1, 4 * GiB, 4 * GiB + 1, 8 * GiB, 8 * GiB + 512, TiB + 7, 64 * TiB - 512, 64 * TiB]


@pytest.mark.parametrize("size", SWEEP)
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("zero", ["on", "off"])
@pytest.mark.parametrize("block_size", ["0", "1M", "64M", "128M"])
def test_plans_hold_their_invariants(size: int, subformat: str, zero: str, block_size: str) -> None:
    made = planned(size, subformat=subformat, block_state_zero=zero, block_size=block_size)
    made.check()
    assert len(list(made.items)) <= 9
    table = [item for item in made.items if "allocation table" in item.label]
    if subformat == "fixed" or zero == "on":
        # The table is written whole, to the end of its region.
        assert table[-1].offset + table[-1].length == made.items[-2].offset
    else:
        assert not table


def test_entries_of_a_present_table_are_spaced_with_bitmaps_between() -> None:
    made = planned(9 * GiB, subformat="fixed", block_state_zero="off", block_size="2M")
    data_offset = made.sizes[0] - 9 * GiB
    table = next(item for item in made.items if item.label == "block allocation table")
    raw = b"".join(data for _, data in table.pieces())
    entries = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    assert len(raw) == table.length == 8 * ondisk.bat_entries(9 * GiB, 2 * MiB)
    ratio = ondisk.chunk_ratio(2 * MiB)
    blocks = [entry for index, entry in enumerate(entries) if index % (ratio + 1) != ratio]
    assert blocks == [data_offset + 2 * MiB * block | 6 for block in range(4608)]
    assert not any(entries[ratio :: ratio + 1])


def test_table_pieces_are_bounded_and_gapless() -> None:
    made = planned(3 * TiB + 512, block_size="1M")
    table = next(item for item in made.items if item.label == "block allocation table")
    at = table.offset
    for offset, data in table.pieces():
        assert offset == at
        assert len(data) <= MiB
        at += len(data)
    assert at == table.offset + table.length


def test_random_parts_come_from_the_seed_alone() -> None:
    choice = resolve(MiB, settings(), None)
    entropy = bytes(range(64))
    one, two = (create(MiB, choice, Seed(entropy=entropy)) for _ in range(2))
    assert one.text() == two.text()
    header = ondisk.Header.unpack(one.items[1].data)
    assert header.sequence_number == int.from_bytes(entropy[48:52], "little")
    assert ondisk.Header.unpack(one.items[2].data).sequence_number == header.sequence_number + 1
    guids = {header.file_write_guid, header.data_write_guid, one.items[-1].data[16:32]}
    assert len(guids) == 3
    other = create(MiB, choice, Seed(entropy=os.urandom(64)))
    assert other.text() != one.text()


@pytest.mark.parametrize(
    ("name", "given"), [("dynamic", {}), ("fixed-in-place", {"subformat": "fixed", "block_state_zero": "off"})]
)
def test_plan_is_the_one_that_was_reviewed(name: str, given: dict[str, str]) -> None:
    size = 5 * GiB + 512
    golden = (Path(__file__).parent / "golden" / f"{name}.txt").read_text()
    assert create(size, resolve(size, settings(**given), None), Seed()).text() + "\n" == golden
