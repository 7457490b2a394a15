"""VMDKs for tests: planned ones, and ones made by hand with ``struct`` alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import BytesReader, apply_plan, qemu_img

from instar.core.options import read_settings, split_list
from instar.core.plan import Backing, Seed
from instar.formats.vmdk.options import CREATE, resolve
from instar.formats.vmdk.plan import create

if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Plan

MiB = 1 << 20
NOW = (11, 1)
OLD = (7, 2)
DESCRIPTOR_END = 21 * 512


def judge(size: int, text: str = "", backing: Backing | None = None) -> dict[str, int | bool | str]:
    """Return what ``resolve`` makes of options as typed."""
    return resolve(size, read_settings(CREATE, split_list(text) if text else [], format="vmdk"), backing)


def plan(
    size: int, text: str = "", *, cid: int = 0x12345678, name: str = "t.vmdk", backing: Backing | None = None
) -> Plan:
    """Plan an image with options as typed."""
    seed = Seed(entropy=cid.to_bytes(4, "big") + bytes(60), file_name=name, backing=backing)
    return create(size, judge(size, text, backing), seed)


def image(size: int, text: str = "", **more: object) -> bytearray:
    """Return the bytes of a small planned image."""
    made = plan(size, text, **more)  # type: ignore[arg-type]
    data = bytearray(made.sizes[0])
    for item in made.items:
        for offset, piece in item.pieces():  # type: ignore[union-attr]
            data[offset : offset + len(piece)] = piece
    return data


def make(path: Path, size: int, text: str = "", **more: object) -> Plan:
    """Write a planned image."""
    made = plan(size, text, name=path.name, **more)  # type: ignore[arg-type]
    apply_plan(made, path)
    return made


def theirs(path: Path, size: int | str, text: str = "", *more: str | Path) -> Path:
    """Have the real qemu-img make an image."""
    qemu_img("create", "-q", "-f", "vmdk", *(["-o", text] if text else []), *more, path, str(size), cwd=path.parent)
    return path


def descriptor_of(path: Path) -> bytes:
    """Return the text in an image's second sector."""
    with path.open("rb") as file:
        file.seek(512)
        return file.read(DESCRIPTOR_END - 512).rstrip(b"\0")


def cid_of(path: Path) -> int:
    """Return the CID in an image's descriptor."""
    return int(descriptor_of(path).split(b"\nCID=")[1].split()[0], 16)


def text(
    *extents: str, type: str = "monolithicFlat", cid: str = "1", parent: str = "ffffffff", more: str = ""
) -> bytes:
    """Return a descriptor file, written as VMware writes it."""
    lines = ["# Disk DescriptorFile", "version=1", f"CID={cid}", f"parentCID={parent}", f'createType="{type}"']
    lines += [more] if more else []
    lines += ["# Extent description", *extents, "", "# The Disk Data Base", "#DDB", "", 'ddb.adapterType = "ide"', ""]
    return "\n".join(lines).encode()


def cowd(sectors: int, *, grain: int = 1, tables: Mapping[int, Mapping[int, int]] | None = None) -> bytes:
    """Return an ESX Server sparse extent; ``tables`` maps a table's number to its entries (index: sector)."""
    count = -(-sectors // (4096 * grain))
    directory = [0] * count
    body = b""
    start = 4 + -(-4 * count // 512)
    for number, entries in (tables or {}).items():
        directory[number] = start + len(body) // 512
        table = [0] * 4096
        for index, sector in entries.items():
            table[index] = sector
        body += struct.pack("<4096I", *table)
    header = struct.pack("<4s10I", b"COWD", 1, 3, sectors, grain, 4, count, start + len(body) // 512, 1, 1, 1)
    packed = struct.pack(f"<{count}I", *directory)
    data = header.ljust(2048, b"\0") + packed + bytes(-len(packed) % 512) + body
    last = max((s for t in (tables or {}).values() for s in t.values()), default=0)
    return data.ljust((last + grain) * 512 if last else len(data), b"\xaa")


def sesparse(sectors: int = 2 * 32768, *, entries: Mapping[int, int] | None = None, grains: int = 4) -> bytes:
    """Return a seSparse extent with one grain table (in use if ``entries`` are given) and room for grains."""
    gd, gt, data = 4, 8, 8 + 64
    header = struct.pack(
        "<26Q",
        *(0xCAFEBABE, 0x200000001, sectors, 8, 64, 0, 0, 0, 0, 0),
        *(1, 1, 2, 1, 3, 1, gd, 1, gt, 64, 0, 0, 0, 0, data, 8 * grains),
    ).ljust(512, b"\0")
    volatile = struct.pack("<4Q", 0xCAFECAFE, 0, 0, 0).ljust(512, b"\0")
    directory = struct.pack("<64Q", *([0x1000000000000000 if entries else 0] + [0] * 63))
    table = [0] * 4096
    for index, entry in (entries or {}).items():
        table[index] = entry
    body = (header + volatile).ljust(gd * 512, b"\0") + directory
    return body.ljust(gt * 512, b"\0") + struct.pack("<4096Q", *table) + b"\xbb" * (4096 * grains)


def stream(data: Mapping[int, bytes], sectors: int, *, grain: int = 128) -> bytearray:
    """Return a stream-optimised disk as ovftool writes it: markers, tables after grains, directory at the end.

    ``data`` maps a grain's number to its bytes. ``CID`` is 2a.
    """
    import zlib

    def header(gd: int) -> bytes:
        fields = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 3, 0x30001, sectors, grain, 1, 20, 512, 0, gd, 128, 0)
        return (fields + b"\n \r\n" + struct.pack("<H", 1)).ljust(512, b"\0")

    def marker(size: int, kind: int) -> bytes:
        return struct.pack("<QII", size, 0, kind).ljust(512, b"\0")

    out = bytearray(header((1 << 64) - 1))
    out += text(f'RW {sectors} SPARSE "s.vmdk"', type="streamOptimized", cid="2a").ljust(20 * 512, b"\0")
    out = out.ljust(128 * 512, b"\0")
    directory = [0] * -(-sectors // (512 * grain))
    for number in range(len(directory)):
        table = [0] * 512
        for index in range(512):
            body = data.get(512 * number + index)
            if body is not None:
                table[index] = len(out) // 512
                packed = zlib.compress(body)
                piece = struct.pack("<QI", (512 * number + index) * grain, len(packed)) + packed
                out += piece + bytes(-len(piece) % 512)
        if any(table):
            out += marker(4, 1)
            directory[number] = len(out) // 512
            out += struct.pack("<512I", *table)
    packed_directory = struct.pack(f"<{len(directory)}I", *directory)
    out += marker(-(-len(packed_directory) // 512), 2)
    start = len(out) // 512
    out += packed_directory + bytes(-len(packed_directory) % 512)
    return out + marker(1, 3) + header(start) + bytes(512)


def reader(data: bytes | bytearray, **more: int) -> BytesReader:
    """Return a reader over bytes."""
    return BytesReader(bytes(data), **more)  # type: ignore[arg-type]
