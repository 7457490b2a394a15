from __future__ import annotations

import contextlib
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import generations
from tests.formats.vmdk.images import (
    NOW,
    OLD,
    MiB,
    cowd,
    image,
    make,
    reader,
    sesparse,
    stream,
    text,
    theirs,
)
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io, qemu_img, run
from tests.support import reader as opened

from instar.core.errors import ImageError
from instar.formats.vmdk import check as check_module
from instar.formats.vmdk import grains
from instar.formats.vmdk.check import check
from instar.formats.vmdk.claims import Claims
from instar.formats.vmdk.ondisk import CowdHeader, SeSparseHeader, SparseExtentHeader
from instar.formats.vmdk.parse import info

if TYPE_CHECKING:
    from pathlib import Path

    from instar.core.finding import Report

#: Of a planned disk of 1 MiB: sectors of the two directories, of their tables, and of the first grain.
RGD, RGT, GD, GT, GRAINS = 21, 22, 26, 27, 128


def look(*files: bytes | bytearray) -> Report:
    readers = [reader(data) for data in files]
    return check(readers[0], readers[1:], generation=NOW)


def lines(report: Report, severity: str = "corruption") -> list[str]:
    return [f"{f.structure}: {f.detail}" for f in report.findings if f.severity == severity]


def clean(report: Report) -> None:
    assert (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0), report.findings
    assert not report.findings


def look_at(path: Path) -> Report:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened(path))
        needs = [r for r in info(file, (), generation=OLD).references if r.required]
        parts = [stack.enter_context(opened(path.parent / r.name.decode())) for r in needs]
        return check(file, parts, generation=OLD)


def entry(data: bytearray, table: int, index: int, value: int) -> None:
    """Set an entry of the table or directory at a sector."""
    struct.pack_into("<I", data, 512 * table + 4 * index, value)


def disk(*entries: int, grains_in_file: int = 4) -> bytearray:
    """Return a 1 MiB disk whose first table entries, and their copies, are set."""
    data = image(MiB)
    data += bytes(65536 * grains_in_file)
    for index, value in enumerate(entries):
        entry(data, GT, index, value)
        entry(data, RGT, index, value)
    return data


def header(data: bytearray, **fields: object) -> bytearray:
    """Change fields of the header."""
    data[:512] = SparseExtentHeader.unpack(data).replace(**fields).pack()
    return data


# --- sound disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "subformat=streamOptimized", "zeroed_grain=on", "grain_size=8k", "compat6"])
@pytest.mark.parametrize("size", [0, 1, MiB + 512, 100 * MiB])
def test_planned_disks_are_clean(text: str, size: int) -> None:
    clean(look(image(size, text)))


@needs_qemu_img
@needs_qemu_io
@pytest.mark.parametrize(
    "options",
    ["", "zeroed_grain=on", "subformat=twoGbMaxExtentSparse", "subformat=monolithicFlat", "adapter_type=lsilogic"],
)
def test_disks_that_qemu_wrote_to_are_clean(tmp_path, options: str) -> None:
    path = theirs(tmp_path / "t.vmdk", (3 << 30) + 512, options)
    writes = [
        "write 0 1M",
        "write 5M 3k",
        "write 2147483136 1M",
        "write -z 64k 64k",
        "write 3221225472 512",
        "write 1G 9M",
    ]
    done = run("qemu-io", *[part for write in writes for part in ("-c", write)], path)
    assert "rror" not in done.stdout + done.stderr
    clean(look_at(path))


@needs_qemu_img
@pytest.mark.parametrize(
    "options", ["", *(f"-o subformat={kind}" for kind in ("streamOptimized", "twoGbMaxExtentSparse", "monolithicFlat"))]
)
def test_disks_that_qemu_converted_are_clean(tmp_path, options: str) -> None:
    dice = random.Random(1)
    with (tmp_path / "raw").open("wb") as file:
        for at in (0, 3, 4, 40, 700):
            file.seek(at * 65536)
            file.write(dice.randbytes(65536) if at % 2 else b"text " * 13107)
        file.truncate(50 * MiB + 512)
    for number, program in enumerate(generations().values()):
        path = tmp_path / f"t{number}.vmdk"
        assert run(program, "convert", "-O", "vmdk", *options.split(), tmp_path / "raw", path).returncode == 0
        clean(look_at(path))


