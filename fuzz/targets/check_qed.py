"""Check whatever claims to be a qed image."""

from __future__ import annotations

import struct

from fuzz.reading import images, read

__all__ = ["one_input", "seeds"]

_CLUSTER = 4096


def allocated() -> bytes:
    """Return an image with an L2 table, two clusters that follow each other, one of zeros, and one elsewhere."""
    data = bytearray(next(images("qed")))
    l2 = len(data)
    data[_CLUSTER : _CLUSTER + 8] = struct.pack("<Q", l2)
    first = l2 + 2 * _CLUSTER
    data += struct.pack("<4Q", first, first + _CLUSTER, 1, first + 3 * _CLUSTER).ljust(6 * _CLUSTER, b"\0")
    return bytes(data)


def seeds() -> list[bytes]:
    """Return images out of our own planner, and one with clusters."""
    return [*images("qed"), allocated()]


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("qed", data, check=True)
