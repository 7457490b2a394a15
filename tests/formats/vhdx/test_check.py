from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.formats.vhdx.images import (
    BAT,
    HEADERS,
    ITEMS,
    METADATA,
    TABLES,
    GiB,
    MiB,
    TiB,
    both,
    changed,
    entry,
    image,
    planned,
    store,
    u16,
    u32,
    u64,
    write,
)
from tests.formats.vhdx.test_parse import PARENT, extra_item, extra_region, locator
from tests.support import QEMU_IO, BytesReader, apply_plan, needs_qemu_img, needs_qemu_io, qemu_img, reader, run

from instar.core.errors import ImageError
from instar.core.finding import Report
from instar.formats.vhdx import check as module
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.check import check

NOW = (7, 2)
FIRST_FREE = 8 * MiB


def examine(source: BytesReader) -> Report:
    return check(source, (), generation=NOW)


def said(report: Report, severity: str = "corruption") -> str:
    return "; ".join(found.detail for found in report.findings if found.severity == severity)


@pytest.mark.parametrize("size", [0, 1, 64 * MiB, 10 * GiB + 512])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("zero", ["on", "off"])
def test_finds_nothing_in_a_fresh_image(size: int, subformat: str, zero: str) -> None:
    report = examine(image(size, subformat=subformat, block_state_zero=zero))
    assert report.findings == []
    assert (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0)
    assert (report.total_clusters, report.image_end_offset) == (None, None)


# What qemu-img finds: edits, length of the file, number of corruptions.
PLACED: dict[str, tuple[dict[int, bytes], int, int]] = {
    "a block in place": (entry(0, FIRST_FREE | 6), 16 * MiB, 0),
    "two blocks in place": (entry(0, FIRST_FREE | 6) | entry(1, 16 * MiB | 6), 24 * MiB, 0),
    "a block past the end": (entry(0, GiB | 6), 16 * MiB, 1),
    "two blocks past the end": (entry(0, GiB | 6) | entry(1, 5 * GiB | 6), 16 * MiB, 2),
    "a block cut by the end": (entry(0, 9 * MiB | 6), 16 * MiB, 1),
    "a block over the log": (entry(0, MiB | 6), 16 * MiB, 1),
    "a block over the metadata": (entry(3, METADATA | 6), 16 * MiB, 1),
    "a block at 0": (entry(0, 6), 16 * MiB, 1),
    "a block past 256 TiB": (entry(0, 1 << 48 | FIRST_FREE | 6), 16 * MiB, 1),
    "a block past 64 PiB": (entry(0, 1 << 56 | FIRST_FREE | 6), 16 * MiB, 1),
    "unmapped blocks": (entry(0, 1) | entry(1, FIRST_FREE | 3) | entry(2, 5), 16 * MiB, 0),
}


