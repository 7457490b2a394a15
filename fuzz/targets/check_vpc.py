"""Check whatever claims to be a vpc image."""

from __future__ import annotations

from fuzz.checksums import repair_vpc as repair
from fuzz.reading import images, read

__all__ = ["one_input", "repair", "seeds"]


def seeds() -> list[bytes]:
    """Return images out of our own planner."""
    return list(images("vpc"))


def one_input(data: bytes) -> None:
    """Any bytes give a value or an ``ImageError``."""
    read("vpc", data, check=True)
