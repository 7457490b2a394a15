from __future__ import annotations

import random
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
    qemu_dirty,
    reseal,
    store,
    u16,
    u32,
    u64,
    write,
)
from tests.support import BytesReader, apply_plan, needs_qemu_img, qemu_img, qemu_info, reader, run

from instar.cli.messages.vhdx import QEMU_OPEN
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.formats.vhdx import ondisk, parse
from instar.formats.vhdx.check import check

NOW = (7, 2)


def info(source: BytesReader) -> ImageFacts:
    return parse.info(source, (), generation=NOW)


def extra_region(guid: bytes, offset: int, *, required: bool) -> dict[int, bytes]:
    row = guid + u64(offset) + u32(MiB) + u32(required)
    return both(TABLES, 8, u32(3)) | both(TABLES, 80, row)


def extra_item(item_id: bytes, *, length: int = 4, flags: int = 4, offset: int = 0x10100) -> dict[int, bytes]:
    return {METADATA + 10: u16(6), METADATA + 192: item_id + u32(offset) + u32(length) + u32(flags)}


def locator(
    pairs: list[tuple[str | bytes, str | bytes]], *, kind: bytes = ondisk.VHDX_PARENT, **odd: int
) -> dict[int, bytes]:
    """Return the edits that make a disk a differencing one."""
    texts = b""
    rows = b""
    start = 20 + 12 * len(pairs)
    for pair in pairs:
        key, value = (text if isinstance(text, bytes) else text.encode("utf-16-le") for text in pair)
        at = start + len(texts)
        rows += u32(at) + u32(odd.get("value_offset", at + len(key))) + u16(len(key)) + u16(len(value))
        texts += key + value
    body = kind + u16(0) + u16(odd.get("count", len(pairs))) + rows + texts
    item = extra_item(ondisk.PARENT_LOCATOR, length=odd.get("length", len(body)))
    return item | {ITEMS + 4: u32(2), METADATA + 0x10100: body}


PARENT = [
    ("parent_linkage", "{83ed77a0-6a01-4d0c-9b0e-6a1b2c3d4e5f}"),
    ("absolute_win32_path", "C:\\disks\\base.vhdx"),
    ("relative_path", ".\\base é.vhdx"),
]


def test_says_what_a_fresh_image_is() -> None:
    facts = info(image(GiB + 1, subformat="fixed"))
    assert (facts.format, facts.virtual_size, facts.cluster_size) == ("vhdx", GiB + 512, 16 * MiB)
    assert (facts.format_specific, facts.dirty, facts.corrupt, facts.references) == (None, False, False, [])
    assert facts.has_dirty_flag
    assert facts.extra["subformat"] == "fixed"
    assert facts.extra["creator"] == "instar"


@needs_qemu_img
@pytest.mark.parametrize(("size", "choice"), [(0, "block_size=1M"), (MiB + 1, "subformat=fixed"), (3 * TiB, "")])
def test_agrees_with_qemu_on_its_own_images(tmp_path: Path, size: int, choice: str) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vhdx", *(["-o", choice] if choice else []), path, str(size))
    theirs = qemu_info(path)
    with reader(path) as source:
        facts = parse.info(source, (), generation=NOW)
    assert (facts.virtual_size, facts.cluster_size) == (theirs["virtual-size"], theirs["cluster-size"])
    assert "format-specific" not in theirs
    assert theirs["dirty-flag"] is False
    assert str(facts.extra["creator"]).startswith("QEMU v")


def test_reads_what_qemu_7_2_made() -> None:
    source = qemu_dirty()
    for copy in HEADERS:
        write(source, copy + 48, bytes(16))
    facts = info(reseal(source))
    assert (facts.virtual_size, facts.cluster_size, facts.extra["creator"]) == (64 * MiB, 8 * MiB, "QEMU v7.2.22")
    assert facts.extra["virtual_disk_id"] == "8b3616ca-cd0f-104c-8015-ba7bbc5da538"


