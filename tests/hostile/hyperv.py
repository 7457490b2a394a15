"""VHD and VHDX: tables of four billion entries, regions over one another, logs that go in circles, parents outside."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from tests.formats.vhdx.images import BAT, HEADERS, ITEMS, LOG, METADATA, TABLES, both, changed, store, u16, u32, u64
from tests.formats.vpc.images import differencing, dynamic, fixed, with_footer, with_header
from tests.hostile.corpus import SIZES, GiB, Hostile, MiB, TiB

from instar.formats.vhdx.crc32c import checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import BytesReader

W2RU, W2KU, MACX = 0x57327275, 0x57326B75, 0x4D616358
GUID = bytes(range(1, 17))
NAMES = (
    "/etc/shadow",
    "..\\..\\..\\..\\..\\..\\..\\etc\\shadow",
    "\\\\server\\share\\x",
    "C:\\x.vhd",
    "json:{}",
    "nbd:x:1",
)
EVIL = "\x1b[2J\x07\u202e\u2028\x9b31m\r\n"


def cases() -> Iterator[Hostile]:
    yield from _vhd()
    yield from _vhd_parents()
    yield from _vhdx()
    yield from _vhdx_logs()
    yield from _vhdx_parents()


def _vhd() -> Iterator[Hostile]:
    plain = dynamic()
    for size in SIZES:
        yield Hostile("vpc", f"a disk of {size:#x} bytes", with_footer(plain, current_size=size, original_size=size))
        exact = with_footer(plain, current_size=size, original_size=size, creator_app=b"win ")
        yield Hostile("vpc", f"a disk of {size:#x} bytes, of Hyper-V", exact)
        yield Hostile(
            "vpc", f"a fixed disk of {size:#x} bytes", with_footer(fixed(), at_start=False, current_size=size)
        )
    headers: dict[str, tuple[int, ...]] = {
        "max_table_entries": (0, 1, 0xFF0000, 1 << 24, 0x3FFFFFFF, 0x40000000, 0xFFFFFFFF),
        "block_size": (0, 1, 512, 1 << 20, (1 << 21) + 512, 1 << 31, 0xFFFFFFFF, 3),
        "table_offset": (0, 1, 512, 1 << 40, (1 << 63) - 512, 1 << 63, (1 << 64) - 512, (1 << 64) - 1),
    }
    for field, values in headers.items():
        for value in values:
            yield Hostile("vpc", f"{field} = {value:#x}", with_header(plain, **{field: value}))
    for offset in (0, 1, 512 << 40, (1 << 63) - 1, (1 << 64) - 1024, (1 << 64) - 1):
        yield Hostile("vpc", f"data_offset = {offset:#x}", with_footer(plain, data_offset=offset))
    for kind in (0, 2, 4, 5, 0xFFFFFFFF):
        yield Hostile("vpc", f"disk_type = {kind:#x}", with_footer(plain, disk_type=kind))
    huge = with_header(
        with_footer(plain, current_size=2040 * GiB, original_size=2040 * GiB, creator_app=b"win "),
        max_table_entries=0xFF0000,
        block_size=512,
        table_offset=MiB,
    )
    entries = bytes.fromhex("00004000") * (1 << 20)
    yield Hostile(
        "vpc", "2^24 blocks of 512 bytes, the same for a million", {0: huge, MiB: entries}, size=GiB, seconds=20
    )
    wide = with_header(
        with_footer(plain, current_size=2040 * GiB, original_size=2040 * GiB, creator_app=b"win "),
        max_table_entries=1020 << 10,
        table_offset=MiB,
    )
    yield Hostile("vpc", "a million blocks that are one", {0: wide, MiB: entries}, size=16 * MiB)
    yield Hostile("vpc", "a table in a hole", {0: wide}, size=GiB)
    order = struct.pack(f">{1 << 20}I", *(n * 7919 & 0x7FFFFFFF for n in range(1 << 20)))
    yield Hostile("vpc", "a million blocks in no order", {0: wide, MiB: order}, size=TiB)
    for length in (512, 1023, 1535, 2048):
        yield Hostile("vpc", f"cut to {length} bytes", plain[:length])


def _vhd_parents() -> Iterator[Hostile]:
    for name in NAMES:
        for platform in (W2RU, W2KU):
            made = differencing([(platform, name.encode("utf-16-le"))], parent_name=name.encode("utf-16-be"))
            yield Hostile("vpc", f"a parent {name!r} by {platform:#x}", made)
    mac = differencing([(MACX, b"file:///etc/shadow")])
    yield Hostile("vpc", "a parent by a URL", mac)
    yield Hostile(
        "vpc",
        "a parent whose name is an escape sequence",
        differencing([(W2RU, EVIL.encode("utf-16-le"))], parent_name=EVIL.encode("utf-16-be")),
    )
    yield Hostile("vpc", "a parent's name of 8 KiB", differencing([(W2RU, ("d\\" * 2048).encode("utf-16-le"))]))
    yield Hostile("vpc", "a parent's name that is half a character", differencing([(W2RU, b"\0\xd8" * 20 + b"x")]))
    base = differencing([(W2RU, "p".encode("utf-16-le"))])
    for space, length, offset in (
        (1, 0xFFFFFFFF, 0),
        (0xFFFFFFFF, 0xFFFFFFFF, 1536),
        (1, 100, (1 << 64) - 50),
        (1, 100, 1 << 62),
        (1, 512, 0),
    ):
        rows = struct.pack(">IIIIQ", W2RU, space, length, 0, offset) * 8
        yield Hostile("vpc", f"locators of {length:#x} bytes at {offset:#x}", with_header(base, parent_locators=rows))


def _of(source: Callable[[], BytesReader], name: str, **more: float) -> Hostile:
    """Return a case that is made when it is wanted: its checksums take their time."""
    return Hostile("vhdx", name, lambda folder: store(source(), folder / "image"), **more)  # type: ignore[arg-type]


def _vhdx() -> Iterator[Hostile]:
    for size in (0, 1, 513, 64 * TiB, 64 * TiB + 512, *SIZES):
        yield _of(partial(changed, {ITEMS + 8: u64(size)}), f"a disk of {size:#x} bytes")
    largest = partial(
        changed, {ITEMS: u32(MiB), ITEMS + 8: u64(64 * TiB), **both(TABLES, 16 + 24, u32(513 << 20))}, length=2 * GiB
    )
    yield _of(largest, "64 TiB in blocks of 1 MiB: a table of 512 MiB", seconds=20)
    for value in (0, 1, 512, MiB - 1, 3 * MiB, 256 * MiB, 512 * MiB, 1 << 31, 0xFFFFFFFF):
        yield _of(partial(changed, {ITEMS: u32(value)}), f"blocks of {value:#x} bytes")
    for at, name in ((32, "logical"), (36, "physical")):
        for value in (0, 1, 511, 4096, 1 << 31, 0xFFFFFFFF):
            yield _of(partial(changed, {ITEMS + at: u32(value)}), f"{name} sectors of {value:#x} bytes")
    for count in (0, 1, 3, 2047, 2048, 0xFFFFFFFF):
        yield _of(partial(changed, both(TABLES, 8, u32(count))), f"{count} regions")
    for row, name in ((0, "BAT"), (1, "metadata")):
        for offset in (0, 1, 65536, LOG, BAT, METADATA, 1 << 62, (1 << 63) - MiB, (1 << 64) - MiB, (1 << 64) - 1):
            yield _of(partial(changed, both(TABLES, 16 + 32 * row + 16, u64(offset))), f"{name} at {offset:#x}")
        for length in (0, 1, 4095, 512 * MiB, 0x80000000, 0xFFF00000, 0xFFFFFFFF):
            yield _of(
                partial(changed, both(TABLES, 16 + 32 * row + 24, u32(length)), length=8 * GiB),
                f"{name} of {length:#x} bytes",
            )
    regions = b"".join(bytes(15) + bytes([n % 256]) + u64(BAT) + u32(0xFFF00000) + u32(0) for n in range(2045))
    many = {at: data for copy in TABLES for at, data in ((copy + 8, u32(2047)), (copy + 80, regions))}
    yield _of(partial(changed, many, length=8 * GiB), "2,047 regions over one another")
    for count in (0, 6, 2047, 2048, 65535):
        yield _of(partial(changed, {METADATA + 10: u16(count)}), f"{count} metadata items")
    items = b"".join(n.to_bytes(16, "little") + u32(65536) + u32(MiB - 65536) + u32(1) + u32(0) for n in range(1, 1025))
    yield _of(partial(changed, {METADATA + 10: u16(1029), METADATA + 32 + 160: items}), "1,024 items over one another")
    for row in range(5):
        for offset, length in ((0, 8), (0xFFFFFFFF, 8), (65536, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (65536, 0)):
            at = METADATA + 32 + 32 * row + 16
            yield _of(
                partial(changed, {at: u32(offset) + u32(length)}), f"item {row} of {length:#x} bytes at {offset:#x}"
            )
    for entry in ((1 << 64) - 1, 6, 6 | MiB, 7 | MiB, 6 | METADATA, 6 | 1 << 62, 6 | (1 << 64) - MiB, 5, 4):
        yield _of(partial(changed, {BAT: u64(entry) * 8}), f"BAT entries {entry:#x}")
    for word in (0, (1 << 64) - 1):
        yield _of(partial(changed, both(HEADERS, 8, u64(word))), f"sequence numbers {word:#x}")
    yield _of(partial(changed, both(HEADERS, 0, b"nope"), seal=False), "no header")


def _entry(sequence: int, tail: int, length: int, descriptors: bytes = b"", sectors: bytes = b"") -> bytes:
    """Return a log entry of ``length`` bytes with its checksum ([MS-VHDX] 2.3.1)."""
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length, tail, sequence, len(descriptors) // 32, 0, GUID, MiB, MiB)
    body = bytearray((head + descriptors).ljust(-(-(64 + len(descriptors)) // 4096) * 4096, b"\0") + sectors)
    body += bytes(length - len(body))
    body[4:8] = u32(checksum(bytes(body)))
    return bytes(body)


def _zero(length: int, offset: int, sequence: int) -> bytes:
    return b"zero" + bytes(4) + u64(length) + u64(offset) + u64(sequence)


def _data(offset: int, sequence: int) -> bytes:
    return b"desc" + bytes(12) + u64(offset) + u64(sequence)


def _logged(log: dict[int, bytes], *, length: int = MiB, offset: int = LOG, file: int = 64 * MiB) -> BytesReader:
    head = {**both(HEADERS, 48, GUID), **both(HEADERS, 64 + 4, u32(length)), **both(HEADERS, 72, u64(offset))}
    return changed({**head, **{offset + at: data for at, data in log.items()}}, length=file)


def _vhdx_logs() -> Iterator[Hostile]:
    for length in (0, 1, 4096, 0x80000000, 0xFFF00000, 0xFFFFFFFF):
        yield _of(
            partial(_logged, {}, length=length, file=8 * GiB), f"a log of {length:#x} bytes in a hole", seconds=20
        )
    for offset in (0, 65536, BAT, METADATA, 1 << 62, (1 << 63) - MiB, (1 << 64) - MiB, (1 << 64) - 1):
        yield _of(
            partial(_logged, {}, offset=offset)
            if offset < GiB
            else partial(changed, both(HEADERS, 72, u64(offset)) | both(HEADERS, 48, GUID)),
            f"a log at {offset:#x}",
        )
    circle = {4096 * n: _entry(n + 1, 4096 * n, 4096) for n in range(256)}
    yield _of(partial(_logged, circle), "256 entries, each the first of its sequence")
    tails = {4096 * n: _entry(n + 1, 4096 * ((n + 1) % 256), 4096) for n in range(256)}
    yield _of(partial(_logged, tails), "256 entries in a circle, whose tails are their heads")
    same = {4096 * n: _entry(7, 0, 4096) for n in range(256)}
    yield _of(partial(_logged, same), "256 entries of one number")
    overlapping = {4096 * n: _entry(n + 1, 0, 4096)[:16] + u64(n + 1) + u32(0) + bytes(4) + GUID for n in range(256)}
    for data in overlapping.values():
        assert len(data) == 48
    long = {at: data[:8] + u32(MiB) + data[12:] for at, data in overlapping.items()}
    yield _of(partial(_logged, long), "256 entries that all claim the whole log")
    big = {4096 * n: _entry(n + 1, 0, 4096)[:64] for n in range(0, 65536, 16)}
    big = {at: data[:8] + u32(0xFFF00000) + data[12:] for at, data in big.items()}
    yield _of(
        partial(_logged, big, length=0xFFF00000, offset=64 * MiB, file=8 * GiB),
        "4,096 entries that claim 4 GiB each",
        seconds=20,
    )
    zeros = b"".join(_zero(1 << 62, 4096 * n, 1) for n in range(30000))
    yield _of(partial(_logged, {0: _entry(1, 0, MiB, zeros)}), "30,000 runs of zeros, 4 EiB each")
    small = b"".join(_zero(4096, BAT, 1) for _ in range(30000))
    yield _of(partial(_logged, {0: _entry(1, 0, MiB, small)}), "30,000 runs of zeros over the table")
    apart = b"".join(_zero(4096, 8192 * n, 1) for n in range(30000))
    yield _of(partial(_logged, {0: _entry(1, 0, MiB, apart)}), "30,000 runs of zeros apart")
    sector = b"data" + bytes(4) + b"\xff" * 4084 + u32(1)
    rows = b"".join(_data(o, 1) for o in (0, 65536, 131072, 196608, BAT, METADATA, LOG, 1 << 62, (1 << 64) - 4096))
    yield _of(
        partial(_logged, {0: _entry(1, 0, 4096 * 10, rows, sector * 9)}),
        "a log that overwrites headers, tables and itself",
    )
    many = b"".join(_data(BAT + 4096 * (n % 16), 1) for n in range(240))
    yield _of(partial(_logged, {0: _entry(1, 0, 4096 * 242, many, sector * 240)}), "240 sectors for 16 places")


def _locator(pairs: list[tuple[str, str]]) -> bytes:
    """Return a parent locator item ([MS-VHDX] 2.6.2.6)."""
    kind = bytes.fromhex("b7ef4ab09ed18141b78925b8e9445913")
    rows, texts = bytearray(), bytearray()
    start = 20 + 12 * len(pairs)
    for key, value in pairs:
        left, right = key.encode("utf-16-le"), value.encode("utf-16-le")
        rows += struct.pack("<IIHH", start + len(texts), start + len(texts) + len(left), len(left), len(right))
        texts += left + right
    return kind + struct.pack("<HH", 0, len(pairs)) + bytes(rows) + bytes(texts)


def _child(item: bytes, *, length: int | None = None) -> BytesReader:
    """Return a disk that has a parent."""
    row = (
        bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c") + u32(0x20000) + u32(len(item) if length is None else length)
    )
    return changed(
        {
            ITEMS + 4: u32(2),
            METADATA + 10: u16(6),
            METADATA + 32 + 5 * 32: row + u32(4) + u32(0),
            METADATA + 0x20000: item,
        }
    )


def _vhdx_parents() -> Iterator[Hostile]:
    linkage = ("parent_linkage", "{83ed1a95-30c5-4a0b-9b4f-4a2a5b9f0b1c}")
    for name in NAMES:
        for key in ("relative_path", "absolute_win32_path", "volume_path"):
            yield _of(partial(_child, _locator([linkage, (key, name)])), f"a parent {name!r} by {key}")
    yield _of(
        partial(_child, _locator([linkage, ("relative_path", EVIL)])), "a parent whose name is an escape sequence"
    )
    yield _of(partial(_child, _locator([linkage, ("relative_path", "x" * 32000)])), "a parent's name of 64 KiB")
    yield _of(lambda: _child(_locator([("k", "v")] * 65535)), "65,535 pairs in a locator")
    yield _of(partial(_child, _locator([linkage, *[("relative_path", "a")] * 62])), "a path 62 times")
    rows = struct.pack("<IIHH", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF) * 64
    kind = bytes.fromhex("b7ef4ab09ed18141b78925b8e9445913")
    yield _of(partial(_child, kind + struct.pack("<HH", 0, 64) + rows), "texts past the end of their item")
    yield _of(partial(_child, _locator([linkage]), length=0xFFFFFFFF), "a locator of 4 GiB")
