from __future__ import annotations

import random
import time

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.parallels.images import GENERATIONS, MIDDLE, NOW, OLD, bitmap, extended, parallels, reader
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io, qemu_img, run
from tests.support import reader as open_reader

from instar.core.errors import ImageError
from instar.core.finding import Report
from instar.core.wire import encode
from instar.formats.parallels import check as checker
from instar.formats.parallels.check import check


def report(data: bytes, generation: tuple[int, int] = NOW) -> Report:
    made = check(reader(data), (), generation=generation)
    encode(made.to_wire())
    return made


def codes(made: Report) -> list[tuple[str, tuple[int, ...]]]:
    return [(f.code.removeprefix("parallels-"), f.values) for f in made.findings if f.code]


def totals(made: Report) -> tuple[int | None, ...]:
    return made.total_clusters, made.allocated_clusters, made.fragmented_clusters, made.image_end_offset


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    "data",
    [
        parallels([1, 2, 3, 0]),
        parallels([0, 0]),
        parallels([4, 3, 2, 1]),
        parallels([1], inuse=0x312E3276),
        parallels([8, 16, 0], old=True, data_off=8),
        parallels([1, 9, 17], old=True, data_off=0),
        parallels([1, 2], size=3 * 4096 - 100),
    ],
)
def test_sound_images_have_no_findings(data: bytes, generation: tuple[int, int]) -> None:
    assert report(data, generation).findings == []


@needs_qemu_io
@pytest.mark.parametrize("generation", GENERATIONS)
def test_images_written_by_qemu_are_clean_and_counted(tmp_path, generation: tuple[int, int]) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "parallels", path, "20M")
    for where in ("13M", "0", "14M"):
        assert run("qemu-io", "-f", "parallels", "-c", f"write {where} 4k", path).returncode == 0
    with open_reader(path) as file:
        made = check(file, (), generation=generation)
    assert (made.findings, totals(made)) == ([], (20, 3, 1, 4 << 20))