# (edits, whether the checksums are made right, kind and field of the error or None if it opens)
HEADER_CASES: dict[str, tuple[dict[int, bytes], bool, tuple[str, str] | None]] = {
    "untouched": ({}, True, None),
    "other magic": ({0: b"V"}, True, ("invalid-format", "signature")),
    "first header damaged": ({HEADERS[0] + 20: b"?"}, False, None),
    "second header damaged": ({HEADERS[1] + 20: b"?"}, False, None),
    "both headers damaged": (both(HEADERS, 20, b"?"), False, ("corrupt", "header")),
    "header signature": (both(HEADERS, 0, b"HEAD"), True, ("corrupt", "header")),
    "header version 2": (both(HEADERS, 66, u16(2)), True, ("corrupt", "header")),
    "version 2 in one": ({HEADERS[1] + 66: u16(2)}, True, None),
    "equal numbers, different": (
        both(HEADERS, 8, u64(1)) | {HEADERS[0] + 16: b"?", HEADERS[1] + 16: b"!"},
        True,
        ("corrupt", "sequence_number"),
    ),
    "equal numbers, equal": (both(HEADERS, 8, u64(1)), True, None),
    "log version": (both(HEADERS, 64, u16(1)), True, ("corrupt", "log_version")),
    "log at 0": (both(HEADERS, 72, u64(0)), True, ("corrupt", "log_offset")),
    "log off by one": (both(HEADERS, 72, u64(MiB + 1)), True, ("corrupt", "log_offset")),
    "log length 0": (both(HEADERS, 68, u32(0)) | both(HEADERS, 48, b"?" * 16), True, None),
    "log length odd": (both(HEADERS, 68, u32(4097)), True, None),
    "log length odd and in use": (
        both(HEADERS, 68, u32(4097)) | both(HEADERS, 48, b"?" * 16),
        True,
        ("corrupt", "log_length"),
    ),
    "log over table": (both(HEADERS, 68, u32(2 * MiB)), True, ("corrupt", "file_offset")),
    "both region tables damaged": (both(TABLES, 20, b"?"), False, ("corrupt", "region_table")),
    "second region table damaged": ({TABLES[1] + 20: b"?"}, False, None),
    "region table signature": (both(TABLES, 0, b"REGI"), True, ("corrupt", "region_table")),
    "2048 regions": (both(TABLES, 8, u32(2048)), True, ("corrupt", "region_table")),
    "no metadata region": (both(TABLES, 8, u32(1)), True, ("corrupt", "guid")),
    "unknown region": (extra_region(b"?" * 16, 7 * MiB, required=False), True, None),
    "unknown required region": (extra_region(b"?" * 16, 7 * MiB, required=True), True, ("unsupported-feature", "guid")),
    "table twice": (extra_region(ondisk.BAT_REGION, 7 * MiB, required=False), True, ("corrupt", "guid")),
    "regions overlap": (extra_region(b"?" * 16, METADATA, required=False), True, ("corrupt", "file_offset")),
    "table past 2^63": (both(TABLES, 32, u64(1 << 63)), True, ("out-of-bounds", "region_end")),
    "table past the end": (both(TABLES, 32, u64(1 << 30)), True, None),
    "table too short": (both(TABLES, 40, u32(8)), True, ("corrupt", "length")),
    "metadata signature": ({METADATA: b"METADATA"}, True, ("corrupt", "signature")),
    "2048 items": ({METADATA + 10: u16(2048)}, True, ("too-large", "entry_count")),
    "an item missing": ({METADATA + 10: u16(4)}, True, ("unsupported-feature", "entry_count")),
    "an item twice": (extra_item(ondisk.FILE_PARAMETERS), True, ("corrupt", "item_id")),
    "unknown item": (extra_item(b"?" * 16, flags=0), True, None),
    "unknown required item": (extra_item(b"?" * 16), True, ("unsupported-feature", "item_id")),
    "item nowhere": ({METADATA + 48: u32(0xFFFFFFF0)}, True, ("corrupt", "block_size")),
    "parent without locator": ({ITEMS + 4: u32(2)}, True, ("corrupt", "has_parent")),
    "locator without parent": (extra_item(ondisk.PARENT_LOCATOR), True, ("unsupported-feature", "has_parent")),
    "block size 0": ({ITEMS: u32(0)}, True, ("corrupt", "block_size")),
    "block size 3M": ({ITEMS: u32(3 * MiB)}, True, ("corrupt", "block_size")),
    "block size 512M": ({ITEMS: u32(512 * MiB)}, True, ("corrupt", "block_size")),
    "block size 1M": ({ITEMS: u32(MiB)}, True, None),
    "65 TiB": ({ITEMS + 8: u64(65 * TiB)}, True, ("too-large", "virtual_disk_size")),
    "2^64 - 1": ({ITEMS + 8: u64((1 << 64) - 1)}, True, ("too-large", "virtual_disk_size")),
    "odd size": ({ITEMS + 8: u64(1000)}, True, None),
    "sectors of 8192": ({ITEMS + 32: u32(8192)}, True, ("unsupported-feature", "logical_sector_size")),
    "sectors of 0": ({ITEMS + 32: u32(0)}, True, ("unsupported-feature", "logical_sector_size")),
    "physical sectors of 7": ({ITEMS + 36: u32(7)}, True, None),
    "block past the end": (entry(0, GiB | 6), True, ("corrupt", "file_offset")),
    "block past 2^63": (entry(0, (1 << 64) - MiB | 6), True, ("corrupt", "file_offset")),
    "block cut": (entry(1, 7 * MiB | 6), True, ("corrupt", "file_offset")),
    "block in the log": (entry(7, MiB | 6), True, ("corrupt", "file_offset")),
    "block at 0": (entry(7, 6), True, ("corrupt", "file_offset")),
    "unknown state": (entry(0, 4), True, None),
    "block past 256 TiB": (entry(0, 1 << 48 | 7 * MiB | 6), True, ("corrupt", "file_offset")),
    "block past 64 PiB": (entry(0, 1 << 56 | 7 * MiB | 6), True, ("corrupt", "file_offset")),
}


