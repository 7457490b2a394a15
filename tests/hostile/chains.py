"""Chains of backing files that do not end, or end where they began, by every way in which a file has two names."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from tests.hostile.corpus import Hostile, sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Header of version 2, and room for a name: the smallest image there is.
NAME_AT = 512


def layer(name: bytes, format: bytes = b"qcow2") -> bytes:
    """Return a qcow2 image of 64 KiB and a bit with a backing file, or none."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, NAME_AT if name else 0, len(name), 16, 65536, 0, 1, 131072, 65536, 1, 0, 0
    )
    if format and name:
        head += struct.pack(">II", 0xE2792ACA, len(format)) + format + bytes(-len(format) % 8)
    return head.ljust(NAME_AT, b"\0") + name


def _chain(links: dict[str, bytes], more: Callable[[Path], object] | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for file, name in links.items():
            with (folder / file).open("wb") as out:
                out.write(layer(name))
                out.truncate(196608)
        if more is not None:
            more(folder)

    return make


def deep(count: int, *, ends: bytes = b"") -> Callable[[Path], None]:
    """Return what writes a chain of so many images."""

    def make(folder: Path) -> None:
        for number in range(count):
            name = b"n%d" % (number + 1) if number + 1 < count else ends
            with (folder / ("image" if number == 0 else f"n{number}")).open("wb") as out:
                out.write(layer(name))
                out.truncate(196608)

    return make


def cases() -> Iterator[Hostile]:
    yield Hostile("chain", "of 150 images", deep(150))
    yield Hostile("chain", "of 250 images", deep(250))
    yield Hostile("chain", "of 250 images that loops at its end", deep(250, ends=b"image"))
    yield Hostile("chain", "of 20,000 images", deep(20_000), large=True)
    loops: dict[str, tuple[dict[str, bytes], Callable[[Path], object] | None]] = {
        "itself": ({"image": b"image"}, None),
        "./ itself": ({"image": b"./././image"}, None),
        "a neighbour": ({"image": b"b", "b": b"image"}, None),
        "a neighbour's ./": ({"image": b"./b", "b": b".//./image"}, None),
        "file:": ({"image": b"file:image"}, None),
        "json:": ({"image": b'json:{"driver":"qcow2","file":{"driver":"file","filename":"image"}}'}, None),
        "a link": ({"image": b"link"}, lambda folder: os.symlink("image", folder / "link")),
        "a link to a link": (
            {"image": b"one"},
            lambda folder: (os.symlink("two", folder / "one"), os.symlink("image", folder / "two")),
        ),
        "a hard link": ({"image": b"hard"}, lambda folder: os.link(folder / "image", folder / "hard")),
        "two hard links": ({"image": b"b", "b": b"hard"}, lambda folder: os.link(folder / "image", folder / "hard")),
        "a folder's link": ({"image": b"here/image"}, lambda folder: os.symlink(".", folder / "here")),
        "a folder's link again and again": (
            {"image": b"here/" * 100 + b"image"},
            lambda folder: os.symlink(".", folder / "here"),
        ),
        "its absolute name": ({}, lambda folder: _chain({"image": bytes(folder / "image")})(folder)),
        "the third of three": ({"image": b"b", "b": b"c", "c": b"c"}, None),
    }
    for name, (links, more) in loops.items():
        yield Hostile("chain", f"that loops by {name}", _chain(links, more))
    yield Hostile("chain", "of ten images with 65,536 snapshots each", _many_snapshots, large=True)
    yield Hostile("chain", "behind a folder of the same name", _chain({"image": b"sub/b"}, _nested))


def _many_snapshots(folder: Path) -> None:
    """Write ten images in a chain, each with as many snapshots as one may have, all of them holes."""
    for number in range(10):
        data = bytearray(layer(b"n%d" % (number + 1) if number < 9 else b""))
        data[60:72] = struct.pack(">IQ", 65536, 1 << 20)
        sparse(folder / ("image" if number == 0 else f"n{number}"), {0: bytes(data)}, 8 << 20)


def _nested(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_bytes(layer(b"../image").ljust(196608, b"\0"))
