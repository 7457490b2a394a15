"""VMDK: headers that lie, streams that expand, and descriptors that name files, a hundred thousand of them."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from tests.formats.vmdk.images import cowd, image, sesparse, stream, text
from tests.hostile.corpus import SIZES, GiB, Hostile, MiB, TiB, sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Offset and width of the fields of a hosted sparse extent's header (Virtual Disk Format 5.0, "Hosted Sparse Extents").
FIELDS = {
    "version": (4, 4),
    "flags": (8, 4),
    "capacity": (12, 8),
    "grainSize": (20, 8),
    "descriptorOffset": (28, 8),
    "descriptorSize": (36, 8),
    "numGTEsPerGT": (44, 4),
    "rgdOffset": (48, 8),
    "gdOffset": (56, 8),
    "overHead": (64, 8),
    "compressAlgorithm": (77, 2),
}
HUGE = (1 << 22, (1 << 32) - 1, 1 << 54, (1 << 55) - 1, (1 << 63) - 1, (1 << 64) - 2, (1 << 64) - 1)


def with_fields(data: bytes | bytearray, **values: int) -> bytes:
    """Return a hosted extent with fields of its header changed."""
    out = bytearray(data)
    for name, value in values.items():
        offset, size = FIELDS[name]
        out[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(out)


def cases() -> Iterator[Hostile]:
    yield from _headers()
    yield from _grains()
    yield from _descriptors()
    yield from _extents()


def _headers() -> Iterator[Hostile]:
    plain = image(MiB)
    for size in SIZES:
        yield Hostile("vmdk", f"a disk of {size:#x} bytes", with_fields(plain, capacity=size // 512))
    values: dict[str, tuple[int, ...]] = {
        "version": (0, 2, 3, 4, 0xFFFFFFFF),
        "flags": (0, 1 << 16, 1 << 17, 3 << 16, 0xFFFFFFFF),
        "capacity": (0, *HUGE),
        "grainSize": (0, 1, 8, 127, *HUGE),
        "descriptorOffset": (0, 2, *HUGE[-3:]),
        "descriptorSize": (0, *HUGE[-3:]),
        "numGTEsPerGT": (0, 1, 511, 513, 0x7FFFFFFF, 0xFFFFFFFF),
        "rgdOffset": (0, 1, *HUGE),
        "gdOffset": (0, 1, *HUGE),
        "overHead": (0, *HUGE[-3:]),
        "compressAlgorithm": (1, 2, 0xFFFF),
    }
    for field, numbers in values.items():
        for number in numbers:
            made = with_fields(plain, **{field: number})
            yield Hostile("vmdk", f"{field} = {number:#x}", made)
    for length in (4, 512, 1024, 10752):
        yield Hostile("vmdk", f"cut to {length} bytes", bytes(plain[:length]))


def _grains() -> Iterator[Hostile]:
    plain = image(MiB)
    capacity = 1 << 32
    grains = capacity // 128
    count = -(-grains // 512)
    head = with_fields(plain, capacity=capacity, gdOffset=4096, rgdOffset=4096)
    same = struct.pack("<I", 8192 * 64) * count
    parts = {0: head, 4096 * 512: same, 8192 * 64 * 512: struct.pack("<I", 1 << 20) * 512}
    yield Hostile("vmdk", f"{count} grain tables that are one", parts, size=GiB)
    itself = {0: head, 4096 * 512: struct.pack("<I", 4096) * count}
    yield Hostile("vmdk", "grain tables that are the directory", itself, size=GiB)
    holes = {0: head, 4096 * 512: struct.pack(f"<{count}I", *range(1 << 21, (1 << 21) + 4 * count, 4))}
    yield Hostile("vmdk", f"{count} grain tables in a hole", holes, size=2 * GiB)
    one = with_fields(plain, capacity=1 << 40, gdOffset=4096, rgdOffset=8192, numGTEsPerGT=1 << 22, grainSize=128)
    yield Hostile(
        "vmdk", "grain tables of 2^22 entries", {0: one, 4096 * 512: struct.pack("<I", 4096) * 2048}, size=GiB
    )
    bomb = stream({n: bytes(65536) for n in range(64)}, 64 * 128)
    yield Hostile("vmdk", "grains of zeros, compressed", bytes(bomb))
    for name, size in (("4 GiB", 0xFFFFFFFF), ("nothing", 0), ("a grain and more", 70000)):
        lying = bytearray(bomb)
        lying[128 * 512 + 8 : 128 * 512 + 12] = struct.pack("<I", size)
        yield Hostile("vmdk", f"a compressed grain that says it has {name}", bytes(lying))
    huge = zlib.compress(bytes(64 * MiB), 9)
    grain = struct.pack("<QI", 0, len(huge)) + huge
    lying = bytearray(stream({0: bytes(65536)}, 128))
    lying[128 * 512 : 128 * 512 + 12] = grain[:12]
    yield Hostile("vmdk", "a grain that becomes 64 MiB", {0: bytes(lying), 128 * 512: grain}, size=MiB)
    at_end = with_fields(plain, gdOffset=(1 << 64) - 1, flags=3 << 16 | 1, version=3)
    yield Hostile("vmdk", "a directory in a footer that is not there", at_end)
    footer = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + at_end[:512] + bytes(512)
    yield Hostile("vmdk", "a footer that names itself", at_end + footer)
    for sectors in (1, 1 << 30, 0xFFFFFFFF):
        data = bytearray(cowd(4096))
        data[12:16] = struct.pack("<I", sectors)
        data[24:28] = struct.pack("<I", 0xFFFFFFFF)
        yield Hostile("vmdk", f"COWD with {sectors:#x} sectors and 2^32 - 1 tables", bytes(data))


def _descriptors() -> Iterator[Hostile]:
    flat = 'RW 2048 FLAT "image-flat" 0'

    def with_flat(body: bytes) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            (folder / "image").write_bytes(body)
            sparse(folder / "image-flat", {}, MiB)

        return make

    for count in (1000, 1024, 1025, 100_000):
        yield Hostile(
            "vmdk", f"{count} extents that are one file", with_flat(text(*[flat] * count)), judged=count < 1025
        )
    yield Hostile("vmdk", "100,000 comments", with_flat(text(*["# nothing"] * 100_000, flat)))
    yield Hostile("vmdk", "a line of 4 MiB", with_flat(text("#" + "x" * (4 * MiB), flat)))
    yield Hostile("vmdk", "a million quotes", with_flat(text('RW 1 FLAT "' + '"' * 1_000_000, flat)))
    yield Hostile("vmdk", "a million blanks", with_flat(text("RW" + " " * 1_000_000 + flat[2:])))
    yield Hostile(
        "vmdk", "no line ends", with_flat(text(flat).replace(b"\n", b" ").replace(b" version", b"\nversion", 1))
    )
    long = text(flat)
    yield Hostile(
        "vmdk", "a descriptor of 1 TiB", lambda folder: sparse(folder / "image", {0: long, MiB: b"RW 1 "}, TiB)
    )
    for words in ("createType", "parentFileNameHint", "CID"):
        body = text(flat, more="\n".join(f'{words}="x{n}"' for n in range(20_000)))
        yield Hostile("vmdk", f"20,000 lines of {words}", with_flat(body))
    for cid in ("f" * 100_000, "-1", "0x", "zz", " " * 20_000 + "1"):
        yield Hostile("vmdk", f"a CID of {len(cid)} characters, {cid[:2]!r}", with_flat(text(flat, cid=cid)))
    for kind in ("monolithicSparse", "streamOptimized", "fullDevice", "vmfsRaw", "x" * 10_000, "\x1b[2J"):
        yield Hostile("vmdk", f"a descriptor of type {kind[:20]!r}", with_flat(text(flat, type=kind)))
    for sectors in ("0", "-1", "9223372036854775807", "18446744073709551615", "9" * 5000, "18014398509481983", "1e9"):
        yield Hostile(
            "vmdk", f"an extent of {sectors[:30]} sectors", with_flat(text(f'RW {sectors} FLAT "image-flat" 0'))
        )
    for offset in ("-1", "9223372036854775807", "9" * 5000, ""):
        yield Hostile(
            "vmdk", f"an extent at sector {offset[:30]}", with_flat(text(f'RW 2048 FLAT "image-flat" {offset}'))
        )
    two = [f'RW 18014398509481983 FLAT "image-flat" {n}' for n in range(2)]
    yield Hostile("vmdk", "extents whose lengths together wrap", with_flat(text(*two)))
    for kind in ("ZERO", "VMFSRDM", "VMFSRAW", "SESPARSE", "VMFSSPARSE", "SPARSE", "NONSENSE"):
        yield Hostile("vmdk", f"an extent of kind {kind}", with_flat(text(f'RW 2048 {kind} "image-flat"')))


def _extents() -> Iterator[Hostile]:
    def with_extent(body: bytes, data: bytes, size: int = MiB) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            (folder / "image").write_bytes(body)
            sparse(folder / "part", {0: data}, size)

        return make

    for kind in ("FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE"):
        line = f'RW 2048 {kind} "image"' + (" 0" if kind == "FLAT" else "")
        yield Hostile("vmdk", f"a descriptor that is its own extent, {kind}", text(line))
        line = f'RW 2048 {kind} "part"' + (" 0" if kind == "FLAT" else "")
        other = text('RW 2048 SPARSE "image"')
        yield Hostile(
            "vmdk", f"an extent that is a descriptor that names the first, {kind}", with_extent(text(line), other)
        )
    inner = text('RW 2048 SPARSE "part"', type="monolithicSparse")
    lying = with_fields(image(MiB), capacity=0)
    lying = lying[:512] + inner.ljust(20 * 512, b"\0") + lying[21 * 512 :]
    yield Hostile("vmdk", "a sparse extent that is a disk of itself", with_extent(text('RW 2048 SPARSE "part"'), lying))
    line = text('RW 4294967295 VMFSSPARSE "part"', type="vmfsSparse")
    data = bytearray(cowd(4096))
    data[12:16] = data[24:28] = b"\xff" * 4
    yield Hostile("vmdk", "a COWD extent of 2^32 - 1 sectors and tables", with_extent(line, bytes(data)))
    data = bytearray(cowd(4096))
    data[12:28] = struct.pack("<4I", 0xFFFFFFFF, 1, 8, 1 << 20)
    data[4096 : 4096 + 4 * MiB] = struct.pack("<I", 8) * MiB
    yield Hostile("vmdk", "2^20 COWD grain tables that are the directory", with_extent(line, bytes(data), 8 * MiB))
    line = text('RW 65536 SESPARSE "part"', type="seSparse")
    for index, name in enumerate(("capacity", "grain size", "grain table size")):
        for value in (0, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            data = bytearray(sesparse())
            data[16 + 8 * index : 24 + 8 * index] = struct.pack("<Q", value)
            yield Hostile("vmdk", f"seSparse with a {name} of {value:#x}", with_extent(line, bytes(data)))