@needs_qemu_img
def test_streams_with_a_footer_are_clean_here_and_in_qemu(tmp_path) -> None:
    data = stream({0: bytes(65536), 3: b"x" * 65536, 600: b"y" * 65536}, 600 * 128 + 128)
    clean(look(data))
    (tmp_path / "t").write_bytes(data)
    qemu_img("check", "-f", "vmdk", tmp_path / "t")


def test_extents_of_esx_are_clean() -> None:
    clean(look(text('RW 9000 VMFSSPARSE "a"', type="vmfsSparse"), cowd(9000, tables={0: {0: 70, 9: 71}, 2: {5: 73}})))
    used = {0: 3 << 60, 1: 3 << 60 | 1 << 48, 2: 1 << 60, 3: 2 << 60, 4095: 3 << 60 | 3 << 48}
    clean(look(text('RW 65536 SESPARSE "a"', type="seSparse"), sesparse(entries=used)))
    clean(look(text('RW 2 FLAT "a" 0', 'RW 2 FLAT "a" 2', 'RW 4 VMFS "b"', type="custom"), *[bytes(2048)] * 3))


def test_totals_are_not_counted_as_in_qemu() -> None:
    report = look(disk(GRAINS))
    assert report.image_end_offset is None
    assert (report.total_clusters, report.allocated_clusters, report.fragmented_clusters) == (None, None, None)


# --- tables and grains -------------------------------------------------------------------------------


def test_finds_a_grain_that_starts_past_the_end_of_the_file() -> None:
    report = look(disk(GRAINS, GRAINS + 128 * 4))
    assert lines(report) == ["grain: it starts past the end of the file"]
    assert report.findings[0].offset == 512 * (GRAINS + 128 * 4)


def test_finds_a_grain_that_is_cut_short() -> None:
    assert lines(look(disk(GRAINS, GRAINS + 128)[: 512 * (GRAINS + 255)])) == [
        "grain: it reaches past the end of the file"
    ]


def test_last_grain_may_end_with_the_disk() -> None:
    data = image(65536 + 1024) + bytes(65536 + 1024)
    for index, sector in enumerate((GRAINS, GRAINS + 128)):
        entry(data, GT, index, sector)
        entry(data, RGT, index, sector)
    clean(look(data))
    assert look(data[:-1024]).corruptions == 1


def test_finds_grains_that_two_entries_share() -> None:
    assert lines(look(disk(GRAINS, GRAINS, GRAINS + 128))) == ["grain: two entries share it"]
    assert look(disk(GRAINS, GRAINS, GRAINS, GRAINS)).corruptions == 3


def test_finds_grains_that_overlap_in_part() -> None:
    report = look(disk(GRAINS, GRAINS + 64, GRAINS + 300))
    assert lines(report) == ["grain: it overlaps another grain"]
    assert len(lines(report, "warning")) == 2
    # Two grains out of step that meet only one another.
    assert lines(look(disk(GRAINS, GRAINS + 130, GRAINS + 160))) == ["grain: it overlaps another grain"]


def test_grains_out_of_step_are_unusual_but_sound() -> None:
    report = look(disk(GRAINS, GRAINS + 130))
    assert report.corruptions == 0
    assert lines(report, "warning") == ["grain: it is out of step with the first grain"]


@pytest.mark.parametrize("sector", [1, 20, RGD, RGT, GD, GT, GT + 3])
def test_finds_grains_in_the_metadata(sector: int) -> None:
    assert lines(look(disk(GRAINS, sector))) == ["grain: it overlaps metadata"]


def test_zeroed_grain_is_metadata_only_without_the_flag() -> None:
    assert look(disk(1)).corruptions == 1
    clean(look(header(disk(1), flags=7, version=2)))


def test_finds_tables_that_differ_from_their_copies() -> None:
    data = disk(GRAINS, GRAINS + 128)
    entry(data, RGT, 1, 0)
    entry(data, RGT, 7, GRAINS)
    report = look(data)
    assert (report.corruptions, len(report.findings)) == (2, 2)
    assert "differs from its redundant copy" in report.findings[0].detail


def test_finds_directories_that_disagree() -> None:
    data = disk(GRAINS)
    entry(data, RGD, 0, 0)
    assert lines(look(data)) == ["grain directory: the two directories disagree on whether there is a table"]
    data = disk(GRAINS)
    entry(data, GD, 0, 0)
    assert look(data).corruptions == 1


