"""qcow images of version 1 for tests, built in memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from instar.core.plan import Backing, Seed
from instar.formats.qcow.ondisk import COMPRESSED, Header
from instar.formats.qcow.plan import create

if TYPE_CHECKING:
    from instar.core.plan import Plan

MiB = 1 << 20
NOW = (11, 1)
CLUSTER = 4096
L1 = 48


def plan(size: int = 3 * MiB, *, backing: Backing | None = None, secret: bytes | None = None) -> Plan:
    """Plan an image, encrypted if there is a passphrase."""
    options: dict[str, int | bool | str] = {"encrypted": secret is not None, "key_secret": "s0"}
    return create(size, options, Seed(backing=backing, secret=secret))


def image(made: Plan) -> bytes:
    """Return the bytes of a small image."""
    data = bytearray(made.sizes[0])
    for item in made.items:
        for offset, piece in item.pieces():
            data[offset : offset + len(piece)] = piece
    return bytes(data)


def empty(**fields: int) -> bytes:
    """Return an image without clusters, with header fields changed."""
    data = image(plan())
    return Header.unpack(data).replace(**fields).pack() + data[Header.SIZE :]


def packed(offset: int, length: int) -> int:
    """Return the L2 entry of a compressed cluster in clusters of 4 KiB."""
    return COMPRESSED | length << 51 | offset


def allocated(l1: dict[int, int], entries: dict[int, int], *, end: int, **fields: int) -> bytes:
    """Return an image of ``end`` bytes: L1 entries as given, and one L2 table in the second cluster. All in bytes."""
    data = bytearray(empty(**fields).ljust(end, b"\0"))
    for start, table in ((L1, l1), (CLUSTER, entries)):
        for index, entry in table.items():
            struct.pack_into(">Q", data, start + 8 * index, entry)
    return bytes(data[:end])
