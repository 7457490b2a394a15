"""Check whatever claims to be a qcow2 image."""

from __future__ import annotations

from fuzz.reading import images, read


def seeds() -> list[bytes]:
    """Return images out of our own planner."""
    return list(images("qcow2"))


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("qcow2", data, check=True)
