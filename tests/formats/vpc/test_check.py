from __future__ import annotations

import itertools
import os
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.formats.vpc.images import (
    NOW,
    MiB,
    differencing,
    dynamic,
    fixed,
    plan,
    reader,
    with_footer,
    with_header,
)
from tests.support import BytesReader, apply_plan, needs_qemu_img, needs_qemu_io, qemu_img, run
from tests.support import reader as open_reader

from instar.core.errors import ImageError
from instar.core.wire import encode
from instar.formats.vpc import check as checker
from instar.formats.vpc.check import check
from instar.formats.vpc.ondisk import PLATFORM_W2RU, Footer, Header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from instar.core.finding import Report

# Sectors of a block of 2 MiB with its bitmap; the first one behind the BAT.
SPAN = 4097
FIRST = 4
NAME = (PLATFORM_W2RU, "p.vhd".encode("utf-16-le"))


def report(data: bytes) -> Report:
    made = check(reader(data), (), generation=NOW)
    encode(made.to_wire())
    return made


def survives(data: bytes) -> None:
    """Check an image; let through nothing but an ``ImageError`` that can be printed."""
    try:
        report(data)
    except ImageError as error:
        str(error)


def found(data: bytes) -> list[tuple[str, str]]:
    return [(f.severity, f.structure) for f in report(data).findings]


def totals(made: Report) -> tuple[int | None, ...]:
    return made.total_clusters, made.allocated_clusters, made.fragmented_clusters, made.image_end_offset


@pytest.mark.parametrize(
    "make",
    [
        lambda: dynamic(0),
        dynamic,
        lambda: dynamic(force_size=True),
        lambda: dynamic(block_size=512 << 10),
        lambda: dynamic(entries={0: FIRST, 1: FIRST + SPAN}),
        lambda: dynamic(entries={5: FIRST}),
        fixed,
        lambda: fixed(force_size=True),
        lambda: fixed()[:-1],
        lambda: differencing([NAME]),
    ],
)
def test_sound_images_have_no_findings(make: Callable[[], bytes]) -> None:
    made = report(make())
    assert made.findings == []
    assert (made.corruptions, made.leaks, made.check_errors) == (0, 0, 0)


@needs_qemu_img
@pytest.mark.parametrize(
    ("size", "subformat"),
    # An empty fixed disk is left out: nothing can open it, qemu-img neither.
    [(0, "dynamic"), *itertools.product((1, 10 * MiB, (10 << 30) + 512, 200 << 30), ("dynamic", "fixed"))],
)
def test_images_made_by_qemu_have_no_findings(tmp_path: Path, size: int, subformat: str) -> None:
    qemu_img("create", "-q", "-f", "vpc", "-o", f"subformat={subformat}", tmp_path / "t", str(size))
    with open_reader(tmp_path / "t") as file:
        assert check(file, (), generation=NOW).findings == []


@needs_qemu_io
def test_counts_the_blocks_that_qemu_allocated(tmp_path: Path) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vpc", path, "100M")
    for where in ("20M", "0", "90M", "22M"):
        assert run("qemu-io", "-f", "vpc", "-c", f"write {where} 4k", path).returncode == 0
    with open_reader(path) as file:
        made = check(file, (), generation=NOW)
    assert made.findings == []
    assert totals(made) == (51, 4, 3, path.stat().st_size)


def test_totals_of_a_dynamic_disk() -> None:
    data = dynamic(entries={0: FIRST + SPAN, 1: FIRST, 2: FIRST + 2 * SPAN})
    assert totals(report(data)) == (6, 3, 2, len(data))