def test_copy_is_not_looked_at_without_the_flag() -> None:
    data = disk(GRAINS)
    entry(data, RGD, 0, 0x7FFFFFFF)
    assert look(data).corruptions
    clean(look(header(data, flags=1)))


def test_finds_tables_past_the_end_of_the_file() -> None:
    data = disk(GRAINS)
    entry(data, GD, 0, len(data) // 512 - 3)
    assert lines(look(data)) == ["grain table: it reaches past the end of the file"]
    entry(data, GD, 0, 0xFFFFFFFF)
    assert look(data).corruptions == 1


def test_finds_tables_in_the_place_of_others() -> None:
    wide = image(64 * MiB) + bytes(65536)  # two tables
    entry(wide, 30, 1, 31)
    assert lines(look(wide)) == ["grain table: it overlaps other metadata, or two entries share it"]
    for sector in (0, 5, RGD, 30):
        data = image(64 * MiB) + bytes(65536)
        entry(data, 30, 0, sector or 1)
        assert look(data).corruptions == 1


def test_finds_directories_that_share_their_tables() -> None:
    data = disk(GRAINS)
    entry(data, RGD, 0, GT)
    assert lines(look(data)) == ["redundant grain table: it overlaps other metadata, or two entries share it"]


def test_one_directory_for_both_is_unusual_but_sound() -> None:
    report = look(header(disk(GRAINS), rgd_offset=GD))
    assert report.corruptions == 0
    assert lines(report, "warning") == ["redundant grain directory: it is the grain directory itself"]


def test_finds_directories_outside_the_file() -> None:
    report = look(header(disk(GRAINS), gd_offset=1 << 40, rgd_offset=1 << 41))
    assert report.corruptions >= 2
    assert look(header(disk(GRAINS), rgd_offset=1 << 41)).corruptions == 2
    found = lines(look(header(disk(GRAINS), gd_offset=5)))
    assert "grain directory: it overlaps other metadata" in found


def test_finds_a_directory_too_short_for_the_disk() -> None:
    data = bytearray(cowd(9000, tables={0: {0: 70}}))
    data[24:28] = (1).to_bytes(4, "little")
    report = look(text('RW 9000 SPARSE "a"', type="vmfsSparse"), data)
    assert lines(report) == ["grain directory: extents.0: it is too short for the disk"]


def test_entry_past_the_end_of_the_disk_is_unusual_but_sound() -> None:
    data = disk(GRAINS)
    for table in (GT, RGT):
        entry(data, table, 16, GRAINS + 128)
    report = look(data)
    assert report.corruptions == 0
    assert lines(report, "warning") == ["grain table: an entry lies past the end of the disk"]


def test_finds_sesparse_entries_of_no_known_kind() -> None:
    named = text('RW 65536 SESPARSE "a"', type="seSparse")
    for value in (1, 4 << 60, 15 << 60):
        assert lines(look(named, sesparse(entries={0: value}))) == [
            "grain table: extents.0: an entry is of no known kind"
        ]
    shared = sesparse(entries={0: 3 << 60, 1: 3 << 60})
    assert lines(look(named, shared)) == ["grain: extents.0: two entries share it"]
    far = sesparse(entries={0: 3 << 60 | 9})
    assert lines(look(named, far)) == ["grain: extents.0: it starts past the end of the file"]
    data = bytearray(sesparse())
    data[4 * 512 + 8] = 1
    assert look(named, data).corruptions == 1


# --- streams ----------------------------------------------------------------------------------------


def test_finds_a_grain_whose_marker_belongs_elsewhere() -> None:
    data = stream({0: b"x" * 65536, 1: b"y" * 65536}, 1024)
    table = next(at for at in range(128, len(data) // 512) if data[512 * at + 12 : 512 * at + 13] == b"\1" and at > 129)
    first = struct.unpack_from("<I", data, 512 * (table + 1))[0]
    assert first == 128
    entry(data, table + 1, 1, 128)
    assert lines(look(data)) == ["grain marker: it belongs to another place of the disk"]


@pytest.mark.parametrize(
    ("offset", "value", "found"),
    [
        (8, 0, "grain marker: its size is impossible"),
        (8, 0x7FFFFFFF, "grain marker: its size is impossible"),
        (8, 131072, "grain: it reaches past the end of the file"),
        (8, 1024, "grain: it overlaps metadata"),
        (0, 64, "grain marker: it belongs to another place of the disk"),
    ],
)
def test_finds_damaged_grain_markers(offset: int, value: int, found: str) -> None:
    data = stream({0: b"x" * 65536}, 1024)
    struct.pack_into("<I", data, 128 * 512 + offset, value)
    assert lines(look(data)) == [found]


def test_finds_compressed_grains_that_overlap() -> None:
    data = stream({0: random.Random(1).randbytes(65536), 1: b"y" * 65536}, 1024)
    struct.pack_into("<I", data, 128 * 512 + 8, 65536 + 600)
    assert lines(look(data)) == ["grain: it overlaps another grain"]


def test_finds_missing_markers_of_tables() -> None:
    data = stream({0: b"x" * 65536}, 1024)
    assert data[129 * 512 + 12] == 1
    data[129 * 512 + 12] = 2
    assert lines(look(data)) == ["grain table: there is no marker before it"]
    gd = SparseExtentHeader.unpack(data, len(data) - 1024).gd_offset
    data[(gd - 1) * 512 + 12] = 0
    assert look(data).corruptions == 2


@pytest.mark.parametrize("field", ["capacity", "grain_size", "flags", "version"])
def test_finds_a_footer_that_contradicts_its_header(field: str) -> None:
    data = stream({0: b"x" * 65536}, 1024)
    head = SparseExtentHeader.unpack(data)
    data[:512] = head.replace(**{field: getattr(head, field) * 2}).pack()
    assert f"footer: its {field} differs from the header's" in lines(look(data))


# --- header and descriptor --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"newlines": b"\n \n\n"}, "line ends were changed"),
        ({"compress_algorithm": 2}, "no known kind"),
        ({"flags": 0x10003}, "contradicts the compression"),
        ({"descriptor_size": 0}, "longer than the place"),
        ({"capacity": 4096}, "length differs from the header"),
    ],
)
def test_finds_what_a_header_contradicts(fields: dict[str, object], found: str) -> None:
    assert any(found in line for line in lines(look(header(image(MiB), **fields))))


def test_finds_a_grain_size_that_is_no_power_of_two() -> None:
    assert any("power of two" in line for line in lines(look(header(image(MiB), grain_size=96))))


def test_unclean_shutdown_is_a_warning() -> None:
    report = look(header(image(MiB), unclean_shutdown=1))
    assert report.corruptions == 0
    assert lines(report, "warning") == ["sparse extent header: the disk was not closed cleanly"]


def swap(data: bytearray, old: bytes, new: bytes) -> bytearray:
    """Change the descriptor, keeping its place."""
    body = bytes(data[512:10752]).replace(old, new).rstrip(b"\0")
    return data[:512] + body.ljust(10240, b"\0") + data[10752:]


@pytest.mark.parametrize("access", [b"RW", b"RDONLY", b"NOACCESS"])
def test_any_access_is_right_in_a_file_that_is_one_extent(access: bytes) -> None:
    """What writes disks for appliances (ovftool, vSphere, VirtualBox) has streams RDONLY."""
    for data in (image(MiB), stream({0: b"x" * 65536}, 2048)):
        report = look(swap(data, b"RW 2048", access + b" 2048"))
        assert [f for f in report.findings if f.severity != "warning"] == []


@pytest.mark.parametrize(
    ("old", "new", "severity", "found"),
    [
        (b"parentCID=ffffffff", b"parentCID=12", "corruption", "the parent is lost"),
        (b"RW 2048", b"RW 2047", "corruption", "length differs"),
        (b"SPARSE", b"FLAT", "corruption", "lacks its offset"),
        (b"RW 2048", b"RWX 2048", "corruption", "one extent"),
        (b"monolithicSparse", b"streamOptimized", "corruption", "createType"),
        (b"monolithicSparse", b"vmfs", "warning", "createType"),
        (b"createType", b"creatType", "corruption", "no createType"),
        (b"CID=12345678", b"CID=ffffffff", "warning", "stands for no disk"),
        (b"\nCID", b"\nxCID", "warning", "readers may disagree"),
        (b"\n\n# Ext", b'\nparentFileNameHint="p"\n# Ext', "warning", "no parent"),
    ],
)
def test_finds_what_is_wrong_with_a_descriptor(old: bytes, new: bytes, severity: str, found: str) -> None:
    report = look(swap(image(MiB), old, new))
    assert any(found in line for line in lines(report, severity)), report.findings


def test_finds_extents_of_another_length() -> None:
    named = text('RW 2048 SPARSE "a"', type="twoGbMaxExtentSparse")
    clean(look(named, image(MiB)))
    assert "length differs" in lines(look(named, image(2 * MiB)))[0]
    assert "too short" in lines(look(text('RW 4 FLAT "a" 2'), bytes(2048)))[0]


def test_finds_extents_that_share_a_file() -> None:
    assert "share a part" in lines(look(text('RW 4 FLAT "a" 0', 'RW 4 FLAT "a" 3'), bytes(4096), bytes(4096)))[0]
    same = text('RW 2048 SPARSE "a"', 'RW 2048 SPARSE "a"', type="twoGbMaxExtentSparse")
    assert "share a part" in lines(look(same, image(MiB), image(MiB)))[0]


def test_extent_after_a_blank_line_is_a_warning() -> None:
    report = look(text("", 'RW 4 FLAT "a" 0'), bytes(2048))
    assert "QEMU would count it twice" in lines(report, "warning")[0]


def test_check_without_the_extents_is_denied() -> None:
    with pytest.raises(ImageError) as caught:
        look(text('RW 4 FLAT "a" 0'))
    assert caught.value.kind == "denied"


# --- agreement with qemu-img, limits, hostile bytes ----------------------------------------------------


@needs_qemu_img
def test_finds_whatever_qemu_finds(tmp_path) -> None:
    """A damaged disk that qemu-img's check refuses is refused here too."""
    dice = random.Random(17)
    sound = disk(GRAINS, GRAINS + 128, 0, GRAINS + 256)
    found = 0
    for _ in range(60):
        data = bytearray(sound)
        if dice.randrange(2):
            entry(data, dice.choice((GD, GT, GT)), dice.randrange(4), dice.choice((0, 5, GRAINS, 700, 1 << 31)))
        else:
            data[dice.randrange(4, 79)] = dice.choice((0, 1, 2, 255))
        (tmp_path / "t").write_bytes(data)
        done = run("qemu-img", "check", "-f", "vmdk", tmp_path / "t")
        try:
            bad = look(data).corruptions > 0
        except ImageError:
            bad = True
        if done.returncode:
            found += 1
            assert bad, done.stderr
    assert found > 10


def test_thousands_of_findings_are_counted_but_told_briefly() -> None:
    data = image(32 * MiB) + bytes(65536)
    for index in range(512):
        entry(data, GT, index, 1 << 30)
        entry(data, RGT, index, 1 << 30)
    report = look(data)
    assert report.corruptions == 512
    assert len(report.findings) == 21
    assert "(492 more)" in report.findings[-1].detail


def test_shared_table_is_walked_once() -> None:
    """A directory of 32 MiB that names one table 8 million times must not mean 4 thousand million grains."""

    class Counting(BytesReader):
        reads = 0

        def read(self, offset: int, length: int) -> bytes:
            Counting.reads += 1
            return super().read(offset, length)

    count = 20000
    data = image(MiB)
    gd = 1 << 20
    capacity = count * 512 * 128
    data = header(data, capacity=capacity, gd_offset=gd // 512, flags=1)
    table = struct.pack("<512I", *[GRAINS] * 512)
    parts = {0: bytes(data), gd: struct.pack("<I", 4096) * count, 4096 * 512: table}
    report = check(Counting(parts=parts, size=4 << 20), (), generation=NOW)
    assert report.corruptions >= count - 1 + 511
    assert Counting.reads < 100


def test_more_grains_than_a_check_walks_over_are_refused() -> None:
    data = header(image(MiB), capacity=(1 << 32) * 128 + 1)
    with pytest.raises(ImageError) as caught:
        look(data)
    assert (caught.value.kind, caught.value.field) == ("too-large", "grains")


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_BITMAP_BYTES", 4096), ("MAX_LOOSE_GRAINS", 1), ("MAX_TABLE_RUNS", 1)]
)
def test_limits_hold(monkeypatch, name: str, value: int) -> None:
    data = image(96 * MiB) + bytes(65536 * 4)
    made = SparseExtentHeader.unpack(data)
    tables = [made.gd_offset + 1 + 4 * number for number in range(3)]
    entry(data, tables[0], 0, made.overhead)
    entry(data, tables[0], 1, made.overhead + 130)
    entry(data, tables[0], 2, made.overhead + 131)
    entry(data, made.gd_offset, 0, tables[2])
    entry(data, made.gd_offset, 2, tables[0])
    look(data)
    monkeypatch.setattr(grains, name, value)
    if name == "MAX_BITMAP_BYTES":
        data = header(data, gd_offset=made.gd_offset, descriptor_size=1 << 50)
        big = BytesReader(bytes(data), size=1 << 40)
        with pytest.raises(ImageError) as caught:
            check(big, (), generation=NOW)
    else:
        with pytest.raises(ImageError) as caught:
            look(data)
    assert caught.value.kind == "too-large"


def test_claims_behave_as_a_set() -> None:
    dice = random.Random(19)
    claims, model = Claims(64 * MiB), set()
    for _ in range(2000):
        first, count = dice.randrange(200000), dice.choice((0, 1, 1, 7, 8, 128, 40000 if not dice.randrange(50) else 3))
        units = set(range(first, first + count))
        assert claims.taken(first, count) == bool(units & model)
        if dice.randrange(2):
            free = claims.claim(first, count) if count != 1 else claims.claim_one(first)
            assert free == (not units & model)
            model |= units


def samples() -> dict[str, tuple[bytes, ...]]:
    return {
        "sparse": (bytes(disk(GRAINS, GRAINS + 128)),),
        "stream": (bytes(stream({0: b"x" * 65536, 5: b"y" * 65536}, 2048)),),
        "text": (text('RW 4 FLAT "a" 0', 'RW 4 FLAT "b" 4', more='parentFileNameHint="p"'), bytes(2048), bytes(4096)),
        "cowd": (text('RW 2048 VMFSSPARSE "a"', type="vmfsSparse"), cowd(2048, tables={0: {0: 40}})),
        "sesparse": (text('RW 65536 SESPARSE "a"', type="seSparse"), sesparse(entries={0: 3 << 60})),
        "split": (text('RW 2048 SPARSE "a"', type="twoGbMaxExtentSparse"), bytes(disk(GRAINS))),
    }


def survives(files: tuple[bytes, ...]) -> None:
    with contextlib.suppress(ImageError):
        check_module.check(reader(files[0]), [reader(data) for data in files[1:]], generation=NOW).to_wire()


@pytest.mark.parametrize("name", list(samples()))
def test_truncation_gives_a_report_or_an_image_error(name: str) -> None:
    files = samples()[name]
    for number, data in enumerate(files):
        for end in range(0, len(data), 64 if len(data) < 20000 else 1024):
            survives((*files[:number], data[:end], *files[number + 1 :]))


@pytest.mark.parametrize(
    ("name", "number", "record", "at"),
    [
        ("sparse", 0, SparseExtentHeader, 0),
        ("stream", 0, SparseExtentHeader, 0),
        ("stream", 0, SparseExtentHeader, -1024),
        ("split", 1, SparseExtentHeader, 0),
        ("cowd", 1, CowdHeader, 0),
        ("sesparse", 1, SeSparseHeader, 0),
    ],
)
def test_any_header_field_gives_a_report_or_an_image_error(name: str, number: int, record, at: int) -> None:
    dice = random.Random(23)
    files = samples()[name]
    for field in record.FIELDS:
        small = [value.to_bytes(field.size, "little") for value in (0, 1, 2, 128, 200)]
        for value in (*small, b"\xff" * field.size, *[dice.randbytes(field.size) for _ in range(3)]):
            data = bytearray(files[number])
            start = (at % len(data)) + field.offset
            data[start : start + field.size] = value
            survives((*files[:number], bytes(data), *files[number + 1 :]))


@pytest.mark.parametrize("name", list(samples()))
def test_random_damage_gives_a_report_or_an_image_error(name: str) -> None:
    dice = random.Random(29)
    files = samples()[name]
    for _ in range(300):
        number = dice.randrange(len(files))
        data = bytearray(files[number])
        for _ in range(dice.randrange(1, 6)):
            where = dice.choice((512, 2048, 16384, len(data)))
            data[dice.randrange(min(len(data), where))] = dice.choice((0, 1, 10, 34, 255, dice.randrange(256)))
        survives((*files[:number], bytes(data), *files[number + 1 :]))


def test_an_empty_disk_of_8_tib_is_checked(tmp_path) -> None:
    make(tmp_path / "t", 8 << 40)
    clean(look_at(tmp_path / "t"))
