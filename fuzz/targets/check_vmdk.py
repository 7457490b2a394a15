"""Check whatever claims to be a vmdk image."""

from __future__ import annotations

from fuzz.reading import images, read


def seeds() -> list[bytes]:
    """Return images out of our own planner."""
    return list(images("vmdk"))


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("vmdk", data, check=True)
