"""QED images for tests, built in memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from instar.core.plan import Backing, Seed
from instar.formats.qed.ondisk import Header
from instar.formats.qed.plan import create

if TYPE_CHECKING:
    from instar.core.plan import Plan

MiB = 1 << 20
NOW = (11, 1)
CLUSTER = 4096


def plan(size: int = MiB, *, cluster_size: int = CLUSTER, table_size: int = 2, backing: Backing | None = None) -> Plan:
    """Plan an image; by default a small one."""
    return create(size, {"cluster_size": cluster_size, "table_size": table_size}, Seed(backing=backing))


def image(made: Plan) -> bytes:
    """Return the bytes of a small image."""
    data = bytearray(made.sizes[0])
    for item in made.items:
        for offset, piece in item.pieces():
            data[offset : offset + len(piece)] = piece
    return bytes(data)


def empty(**fields: int) -> bytes:
    """Return an image of 3 clusters (header, L1 table of 2), with header fields changed."""
    data = image(plan())
    return Header.unpack(data).replace(**fields).pack() + data[Header.SIZE :]


def allocated(l1: dict[int, int], entries: dict[int, int], *, clusters: int, **fields: int) -> bytes:
    """Return an image of ``clusters`` clusters: L1 entries as given, and one L2 table in clusters 3 and 4.

    Offsets are given in clusters, but -1 stands for the offset 1, a cluster of zeros.
    """
    data = bytearray(empty(**fields).ljust(clusters * CLUSTER, b"\0"))
    for start, table in ((CLUSTER, l1), (3 * CLUSTER, entries)):
        for index, cluster in table.items():
            struct.pack_into("<Q", data, start + 8 * index, 1 if cluster == -1 else cluster * CLUSTER)
    return bytes(data)