@pytest.mark.parametrize("name", HEADER_CASES)
def test_opens_only_what_can_be_understood(name: str) -> None:
    edits, seal, expected = HEADER_CASES[name]
    source = changed(edits, seal=seal)
    if expected is None:
        info(source)
        return
    with pytest.raises(ImageError) as caught:
        info(source)
    assert (caught.value.kind, caught.value.field) == expected
    assert expected in QEMU_OPEN


@needs_qemu_img
@pytest.mark.parametrize("name", HEADER_CASES)
def test_opens_and_refuses_with_the_words_of_qemu(tmp_path: Path, name: str) -> None:
    edits, seal, expected = HEADER_CASES[name]
    store(changed(edits, seal=seal), tmp_path / "t")
    done = run("qemu-img", "info", "-f", "vhdx", "t", cwd=tmp_path)
    assert (done.returncode == 0) is (expected is None), done.stderr
    if expected is not None:
        told = done.stderr.splitlines()
        assert told[-1] == "qemu-img: Could not open 't': " + QEMU_OPEN[expected].format(path="t")


def test_the_header_with_the_higher_number_counts() -> None:
    for newer in (0, 1):
        numbers = {HEADERS[newer] + 8: u64(9), HEADERS[1 - newer] + 8: u64(8), HEADERS[newer] + 68: u32(0)}
        assert info(changed(numbers)).extra["log_size"] == 0


def test_the_second_region_table_stands_in_for_the_first() -> None:
    assert info(changed({TABLES[0] + 20: b"?"}, seal=False)).virtual_size == 64 * MiB


def test_a_disk_of_size_0_needs_no_table() -> None:
    assert info(changed({ITEMS + 8: u64(0)})).virtual_size == 0


