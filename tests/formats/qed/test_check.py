from __future__ import annotations

import json
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.qed.images import CLUSTER, NOW, allocated, empty, image, plan
from tests.support import BytesReader, instar, needs_qemu_img, needs_qemu_io, qemu_img, reader, run

from instar.cli.render import check_object
from instar.core.errors import ImageError
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.plan import Backing
from instar.core.wire import decode, encode
from instar.formats.qed import check as checker
from instar.formats.qed.check import check
from instar.formats.qed.ondisk import MAX_CLUSTERS
from instar.host.check import CheckResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX64 = (1 << 64) - 1


def report(data: bytes) -> Report:
    made = check(BytesReader(data), (), generation=NOW)
    encode(made.to_wire())
    return made


def totals(made: Report) -> tuple[int | None, ...]:
    return (
        *(made.corruptions, made.leaks, made.check_errors),
        *(made.total_clusters, made.allocated_clusters, made.fragmented_clusters),
    )


def theirs(path: Path, version: tuple[int, int] | None = None) -> tuple[int, object]:
    program = real(version) if version else "qemu-img"
    done = run(program, "check", "--output=json", "-f", "qed", path)
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def ours(path: Path) -> tuple[int, object]:
    with reader(path) as file:
        try:
            made = check(file, (), generation=NOW)
        except ImageError:
            return 1, None
    result = CheckResult(str(path), "qed", decode(encode(made.to_wire())))
    return result.exit_code, check_object(result, details=False)


SAMPLES = [
    ("a table and two runs", lambda: allocated({0: 3}, {0: 5, 1: 6, 4: 7}, clusters=8), (0, 0, 0, 256, 3, 0)),
    ("a gap and the way back", lambda: allocated({0: 3}, {0: 7, 1: 5, 4: 6}, clusters=8), (0, 0, 0, 256, 3, 1)),
    ("a cluster of zeros", lambda: allocated({0: 3}, {0: 5, 1: -1, 2: 6}, clusters=7), (0, 0, 0, 256, 2, 0)),
    ("one cluster twice", lambda: allocated({0: 3}, {0: 5, 1: 5}, clusters=6), (1, 0, 0, 256, 2, 1)),
    ("a cluster in its own table", lambda: allocated({0: 3}, {0: 4}, clusters=5), (1, 0, 0, 256, 1, 0)),
    ("a cluster over the L1 table", lambda: allocated({0: 3}, {0: 1, 1: 2}, clusters=5), (2, 0, 0, 256, 2, 0)),
    ("a cluster over the header", lambda: allocated({0: 3}, {0: 5}, clusters=6, header_size=1), (0, 0, 0, 256, 1, 0)),
    ("a cluster past the end", lambda: allocated({0: 3}, {0: 5, 1: 6}, clusters=6), (1, 0, 0, 256, 2, 0)),
    ("a leak", lambda: allocated({0: 3}, {0: 6}, clusters=9), (0, 3, 0, 256, 1, 0)),
    ("an L2 table past the end", lambda: allocated({0: 4}, {}, clusters=5), (1, 2, 0, 256, 0, 0)),
    ("an L2 table over the L1 table", lambda: allocated({0: 2}, {}, clusters=5), (1, 1, 0, 256, 0, 0)),
    ("an L2 table twice", lambda: allocated({0: 3, 1: 3}, {0: 5}, clusters=6), (2, 0, 0, 256, 1, 0)),
    ("an L2 table of zeros", lambda: allocated({0: -1}, {}, clusters=5), (1, 2, 0, 256, 0, 0)),
    ("entries behind the disk", lambda: allocated({0: 3}, {1023: 5}, clusters=6), (0, 0, 0, 256, 1, 0)),
    ("an L1 entry behind the disk", lambda: allocated({1023: 3}, {0: 5}, clusters=6), (0, 0, 0, 256, 1, 0)),
    ("a run of 600", lambda: allocated({0: 3}, {i: 5 + i for i in range(600)}, clusters=605), (0, 0, 0, 256, 600, 0)),
    (
        "two tables of runs",
        lambda: allocated({0: 3}, {i: 5 + i for i in range(1024)} | {512: 6}, clusters=1029),
        (1, 1, 0, 256, 1024, 2),
    ),
    ("one run over another", lambda: allocated({0: 3}, {i: 5 + i % 512 for i in range(1024)}, clusters=517), None),
    ("no header", lambda: allocated({0: 3}, {0: 0}, clusters=5, header_size=0), (0, 1, 0, 256, 0, 0)),
    ("a file cut within a sector", lambda: empty()[:-100], (0, 0, 0, 256, 0, 0)),
]


