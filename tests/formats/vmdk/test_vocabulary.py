"""The words of descriptors, as VMware's tools write them: what is described, what is refused by name, what QEMU says.

Law: a lawful descriptor is never called corrupt; the dialect says of each what the real qemu-img of each version says,
but where that shows a shorter disk without a word (docs/quirks.md).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import answer_of, call
from tests.compat.versions import generations
from tests.formats.vmdk.images import text
from tests.support import needs_qemu_img, qemu_img

import instar
from instar.formats.vmdk.ondisk import DEVICE_TYPES, FURTHER_TYPES, QEMU_TYPES

if TYPE_CHECKING:
    from pathlib import Path

NONE = instar.Isolation("none")
FLAT = 'RW 128 FLAT "flat" 0'
BASE = text(FLAT)
#: Descriptors that are read, by name; whether QEMU reads them, too.
READ: dict[str, tuple[bytes, bool]] = {
    **{f"type {kind}": (text('RW 128 VMFS "flat"', type=kind), True) for kind in QEMU_TYPES},
    **{f"type {kind}": (text('RW 128 VMFS "flat"', type=kind), False) for kind in FURTHER_TYPES},
    "type in other letters": (text(FLAT, type="MONOLITHICFLAT"), False),
    **{
        line: (text(line), True) for line in ('RW\t128\tFLAT\t"flat"\t0', '  RW  128  FLAT   "a b"  0  ', FLAT + " # x")
    },
    **{line: (text(line), True) for line in ('RW 128 SPARSE "sparse"', 'RW 128 VMFSSPARSE "sparse"')},
    "partition": (text(FLAT + " partitionUUID 6b3d-11"), True),
    "a part of a file": (text('RW 64 FLAT "flat" 64'), True),
    "comments": (text("# RW 128 FLAT", f"#{9000 * 'x'}", FLAT, '#RDONLY 7 SPARSE "x"', "#"), True),
    "long lines": (text(FLAT, f'ddb.uuid.image = "{20000 * "0"}"'), True),
    "many lines": (text(FLAT, *["# x"] * 20000), True),
    "many extents": (text(*[f'RW 1 FLAT "flat" {n}' for n in range(128)]), True),
    "line ends of DOS": (BASE.replace(b"\n", b"\r\n"), True),
    "no last line end": (text(FLAT).partition(b"\n\n")[0], True),
    "zeros behind": (BASE + bytes(700), True),
    "encoding": (text(FLAT, more='encoding="windows-1252"\nisNativeSnapshot="no"'), True),
    "another character set": (text(FLAT).replace(b"# Extent", b"# \xe9xtent"), True),
    "change tracking": (text(FLAT, "", "# Change Tracking File", 'changeTrackPath="t-ctk.vmdk"'), True),
    "digest": (text(FLAT, "", 'digestType="sha1"', 'digestFilename="t-digest.vmdk"'), True),
    "disk database": (text(FLAT, "", 'ddb.longContentID = "bf2f"', 'ddb.sidecars = "x_1.vmfd;"', 'ddb.a="RW 1"'), True),
    "version 3": (BASE.replace(b"version=1", b"version=3"), True),
    "a blank behind =": (BASE.replace(b"CID=", b"CID= "), True),
    "blanks around =": (BASE.replace(b"CID=", b"CID = "), False),
    "blanks around = of the type": (BASE.replace(b"Type=", b"Type = "), False),
    "other letters": (BASE.replace(b"createType", b"CreateType").replace(b"CID", b"cid"), False),
    "no quotes": (BASE.replace(b'"monolithicFlat"', b"monolithicFlat"), False),
    "a type in a comment": (BASE.replace(b"createType", b'# createType="vmfs"\ncreateType'), True),
}
#: Lines that QEMU leaves out, or does not take, behind one that it reads: the bytes of disk that they stand for.
LEFT_OUT = {
    **{f"{access} 128 ZERO": 65536 for access in ("RW", "RDONLY", "NOACCESS")},
    **{f'{access} 128 FLAT "other" 0': 65536 for access in ("RDONLY", "NOACCESS", "rw")},
    **{f'RDONLY 128 {kind} "sparse"': 65536 for kind in ("SPARSE", "VMFSSPARSE")},
    'RW 128 VMFS "other" 0': 65536,
    'RW 64 flat "other" 64': 32768,
}
#: Descriptors of what is in no file.
DEVICES = {
    **{kind: text('RW 128 VMFSRDM "flat"', type=kind) for kind in DEVICE_TYPES},
    "VMFSRDM": text('RW 128 VMFSRDM "flat"', type="vmfs"),
    "VMFSRAW": text('RDONLY 128 VMFSRAW "/vmfs/devices/disks/naa.6001"', type="vmfs"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("flat", "a b", "other"):
        (tmp_path / name).write_bytes(bytes(65536))
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "sparse", "64k")
    return tmp_path


def write(folder: Path, data: bytes) -> str:
    (folder / "t.vmdk").write_bytes(data)
    return str(folder / "t.vmdk")


@needs_qemu_img
@pytest.mark.parametrize("name", READ)
def test_what_is_lawful_is_described_and_sound(name: str, folder: Path) -> None:
    path = write(folder, READ[name][0])
    size = 32768 if name == "a part of a file" else 65536
    assert instar.info(path, isolation=NONE).virtual_size == size
    assert instar.check(path, isolation=NONE).exit_code == 0


@needs_qemu_img
@pytest.mark.parametrize("name", READ)
def test_the_dialect_says_of_it_what_qemu_img_says(name: str, folder: Path) -> None:
    data, read = READ[name]
    write(folder, data)
    for version, program in generations().items():
        for words in (["info", "--output=json", "t.vmdk"], ["check", "t.vmdk"]):
            theirs, ours = answer_of(program, words, folder), call(words, version, folder)
            assert (theirs[0] == 0) == read
            assert ours[0] == theirs[0]
            assert ours[2].replace(r"\x0a", "\n") == theirs[2]
            if read and words[0] == "info":
                left, right = json.loads(ours[1]), json.loads(theirs[1])
                assert left["format-specific"] == right["format-specific"]
                assert left["virtual-size"] == right["virtual-size"]


@needs_qemu_img
@pytest.mark.parametrize("line", LEFT_OUT)
def test_what_qemu_leaves_out_is_described_here_and_refused_in_the_dialect(line: str, folder: Path) -> None:
    path = write(folder, text(FLAT, line))
    assert instar.info(path, isolation=NONE).virtual_size == 65536 + LEFT_OUT[line]
    assert instar.check(path, isolation=NONE).findings == []
    for version, program in generations().items():
        theirs = answer_of(program, ["info", "--output=json", "t.vmdk"], folder)
        ours = call(["info", "t.vmdk"], version, folder)
        if theirs[0]:
            assert ours[::2] == theirs[::2]
        else:
            assert json.loads(theirs[1])["virtual-size"] == 65536
            assert ours[0] == 1
            assert re.search("QEMU leaves out an extent .*shows a shorter disk: " + line[:8], ours[2])
        assert not re.search("corrupt", ours[2])


@needs_qemu_img
@pytest.mark.parametrize("line", ["RW 128 ZERO", 'RDONLY 128 FLAT "flat" 0'])
def test_a_disk_that_qemu_shows_shorter_is_no_backing_file(line: str, folder: Path) -> None:
    path = write(folder, text(FLAT, line))
    with pytest.raises(instar.ImageError, match="shorter disk"):
        instar.create(str(folder / "top"), format="qcow2", backing=path, backing_format="vmdk", isolation=NONE)
    assert not (folder / "top").exists()


@needs_qemu_img
@pytest.mark.parametrize("name", DEVICES)
def test_what_is_on_a_device_is_refused_by_name(name: str, folder: Path) -> None:
    path = write(folder, DEVICES[name])
    with pytest.raises(instar.ImageError, match="device") as caught:
        instar.info(path, isolation=NONE)
    assert caught.value.kind == "unsupported-feature"
    if name in DEVICE_TYPES:
        for version, program in generations().items():
            assert call(["info", "t.vmdk"], version, folder) == answer_of(program, ["info", "t.vmdk"], folder)


@needs_qemu_img
def test_a_missing_type_is_said_before_a_missing_extent(folder: Path) -> None:
    write(folder, text('RW 128 VMFS "nope"', type="vmfsThin"))
    for version, program in generations().items():
        assert call(["info", "t.vmdk"], version, folder) == answer_of(program, ["info", "t.vmdk"], folder)