def test_a_virtual_size_is_counted_in_whole_sectors() -> None:
    assert info(changed({ITEMS + 8: u64(1535)})).virtual_size == 1024


def test_a_last_block_may_end_with_the_disk() -> None:
    for size in (MiB + 512, 10 * GiB + 512, 10 * GiB + 9 * MiB):
        source = image(size, subformat="fixed", block_state_zero="off")
        assert info(source).virtual_size == size
        source.size -= 512
        with pytest.raises(ImageError, match="past the end of the file"):
            info(source)


def test_a_region_may_lie_behind_the_blocks() -> None:
    moved = extra_region(b"?" * 16, 31 * MiB, required=False)
    assert info(changed(moved | entry(0, 8 * MiB | 6) | entry(1, 16 * MiB | 6), length=64 * MiB)).virtual_size
    assert info(changed(moved | entry(0, 23 * MiB | 6) | entry(1, 32 * MiB | 6), length=64 * MiB)).virtual_size
    for offset in (24, 31):
        with pytest.raises(ImageError, match="entry 1 overlaps the region 3f3f3f3f"):
            info(changed(moved | entry(0, 8 * MiB | 6) | entry(1, offset * MiB | 6), length=64 * MiB))


def test_reads_disks_with_sectors_of_4096_bytes_which_qemu_refuses() -> None:
    facts = info(changed({ITEMS + 32: u32(4096) * 2, ITEMS + 8: u64(64 * MiB + 512)}))
    assert (facts.virtual_size, facts.extra["logical_sector_size"]) == (64 * MiB, 4096)
    # A chunk has eight times the blocks, so the entry that would be a sector bitmap's is a block's.
    disk = parse.load(changed({ITEMS + 32: u32(4096)}, size=40 * GiB, block_size="256M"))
    assert (disk.ratio, disk.bat_entries) == (128, 161)


def test_names_the_parent_of_a_differencing_disk() -> None:
    facts = info(changed(locator(PARENT) | both(TABLES, 40, u32(MiB))))
    assert facts.extra["subformat"] == "differencing"
    assert facts.extra["parent_linkage"] == PARENT[0][1]
    (parent,) = facts.references
    assert (parent.role, parent.format, parent.required) == ("backing", "vhdx", False)
    assert parent.name == "./base é.vhdx".encode()
    assert facts.extra["parent_identity"] == ondisk.guid(PARENT[0][1].strip("{}"))
    assert ImageFacts.from_wire(facts.to_wire()).backing is not None


def test_a_parent_name_that_is_no_text_stays_what_it_is() -> None:
    facts = info(changed(locator([("relative_path", b"a\0\x00\xd8b\0")])))
    assert facts.references[0].name == b"a\xed\xa0\x80b"


def test_an_absolute_parent_is_taken_if_there_is_no_relative_one() -> None:
    assert info(changed(locator(PARENT[:2]))).references[0].name == b"C:\\disks\\base.vhdx"


