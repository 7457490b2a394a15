"""VDI, Parallels, LUKS, raw: tables that do not end, checksums that never stop, and files that are none."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

from tests.formats.luks.volumes import volume
from tests.formats.parallels.images import bitmap, extended, parallels
from tests.formats.vdi.images import vdi
from tests.hostile.corpus import SIZES, GiB, Hostile, MiB, TiB, sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FREE = 0xFFFFFFFF


def cases() -> Iterator[Hostile]:
    yield from _vdi()
    yield from _parallels()
    yield from _luks()
    yield from _raw()
    yield from _no_files()


def _vdi() -> Iterator[Hostile]:
    for size in SIZES:
        yield Hostile("vdi", f"a disk of {size:#x} bytes", vdi([FREE], disk_size=size))
        most = vdi([FREE], disk_size=size, blocks_in_image=min(0x1FFFFF80, size >> 20))
        yield Hostile("vdi", f"a disk of {size:#x} bytes with a map that would do", {0: most}, size=4 * GiB, seconds=20)
    fields: dict[str, tuple[int, ...]] = {
        "blocks_in_image": (0, 0x1FFFFF80, 0x1FFFFF81, 0x7FFFFFFF, 0xFFFFFFFF),
        "blocks_allocated": (0x7FFFFFFF, 0xFFFFFFFF),
        "offset_bmap": (0, 1, 64, 0xFFFFFE00, 0xFFFFFFFF),
        "offset_data": (0, 1, 512, 0xFFFFFE00, 0xFFFFFFFF),
        "block_size": (0, 1, 512, 1 << 19, 1 << 31, 0xFFFFFFFF),
        "block_extra": (1, 0xFFFFFFFF),
        "sector_size": (0, 1, 4096, 0xFFFFFFFF),
        "image_type": (0, 3, 4, 5, 0xFFFFFFFF),
        "version": (0, 1, 0x00020000, 0xFFFFFFFF),
        "header_size": (0, 1, 0xFFFFFFFF),
        "image_flags": (1, 0xFFFFFFFF),
    }
    for field, values in fields.items():
        for value in values:
            yield Hostile("vdi", f"{field} = {value:#x}", vdi([0, 1, FREE], size=4 * MiB, **{field: value}))
    same = vdi([], blocks_in_image=1 << 22, disk_size=4 * TiB, offset_data=17 << 20)
    yield Hostile("vdi", "2^22 blocks that are one", {0: same, 512: bytes(4) * (1 << 22) + b"\0"}, size=GiB)
    order, wild = partial(_table, 7919, 1 << 22), partial(_table, 1000003, 1 << 32)
    yield Hostile("vdi", "2^22 blocks in no order", {0: same, 512: order}, size=4 * TiB + 32 * MiB)
    yield Hostile("vdi", "2^22 blocks past the end of the file", {0: same, 512: wild}, size=GiB)
    linked = vdi([FREE], uuid_link=b"\7" * 16, uuid_parent=b"\7" * 16)
    yield Hostile("vdi", "a link to nowhere", linked)


def _table(step: int, most: int, start: int = 0) -> bytes:
    """Return 2^22 entries, each ``step`` after the one before, below ``most``."""
    return struct.pack(f"<{1 << 22}I", *(n * step % most + start for n in range(1 << 22)))


def _parallels() -> Iterator[Hostile]:
    for size in SIZES:
        yield Hostile("parallels", f"a disk of {size:#x} bytes", parallels([0], nb_sectors=size // 512))
    fields: dict[str, tuple[int, ...]] = {
        "bat_entries": (0, 0x1FFFFFFF, 0x20000000, 0x7FFFFFFF, 0xFFFFFFFF),
        "tracks": (0, 1, 0x3FFFFF, 0x7FFFFFFF, 0xFFFFFFFF),
        "nb_sectors": (0, 1 << 54, (1 << 64) - 1),
        "data_off": (0, 1, 3, 0x7FFFFFFF, 0xFFFFFFFF),
        "ext_off": (1, 8, 1 << 54, (1 << 55) - 1, (1 << 64) - 1),
        "inuse": (0x746F6E59, 0xFFFFFFFF),
        "heads": (0, 0xFFFFFFFF),
        "version": (0, 1, 3),
    }
    for old in (False, True):
        for field, values in fields.items():
            for value in values:
                name = f"{field} = {value:#x}" + (", the old magic" if old else "")
                made = parallels([1, 0], old=old, **({} if field == "tracks" else {field: value}))
                if field == "tracks":
                    made = made[:28] + struct.pack("<I", value) + made[32:]
                yield Hostile("parallels", name, {0: made}, size=MiB)
    count = 1 << 22
    head = parallels([], size=64, tracks=2048, bat_entries=count, nb_sectors=count * 2048, data_off=1 << 16)
    for name, table in (
        ("that are one", partial(_table, 0, count, 32)),
        ("in no order", partial(_table, 7919, count, 32)),
        ("past the end of the file", partial(_table, 1000003, 1 << 32)),
    ):
        yield Hostile("parallels", f"2^22 clusters {name}", {0: head, 64: table}, size=TiB, seconds=40)
    most = parallels(
        [], size=64, tracks=1, bat_entries=0x1FFFFFFF, nb_sectors=0x1FFFFFFF, data_off=(4 << 30) // 512 - 8
    )
    yield Hostile("parallels", "2^29 - 1 clusters in a hole", {0: most}, size=4 * GiB, seconds=20)
    row = struct.pack("<Q", 2048)
    yield Hostile("parallels", "a bitmap of 400 parts that are one", extended(bitmap([2048] * 400, size=1 << 40)))
    for l1_size in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        feature = bytearray(bitmap([8], size=1 << 62))
        feature[24 + 28 : 24 + 32] = struct.pack("<I", l1_size)
        yield Hostile("parallels", f"a bitmap that says it has {l1_size:#x} parts", extended(bytes(feature)))
    for size in (0, 1, 4000, 0x7FFFFFFF, 0xFFFFFFFF):
        feature = struct.pack("<QQII", 0x20385FAE252CB34A, 1, size, 0) + row
        yield Hostile("parallels", f"a feature of {size:#x} bytes", extended(feature))
    empty = struct.pack("<QQII", 0x1122334455667788, 0, 0, 0)
    yield Hostile("parallels", "160 empty features, and no end", extended(empty * 160, end=False))
    yield _large_extension()


def _large_extension() -> Hostile:
    """An extension is as long as a cluster, which may have 2 GiB, and has an MD5."""
    tracks = 0x3FE00
    empty = struct.pack("<QQII", 0x1122334455667788, 0, 0, 0)
    body = (empty * 100_000).ljust(tracks * 512 - 24, b"\0")
    head = struct.pack("<Q", 0xAB234CEF23DCEA87) + hashlib.md5(body).digest()
    made = parallels([0], size=4096, tracks=tracks, ext_off=tracks, data_off=tracks)
    at = tracks * 512
    return Hostile(
        "parallels", "an extension of 128 MiB", {0: made, at: head + body[: 3 * MiB]}, size=2 * at, seconds=60
    )


def _luks() -> Iterator[Hostile]:
    plain = volume()
    fields = {"payload_offset": (104, 4), "key_bytes": (108, 4), "mk_digest_iter": (164, 4), "version": (6, 2)}
    slots = {"active": (208, 4), "iterations": (212, 4), "key_material_offset": (248, 4), "stripes": (252, 4)}
    for name, (offset, width) in (fields | slots).items():
        for value in (0, 1, 1 << 8 * width - 1, (1 << 8 * width) - 1):
            data = bytearray(plain)
            for slot in range(8 if name in slots else 1):
                data[offset + 48 * slot : offset + 48 * slot + width] = value.to_bytes(width, "big")
            yield Hostile("luks", f"{name} = {value:#x}", bytes(data))
    for name, offset, length in (("cipher", 8, 32), ("mode", 40, 32), ("hash", 72, 32), ("uuid", 168, 40)):
        for text in (b"\x1b[2J\x07", b"A" * length, b"\xff" * length, b"", b"\x9b31m\r\n%s%n"):
            data = bytearray(plain)
            data[offset : offset + length] = text.ljust(length, b"\0")
            yield Hostile("luks", f"{name} = {text[:8]!r}", bytes(data))
    for length in (8, 591, 592, 4096):
        yield Hostile("luks", f"cut to {length} bytes", plain[:length])
    data = bytearray(plain)
    data[248:252] = struct.pack(">I", 0)
    yield Hostile("luks", "key material over the header", bytes(data))


def _raw() -> Iterator[Hostile]:
    yield Hostile("raw", "nothing", b"")
    yield Hostile("raw", "one byte", b"x")
    yield Hostile("raw", "8 TiB of holes", {}, size=8 * TiB)
    yield Hostile("raw", "8 TiB less one byte", {0: b"x"}, size=8 * TiB - 1)
    yield Hostile("raw", "a gzip bomb", b"\x1f\x8b\x08" + bytes(100))
    yield Hostile("raw", "control characters", b"\x1b[2J\x1b]0;x\x07" * 1000)


def _no_files() -> Iterator[Hostile]:
    def link(target: str) -> object:
        return lambda folder: os.symlink(target, folder / "image")

    def listening(folder: Path) -> None:
        here = os.getcwd()
        os.chdir(folder)  # a socket's name is short
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind("image")
        finally:
            os.chdir(here)

    waits = {"judged": False}
    yield Hostile("file", "a FIFO", lambda folder: os.mkfifo(folder / "image"), **waits)
    yield Hostile("file", "a folder", lambda folder: (folder / "image").mkdir(), **waits)
    yield Hostile("file", "a socket", listening, **waits)
    for name in (
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "/dev/kvm",
        "/proc/self/mem",
        "/proc/kmsg",
        "/proc/self/environ",
    ):
        yield Hostile("file", f"a link to {name}", link(name), **waits)  # type: ignore[arg-type]
    yield Hostile("file", "a link to itself", link("image"), **waits)  # type: ignore[arg-type]
    yield Hostile("file", "a link to nowhere", link("nowhere"), **waits)  # type: ignore[arg-type]

    def unreadable(folder: Path) -> None:
        sparse(folder / "image", {}, MiB).chmod(0)

    yield Hostile("file", "without permissions", unreadable, **waits)
