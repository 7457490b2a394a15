"""Differencing and preallocated VHD and VHDX, which qemu-img cannot make: judged by libvhdi and by the specifications.

libvhdi (``pip install libvhdi-python``) shares no line with us. Where it is not there the bytes are still looked at,
and qemu-img judges what it can read.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support import needs_qemu_img, needs_qemu_io, qemu_img, run, same_storage

import instar
from instar.core.errors import ImageError, OptionError
from instar.formats.vhdx import ondisk
from instar.formats.vpc.ondisk import EPOCH, PLATFORM_W2KU, PLATFORM_W2RU, Footer, Header, ParentLocator

pytestmark = [needs_qemu_img, needs_qemu_io]

MiB = 1 << 20
SIZE = 20 * MiB
FORMATS = ("vpc", "vhdx")
#: What a parent may be.
KINDS = ("dynamic", "fixed")


def write(path: Path, format: str, *writes: tuple[int, int, int]) -> None:
    """Write ``(offset, length, pattern)`` as a guest does."""
    words = [word for at, length, pattern in writes for word in ("-c", f"write -P {pattern} {at} {length}")]
    done = run("qemu-io", "-f", format, *words, path)
    assert done.returncode == 0, done.stdout + done.stderr


def parent(folder: Path, format: str, kind: str = "dynamic", name: str = "parent") -> Path:
    """Make a parent with data in it, by qemu-img."""
    path = folder / name
    qemu_img("create", "-q", "-f", format, "-o", f"subformat={kind}", path, str(SIZE))
    write(path, format, (0, 4096, 1), (9 * MiB, 65536, 2))
    return path


def data(path: Path, format: str) -> bytes:
    """Return what a guest reads, by qemu-img."""
    raw = path.with_name(path.name + ".raw")
    qemu_img("convert", "-f", format, "-O", "raw", path, raw)
    return raw.read_bytes()


def through_libvhdi(*paths: Path) -> bytes:
    """Return what libvhdi reads of the first file, the others being its parent, that one's parent …"""
    pyvhdi: Any = pytest.importorskip("pyvhdi", reason="libvhdi is not installed (pip: libvhdi-python)")
    files = []
    for path in paths:
        files.append(pyvhdi.file())
        files[-1].open(str(path))
    for child, above in pairwise(files):
        child.set_parent(above)  # refuses another identity
    out = b""
    while piece := files[0].read(MiB):
        out += piece
    return out


def findings(path: Path, format: str, **more: Any) -> list[tuple[str, str]]:
    return [(f.severity, f.structure) for f in instar.check(str(path), format=format, **more).findings]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_libvhdi_reads_the_data_of_parent_and_grandparent(format: str, kind: str, tmp_path: Path) -> None:
    base = parent(tmp_path, format, kind)
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    made = instar.create(str(child), format=format, backing="parent")
    instar.create(str(grandchild), format=format, backing="child")
    held = data(base, format)
    assert made.virtual_size == len(held)
    assert through_libvhdi(child, base) == held
    assert through_libvhdi(grandchild, child, base) == held


