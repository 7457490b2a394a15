"""Tell the format of an image from its first and last bytes.

Law: the table's probes are tried in order and the first that matches decides, but for VDI's, whose place depends on
the version of QEMU. What matches none is raw; what matches a format without a reader is refused by name, never handed
to the raw reader.
"""

from __future__ import annotations

import sys

from instar.core import NEWEST
from instar.core.errors import ImageError
from instar.core.looks import VHD_FOOTER
from instar.core.reader import read_padded
from instar.core.units import SECTOR, align_up
from instar.formats import TABLE, Format, before_vdi, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from instar.core.reader import Reader

#: How much of the start of a file detection looks at.
HEAD_BYTES = 4096
#: Files that are no disks and often taken for such: where their magic is, and their word in ``core.looks``.
_ARCHIVES = (
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (257, b"ustar", "tar"),
)
_DESCRIPTOR = b"# Disk DescriptorFile"
_VHD_COOKIE = b"conectix"
#: Offset of the disk's type in a VHD's footer, and that of a fixed disk.
_VHD_TYPE = slice(60, 64)
_VHD_FIXED = b"\0\0\0\2"


def detect(image: Reader, generation: tuple[int, int] = NEWEST) -> Format:
    """Return the row of the format that an image's bytes give away; raw if none does.

    ``generation`` is the version of QEMU whose verdict is wanted where a file has the magics of two formats.
    """
    head = read_padded(image, 0, HEAD_BYTES)
    found = _first(image, head)
    if found.name not in before_vdi(generation):
        vdi = find("vdi")
        if vdi is not None and _matches(image, head, vdi):
            return vdi
    return found


def looks_like(image: Reader, name: str, generation: tuple[int, int] = NEWEST) -> str | None:
    """Return what an image that is read as ``name`` looks like, a word of ``core.looks``; ``None`` if like that.

    Text descriptors of VMDK are told by their first line: their reader may not have been loaded.
    """
    head = read_padded(image, 0, HEAD_BYTES)
    found = [row.name for row in TABLE if _has_magic(image, head, row)]
    if head.startswith(_DESCRIPTOR):
        found.append("vmdk")
    if "vdi" in found and any(early in found for early in before_vdi(generation)):
        found.remove("vdi")
    if found:
        first = "vdi" if "vdi" in found else found[0]
        return None if first == name else first
    if name != "raw":
        return None
    end = align_up(image.size, SECTOR)
    footer = read_padded(image, end - SECTOR, SECTOR) if end > SECTOR else b""
    if footer.startswith(_VHD_COOKIE) and footer[_VHD_TYPE] == _VHD_FIXED:
        return VHD_FOOTER
    return next((word for offset, magic, word in _ARCHIVES if head.startswith(magic, offset)), None)


def _first(image: Reader, head: bytes) -> Format:
    """Return the first row of the table that matches, VDI's left out."""
    for row in TABLE:
        if row.name != "vdi" and _matches(image, head, row):
            return row
    raw = find("raw")
    if raw is None:
        raise KeyError("raw")
    return raw


def _matches(image: Reader, head: bytes, row: Format) -> bool:
    """Tell whether a file starts, or ends, as a format does."""
    return _has_magic(image, head, row) or bool(row.name == "vmdk" and module("vmdk", "parse").is_descriptor(head))


def _has_magic(image: Reader, head: bytes, row: Format) -> bool:
    for probe in row.probes:
        if probe.offset >= 0:
            found = head[probe.offset : probe.offset + len(probe.magic)]
        else:
            there = image.size >= -probe.offset
            found = read_padded(image, image.size + probe.offset, len(probe.magic)) if there else b""
        if found == probe.magic:
            return True
    return False


def choose(image: Reader, name: str | None, generation: tuple[int, int] = NEWEST) -> Format:
    """Return the row of the format asked for, or of the one detected.

    Raises:
        ImageError: ``unsupported-feature``, the format is known by sight only.
    """
    row = detect(image, generation) if name is None else find(name)
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
