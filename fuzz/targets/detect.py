"""Telling formats apart."""

from __future__ import annotations

from fuzz.reading import VARIANTS, Memory, images
from instar.formats import TABLE
from instar.guest.detect import detect


def seeds() -> list[bytes]:
    """Return the start of an image of each format, and every magic."""
    starts = [next(images(format))[:4096] for format in VARIANTS]
    return starts + [bytes(max(p.offset, 0)) + p.magic + bytes(max(-p.offset, 0)) for f in TABLE for p in f.probes]


def one_input(data: bytes) -> None:
    """Any bytes have a format, and a longer tail changes nothing but what is told by its end."""
    row = detect(Memory(data))
    assert row in TABLE
    longer = detect(Memory(data + bytes(4096)))
    assert longer is row or row.name == "dmg"
