"""Describe whatever claims to be a LUKS volume."""

from __future__ import annotations

from fuzz.reading import images, read

__all__ = ["one_input", "seeds"]


def seeds() -> list[bytes]:
    """Return images out of our own planner."""
    return list(images("luks"))


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("luks", data, check=False)
