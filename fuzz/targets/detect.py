"""Telling formats apart."""

from __future__ import annotations

from fuzz.reading import VARIANTS, Memory, images
from instar.core.looks import ARCHIVES, VHD_FOOTER, advice
from instar.formats import TABLE
from instar.guest.detect import detect, looks_like

#: The end of a fixed VHD.
_FOOTER = bytes(512) + b"conectix" + bytes(55) + b"\2" + bytes(448)


def seeds() -> list[bytes]:
    """Return the start of an image of each format, every magic, and what is no disk."""
    starts = [next(images(format))[:4096] for format in VARIANTS]
    starts += [b"\x1f\x8b\x08", b"PK\3\4", b"7z\xbc\xaf'\x1c", b"\xfd7zXZ\0", bytes(257) + b"ustar", _FOOTER]
    return starts + [bytes(max(p.offset, 0)) + p.magic + bytes(max(-p.offset, 0)) for f in TABLE for p in f.probes]


def one_input(data: bytes) -> None:
    """Any bytes have a format, and a longer tail changes nothing but what is told by its end."""
    row = detect(Memory(data))
    assert row in TABLE
    for given in (row.name, "raw", "qcow2"):
        word = looks_like(Memory(data), given)
        assert word is None or (word != given and (word in ARCHIVES or word == VHD_FOOTER or advice(word)))
    longer = detect(Memory(data + bytes(4096)))
    assert longer is row or row.name == "dmg"