@needs_qemu_img
@pytest.mark.parametrize("name", PLACED)
def test_counts_misplaced_blocks_as_qemu_does(tmp_path: Path, name: str) -> None:
    edits, length, corruptions = PLACED[name]
    source = changed(edits, length=length)
    assert examine(source).corruptions == corruptions
    done = run("qemu-img", "check", "-f", "vhdx", store(source, tmp_path / "t"))
    assert done.returncode == (2 if corruptions else 0)
    assert (f"{corruptions} errors were found" in done.stdout) is bool(corruptions)


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        (entry(0, FIRST_FREE | 6) | entry(1, FIRST_FREE | 6), "entry 1: the block overlaps another one"),
        (entry(0, 9 * MiB | 6) | entry(1, 16 * MiB | 6), "entry 1: the block overlaps another one"),
        (entry(1, 16 * MiB | 6) | entry(7, 9 * MiB | 6), "entry 7: the block overlaps another one"),
        (entry(0, 4), "state 4"),
        (entry(0, FIRST_FREE | 7), "state 7"),
        (both(HEADERS, 48, b"?" * 16), "the log is not empty, but has no valid entry"),
        ({TABLES[1] + 28: b"?"}, "copy 2 is not valid"),
        ({TABLES[0] + 28: b"?"}, "copy 1 is not valid"),
        (both(TABLES, 64, u64(METADATA)) | {TABLES[1] + 44: u32(1)}, "the two copies differ"),
        (extra_region(b"?" * 16, 7 * MiB + 1, required=False), "is not whole mebibytes"),
        (extra_region(b"?" * 16, GiB, required=False), "ends past the end of the file"),
        (extra_region(b"?" * 16, 0, required=False), "overlaps the header section"),
        (extra_item(b"?" * 16, flags=0, offset=0x10004), "overlaps the file parameters"),
        (extra_item(b"?" * 16, flags=0, offset=0x100), "overlaps the metadata table"),
        (extra_item(b"?" * 16, flags=0, offset=MiB - 2), "ends past the region"),
        (extra_item(b"?" * 16, flags=0, length=MiB + 1), "is longer than 1 MiB"),
        ({METADATA + 32 + 20: u32(12)}, "file parameters is 12 bytes long"),
        ({ITEMS + 36: u32(7)}, "it is 7 bytes"),
        ({ITEMS + 8: u64(64 * MiB - 1)}, "are not whole sectors"),
    ],
)
def test_finds_what_qemu_does_not_look_at(edits: dict[int, bytes], told: str) -> None:
    broken = TABLES[0] + 28 in edits or TABLES[1] + 28 in edits
    report = examine(changed(edits, seal=not broken, length=32 * MiB))
    assert told in said(report)
    assert report.corruptions >= 1


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({HEADERS[0] + 100: b"?"}, "copy 1 is not valid: the checksum"),
        (both(HEADERS, 8, u64(1)), "the same sequence number"),
        (both(HEADERS, 16, bytes(16)), "file_write_guid is all zeros"),
        (both(HEADERS, 68, u32(4097)), "the length of the log is 4097"),
        (extra_item(b"?" * 16, flags=8), "unknown flags 0x8"),
        (entry(0, FIRST_FREE | 2), "a block in state 2 has an offset"),
        (entry(0, FIRST_FREE | 0x8 | 6), "reserved bits are set"),
        (entry(0, FIRST_FREE | 0x100 | 6), "reserved bits are set"),
        (entry(0, FIRST_FREE | 0x10000 | 6), "reserved bits are set"),
        (entry(0, 0x80000 | 6 | FIRST_FREE), "reserved bits are set"),
    ],
)
def test_warns_of_what_is_unusual_without_counting_it(edits: dict[int, bytes], told: str) -> None:
    report = examine(changed(edits, seal=HEADERS[0] + 100 not in edits, length=32 * MiB))
    assert told in said(report, "warning")
    assert (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0)


def chunked(edits: dict[int, bytes], *, size: int = 5 * GiB) -> BytesReader:
    """Return a disk of more than one chunk: entry 16 is a sector bitmap's."""
    return changed(edits, size=size, block_size="256M", length=4 * GiB)


def test_warns_of_sector_bitmaps_that_nothing_reads() -> None:
    report = examine(chunked(entry(16, 2)))
    assert "entry 16: a sector bitmap entry of a disk without parent" in said(report, "warning")
    assert report.corruptions == 0


def differencing(edits: dict[int, bytes]) -> BytesReader:
    return chunked(locator(PARENT) | edits)


def test_finds_nothing_in_a_sound_differencing_disk() -> None:
    blocks = entry(0, 512 * MiB | 7) | entry(1, 768 * MiB | 6) | entry(16, 1024 * MiB | 6)
    assert examine(differencing(blocks)).findings == []


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        (entry(0, 512 * MiB | 7), "entry 16: the sector bitmap of partially present blocks is missing"),
        (entry(17, 512 * MiB | 7), "entry 33: the sector bitmap of partially present blocks is missing"),
        (entry(16, 2), "a sector bitmap has no state 2"),
        (entry(16, 5 * GiB | 6), "starts past the end of the file"),
        (entry(16, MiB | 6), "overlaps the log"),
        (entry(0, 512 * MiB | 6) | entry(16, 600 * MiB | 6), "overlaps another one"),
        (entry(0, 512 * MiB | 7) | entry(1, 513 * MiB | 7) | entry(16, GiB | 6), "entry 1: the block overlaps"),
    ],
)
def test_checks_sector_bitmaps_of_differencing_disks(edits: dict[int, bytes], told: str) -> None:
    report = examine(differencing(edits))
    assert told in said(report)
    assert report.corruptions == 1