def test_totals_of_a_fixed_disk() -> None:
    assert totals(report(fixed())) == (None, None, None, len(fixed()))


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (lambda: with_footer(dynamic(), at_start=False, timestamp=5), ("corruption", "footer")),
        (lambda: with_footer(dynamic(), at_end=False, disk_type=9), ("corruption", "footer")),
        (lambda: dynamic()[:-512], ("corruption", "footer")),
        (lambda: dynamic() + bytes(512), ("corruption", "footer")),
        (lambda: dynamic()[:-512] + bytes(512), ("corruption", "footer")),
        (lambda: dynamic()[:-1] + b"\1", ("corruption", "footer")),
        (lambda: with_footer(dynamic(), disk_type=2), ("corruption", "footer")),
        (lambda: with_footer(dynamic(), disk_type=5), ("corruption", "footer")),
        (lambda: with_footer(dynamic(), version=2), ("warning", "footer")),
        (lambda: with_footer(dynamic(), features=0), ("warning", "footer")),
        (lambda: with_footer(dynamic(), features=6), ("warning", "footer")),
        (lambda: with_footer(dynamic(), current_size=10514433), ("warning", "footer")),
        (lambda: with_footer(dynamic(), cylinders=300), ("warning", "footer")),
        (lambda: dynamic()[:548] + b"\1" + dynamic()[549:], ("corruption", "dynamic disk header")),
        (lambda: with_header(dynamic(), version=1), ("warning", "dynamic disk header")),
        (lambda: with_header(dynamic(), max_table_entries=7), ("warning", "dynamic disk header")),
        (lambda: with_header(dynamic(), table_offset=1024), ("corruption", "BAT")),
        (lambda: with_footer(differencing([NAME]), disk_type=3), None),
        (lambda: differencing([]), ("corruption", "dynamic disk header")),
        (lambda: differencing([NAME], parent_id=bytes(16)), ("warning", "dynamic disk header")),
        (lambda: differencing([NAME, (7, b"x")]), ("warning", "parent locator")),
        (lambda: fixed()[512:], ("corruption", "file")),
        (lambda: bytes(512) + fixed(), ("warning", "file")),
    ],
)
def test_finds_what_is_wrong_with_the_metadata(make: Callable[[], bytes], finding: tuple[str, str] | None) -> None:
    data = make()
    assert finding in found(data) if finding else found(data) == []


def test_a_disk_of_hyper_v_has_no_findings() -> None:
    # Its geometry is rounded down from the size.
    data = with_footer(dynamic(), creator_app=b"win ", current_size=10 * MiB, cylinders=301)
    assert found(with_header(data, max_table_entries=5)) == []


@pytest.mark.parametrize(
    ("entries", "findings"),
    [
        ({0: FIRST, 1: FIRST}, [("corruption", "BAT")]),
        ({0: FIRST, 1: FIRST + SPAN - 1}, [("corruption", "BAT")]),
        ({0: FIRST + SPAN - 1, 1: FIRST}, [("corruption", "BAT")]),
        ({0: FIRST, 1: FIRST + 1, 2: FIRST + 2}, [("corruption", "BAT")] * 2),
        ({0: FIRST, 2: FIRST + SPAN + 7}, []),
        ({0: FIRST - 1}, [("corruption", "BAT")]),
        ({0: 0}, [("corruption", "BAT")] * 3),
        ({0: FIRST + SPAN}, []),
        ({0: FIRST, 1: FIRST + 2 * SPAN}, [("leak", "file")]),
        ({0: FIRST, 1: FIRST + 4 * SPAN + 9}, [("leak", "file")]),
        ({6: FIRST}, [("leak", "BAT")]),
    ],
)
def test_finds_blocks_that_are_in_the_way(entries: dict[int, int], findings: list[tuple[str, str]]) -> None:
    data = dynamic(entries=entries)
    if 6 in entries:
        data = with_header(data, max_table_entries=7)
        findings = [("warning", "dynamic disk header"), *findings]
    assert found(data) == findings


def test_counts_lost_blocks() -> None:
    made = report(dynamic(entries={0: FIRST + 4 * SPAN + 9, 1: FIRST}))
    assert (made.leaks, made.findings[0].offset) == (3, (FIRST + SPAN) * 512)


def test_room_before_the_first_block_is_no_leak() -> None:
    """Writers leave it to align their blocks, or for a larger BAT."""
    assert found(dynamic(entries={0: FIRST + 5 * SPAN + 9, 1: FIRST + 4 * SPAN + 9})) == []


def test_counts_lost_blocks_before_the_footer() -> None:
    data = dynamic()
    made = report(data[:-512] + bytes(2 * SPAN * 512 + 512) + data[-512:])
    assert (made.leaks, made.corruptions) == (2, 0)
    assert made.image_end_offset == len(data)


