"""Parallels images for tests, built in memory."""

from __future__ import annotations

import hashlib
import struct

from tests.support import BytesReader

from instar.formats.parallels.ondisk import MAGIC, MAGIC_OLD, SECTOR, Bitmap, Extension, Feature, Header

NOW = (11, 1)
MIDDLE = (10, 0)
OLD = (7, 2)
GENERATIONS = (OLD, MIDDLE, NOW)


def parallels(
    bat: list[int], *, old: bool = False, tracks: int = 8, size: int | None = None, **fields: int | bytes
) -> bytes:
    """Return header and BAT, then holes up to the last cluster or ``size``; ``fields`` change the header."""
    data_off = -(-(64 + 4 * len(bat)) // SECTOR)
    if not old:
        data_off = -(-data_off // tracks) * tracks
    header = Header(
        magic=MAGIC_OLD if old else MAGIC,
        tracks=tracks,
        bat_entries=len(bat),
        nb_sectors=len(bat) * tracks,
        data_off=data_off,
    ).replace(**fields)
    if size is None:
        last = max(bat, default=0) * (1 if old else tracks)
        size = (last + tracks if last else data_off) * SECTOR
    made = header.pack() + struct.pack(f"<{len(bat)}I", *bat)
    return made.ljust(size, b"\0")[:size]


def reader(data: bytes) -> BytesReader:
    """Return a reader over bytes."""
    return BytesReader(data)


def bitmap(table: list[int], *, size: int = 32, id: bytes = b"i" * 16, granularity: int = 128, **feature: int) -> bytes:
    """Return a feature with a dirty bitmap."""
    body = Bitmap(size=size, id=id, granularity=granularity, l1_size=len(table)).pack()
    body += struct.pack(f"<{len(table)}Q", *table)
    head = {"magic": 0x20385FAE252CB34A, "data_size": len(body), **feature}
    body = Feature(**head).pack() + body  # type: ignore[arg-type]
    return body + bytes(-len(body) % 8)


def extended(
    features: bytes, *, end: bool = True, tracks: int = 8, spoil: bool = False, magic: int | None = None
) -> bytes:
    """Return an image of four clusters whose third one in the file is a Format Extension with these features."""
    rest = (features + (Feature(magic=0, data_size=0).pack() if end else b"")).ljust(tracks * SECTOR - 24, b"\0")
    digest = bytes(16) if spoil else hashlib.md5(rest).digest()
    head = Extension(checksum=digest, **({} if magic is None else {"magic": magic})).pack()
    made = parallels([1, 2, 0, 0], tracks=tracks, ext_off=3 * tracks)
    return made.ljust(3 * tracks * SECTOR, b"\0") + head + rest