def test_blocks_may_lie_before_a_region_that_was_moved_to_the_end() -> None:
    edits = extra_region(b"?" * 16, 31 * MiB, required=False) | entry(0, FIRST_FREE | 6)
    assert examine(changed(edits, length=32 * MiB)).findings == []
    report = examine(changed(edits | entry(1, 24 * MiB | 6), length=32 * MiB))
    assert "entry 1: the block overlaps the region 3f3f3f3f" in said(report)


@pytest.mark.parametrize("places", [(8, 17, 26, 35), (35, 8, 27, 17), (8, 16, 24, 32)])
def test_blocks_may_lie_anywhere_as_long_as_they_are_apart(places: tuple[int, ...]) -> None:
    blocks = {at: data for n, place in enumerate(places) for at, data in entry(n, place * MiB | 6).items()}
    assert examine(changed(blocks, length=64 * MiB)).findings == []
    overlapping = blocks | entry(4, (places[2] + 7) * MiB | 6)
    assert "the block overlaps another one" in said(examine(changed(overlapping, length=64 * MiB)))


def test_an_image_that_cannot_be_opened_is_no_finding() -> None:
    with pytest.raises(ImageError):
        examine(changed({METADATA: b"METADATA"}))


def test_counting_stops_after_many_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COUNTED", 100)
    source = changed({}, size=GiB, block_size="1M", length=64 * MiB)
    write(source, BAT, u64(GiB | 6) * 1024)
    report = examine(source)
    assert (report.corruptions, report.check_errors) == (100, 1)
    assert len(report.findings) < 100
    assert "100 entries in all" in said(report, "warning")


def test_blocks_beyond_what_is_tracked_are_named_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondisk, "MAX_TRACKED", 16 * MiB)
    report = examine(changed(entry(0, 24 * MiB | 6), length=64 * MiB))
    assert (report.corruptions, report.check_errors) == (0, 1)


def test_a_large_fixed_disk_is_checked_in_seconds() -> None:
    made = planned(TiB, subformat="fixed", block_state_zero="off", block_size="1M")
    parts = {offset: data for item in made.items for offset, data in item.pieces()}
    source = BytesReader(parts.pop(0), size=made.sizes[0], parts=parts)
    start = time.process_time()
    assert examine(source).findings == []
    assert time.process_time() - start < 20


@needs_qemu_io
def test_finds_nothing_in_an_image_that_qemu_wrote_to(tmp_path: Path) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "1G")
    writes = [f"write -P {n} {37 * n}M 1M" for n in range(1, 20)]
    assert run(str(QEMU_IO), *(word for line in writes for word in ("-c", line)), path).returncode == 0
    with reader(path) as source:
        report = check(source, (), generation=NOW)
    assert (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0)


@needs_qemu_img
def test_truncated_images_count_as_many_corruptions_as_in_qemu(tmp_path: Path) -> None:
    path = tmp_path / "t"
    apply_plan(planned(GiB, subformat="fixed", block_state_zero="off", block_size="4M"), path)
    full = path.stat().st_size
    for cut in (512, MiB, 4 * MiB, 513 * MiB):
        with path.open("r+b") as file:
            file.truncate(full - cut)
        done = run("qemu-img", "check", path)
        with reader(path) as source:
            report = check(source, (), generation=NOW)
        assert done.returncode == 2
        assert f"{report.corruptions} errors were found" in done.stdout


def test_item_counts_are_bounded_by_the_table() -> None:
    rows = b"".join(u64(n) + u64(0) + u32(0x10100 + n) + u32(1) + u32(1) + u32(0) for n in range(2042))
    report = examine(changed({METADATA + 10: u16(2047), METADATA + 192: rows}))
    assert "there are 2042 user items" in said(report)


def test_only_of_what_qemu_opens_findings_are_hidden_from_its_dialect() -> None:
    """A damaged second region table is nothing to QEMU; with a damaged first one it does not open the image."""
    for place, unseen in ((TABLES[1], 1), (TABLES[0], 0)):
        source = image()
        write(source, place + 40, b"\x55")
        made = examine(source)
        assert (made.corruptions, made.unseen) == (1, unseen)
