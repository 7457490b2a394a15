"""The text of a VMDK descriptor: identity, parent, type, extents (spec, "The Descriptor File").

Law: total over bytes, in time linear in them. VMware writes more than QEMU reads: what is understood is returned,
with what QEMU says of it (a ``refusal``). QEMU searches the text for words wherever they stand; so that no text makes
it open another file than is told here, the parent's name must stand where the specification puts it, or the
descriptor is refused.
"""

from __future__ import annotations

from instar.core.errors import ImageError, printable
from instar.core.units import INT64_MAX, UINT64_MAX
from instar.formats.vmdk.ondisk import (
    DESCRIPTOR_BYTES,
    MAX_CREATE_TYPE,
    MAX_EXTENT_NAME,
    MAX_EXTENTS,
    MAX_PARENT_NAME,
    NO_CID,
    QEMU_TYPES,
    SECTOR,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STRUCTURE = "descriptor"
#: What C's ``isspace`` skips, but for the end of the line.
_BLANKS = b" \t\v\f\r"
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_QEMU_TYPES = tuple(name.encode() for name in QEMU_TYPES)
#: Bytes of a line that an error shows.
_SHOWN = 200
#: The spec's words for access and for the kind of an extent; QEMU leaves out what is not RW or not of its kinds.
ACCESS = (b"RW", b"RDONLY", b"NOACCESS")
FLAT_KINDS = (b"FLAT", b"VMFS")
SPARSE_KINDS = (b"SPARSE", b"VMFSSPARSE")
SESPARSE_KINDS = (b"SESPARSE",)
QEMU_KINDS = FLAT_KINDS + SPARSE_KINDS + SESPARSE_KINDS
#: Reads as zeros, and has no file.
ZERO = b"ZERO"
DEVICE_KINDS = (b"VMFSRDM", b"VMFSRAW")


class ExtentLine:
    """One line of the extent description.

    Attributes:
        sectors: length; at least 1.
        kind: one of ``QEMU_KINDS``, or ``ZERO``.
        name: the file, as written; empty for ``ZERO``.
        offset: sector in the file where the data of a flat extent starts.
        after_blank: the line before is blank (QEMU then counts this extent twice).
        refusal: what QEMU says of the line; ``None`` if it reads it as is told here.
    """

    __slots__ = ("after_blank", "kind", "name", "offset", "refusal", "sectors")

    def __init__(
        self, sectors: int, kind: bytes, name: bytes, offset: int, *, refusal: ImageError | None = None
    ) -> None:
        self.sectors = sectors
        self.kind = kind
        self.name = name
        self.offset = offset
        self.after_blank = False
        self.refusal = refusal


def _bad(detail: str, *, kind: str = "corrupt", field: str | None = None, limit: int | None = None) -> ImageError:
    return ImageError(kind, STRUCTURE, detail, field=field, limit=limit)


def c_text(data: bytes) -> bytes:
    """Return ``data`` up to its first NUL, which ends a descriptor."""
    return data.partition(b"\0")[0]


def window(data: bytes) -> bytes:
    """Return the part of a descriptor in which QEMU looks for the CIDs and the parent's name."""
    return c_text(data[: DESCRIPTOR_BYTES - 1])


def identity(text: bytes, *, parent: bool = False) -> tuple[int, ImageError | None]:
    """Return the CID, or the parent's, and what QEMU says where it finds none. ``text`` is a ``window``.

    Raises:
        ImageError: ``invalid-format``, there is none.
    """
    try:
        return content_id(text, parent=parent), None
    except ImageError as error:
        for value in _values(text, b"parentcid" if parent else b"cid"):
            number = _scan_hex(value, 0)
            if number >= 0:
                return number, error
        raise


def content_id(text: bytes, *, parent: bool = False) -> int:
    """Return the CID that QEMU finds, or the parent's; 32 bits. ``text`` is a ``window``.

    The first place where the word stands counts, one character after it is skipped, and the number is
    read as C's ``scanf`` reads ``%x``: blanks, sign and ``0x`` allowed, not padded, cut to 32 bits.

    Raises:
        ImageError: ``invalid-format``, there is none.
    """
    word = b"parentCID" if parent else b"CID"
    at = text.find(word)
    number = -1 if at < 0 else _scan_hex(text, at + len(word) + 1)
    if number < 0:
        raise _bad(f"there is no {word.decode()}", kind="invalid-format", field=word.decode())
    return number


def _scan_hex(text: bytes, at: int) -> int:
    """Return the number at ``at`` as ``%x`` reads it, or -1."""
    end = len(text)
    while at < end and text[at] in b" \t\v\f\r\n":
        at += 1
    negative = text[at : at + 1] == b"-"
    if text[at : at + 1] in (b"-", b"+"):
        at += 1
    if text[at : at + 2].lower() == b"0x":
        at += 2
        if text[at : at + 1] not in _HEX or at >= end:
            return -1
    start = at
    while at < end and text[at] in _HEX:
        at += 1
    digits = text[start:at].lstrip(b"0")
    if start == at:
        return -1
    number = UINT64_MAX if len(digits) > 16 else int(digits or b"0", 16)
    if negative and number != UINT64_MAX:
        number = -number
    return number & NO_CID


def _starts_line(text: bytes, at: int) -> bool:
    """Tell whether only blanks stand between the start of the line and ``at``."""
    while at and text[at - 1] in _BLANKS:
        at -= 1
    return at == 0 or text[at - 1] == 0x0A


def _values(text: bytes, key: bytes) -> Iterator[bytes]:
    """Yield what stands behind ``key`` (lower case) and ``=``, without blanks and quotes, on each line that has it."""
    for line in lines(text):
        name, equals, value = line.partition(b"=")
        if equals and len(name) < 64 and name.strip(_BLANKS).lower() == key:
            yield value.strip(_BLANKS).strip(b'"')


def create_type(text: bytes) -> tuple[bytes, ImageError | None]:
    """Return the value of ``createType`` (at most 127 bytes), and what QEMU says where it cannot use what it finds.

    The type decides nothing but whether a disk is opened, so what QEMU finds, in a comment or on the first of
    several lines, is as good as what stands where the specification puts it. ``text`` is the whole descriptor, a
    ``c_text``.

    Raises:
        ImageError: ``invalid-format``, there is none.
    """
    seen = _as_qemu(text, b"createType")
    if seen in _QEMU_TYPES:
        return seen, None
    value = next(_values(text, b"createtype"), None)
    none = _bad("there is no createType", kind="invalid-format", field="createType")
    if value is None or len(value) > MAX_CREATE_TYPE:
        raise none
    if seen is None or len(seen) > MAX_CREATE_TYPE:
        return value, none
    return value, None if seen == value else type_refusal(seen)


def type_refusal(value: bytes) -> ImageError:
    """Return what QEMU says of a disk of a type that it does not know."""
    return _bad(
        f"QEMU does not open disks of type '{printable(value, MAX_CREATE_TYPE)}'",
        kind="unsupported-feature",
        field="createType",
    )


def _as_qemu(text: bytes, word: bytes) -> bytes | None:
    """Return what QEMU takes for the value of ``word``: all from two characters behind it to the next quote."""
    at = text.find(word)
    if at < 0:
        return None
    start = at + len(word) + 2
    end = text.find(b'"', start)
    return None if end < 0 else text[start:end]


def parent_name(text: bytes) -> bytes | None:
    """Return the value of ``parentFileNameHint``, or ``None``. ``text`` is the whole descriptor, a ``c_text``.

    Raises:
        ImageError: QEMU would open another file, or none: the word stands first elsewhere than at the start of a
            line, is written in another way, or past the 20 sectors that QEMU looks at (``unsupported-feature``); it
            is there twice, or its value has no end (``corrupt``).
    """
    word, name = b"parentFileNameHint", "parentFileNameHint"
    lower = text.lower()
    places = []
    at = lower.find(word.lower())
    first = text.find(word)
    while at >= 0:
        if at == first or _starts_line(text, at):
            places.append(at)
        at = lower.find(word.lower(), at + len(word))
    if not places:
        return None
    at = places[0]
    start = at + len(word) + 2
    if at != first or not _starts_line(text, at) or text[start - 2 : start] != b'="':
        detail = f'"{name}" stands, or is written, where QEMU takes something else for the name of the parent'
        raise _bad(detail, kind="unsupported-feature", field=name)
    end = text.find(b'"', start, start + MAX_PARENT_NAME + 1)
    if end < 0:
        raise _bad("the value has no closing quote, or is too long", field=name, limit=MAX_PARENT_NAME)
    if b"\n" in text[start:end]:
        raise _bad("the value does not end on its line", field=name)
    if len(places) > 1:
        raise _bad("the line is there twice", field=name)
    if end >= DESCRIPTOR_BYTES - 1:
        detail = "the name lies where QEMU does not look for it"
        raise _bad(detail, kind="unsupported-feature", field=name, limit=DESCRIPTOR_BYTES)
    return text[start:end] or None


def lines(text: bytes) -> Iterator[bytes]:
    """Yield the lines without their ends."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        if end < 0:
            end = len(text)
        yield text[start:end]
        start = end + 1


def extent_lines(text: bytes) -> list[ExtentLine]:
    """Return the extents in order; ``text`` is the whole descriptor, a ``c_text``.

    Lines that describe nothing (0 sectors) are left out, as in QEMU.

    Raises:
        ImageError: ``corrupt``, ``unsupported-feature``, ``too-large``.
    """
    found: list[ExtentLine] = []
    blank = False
    for line in lines(text):
        extent = _extent_line(line)
        if extent is not None:
            if len(found) == MAX_EXTENTS:
                raise _bad("there are too many extents", kind="too-large", limit=MAX_EXTENTS)
            extent.after_blank = blank
            found.append(extent)
        blank = not line.strip(_BLANKS)
    return found


def _extent_line(line: bytes) -> ExtentLine | None:
    """Read one line; ``None`` if it is not an extent's, or an empty one's."""
    head, quote, tail = line.partition(b'"')
    words = head.split(None, 3)
    if not words or words[0].upper() not in ACCESS:
        return None
    shown = printable(line, _SHOWN)
    if len(words) < 3:
        raise _bad(f"an extent line is not complete: {shown}", field="extent")
    kind = words[2].upper()
    if kind in DEVICE_KINDS:
        detail = f"an extent is a device that only VMware's ESXi reaches (raw device mapping): {shown}"
        raise _bad(detail, kind="unsupported-feature", field="type")
    sectors = _decimal(words[1])
    name, closing, rest = tail.partition(b'"')
    offset = _leading_decimal(rest.strip(_BLANKS))
    refusal = _refusal(words, offset, shown)
    if sectors is None or sectors < 0:
        raise _bad(f"an extent line does not say how many sectors it has: {shown}", field="extent")
    if kind == ZERO:
        name, offset = b"", 0
    elif kind not in QEMU_KINDS:
        raise _bad(f"an extent is of an unknown kind: {shown}", kind="unsupported-feature", field="type")
    elif len(words) != 3 or not quote or not closing or head[-1:] not in (b" ", b"\t"):
        raise _bad(f'an extent line does not read ACCESS SECTORS KIND "NAME": {shown}', field="extent")
    elif not 0 < len(name) <= MAX_EXTENT_NAME or b"\r" in name:
        raise _bad(f"an extent's file name is empty or too long: {shown}", field="extent", limit=MAX_EXTENT_NAME)
    elif (offset or 0) < 0 or (kind == b"FLAT" and offset is None) or (offset and kind not in FLAT_KINDS):
        raise _invalid(shown)
    if sectors > INT64_MAX // SECTOR or (offset or 0) > INT64_MAX // SECTOR:
        raise _bad(f"an extent is longer than any file: {shown}", kind="too-large", field="extent")
    return ExtentLine(sectors, kind, name, offset or 0, refusal=refusal) if sectors else None


def _invalid(shown: str) -> ImageError:
    return _bad(f"an extent lacks its offset, or should have none: {shown}", field="offset")


def _refusal(words: list[bytes], offset: int | None, shown: str) -> ImageError | None:
    """Return what QEMU says of an extent line, ``None`` if it reads it."""
    if words[0] != b"RW":
        detail = f"QEMU leaves out an extent that is not RW, and shows a shorter disk: {shown}"
        return _bad(detail, kind="unsupported-feature", field="access")
    if (words[2] == b"FLAT") != (offset is not None) and words[2] != ZERO:
        return _invalid(shown)
    if words[2] not in QEMU_KINDS:
        detail = f"QEMU leaves out an extent of this kind, and shows a shorter disk: {shown}"
        return _bad(detail, kind="unsupported-feature", field="type")
    return None


def _decimal(word: bytes) -> int | None:
    """Return a decimal number of at most 19 digits, with or without sign."""
    digits = word[1:] if word[:1] in (b"-", b"+") else word
    if not 0 < len(digits) <= 19 or digits.strip(_DIGITS):
        return None
    return int(word)


def _leading_decimal(text: bytes) -> int | None:
    """Return the decimal number that ``text`` starts with, as C's ``scanf`` finds it."""
    end = 1 if text[:1] in (b"-", b"+") else 0
    while end < len(text) and text[end] in _DIGITS:
        end += 1
    word = text[:end]
    if not word.strip(b"+-"):
        return None
    return _decimal(word) if len(word) <= 20 else INT64_MAX


def is_text_descriptor(head: bytes) -> bool:
    """Tell whether QEMU's probe takes the first 512 bytes of a file for a descriptor.

    Comment lines, and blank lines that start with a space, may precede a line ``version=1``, ``2`` or ``3``
    that ends in LF or CR LF. An empty line ends the search, as does anything else.
    """
    head = head[:SECTOR]
    at, end = 0, len(head)
    while at < end:
        if head[at] == 0x23:
            newline = head.find(b"\n", at)
            if newline < 0:
                return False
            at = newline + 1
        elif head[at] == 0x20:
            while at < end and head[at] == 0x20:
                at += 1
            if head[at : at + 1] == b"\r":
                at += 1
            if head[at : at + 1] != b"\n":
                return False
            at += 1
        else:
            line = head[at : at + 11]
            return line[:8] == b"version=" and line[8:9] in (b"1", b"2", b"3") and line[9:].startswith((b"\n", b"\r\n"))
    return False
