from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.formats.qcow.images import CLUSTER, L1, NOW, allocated, empty, image, packed, plan
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io, qemu_img, reader, run

from instar.core.errors import ImageError
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.plan import Backing
from instar.core.wire import encode
from instar.formats.qcow import check as checker
from instar.formats.qcow.check import check
from instar.formats.qcow.ondisk import MAX_SECTORS

if TYPE_CHECKING:
    from pathlib import Path

C = CLUSTER


def report(data: bytes) -> Report:
    made = check(BytesReader(data), (), generation=NOW)
    encode(made.to_wire())
    return made


def totals(made: Report) -> tuple[int | None, ...]:
    assert made.check_errors == 0
    clusters = (made.allocated_clusters, made.fragmented_clusters, made.compressed_clusters)
    return made.corruptions, made.leaks, *clusters


OTHER = "overlaps another"


def one(entries: dict[int, int], end: int) -> bytes:
    """Return an image with one L2 table."""
    return allocated({0: C}, entries, end=end)


NAMED = empty(backing_file_offset=47, backing_file_size=4)[:48] + b"name" + bytes(600)
#: A table and a cluster far from the L1 table.
FAR = allocated({0: 9 * C}, {}, end=9 * C) + struct.pack(">Q", 10 * C).ljust(C, b"\0") + bytes(C)
#: Name, image, (corruptions, leaks, allocated, fragmented, compressed clusters), a part of the finding.
SAMPLES = [
    ("nothing", empty(), (0, 0, 0, 0, 0), ""),
    ("a backing file", image(plan(backing=Backing("x", "raw"))), (0, 0, 0, 0, 0), ""),
    ("two runs", one({0: 2 * C, 1: 3 * C, 9: 4 * C}, 5 * C), (0, 0, 3, 0, 0), ""),
    ("a run of 500", one({i: (2 + i) * C for i in range(500)}, 502 * C), (0, 0, 500, 0, 0), ""),
    ("the wrong way round", one({0: 3 * C, 1: 2 * C}, 4 * C), (0, 0, 2, 1, 0), ""),
    ("in one sector", one({0: packed(2 * C, 9), 1: packed(2 * C + 9, 9)}, 2 * C + 18), None, ""),
    ("over many sectors", one({0: packed(2 * C + 5, 4000)}, 3 * C), (0, 0, 1, 0, 1), ""),
    ("a cluster twice", one({0: 2 * C, 1: 2 * C}, 3 * C), (1, 0, 2, 1, 0), OTHER),
    ("half over another", one({0: 2 * C, 1: 2 * C + 512}, 4 * C), (1, 0, 2, 1, 0), OTHER),
    ("compressed over another", one({0: 2 * C, 1: packed(3 * C - 3, 5)}, 4 * C), None, OTHER),
    ("another over compressed", one({0: packed(2 * C + 3, 5), 1: 2 * C}, 3 * C), None, OTHER),
    ("compressed over whole", one({0: packed(2 * C, 600), 1: packed(2 * C, 600)}, 3 * C), None, OTHER),
    ("over its own table", one({0: C}, 2 * C), (1, 0, 1, 0, 0), OTHER),
    ("not aligned", one({0: 2 * C + 1}, 4 * C), (1, 2, 1, 0, 0), "not aligned"),
    ("past the end", one({0: 2 * C}, 3 * C - 1), (1, 1, 1, 0, 0), "past the end"),
    ("compressed past the end", one({0: packed(2 * C, 513)}, 2 * C + 512), (1, 0, 1, 0, 1), "past the end"),
    ("compressed to nothing", one({0: packed(2 * C, 0)}, 2 * C), (1, 0, 1, 0, 1), "no length"),
    ("a lost cluster", one({0: 3 * C}, 4 * C), (0, 1, 1, 0, 0), "no table refers to"),
    ("room before the first table", FAR, (0, 0, 1, 0, 0), ""),
    ("room and nothing else", empty().ljust(9 * C, b"\0"), (0, 0, 0, 0, 0), ""),
    ("lost at the end", one({0: 2 * C}, 6 * C), (0, 3, 1, 0, 0), "no table refers to"),
    ("behind the disk", allocated({1: C}, {256: 2 * C}, end=3 * C), (0, 1, 1, 0, 0), "behind the end of the disk"),
    ("a table twice", allocated({0: C, 1: C}, {0: 2 * C}, end=3 * C), (1, 0, 1, 0, 0), OTHER),
    ("a table past the end", one({}, 2 * C - 512), None, "L2 table at byte 4096 reaches past"),
    ("a table not aligned", allocated({0: C + 8}, {}, end=3 * C), None, "not aligned"),
    ("an L1 table past the end", empty(l1_table_offset=2 * C), None, "L1 table reaches past"),
    ("an L1 table over the header", empty(l1_table_offset=40), (2, 0, 0, 0, 0), "L1 table overlaps the header"),
    ("a name over the L1 table", NAMED, None, "overlaps the backing"),
    ("no L1 table", empty()[:50], (1, 0, 0, 0, 0), "L1 table reaches past the end"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected", "words"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_finds(data: bytes, expected: tuple[int, ...] | None, words: str) -> None:
    made = report(data)
    if expected is not None:
        assert totals(made) == expected
    assert bool(made.findings) == bool(words)
    if words:
        assert [f for f in made.findings if words in f"{f.structure} {f.detail}"], made.findings


def test_a_cluster_over_the_header_is_named() -> None:
    # Clusters of 512 bytes: the first would be the header's own sector.
    data = bytearray(image(plan(140 << 20, backing=Backing("x", "raw"))).ljust(512 * 70, b"\0"))
    struct.pack_into(">Q", data, 56, 1024)
    struct.pack_into(">Q", data, 1024, 512)
    made = report(bytes(data))
    assert "cluster at byte 512 overlaps the L1 table" in made.findings[0].detail


@needs_qemu_io
@pytest.mark.parametrize("backed", [False, True])
def test_images_with_data_have_no_findings(tmp_path: Path, backed: bool) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "40M")
    words = ["-b", "base", "-F", "raw"] if backed else []
    qemu_img("create", "-q", "-f", "qcow", *words, path, "40M")
    packing = [word for n in range(20) for word in ("-c", f"write -c -P {n} {20 + n}M {'512' if backed else '4k'}")]
    writes = [word for at in ("0", "30M", "5M", "1M", "33M") for word in ("-c", f"write -P 9 {at} 300k")]
    assert run("qemu-io", "-f", "qcow", *packing, *writes, path).returncode == 0
    with reader(path) as file:
        made = check(file, (), generation=NOW)
        assert made.image_end_offset is not None
        assert made.image_end_offset <= file.size < made.image_end_offset + 512
    # Where a compressed cluster is written again, the old one is lost: the check sees it if no other fits there.
    assert [f for f in made.findings if f.severity != "leak"] == []
    assert made.corruptions == 0
    assert made.allocated_clusters == 5 * (600 if backed else 75) + 18
    assert made.compressed_clusters == 18


@needs_qemu_img
def test_new_images_of_all_sizes_have_no_findings(tmp_path: Path) -> None:
    for size in ("1", "2M", "1G", "1T"):
        qemu_img("create", "-q", "-f", "qcow", tmp_path / "t", size)
        with reader(tmp_path / "t") as file:
            assert check(file, (), generation=NOW).findings == []


def test_any_damage_to_the_tables_gives_a_report() -> None:
    dice = random.Random(5)
    good = allocated({0: C, 1: 20 * C}, {i: (2 + i) * C for i in range(9)} | {30: packed(11 * C, 99)}, end=24 * C)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 6)):
            at = dice.choice((L1, C, 20 * C)) + 8 * dice.randrange(40)
            value = dice.choice((512 * dice.randrange(300), packed(dice.randrange(26 * C), dice.randrange(C))))
            struct.pack_into(">Q", data, at, dice.choice((value, dice.getrandbits(64))))
        report(bytes(data[: dice.choice((len(data), dice.randrange(48, len(data))))]))


def test_warns_of_a_size_that_is_no_multiple_of_a_sector() -> None:
    assert [f.severity for f in report(empty(size=1000)).findings] == ["warning"]


def test_refuses_what_cannot_be_opened() -> None:
    for data in (b"", empty(version=2), empty(size=1)):
        with pytest.raises(ImageError):
            report(data)


def test_more_damage_than_is_listed_is_counted() -> None:
    made = report(allocated({0: C, 1: 2 * C}, dict.fromkeys(range(1024), 900 * C), end=3 * C, size=4 << 20))
    assert made.corruptions == 1024
    assert len(made.findings) == MAX_FINDINGS


def test_a_huge_sparse_file_is_refused_by_the_check_and_costs_nothing() -> None:
    made = check(BytesReader(empty(), size=(MAX_SECTORS + 1) * 512), (), generation=NOW)
    assert made.check_errors == 1
    assert "longer than" in made.findings[0].detail


def test_reading_of_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_TABLE_BYTES", C)
    made = report(allocated({0: C, 1: 2 * C}, {}, end=3 * C))
    assert made.check_errors == 1
    assert "ended here" in made.findings[0].detail
    assert report(one({}, 2 * C)).check_errors == 0
