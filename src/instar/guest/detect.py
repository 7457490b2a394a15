"""Tell the format of an image from its first and last bytes.

Law: the table's probes are tried in order and the first that matches decides. What matches none is raw;
what matches a format without a reader is refused by name, never handed to the raw reader.
"""

from __future__ import annotations

import sys

from instar.core.errors import ImageError
from instar.core.reader import read_padded
from instar.formats import TABLE, Format, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from instar.core.reader import Reader

#: How much of the start of a file detection looks at.
HEAD_BYTES = 4096


def detect(image: Reader) -> Format:
    """Return the row of the format that an image's bytes give away; raw if none does."""
    head = read_padded(image, 0, HEAD_BYTES)
    for row in TABLE:
        for probe in row.probes:
            if probe.offset >= 0:
                found = head[probe.offset : probe.offset + len(probe.magic)]
            else:
                found = (
                    read_padded(image, image.size + probe.offset, len(probe.magic))
                    if image.size >= -probe.offset
                    else b""
                )
            if found == probe.magic:
                return row
        if row.name == "vmdk" and module("vmdk", "parse").is_descriptor(head):
            return row
    raw = find("raw")
    if raw is None:
        raise KeyError("raw")
    return raw


def choose(image: Reader, name: str | None) -> Format:
    """Return the row of the format asked for, or of the one detected.

    Raises:
        ImageError: ``unsupported-feature``, the format is known by sight only.
    """
    row = detect(image) if name is None else find(name)
    if row is None:
        raise ImageError("unsupported-feature", "image", f"there is no format '{name}'")
    if not row.readable:
        raise ImageError(
            "unsupported-feature",
            "image",
            f"this is a {row.name} image, a format that this version of instar does not read",
            format=row.name,
        )
    return row


def module(format_name: str, part: str) -> ModuleType:
    """Return ``parse`` or ``check`` of a format; it was imported before the walls closed."""
    name = f"instar.formats.{format_name}.{part}"
    __import__(name)
    return sys.modules[name]


def preload(name: str | None, parts: tuple[str, ...]) -> None:
    """Import what one format, or any readable one, will need: inside the cell nothing can be imported.

    Detection itself needs the VMDK parser, which is among the readable ones.

    Codecs count: Python loads ``encodings.utf_16_le`` and its like on first use.
    """
    for encoding in ("utf-16-le", "utf-16-be", "latin-1", "ascii"):
        "".encode(encoding)
    for row in TABLE:
        if row.readable and (name is None or name == row.name or name in row.aliases):
            for part in parts:
                module(row.name, part)
