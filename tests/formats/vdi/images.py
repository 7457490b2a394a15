"""VDIs for tests, built in memory."""

from __future__ import annotations

import struct

from tests.support import BytesReader

from instar.formats.vdi.ondisk import Header

MiB = 1 << 20
NOW = (11, 1)
FREE = 0xFFFFFFFF
DISCARDED = 0xFFFFFFFE


def vdi(entries: list[int], *, size: int | None = None, **fields: int | bytes) -> bytes:
    """Return header and block map with these entries, cut or padded to ``size``; ``fields`` change the header."""
    blocks = len(entries)
    data = -(-(512 + 4 * blocks) // 512) * 512
    header = Header(
        offset_data=data,
        disk_size=blocks * MiB,
        blocks_in_image=blocks,
        blocks_allocated=sum(entry < blocks for entry in entries),
        uuid_image=b"\1" * 16,
        uuid_last_snap=b"\2" * 16,
    ).replace(**fields)
    made = (header.pack() + struct.pack(f"<{blocks}I", *entries)).ljust(data, b"\0")
    return made if size is None else made.ljust(size, b"\0")[:size]


def reader(entries: list[int], **fields: int | bytes) -> BytesReader:
    """Return a reader over an image whose blocks are all in the file, as holes."""
    made = vdi(entries, **fields)
    held = max((entry + 1 for entry in entries if entry < len(entries)), default=0)
    return BytesReader(made, size=len(made) + held * MiB)