@pytest.mark.parametrize("mode", ["metadata", "falloc"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_preallocated_child_hides_nothing_of_its_parent(format: str, mode: str, tmp_path: Path) -> None:
    base, child = parent(tmp_path, format), tmp_path / "child"
    instar.create(str(child), format=format, backing="parent", options={"preallocation": mode})
    assert findings(child, format) == []
    assert (child.stat().st_blocks * 512 >= SIZE) == (mode != "metadata")
    assert through_libvhdi(child, base) == data(base, format)


@pytest.mark.parametrize("mode", ["metadata", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_preallocated_disks_are_used_like_others(format: str, kind: str, mode: str, tmp_path: Path) -> None:
    """They are as long before a guest fills them as after, take what they say, and are sound."""
    path = tmp_path / "disk"
    options = {"subformat": kind, "preallocation": mode}
    if (format, kind, mode) == ("vpc", "fixed", "metadata"):
        with pytest.raises(OptionError, match="no tables"):
            instar.create(str(path), SIZE, format=format, options=options)
        return
    made = instar.create(str(path), SIZE, format=format, options=options)
    assert path.stat().st_size == made.file_size >= SIZE
    assert (path.stat().st_blocks * 512 >= SIZE) == (mode != "metadata")
    assert findings(path, format) == []
    assert data(path, format) == bytes(made.virtual_size)
    assert through_libvhdi(path) == bytes(made.virtual_size)
    before = path.stat().st_size
    write(path, format, (0, SIZE, 3))
    assert path.stat().st_size == before
    assert data(path, format)[:SIZE] == b"\3" * SIZE
    assert findings(path, format) == []


def test_a_preallocated_block_of_a_vhd_holds_all_its_sectors(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    instar.create(str(path), SIZE, format="vpc", options={"preallocation": "full", "block_size": "512k"})
    image = path.read_bytes()
    entries = int.from_bytes(image[512 + 28 : 512 + 32], "big")
    for index in range(entries):
        at = int.from_bytes(image[1536 + 4 * index : 1540 + 4 * index], "big") * 512
        # 1024 sectors, and the bitmap is filled up to a sector (specification, "Block Allocation Table").
        assert image[at : at + 128] == b"\xff" * 128
    assert image[-512:] == image[:512]


def test_a_vhd_child_says_who_its_parent_is(tmp_path: Path) -> None:
    folder = tmp_path / "päth"
    folder.mkdir()
    base, child = parent(folder, "vpc", name="pärent.vhd"), tmp_path / "child"
    os.utime(base, (EPOCH + 1234, EPOCH + 1234))
    instar.create(str(child), format="vpc", backing="päth/pärent.vhd")
    image, above = child.read_bytes(), Footer.unpack(base.read_bytes())
    footer, header = Footer.unpack(image), Header.unpack(image, 512)
    assert image[:512] == image[-512:]
    assert footer.disk_type == 4
    assert footer.unique_id != above.unique_id == header.parent_unique_id
    for field in ("current_size", "cylinders", "heads", "sectors_per_track"):
        assert getattr(footer, field) == getattr(above, field)
    assert header.parent_timestamp == 1234
    assert header.parent_name.decode("utf-16-be").rstrip("\0") == "pärent.vhd"
    rows = [ParentLocator.unpack(header.parent_locators, at) for at in range(0, 192, 24)]
    named = {
        row.platform_code: image[row.data_offset : row.data_offset + row.data_length].decode("utf-16-le")
        for row in rows
        if row.platform_code
    }
    absolute = str(base.resolve()).replace("/", "\\")
    assert named == {PLATFORM_W2RU: ".\\päth\\pärent.vhd", PLATFORM_W2KU: absolute}
    assert all(512 * row.data_space >= row.data_length for row in rows)
    found = instar.info(str(child))
    assert found.backing_filename == "./päth/pärent.vhd"
    assert found.backing_format == "vpc"


def test_qemu_does_not_write_over_the_names_of_a_vhd_child(tmp_path: Path) -> None:
    """It takes a child for a disk without a parent, and puts its first block right behind the table."""
    parent(tmp_path, "vpc")
    child = tmp_path / "child"
    instar.create(str(child), format="vpc", backing="parent")
    write(child, "vpc", (0, 512, 9))
    assert findings(child, "vpc") == []
    assert instar.info(str(child)).backing_filename == "./parent"


def test_a_vhdx_child_follows_the_rules_of_ms_vhdx(tmp_path: Path) -> None:
    base, child = parent(tmp_path, "vhdx"), tmp_path / "child"
    instar.create(str(child), format="vhdx", backing=str(base))
    image, above = child.read_bytes(), base.read_bytes()
    headers = [ondisk.Header.unpack(above, at) for at in ondisk.HEADER_OFFSETS]
    current = max(headers, key=lambda header: header.sequence_number)
    regions = [ondisk.RegionTableEntry.unpack(image, ondisk.REGION_TABLE_OFFSETS[0] + 16 + 32 * n) for n in (0, 1)]
    # 2.2.3.2: both regions are required.
    assert [(r.guid, r.flags) for r in regions] == [(ondisk.BAT_REGION, 1), (ondisk.METADATA_REGION, 1)]

    def items(image: bytes) -> dict[bytes, tuple[int, bytes]]:
        at = ondisk.RegionTableEntry.unpack(image, ondisk.REGION_TABLE_OFFSETS[0] + 48).file_offset
        count = int.from_bytes(image[at + 10 : at + 12], "little")
        rows = [ondisk.MetadataTableEntry.unpack(image, at + 32 + 32 * n) for n in range(count)]
        return {r.item_id: (r.flags, image[at + r.offset : at + r.offset + r.length]) for r in rows}

    ours, theirs = items(image), items(above)
    # 2.6.1.2: items of the virtual disk are copied. 2.6.2.1, 2.6.2.6: a parent, and its locator, which is required.
    for guid, (flags, value) in theirs.items():
        if flags & ondisk.ITEM_IS_VIRTUAL_DISK:
            assert ours[guid] == (flags, value)
    assert int.from_bytes(ours[ondisk.FILE_PARAMETERS][1][4:], "little") == ondisk.HAS_PARENT
    flags, raw = ours[ondisk.PARENT_LOCATOR]
    assert flags == ondisk.ITEM_REQUIRED
    # 2.6.2.6.1 to 2.6.2.6.3
    assert raw[:18] == ondisk.VHDX_PARENT + bytes(2)
    pairs = {}
    for n in range(int.from_bytes(raw[18:20], "little")):
        row = ondisk.ParentLocatorEntry.unpack(raw, 20 + 12 * n)
        key = raw[row.key_offset : row.key_offset + row.key_length].decode("utf-16-le")
        pairs[key] = raw[row.value_offset : row.value_offset + row.value_length].decode("utf-16-le")
    assert pairs == {
        "parent_linkage": "{" + ondisk.guid_text(current.data_write_guid) + "}",
        "relative_path": ".\\parent",
    }
    # 2.5: whole chunks; no block is there, and the sector bitmap that is says of no sector that it is.
    (bat,) = (r.file_offset for r in regions if r.guid == ondisk.BAT_REGION)
    ratio = ondisk.chunk_ratio(8 * MiB)
    entry = int.from_bytes(image[bat + 8 * ratio : bat + 8 * ratio + 8], "little")
    assert image[bat : bat + 8 * ratio] == bytes(8 * ratio)
    assert entry & 7 == ondisk.BITMAP_PRESENT
    assert image[entry & ~0xFFFFF :] == bytes(MiB)


def test_a_vhdx_child_has_the_sectors_of_its_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "parent", tmp_path / "child"
    instar.create(str(base), SIZE, format="vhdx", options={"block_size": "1M"})
    with base.open("r+b") as file:
        file.seek(3 * MiB + 0x10000 + 32)
        file.write((4096).to_bytes(4, "little") * 2)
    instar.create(str(child), format="vhdx", backing="parent", options={"block_size": "1M"})
    assert instar.info(str(child)).extra["logical_sector_size"] == 4096
    assert findings(child, "vhdx") == findings(base, "vhdx") == []
    assert through_libvhdi(child, base) == bytes(SIZE)


@pytest.mark.parametrize("format", FORMATS)
def test_another_parent_is_found_out(format: str, tmp_path: Path) -> None:
    base, child = parent(tmp_path, format), tmp_path / "child"
    instar.create(str(child), format=format, backing="parent")
    assert findings(child, format) == []
    chain = instar.info_chain(str(child), format=format)
    assert [layer.parent_fits for layer in chain] == [True, None]
    base.unlink()
    assert findings(child, format) == [("warning", "parent")]
    parent(tmp_path, format)
    assert findings(child, format) == [("corruption", "parent")]
    assert instar.check(str(child), format=format).exit_code == 2
    chain = instar.info_chain(str(child), format=format)
    assert [layer.parent_fits for layer in chain] == [False, None]
    base.write_bytes(b"no disk at all")
    assert findings(child, format) == [("corruption", "parent")]


def test_a_vhdx_parent_that_was_written_to_is_found_out(tmp_path: Path) -> None:
    base, child = parent(tmp_path, "vhdx"), tmp_path / "child"
    instar.create(str(child), format="vhdx", backing="parent")
    write(base, "vhdx", (0, 512, 5))
    assert findings(child, "vhdx") == [("corruption", "parent")]


@pytest.mark.parametrize("format", FORMATS)
def test_a_parent_outside_is_not_opened_for_a_check(format: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    base, child = parent(tmp_path, format), folder / "child"
    instar.create(str(child), format=format, backing="../parent")
    base.write_bytes(b"")
    assert findings(child, format) == [("warning", "parent")]
    assert findings(child, format, allow=(str(tmp_path),)) == [("corruption", "parent")]
    with pytest.raises(ImageError) as caught:
        instar.info_chain(str(child), format=format)
    assert caught.value.kind == "denied"


@pytest.mark.parametrize("format", FORMATS)
def test_refuses_parents_of_another_format_or_size(format: str, tmp_path: Path) -> None:
    base, child = parent(tmp_path, format), tmp_path / "child"
    size = instar.info(str(base), format=format).virtual_size
    qemu_img("create", "-q", "-f", "raw", tmp_path / "raw", str(SIZE))
    with pytest.raises(ImageError):
        instar.create(str(child), format=format, backing="raw")
    for other in ("raw", "qcow2"):
        with pytest.raises((OptionError, ImageError)):
            instar.create(str(child), format=format, backing="parent", backing_format=other)
    with pytest.raises(OptionError, match="size of its parent"):
        instar.create(str(child), 2 * size, format=format, backing="parent")
    with pytest.raises(OptionError):
        instar.create(str(child), format=format, backing="parent", options={"subformat": "fixed"})
    assert not child.exists()
    assert instar.create(str(child), SIZE, format=format, backing="parent").virtual_size == size


@pytest.mark.parametrize("format", FORMATS)
def test_in_qemus_dialect_there_are_no_parents_and_no_preallocation(format: str, tmp_path: Path) -> None:
    base = parent(tmp_path, format)
    with pytest.raises(OptionError) as caught:
        instar.create(str(tmp_path / "child"), format=format, backing="parent", as_qemu=True)
    assert caught.value.code == "no-backing"
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = {"preallocation": "full"}
    made = instar.create(str(ours), SIZE, format=format, options=options, as_qemu=True)
    qemu_img("create", "-q", "-f", format, "-o", "preallocation=full", theirs, str(SIZE))
    assert made.file_size == theirs.stat().st_size
    same_storage(ours, theirs)
    assert base.exists()


def test_a_parent_with_a_pending_log_may_have_children(tmp_path: Path) -> None:
    from tests.formats.vhdx.test_replay import unclean

    base = tmp_path / "parent"
    unclean(base)
    instar.create(str(tmp_path / "child"), format="vhdx", backing="parent")
    assert findings(tmp_path / "child", "vhdx") == []
    repaired = tmp_path / "repaired"
    shutil.copy(base, repaired)
    qemu_img("check", "-q", "-r", "all", repaired)
    assert instar.info(str(base)).dirty
    assert not instar.info(str(repaired)).dirty
