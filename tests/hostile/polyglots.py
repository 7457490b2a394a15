"""Files of two formats: an intact image of one with the magic of another where a reader of that would look for it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.formats.luks.volumes import volume
from tests.formats.parallels.images import parallels
from tests.formats.qcow import images as qcow
from tests.formats.qcow2.images import planned
from tests.formats.qed import images as qed
from tests.formats.vdi.images import vdi
from tests.formats.vhdx import images as vhdx
from tests.formats.vmdk.images import image, text
from tests.formats.vpc.images import dynamic, fixed
from tests.hostile.corpus import MiB, sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GPT = b"EFI PART" + struct.pack("<I", 0x10000)
#: What is pasted, and where; from the end if that is negative.
MAGICS: dict[str, tuple[int, bytes]] = {
    "qcow2": (0, b"QFI\xfb\0\0\0\3"),
    "qcow": (0, b"QFI\xfb\0\0\0\1"),
    "qcow of no version": (0, b"QFI\xfb\0\0\0\7"),
    "vmdk": (0, b"KDMV\1\0\0\0"),
    "vmdk of ESX": (0, b"COWD\1\0\0\0"),
    "vmdk of seSparse": (0, bytes.fromhex("bebafeca00000000")),
    "vmdk descriptor": (0, b"# Disk DescriptorFile\nversion=1\n"),
    "vmdk descriptor after blanks": (0, b"   \n# x\nversion=3\r\n"),
    "vhdx": (0, b"vhdxfile"),
    "vhd": (0, b"conectix"),
    "vhd footer": (-512, fixed()[-512:]),
    "vhd footer of 511 bytes": (-511, fixed()[-512:-1]),
    "vdi": (64, b"\x7f\x10\xda\xbe"),
    "qed": (0, b"QED\0"),
    "parallels": (0, b"WithoutFreeSpace\2\0\0\0"),
    "parallels, extended": (0, b"WithouFreSpacExt\2\0\0\0"),
    "parallels of version 3": (0, b"WithouFreSpacExt\3\0\0\0"),
    "luks": (0, b"LUKS\xba\xbe\0\1"),
    "luks 2": (0, b"LUKS\xba\xbe\0\2"),
    "bochs": (0, b"Bochs Virtual HD Image\0"),
    "cloop": (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),
    "dmg": (-512, b"koly" + bytes(508)),
    "partition table": (446, b"\x80\1\1\0\x83\xfe\xff\xff\1\0\0\0\xff\7\0\0" + bytes(48) + b"\x55\xaa"),
    "GPT": (512, _GPT),
    "ext4": (1080, b"\x53\xef"),
    "ISO 9660": (32769, b"CD001"),
    "gzip": (0, b"\x1f\x8b\x08\0"),
}


def intact() -> Iterator[tuple[str, dict[int, bytes], int]]:
    """Yield intact images: format, parts, length."""
    made = vhdx.image()
    yield "vhdx", made.parts, made.size
    for name, data in (
        ("qcow2", planned(MiB)),
        ("qcow", qcow.empty()),
        ("vmdk", bytes(image(MiB))),
        ("vmdk text", text('RW 2048 FLAT "flat" 0')),
        ("vpc", dynamic()),
        ("vpc fixed", fixed()),
        ("vdi", vdi([0xFFFFFFFF])),
        ("qed", qed.empty()),
        ("parallels", parallels([0])),
        ("luks", volume()),
        ("raw", b"\xeb\x3c\x90" + bytes(MiB - 3)),
        ("empty", b""),
    ):
        yield name, {0: data}, len(data)


def write(folder: Path, parts: dict[int, bytes], size: int, magics: tuple[str, ...]) -> Path:
    """Write an image with magics pasted over it."""
    path = sparse(folder / "image", parts, size)
    sparse(folder / "flat", {}, MiB)
    with path.open("r+b") as file:
        for name in magics:
            at, data = MAGICS[name]
            # A footer stands behind an image, not over its end.
            file.seek(at if at >= 0 else max(0, size - len(data)) if size % 512 == 0 and size <= MiB else size)
            file.write(data)
    return path