def test_finds_blocks_past_the_end_of_the_file() -> None:
    data = dynamic()
    made = report(data[:1536] + struct.pack(">II", FIRST, 0xFFFFFFFE) + data[1544:])
    assert made.corruptions == 2
    assert [f.offset for f in made.findings] == [1536, 1540]


def test_says_where_the_footer_is_if_more_follows() -> None:
    made = report(dynamic() + bytes(512))
    assert "there is one at byte 2048" in made.findings[0].detail


def test_a_bat_past_the_end_cannot_be_checked() -> None:
    with pytest.raises(ImageError) as caught:
        report(with_header(dynamic(), table_offset=1 << 40))
    assert caught.value.kind == "out-of-bounds"


@pytest.mark.parametrize("data", [b"", b"abc", bytes(1024), dynamic()[:9] + b"\1" + dynamic()[10:]])
def test_what_cannot_be_opened_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        report(data)


def test_agrees_with_a_plain_comparison_of_all_blocks() -> None:
    pick = random.Random(1)
    data = dynamic(8 * MiB, block_size=512 << 10)
    count, span = Header.unpack(data, 512).max_table_entries, 1025
    for _ in range(200):
        starts = [FIRST + pick.randrange(20 * span) for _ in range(count)]
        table = struct.pack(f">{count}I", *starts)
        image = BytesReader(data[:1536] + table + data[1536 + len(table) :], size=40 * span * 512)
        clash = any(abs(a - b) < span for i, a in enumerate(starts) for b in starts[:i])
        made = check(image, (), generation=NOW)
        assert any("another block" in f.detail for f in made.findings) == clash


def test_memory_is_bounded_for_tiny_blocks_in_huge_files(monkeypatch) -> None:
    monkeypatch.setattr(checker, "MAX_SLOTS", 1000)
    data = with_header(dynamic(34816, entries={0: FIRST}, block_size=512 << 10), block_size=512, max_table_entries=68)
    made = check(BytesReader(data, size=1 << 40), (), generation=NOW)
    assert made.check_errors == 1


def test_a_whole_disk_is_checked_in_reasonable_time(tmp_path: Path) -> None:
    made = plan(2040 << 30)
    apply_plan(made, tmp_path / "t")
    path = tmp_path / "t"
    entries = made.virtual_size // (2 * MiB)
    start = (made.sizes[0] - 512) // 512
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), struct.pack(f">{entries}I", *range(start, start + entries * SPAN, SPAN)), 1536)
        end = (start + entries * SPAN) * 512
        footer = os.pread(file.fileno(), 512, 0)
        file.truncate(end + 512)
        os.pwrite(file.fileno(), footer, end)
    with open_reader(path) as file:
        seen = check(file, (), generation=NOW)
    assert seen.findings == []
    assert totals(seen) == (entries, entries, 0, end + 512)


def filled() -> bytes:
    """Return a dynamic disk that has a block."""
    return dynamic(entries={0: FIRST})


def child() -> bytes:
    """Return a differencing disk."""
    return differencing([NAME])


@pytest.mark.parametrize("record", [Footer, Header])
@pytest.mark.parametrize("make", [filled, child])
def test_any_field_value_gives_a_report_or_an_image_error(record: type[Footer], make: Callable[[], bytes]) -> None:
    data = make()
    pick = random.Random(3)
    base = 0 if record is Footer else 512
    for field in record.FIELDS:
        size = min(field.size, 192)
        for value in (bytes(size), b"\xff" * size, bytes(size - 1) + b"\1", pick.randbytes(size)):
            low = base + field.offset
            changed = data[:low] + value + data[low + size :]
            for whole in (changed, with_footer(changed, at_end=False)):
                survives(whole)


@pytest.mark.parametrize("make", [filled, fixed, child])
def test_any_cut_gives_a_report_or_an_image_error(make: Callable[[], bytes]) -> None:
    data = make()
    for end in [*range(0, min(len(data), 4096), 64), len(data) - 513, len(data) - 1]:
        for part in (data[:end], data[end:]):
            survives(part)