@pytest.mark.parametrize(("make", "expected"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_counts(make: Callable[[], bytes], expected: tuple[int, ...] | None) -> None:
    made = report(make())
    if expected is None:
        assert made.corruptions == 512
    else:
        assert totals(made) == expected
    assert bool(made.findings) == bool(made.corruptions or made.leaks)


@needs_qemu_img
@pytest.mark.parametrize("version", VERSIONS)
def test_counts_as_qemu_does(version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "t"
    for name, make, _ in SAMPLES:
        path.write_bytes(make())
        assert ours(path) == theirs(path, version), name


@needs_qemu_io
def test_images_with_data_have_no_findings(tmp_path: Path) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "qed", path, "1G")
    words = [word for at in ("0", "700M", "64k", "512M", "70M") for word in ("-c", f"write {at} 3M")]
    assert run("qemu-io", "-f", "qed", *words, "-c", "write -z 5M 1M", path).returncode == 0
    with reader(path) as file:
        made = check(file, (), generation=NOW)
    assert made.findings == []
    assert made.allocated_clusters == 193
    assert ours(path) == theirs(path)


@needs_qemu_img
def test_damaged_tables_are_counted_as_qemu_does(tmp_path: Path) -> None:
    dice = random.Random(5)
    path = tmp_path / "t"
    good = allocated({0: 3, 1: 8}, {i: 10 + i for i in range(20)}, clusters=32)
    codes = set()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 5)):
            at = dice.choice((CLUSTER, 3 * CLUSTER, 8 * CLUSTER)) + 8 * dice.randrange(24)
            value = dice.choice((CLUSTER * dice.randrange(36), dice.randrange(40 * CLUSTER), 1, dice.getrandbits(64)))
            struct.pack_into("<Q", data, at, value)
        path.write_bytes(data[: dice.choice((len(data), dice.randrange(3 * CLUSTER, len(data))))])
        found = ours(path)
        assert found == theirs(path), bytes(data).hex()
        codes.add(found[0])
    assert codes >= {2, 3}


def test_warns_of_what_changes_no_total() -> None:
    made = report(empty(features=2, compat_features=1, autoclear_features=1 << 63))
    assert [f.severity for f in made.findings] == ["warning"] * 3
    assert totals(made) == (0, 0, 0, 256, 0, 0)


def test_refuses_what_cannot_be_opened() -> None:
    for data in (b"", b"QED\0", empty(table_size=3), image(plan(backing=Backing("x", None)))[:60] + b"\xff" * 4):
        with pytest.raises(ImageError):
            report(data)


def test_more_damage_than_is_listed_is_counted() -> None:
    made = report(allocated({0: 3}, dict.fromkeys(range(1024), 900) | {0: 1000}, clusters=5))
    assert made.corruptions == 1024
    assert len(made.findings) == MAX_FINDINGS


def test_a_huge_sparse_file_is_refused_by_the_check_and_costs_nothing() -> None:
    data = empty()
    made = check(BytesReader(data, size=(MAX_CLUSTERS + 1) * CLUSTER), (), generation=NOW)
    assert made.check_errors == 1
    assert "more than" in made.findings[0].detail


def test_reading_of_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_TABLE_BYTES", 2 * CLUSTER)
    made = report(allocated({0: 3, 1: 5}, {}, clusters=7))
    assert made.check_errors == 1
    assert "ended here" in made.findings[0].detail
    assert report(allocated({0: 3}, {}, clusters=5)).check_errors == 0


@needs_qemu_img
@pytest.mark.parametrize("clusters", [4094, 4095, 4096, 8189, 8190, 20476])
def test_leaks_that_qemu_invents_are_kept_apart(clusters: int, tmp_path: Path) -> None:
    # All clusters but one are in use: the L2 tables stand one behind the other, each before its own clusters.
    path = tmp_path / "t"
    data = bytearray(empty(image_size=1 << 30))
    at, index, tables = 3, 0, {}
    while at < clusters - 1:
        count = min(1024, clusters - 1 - at - 2)
        tables[at] = range(at + 2, at + 2 + count)
        struct.pack_into("<Q", data, CLUSTER + 8 * index, at * CLUSTER)
        at, index = at + 2 + count, index + 1
    with path.open("wb") as file:
        file.write(data)
        for place, run_ in tables.items():
            file.seek(place * CLUSTER)
            file.write(struct.pack(f"<{len(run_)}Q", *(c * CLUSTER for c in run_)))
        file.truncate(clusters * CLUSTER)
    with reader(path) as file:
        made = check(file, (), generation=NOW)
    assert (made.corruptions, made.leaks, made.false_leaks) == (0, 1, clusters // 4095)
    code, found = theirs(path)
    assert code == 3
    assert isinstance(found, dict)
    assert found["leaks"] == made.leaks + made.false_leaks
    said = instar("check", path, dialect="qemu-img")
    assert f"\n{found['leaks']} leaked clusters" in said.stdout