@pytest.mark.parametrize(
    ("edits", "kind"),
    [
        (locator(PARENT, kind=b"?" * 16), "unsupported-feature"),
        (locator(PARENT, count=65), "too-large"),
        (locator(PARENT, length=MiB + 1), "too-large"),
        (locator(PARENT, length=100), "out-of-bounds"),
        (locator(PARENT, value_offset=0xFFFFFFFF), "out-of-bounds"),
        (locator([("relative_path", "x" * 5000)]), "too-large"),
        (locator([PARENT[0], PARENT[0]]), "corrupt"),
    ],
)
def test_refuses_parent_locators_that_do_not_hold_together(edits: dict[int, bytes], kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        info(changed(edits))
    assert caught.value.kind == kind
    assert (kind, caught.value.field) in QEMU_OPEN


def survives(source: BytesReader) -> None:
    """Let everything look at an image; only an ``ImageError`` may come out."""
    for look in (parse.info, check):
        try:
            look(source, (), generation=NOW)
        except ImageError as error:
            assert str(error)  # noqa: PT017


def test_survives_truncation_at_any_64th_byte_of_any_structure() -> None:
    base = changed(locator(PARENT) | entry(0, 6 * MiB | 6))
    structures = [(0, 64), (HEADERS[0], 128), (HEADERS[1], 128), (TABLES[0], 192), (TABLES[1], 192), (MiB, 64)]
    structures += [(BAT, 128), (METADATA, 320), (ITEMS, 832), (7 * MiB, 64)]
    for start, length in structures:
        for size in range(start, start + length + 1, 64):
            survives(BytesReader(base.parts[0], size=size, parts=base.parts))
    for size in range(0, 8 * MiB, 65536):
        survives(BytesReader(base.parts[0], size=size, parts=base.parts))


RECORDS = [
    (ondisk.FileIdentifier, (0,)),
    (ondisk.Header, HEADERS),
    (ondisk.RegionTableHeader, TABLES),
    (ondisk.RegionTableEntry, (TABLES[0] + 16, TABLES[1] + 16)),
    (ondisk.RegionTableEntry, (TABLES[0] + 48, TABLES[1] + 48)),
    (ondisk.MetadataTableHeader, (METADATA,)),
    *((ondisk.MetadataTableEntry, (METADATA + 32 * row,)) for row in range(1, 7)),
    (ondisk.FileParameters, (ITEMS,)),
    (ondisk.ParentLocatorHeader, (ITEMS + 0x100,)),
    (ondisk.ParentLocatorEntry, (ITEMS + 0x114,)),
]


@pytest.mark.parametrize(("record", "places"), RECORDS)
def test_any_field_may_be_anything(record: type[ondisk.Record], places: tuple[int, ...]) -> None:
    chance = random.Random(f"{record.__name__}{places}")
    base = changed(locator(PARENT) | entry(0, 6 * MiB | 6))
    for field in record.FIELDS:
        size = field.size
        for value in (bytes(size), b"\1".ljust(size, b"\0"), b"\xff" * size, chance.randbytes(size)):
            for where in ([p] for p in places) if len(places) == 1 else ([places[0]], list(places)):
                source = BytesReader(base.parts[0], size=base.size, parts=dict(base.parts))
                for place in where:
                    write(source, place + field.offset, value)
                survives(source if field.name == "checksum" else reseal(source))


def test_random_damage_is_survived() -> None:
    chance = random.Random(7)
    base = changed(locator(PARENT) | entry(0, 6 * MiB | 6))
    for _ in range(150):
        source = BytesReader(base.parts[0], size=base.size, parts=dict(base.parts))
        for start in chance.sample([0, *HEADERS, *TABLES, BAT, METADATA, ITEMS], 3):
            write(source, start + chance.randrange(96), chance.randbytes(chance.choice((1, 2, 4, 8))))
        survives(reseal(source))


def test_the_longest_table_is_read_in_seconds() -> None:
    made = planned(64 * TiB, block_size="1M", block_state_zero="off")
    parts = {offset: data for item in made.items for offset, data in item.pieces()}
    source = BytesReader(parts.pop(0), size=made.sizes[0], parts=parts)
    start = time.process_time()
    assert info(source).virtual_size == 64 * TiB
    assert check(source, (), generation=NOW).corruptions == 0
    assert time.process_time() - start < 30


@needs_qemu_img
def test_our_own_images_read_the_same_for_both(tmp_path: Path) -> None:
    for number, (size, given) in enumerate([(MiB, {}), (9 * GiB, {"subformat": "fixed", "block_state_zero": "off"})]):
        path = tmp_path / str(number)
        apply_plan(planned(size, **given), path)
        with reader(path) as source:
            facts = parse.info(source, (), generation=NOW)
        theirs = qemu_info(path)
        assert (facts.virtual_size, facts.cluster_size) == (theirs["virtual-size"], theirs["cluster-size"])