CASES: dict[str, tuple[bytes, list[str], list[str], list[str]]] = {
    # image; what 7.2, 10.0 and 11.1 find
    "not closed": (parallels([1], inuse=0x746F6E59), ["unclean"], ["unclean"], ["unclean"]),
    "room": (parallels([1, 2], size=5 * 4096), ["leak"], ["leak"], ["leak"]),
    "used twice": (parallels([1, 1, 2]), [], ["duplicate"], ["duplicate"]),
    "used thrice": (parallels([1, 1, 1, 2]), [], ["duplicate"] * 2, ["duplicate"] * 2),
    "overlap": (parallels([8, 12, 24], old=True, data_off=8), [], ["duplicate"], ["duplicate"]),
    "cut off": (parallels([1, 2], size=3 * 4096 - 512), [], ["outside", "leak"], ["outside", "leak"]),
    "far": (parallels([1, 50], size=2 * 4096), ["outside"], ["outside"], ["outside"]),
    "no data_off": (parallels([1], data_off=0), [], ["data-off"], ["data-off"]),
    "data_off past the end": (parallels([1], data_off=999), [], ["data-off"], ["data-off"]),
    "before the data": (parallels([4, 12, 24], old=True, data_off=8), [], ["duplicate"], ["outside", "duplicate"]),
    "too short": (parallels([0, 0], size=100), [], ["data-off", "outside", "outside"], ["data-off"]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("number", range(3))
def test_finds_what_qemu_of_a_generation_finds(name: str, number: int) -> None:
    data, *wanted = CASES[name]
    assert [code for code, _ in codes(report(data, GENERATIONS[number]))] == wanted[number]


def test_the_cluster_of_the_extension_is_no_leak() -> None:
    made = report(extended(bitmap([1])))
    assert [(f.severity, f.values) for f in made.findings] == [("warning", (4096,))]
    assert "format extension" in made.findings[0].detail
    assert (made.leaks, made.false_leaks) == (0, 1)  # QEMU counts it
    more = report(extended(bitmap([1])) + bytes(4096 + 512))
    assert [(f.severity, f.values) for f in more.findings] == [("leak", (8704,))]
    assert (more.leaks, more.false_leaks) == (2, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (parallels([1], inuse=5), "no meaning"),
        (parallels([1], flags=1), "empty"),
        (parallels([1, 2, 3], nb_sectors=8), "needs 1"),
        (parallels([8, 17], old=True, data_off=8), "multiple of the cluster size"),
        (parallels([2], data_off=9, size=3 * 4096), "sector 9"),
    ],
)
def test_what_qemu_does_not_look_at_is_a_warning(data: bytes, words: str) -> None:
    made = report(data)
    assert words in " ".join(f.detail for f in made.findings if f.severity == "warning")


def test_clusters_that_make_qemu_give_up_are_corruptions_in_every_generation() -> None:
    # Two clusters before the data area: 10.0 and 11.1 fail an assertion.
    data = parallels([1, 16, 24], old=True, data_off=16)
    for generation in (MIDDLE, NOW):
        assert ("outside", (0,)) in codes(report(data, generation))


def test_windows_give_what_one_pass_gives(monkeypatch) -> None:
    dice = random.Random(3)
    data = parallels([dice.randrange(1, 200) for _ in range(200)])
    whole = report(data)
    monkeypatch.setattr(checker, "_WINDOW", 16)
    parts = report(data)
    assert sorted(codes(parts)) == sorted(codes(whole))
    assert (totals(parts), parts.corruptions) == (totals(whole), whole.corruptions)


@pytest.mark.parametrize("generation", [OLD, NOW])
@pytest.mark.parametrize("order", ["in order", "empty", "shuffled", "alike"])
def test_long_tables_take_little_time(order: str, generation: tuple[int, int]) -> None:
    count = 80_000
    first = -(-(64 + 4 * count) // 4096)
    bat = {
        "in order": list(range(first, first + count)),
        "empty": [0] * count,
        "shuffled": random.Random(1).sample(range(first, first + count), count),
        "alike": [first] * count,
    }[order]
    data = parallels(bat, size=64 + 4 * count)
    start = time.process_time()
    made = check(BytesReader(data, size=max(first, max(bat) + 1) * 4096), (), generation=generation)
    assert time.process_time() - start < 5
    assert made.corruptions == (count - 1 if (order, generation) == ("alike", NOW) else 0)


def test_a_small_file_with_the_longest_table_takes_little_time_and_memory() -> None:
    data = parallels([1, 0], bat_entries=0x1FFFFFFF, nb_sectors=0, size=64 + 8)
    start = time.process_time()
    check(BytesReader(data), (), generation=NOW)
    assert time.process_time() - start < 20


def test_any_header_and_table_give_a_report_or_an_error() -> None:
    dice = random.Random(2)
    lines: set[str] = set()
    for turn in range(200):
        data = bytearray(parallels([1, 2, 3, 0], old=turn % 5 == 0))
        for _ in range(dice.randint(1, 5)):
            data[dice.randrange(16, 80)] = dice.choice([0, 1, 2, 255])
        # The longest tables have a test of their own.
        data[34:36] = b"\0\0"
        try:
            report(bytes(data), GENERATIONS[turn % 3])
        except ImageError as error:
            lines.update(str(error).splitlines()[1:])
    assert not lines


def damaged(seed: int) -> bytes:
    """Return an image with a random BAT of either kind."""
    dice = random.Random(seed)
    old, count, tracks = seed % 2 == 0, dice.randint(0, 12), dice.choice([1, 2, 7, 8, 63])
    base = -(-(64 + 4 * count) // 512)
    if not old:
        base = -(-base // tracks)
    unit = tracks if old else 1
    bat = [
        dice.choice([0, base + dice.randint(0, count) * unit, base + dice.randint(0, count) * unit, dice.randint(0, 9)])
        for _ in range(count)
    ]
    return parallels(
        bat,
        old=old,
        tracks=tracks,
        inuse=dice.choice([0, 0, 0x746F6E59]),
        data_off=dice.choice([base * (1 if old else tracks)] * 5 + [0, 3]),
        size=None if dice.random() < 0.6 else 64 + 4 * count + dice.randint(0, 12 * tracks * 512),
    )


@needs_qemu_img
@pytest.mark.parametrize("seed", range(15))
def test_finds_what_qemu_finds_in_damaged_tables(tmp_path, seed: int) -> None:
    """Random BATs: the same lines and totals, for every version of QEMU that is here."""
    from instar.cli.messages import finding_words
    from instar.cli.render import check_text
    from instar.host.check import CheckResult

    path, data = tmp_path / "t", damaged(seed)
    path.write_bytes(data)
    for version in VERSIONS:
        done = run(real(version), "check", "-f", "parallels", path)
        made = report(data, version)
        lines = "".join(f"{finding_words(f, 'parallels')}\n" for f in made.findings if f.severity != "warning")
        result = CheckResult(str(path), "parallels", made.to_wire())
        if done.returncode < 0 or "Device or resource busy" in done.stderr:
            # QEMU gives up: at a cluster outside by an assertion, after a duplicate in the last entry by mistake.
            assert result.exit_code == 2
            continue
        assert (done.returncode, done.stdout, done.stderr) == (result.exit_code, check_text(result), lines)
