"""Names, clocks and numbers at the edges of their fields are printed as each version of qemu-img prints them."""

from __future__ import annotations

import os
import struct
from itertools import zip_longest
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import answer_of, call
from tests.compat.differences import without_storage
from tests.compat.versions import programs
from tests.formats.qcow2.images import changed, planned, snapshot_table, with_extensions, with_snapshots

import instar
from instar.core.record import Record
from instar.formats.luks import ondisk as luks
from instar.formats.parallels import ondisk as parallels
from instar.formats.qcow import ondisk as qcow
from instar.formats.qcow2 import ondisk as qcow2
from instar.formats.qed import ondisk as qed
from instar.formats.vdi import ondisk as vdi
from instar.formats.vhdx import ondisk as vhdx
from instar.formats.vmdk import ondisk as vmdk
from instar.formats.vpc import ondisk as vpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Literal

VERSIONS = sorted(programs())
pytestmark = pytest.mark.skipif(not VERSIONS, reason="qemu-img is not installed (Debian: qemu-utils)")

#: Whole, and with pads that are counted in bytes.
NAMES = [
    b"",
    b"with a blank",
    *(b"a" * length for length in (6, 7, 8, 9, 10, 15, 16, 17, 18, 60, 127, 128, 255, 256, 300)),
    *("ü" * length for length in (1, 7, 8, 9, 63)),
    "täglich – vor dem Update",
    "漢字",
    "😀",
]
#: What is no text in UTF-8: cut, overlong, surrogates, no characters, too large, and bytes that nothing starts with.
BROKEN = [
    *(b"\xff", b"\xfe\x80", b"\x80\x80", b"\xc3", b"\xc3x", b"\xe2\x82", b"\xe2\x82\xe2\x82\xac", b"\xf0\x9f\x98"),
    *(b"\xc0\x80", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80"),
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80"),
    *(b"\xef\xb7\x90", b"\xef\xb7\xaf", b"\xef\xbf\xbe", b"\xef\xbf\xbf", b"\xf0\x9f\xbf\xbe", b"\xf4\x8f\xbf\xbf"),
    *(b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf", b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xfd"),
    *(b"\x7f", b"\x1b[31m", b'"\\', b"\t\r\n\b\f", b"\xc2\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbd"),
]
NUMBERS = [0, 1, 999, 1000, 1023999, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1]


def differences(version: tuple[int, int], words: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Return the lines that the real program and instar print differently; both must describe the image."""
    theirs = answer_of(programs()[version], ["info", *words], folder)
    ours = call(["info", *words], version, folder)
    assert (theirs[0], theirs[2]) == (ours[0], ours[2]) == (0, "")
    return unlike(theirs[1], ours[1])


def unlike(theirs: str, ours: str) -> list[tuple[str, str]]:
    rows = [without_storage(text).split("\n") for text in (theirs, ours)]
    return [(a, b) for a, b in zip_longest(*rows, fillvalue="nothing") if a != b]


def entry(**fields: int) -> qcow2.SnapshotEntry:
    every = {field.name: 0 for field in qcow2.SnapshotEntry.FIELDS}
    return qcow2.SnapshotEntry(**{**every, **fields})


def snapshots(rows: list[tuple[qcow2.SnapshotEntry, bytes, bytes, bytes]]) -> bytes:
    return with_snapshots(planned(), snapshot_table(rows), len(rows))


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("form", ["human", "json"])
def test_snapshots_stand_in_the_columns_of_that_version(form, version, tmp_path):
    names = [name if isinstance(name, bytes) else name.encode() for name in NAMES]
    rows = [(entry(), b"", b"%d" % at, name) for at, name in enumerate(names)]
    rows += [(entry(), b"", name, b"x") for name in names]
    rows += [(entry(vm_clock_nsec=n * 3600 * 10**9 + 59_999_999_999), b"", b"1", b"x") for n in (98, 99, 100, 10**5)]
    (tmp_path / "i").write_bytes(snapshots(rows))
    assert differences(version, [f"--output={form}", "i"], tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("form", ["human", "json"])
def test_numbers_of_a_snapshot_have_the_sign_that_they_have_there(form, version, tmp_path):
    rows = []
    for number in NUMBERS:
        low = number & 0xFFFFFFFF
        rows.append((entry(date_sec=low, date_nsec=low, vm_clock_nsec=number, vm_state_size=low), b"", b"1", b"x"))
        rows.append((entry(), struct.pack(">Q", number), b"2", b"state"))
        rows.append((entry(), struct.pack(">QQQ", number, number, number), b"3", b"state and count"))
    (tmp_path / "i").write_bytes(snapshots(rows))
    assert differences(version, [f"--output={form}", "i"], tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_names_that_are_no_text_are_the_same_in_json(version, tmp_path):
    rows = [(entry(), b"", name, b"<" + name + b">") for name in BROKEN]
    (tmp_path / "i").write_bytes(snapshots(rows))
    assert differences(version, ["--output=json", "i"], tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_name_that_is_cut_within_a_character_ends_with_one_replacement(version, tmp_path):
    rows = [(entry(), b"", b"i" * (127 - n) + "😀".encode(), b"n" * (255 - n) + "😀".encode()) for n in range(5)]
    (tmp_path / "i").write_bytes(snapshots(rows))
    assert differences(version, ["--output=json", "i"], tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("name", BROKEN[:-7:2], ids=lambda name: name.hex())
def test_files_are_named_alike_in_json(name, version, tmp_path):
    """The image on the command line, its backing file and its bitmaps have that name."""
    data = _with_names(name)
    path = os.fsencode(tmp_path) + b"/i" + name
    with open(path, "wb") as file:
        file.write(data)
    assert differences(version, ["--output=json", os.fsdecode(b"i" + name)], tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("name", BROKEN[:-7:2], ids=lambda name: name.hex())
def test_parts_of_an_image_are_named_alike_in_json(name, version, tmp_path):
    """The data file of a qcow2 image and the extent of a VMDK have that name."""
    with open(os.fsencode(tmp_path) + b"/d" + name, "wb") as file:
        file.truncate(1 << 20)
    data = with_extensions(planned(), (qcow2.EXTENSION_DATA_FILE, b"d" + name))
    (tmp_path / "i").write_bytes(changed(data, incompatible_features=qcow2.INCOMPATIBLE_DATA_FILE))
    assert differences(version, ["--output=json", "i"], tmp_path) == []
    text = b'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    (tmp_path / "v").write_bytes(text + b'RW 2048 FLAT "d%s" 0\n' % name)
    assert differences(version, ["--output=json", "v"], tmp_path) == []


def _with_names(name: bytes) -> bytes:
    """Return an image whose backing file, and the format of that, have a name, and that has a bitmap called so."""
    cluster = 65536
    data = planned()
    directory = -(-len(data) // cluster) * cluster
    row = qcow2.BitmapDirectoryEntry(
        bitmap_table_offset=directory + cluster,
        bitmap_table_size=1,
        flags=0,
        type=qcow2.BITMAP_TYPE_DIRTY_TRACKING,
        granularity_bits=16,
        name_size=len(name),
        extra_data_size=0,
    )
    rows = row.pack() + name + bytes(-(row.SIZE + len(name)) % 8)
    bitmaps = qcow2.BitmapsExtension(
        nb_bitmaps=1, reserved=0, bitmap_directory_size=len(rows), bitmap_directory_offset=directory
    )
    data = with_extensions(data, (qcow2.EXTENSION_BITMAPS, bitmaps.pack()))
    backing = b"b" + name
    out = bytearray(data) + bytes(directory + 2 * cluster - len(data))
    out[directory : directory + len(rows)] = rows
    out[2048 : 2048 + len(backing)] = backing
    for field, value in (("backing_file_offset", 2048), ("backing_file_size", len(backing)), ("autoclear_features", 1)):
        record, base = (qcow2.HeaderV3, 72) if field == "autoclear_features" else (qcow2.Header, 0)
        at = record.field(field)
        out[base + at.offset : base + at.offset + at.size] = value.to_bytes(at.size, "big")
    return bytes(out)


#: Format to the records of a new image, with their places, and the order of their bytes.
RECORDS: dict[str, tuple[list[tuple[type[Record], int]], Literal["big", "little"]]] = {
    "qcow2": ([(qcow2.Header, 0), (qcow2.HeaderV3, qcow2.HEADER_V3_OFFSET)], "big"),
    "qcow": ([(qcow.Header, 0)], "big"),
    "vmdk": ([(vmdk.SparseExtentHeader, 0)], "little"),
    "vpc": ([(vpc.Footer, 0), (vpc.Header, vpc.Footer.SIZE)], "big"),
    "vdi": ([(vdi.Header, 0)], "little"),
    "qed": ([(qed.Header, 0)], "little"),
    "parallels": ([(parallels.Header, 0)], "little"),
    "luks": ([(luks.Header, 0), (luks.KeySlot, luks.Header.SIZE), (luks.KeySlot, luks.HEADER_SIZE - 48)], "big"),
    "vhdx": ([], "little"),
}


def _places(format: str, data: bytes) -> list[tuple[str, int, int]]:
    """Return name, place and size of the numbers of an image."""
    if format == "vhdx":
        table = data.index(b"metadata")
        rows = range(int.from_bytes(data[table + 10 : table + 12], "little"))
        items = [vhdx.MetadataTableEntry.unpack(data, table + 32 + 32 * row).offset for row in rows]
        return [(f"item at {at}", table + at + part, size) for at in items for part, size in ((0, 8), (0, 4), (4, 4))]
    numbers = [
        (field, base + field.offset)
        for record, base in RECORDS[format][0]
        for field in record.FIELDS
        if field.size in (4, 8) and field.code in "IQiq"
    ]
    return [(field.name, at, field.size) for field, at in numbers]


def _sum_vpc(data: bytearray) -> None:
    """Make the checksums of a dynamic VHD right, and its second footer like the first."""
    for start, size, place in ((0, 512, 64), (512, 1024, 512 + 36)):
        data[place : place + 4] = bytes(4)
        data[place : place + 4] = (~sum(data[start : start + size]) & 0xFFFFFFFF).to_bytes(4, "big")
    data[-512:] = data[:512]


@pytest.mark.parametrize("format", RECORDS)
def test_every_number_of_a_header_is_printed_alike(format, tmp_path):
    options = {"key-secret": "s", "iter-time": 10} if format == "luks" else {}
    path = tmp_path / "i"
    cell = instar.Isolation("none")
    instar.create(str(path), 8 << 20, format=format, options=options, secrets={"s": b"letmein"}, isolation=cell)
    data = path.read_bytes()
    told, described = [], 0
    plain = answer_of(programs()[VERSIONS[-1]], _words(format), tmp_path)[1]
    for name, at, size in _places(format, data):
        top = 1 << 8 * size - 1
        for value in (top - 1, top, 2 * top - 1):
            image = bytearray(data)
            image[at : at + size] = value.to_bytes(size, RECORDS[format][1])
            if format == "vpc":
                _sum_vpc(image)
            path.write_bytes(image)
            for version in reversed(VERSIONS):
                theirs, ours = (ask(_words(format)) for ask in _askers(version, tmp_path))
                if theirs[0] or ours[0]:
                    continue  # whether an image is refused is compared elsewhere
                described += 1
                told += [(version, name, hex(value), *rows) for rows in unlike(theirs[1], ours[1])]
                if theirs[1] == plain:
                    break  # the number is not printed, by the others neither
                found = differences(version, ["-f", format, "i"], tmp_path)
                told += [(version, name, hex(value), *rows) for rows in found]
    assert described
    assert not told


def _words(format: str) -> list[str]:
    return ["info", "-f", format, "--output=json", "i"]


def _askers(version: tuple[int, int], folder: Path) -> tuple[Callable[[list[str]], tuple[int, str, str]], ...]:
    return (lambda words: answer_of(programs()[version], words, folder)), (lambda words: call(words, version, folder))
