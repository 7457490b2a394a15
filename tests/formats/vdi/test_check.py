from __future__ import annotations

import random
import time

import pytest
from tests.formats.vdi.images import DISCARDED, FREE, NOW, MiB, reader, vdi
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io, qemu_img, run
from tests.support import reader as open_reader

from instar.core.errors import ImageError
from instar.core.finding import MAX_FINDINGS, UNSEEN, Report
from instar.core.wire import encode
from instar.formats.vdi.check import check


def report(entries: list[int], **fields: int | bytes) -> Report:
    made = check(reader(entries, **fields), (), generation=NOW)
    encode(made.to_wire())
    return made


def codes(made: Report) -> list[tuple[str, tuple[int, ...]]]:
    return [(f.code, f.values) for f in made.findings if f.severity == "corruption"]


@pytest.mark.parametrize("entries", [[], [FREE] * 4, [0, 1, 2, 3], [3, 1, 0, 2], [FREE, 0, DISCARDED, 1]])
def test_sound_images_have_no_findings(entries: list[int]) -> None:
    assert report(entries).findings == []


@needs_qemu_io
@pytest.mark.parametrize("static", ["on", "off"])
def test_images_written_by_qemu_have_no_findings(tmp_path, static: str) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vdi", "-o", f"static={static}", path, "20M")
    for where in ("13M", "0", "19M"):
        assert run("qemu-io", "-f", "vdi", "-c", f"write {where} 4k", path).returncode == 0
    with open_reader(path) as file:
        assert check(file, (), generation=NOW).findings == []


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([0, 0, 1, 2], [("vdi-duplicate", (0, 0))]),
        ([1, 1, 1, FREE], [("vdi-duplicate", (1, 1))] * 2),
        ([2, 2, 2, 2], [("vdi-duplicate", (2, 2))] * 3),
        ([0, 4, 1, 2], [("vdi-too-large", (1, 4))]),
        ([9, 9, 9, 9], [("vdi-too-large", (n, 9)) for n in range(4)]),
    ],
)
def test_finds_entries_that_cannot_be(entries: list[int], found: list[tuple[str, tuple[int, ...]]]) -> None:
    assert codes(report(entries)) == found


def test_finds_a_wrong_count_of_blocks() -> None:
    assert codes(report([0, 1, FREE, FREE], blocks_allocated=3)) == [("vdi-allocated", (2, 3))]


def test_finds_blocks_past_the_end_of_the_file() -> None:
    made = check(BytesReader(vdi([0, 1, 2, 3], size=1024 + 2 * MiB)), (), generation=NOW)
    assert codes(made) == [(UNSEEN, (2,)), (UNSEEN, (3,))]
    assert [f.offset for f in made.findings] == [512 + 8, 512 + 12]


@pytest.mark.parametrize(("size", "corruptions"), [(512, 0), (511, 1)])
def test_the_last_block_may_end_where_the_disk_ends(size: int, corruptions: int) -> None:
    data = vdi([0], disk_size=512, size=1024 + size)
    assert check(BytesReader(data), (), generation=NOW).corruptions == corruptions


@pytest.mark.parametrize(
    ("fields", "severity", "structure"),
    [
        ({"offset_data": 512}, "corruption", "header"),
        ({"offset_bmap": 0}, "corruption", "header"),
        ({"image_type": 4}, "warning", "header"),
        ({"block_extra": 512}, "warning", "header"),
        ({"uuid_image": bytes(16)}, "warning", "header"),
        ({"disk_size": 1}, "warning", "block map"),
    ],
)
def test_finds_what_is_wrong_with_the_header(fields, severity: str, structure: str) -> None:
    found = [(f.severity, f.structure) for f in report([0, 1, 2, 3], **fields).findings]
    assert (severity, structure) in found


def test_finds_a_block_map_that_is_cut_off() -> None:
    made = check(BytesReader(vdi([FREE] * 300)[:600]), (), generation=NOW)
    assert ("corruption", "block map") in [(f.severity, f.structure) for f in made.findings]
    # 278 entries are missing and read as block 0, which is not in the file; 277 of them name it again; the count
    # in the header is wrong.
    assert made.corruptions == 1 + 278 + 277 + 1


def test_room_that_no_entry_names_is_a_warning_as_qemu_does_not_count_it() -> None:
    made = check(BytesReader(vdi([1, FREE, FREE], size=512 * 2 + 3 * MiB)), (), generation=NOW)
    assert [(f.severity, f.detail) for f in made.findings] == [
        ("warning", "there is room for 2 blocks that the block map does not name")
    ]


def test_findings_are_kept_up_to_a_limit_and_all_are_counted() -> None:
    made = report([0] * 5000)
    assert made.corruptions == 4999
    assert len(made.findings) <= MAX_FINDINGS


@pytest.mark.parametrize("order", ["in order", "alike", "free", "shuffled"])
def test_large_maps_take_little_time(order: str) -> None:
    count = 80_000
    entries = {
        "in order": list(range(count)),
        "alike": [7] * count,
        "free": [FREE] * count,
        "shuffled": random.Random(1).sample(range(count), count),
    }[order]
    start = time.process_time()
    made = report(entries)
    assert time.process_time() - start < 3
    assert made.corruptions == (count - 1 if order == "alike" else 0)


def test_a_small_file_with_a_long_map_takes_little_time_and_memory() -> None:
    data = vdi([FREE] * 4, blocks_in_image=0x7FFFFFF, blocks_allocated=0)
    start = time.process_time()
    assert check(BytesReader(data), (), generation=NOW).corruptions > 1 << 26
    assert time.process_time() - start < 20


def test_any_header_and_map_give_a_report_or_an_error() -> None:
    dice = random.Random(2)
    whole = vdi([0, 1, 2, FREE])
    lines: set[str] = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 5)):
            data[dice.choice([dice.randrange(0x40, 0x1C8), dice.randrange(512, 528)])] = dice.choice([0, 1, 2, 255])
        # The longest maps have a test of their own.
        data[0x182:0x184] = b"\0\0"
        try:
            encode(check(BytesReader(bytes(data)), (), generation=NOW).to_wire())
        except ImageError as error:
            lines.update(str(error).splitlines()[1:])
    assert not lines


@needs_qemu_img
@pytest.mark.parametrize("seed", range(12))
def test_finds_what_qemu_finds_in_damaged_maps(tmp_path, seed: int) -> None:
    """Random maps: the same lines, in the same order, and the same count; what QEMU does not look at is left out."""
    from instar.cli.messages import finding_words

    dice = random.Random(seed)
    count = dice.randint(1, 40)
    entries = [dice.choice([FREE, DISCARDED, n, dice.randrange(count + 2), dice.getrandbits(32)]) for n in range(count)]
    data = vdi(entries, **({"blocks_allocated": count} if seed % 3 == 0 else {}))
    (tmp_path / "t").write_bytes(data)
    done = run("qemu-img", "check", "-f", "vdi", tmp_path / "t")
    found = [f for f in check(BytesReader(data), (), generation=NOW).findings if f.code not in ("", UNSEEN)]
    assert "".join(f"{finding_words(f, 'vdi')}\n" for f in found) == done.stderr
    assert done.returncode == (2 if found else 0)
