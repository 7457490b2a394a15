"""Check whatever claims to be a qcow image of version 1."""

from __future__ import annotations

import struct

from fuzz.reading import images, read

__all__ = ["one_input", "seeds"]

_CLUSTER = 4096
_COMPRESSED = 1 << 63


def allocated() -> bytes:
    """Return an image with an L2 table, two clusters that follow each other, and two compressed ones in one sector."""
    data = bytearray(next(images("qcow")).ljust(_CLUSTER, b"\0"))
    data[48:56] = struct.pack(">Q", _CLUSTER)
    first = 2 * _CLUSTER
    packed = [_COMPRESSED | length << 51 | at for at, length in ((4 * _CLUSTER, 100), (4 * _CLUSTER + 100, 50))]
    data += struct.pack(">4Q", first, first + _CLUSTER, *packed).ljust(3 * _CLUSTER + 512, b"\0")
    return bytes(data)


def seeds() -> list[bytes]:
    """Return images out of our own planner, and one with clusters."""
    return [*images("qcow"), allocated()]


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("qcow", data, check=True)
