"""VHDX images for tests: bytes that real programs made, and images of ours that can be damaged field by field."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import BytesReader

from instar.core.options import Settings
from instar.core.plan import Plan, Seed
from instar.formats.vhdx import options, plan
from instar.formats.vhdx.crc32c import checksum

MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40
LOG, BAT, METADATA = 1 * MiB, 2 * MiB, 3 * MiB
ITEMS = METADATA + 0x10000
HEADERS = (0x10000, 0x20000)
TABLES = (0x30000, 0x40000)

# Made by qemu-img 7.2.22: `create -f vhdx t 64M`, then a write by qemu-io that died between log and table.
QEMU_FILE_ID = bytes.fromhex("7668647866696c65510045004d0055002000760037002e0032002e00320032000000")
QEMU_HEADERS = (
    bytes.fromhex(
        "686561647757d709dbdbd00800000000641bfd2d4470493c9022a41077009245dd7ad143b8124333ab768af5214db65e"
        "d93d85ff50244de09d34fd56d3cb7c6100000100000010000000100000000000"
    ),
    bytes.fromhex(
        "6865616453f60e95dcdbd00800000000641bfd2d4470493c9022a4107700924594b43629f0484ec2a9aa733c0f726a08"
        "d93d85ff50244de09d34fd56d3cb7c6100000100000010000000100000000000"
    ),
)
QEMU_REGION_TABLE = bytes.fromhex(
    "7265676983ce6f2c02000000000000006677c22d23f600429d64115e9bfd4a080000200000000000000010000000000006a27c8b9047"
    "9a4bb8fe575f050f886e00003000000000000000100000000000"
)
QEMU_METADATA_TABLE = bytes.fromhex(
    "6d657461646174610000050000000000000000000000000000000000000000003767a1ca36fa434db3b633f0aa44e76b000001000800"
    "000004000000000000002442a52f1bcd7648b2115dbed83bf4b808000100080000000600000000000000ab12cabee6b2234593efc309"
    "e000c746100001001000000006000000000000001dbf41816fa90947ba47f233a8faab5f20000100040000000600000000000000c748"
    "a3cd5d4471449cc9e9885251c55624000100040000000600000000000000"
)
QEMU_ITEMS = bytes.fromhex("00008000000000000000000400000000ca16368b0fcd4c108015ba7bbc5da5380002000000020000")
QEMU_LOG_ENTRY = (
    bytes.fromhex(
        "6c6f6765ad0d4ef7002000000000000001000000000000000100000000000000d93d85ff50244de09d34fd56d3cb7c61000000010000"
        "0000000000010000000064657363000000000600800000000000000020000000000001000000000000 00".replace(" ", "")
    ).ljust(4096, b"\0")
    + (b"data" + bytes(4) + (2).to_bytes(8, "little") * 7).ljust(4092, b"\0")
    + b"\1\0\0\0"
)


def settings(**given: str) -> Settings:
    """Return settings as typed."""
    found = Settings()
    for row in options.CREATE:
        if row.name in given:
            found.set(row, given.pop(row.name))
    assert not given, given
    return found


def planned(size: int, **given: str) -> Plan:
    """Return a plan with real randomness."""
    return plan.create(size, options.resolve(size, settings(**given), None), Seed(entropy=os.urandom(64)))


def image(size: int = 64 * MiB, **given: str) -> BytesReader:
    """Return an image in memory, holes left out."""
    made = planned(size, **given)
    parts = {offset: data for item in made.items for offset, data in item.pieces()}
    return BytesReader(parts.pop(0), size=made.sizes[0], parts=parts)


def qemu_dirty() -> BytesReader:
    """Return the image that qemu-io left with a log to be replayed."""
    parts = dict(zip(HEADERS, QEMU_HEADERS, strict=True))
    parts |= dict.fromkeys(TABLES, QEMU_REGION_TABLE)
    parts |= {LOG: QEMU_LOG_ENTRY, BAT: (2).to_bytes(8, "little") * 8, METADATA: QEMU_METADATA_TABLE}
    return BytesReader(QEMU_FILE_ID, size=16 * MiB, parts={**parts, ITEMS: QEMU_ITEMS})


def reseal(target: BytesReader) -> BytesReader:
    """Make the checksums of headers and region tables right again."""
    for offset, length in [(o, 4096) for o in HEADERS] + [(o, 65536) for o in TABLES]:
        write(target, offset + 4, checksum(target.read(offset, length)).to_bytes(4, "little"))
    return target


def write(target: BytesReader, offset: int, data: bytes) -> None:
    """Write over what is there."""
    for start, old in sorted(target.parts.items()):
        if start <= offset and offset + len(data) <= start + len(old):
            at = offset - start
            target.parts[start] = old[:at] + data + old[at + len(data) :]
            return None
    for start, old in list(target.parts.items()):  # a part of it is there already
        if start < offset + len(data) and offset < start + len(old):
            target.parts[start] = old + bytes(max(0, offset + len(data) - start - len(old)))
            return write(target, offset, data)
    target.parts[offset] = data
    return None


def changed(
    edits: dict[int, bytes], *, size: int = 64 * MiB, seal: bool = True, length: int | None = None, **given: str
) -> BytesReader:
    """Return an image with some bytes changed; an edit of a header or region table counts for its own copy only."""
    made = image(size, **given)
    if length is not None:
        made.size = length
    for offset, data in edits.items():
        write(made, offset, data)
    return reseal(made) if seal else made


def both(copies: tuple[int, int], offset: int, data: bytes) -> dict[int, bytes]:
    """Return the same edit of both copies."""
    return {copy + offset: data for copy in copies}


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def entry(index: int, value: int) -> dict[int, bytes]:
    """Return an edit of one entry of the block allocation table."""
    return {BAT + 8 * index: u64(value)}


def store(source: BytesReader, path: Path) -> Path:
    """Write an image from memory into a sparse file."""
    with path.open("wb") as file:
        for offset, data in source.parts.items():
            file.seek(offset)
            file.write(data[: max(0, source.size - offset)])
        file.truncate(source.size)
    return path
