"""The text of a VMDK descriptor: identity, parent, type, extents (spec, "The Descriptor File").

Law: total over bytes, in time linear in them. QEMU searches the text for words wherever they stand; so that
no text means one thing here and another to QEMU, a word that decides which files are opened must stand
where the specification puts it, or the descriptor is refused.
"""

from __future__ import annotations

from instar.core.errors import ImageError, printable
from instar.core.units import INT64_MAX, UINT64_MAX
from instar.formats.vmdk.ondisk import (
    DESCRIPTOR_BYTES,
    MAX_CREATE_TYPE,
    MAX_EXTENT_NAME,
    MAX_EXTENTS,
    MAX_LINE,
    MAX_LINES,
    MAX_PARENT_NAME,
    NO_CID,
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
#: The spec's words for access and for the kind of an extent; QEMU reads what is RW and of the first five kinds.
ACCESS = (b"RW", b"RDONLY", b"NOACCESS")
FLAT_KINDS = (b"FLAT", b"VMFS")
SPARSE_KINDS = (b"SPARSE", b"VMFSSPARSE")
SESPARSE_KINDS = (b"SESPARSE",)
KINDS = FLAT_KINDS + SPARSE_KINDS + SESPARSE_KINDS


class ExtentLine:
    """One line of the extent description.

    Attributes:
        sectors: length; at least 1.
        kind: one of ``KINDS``.
        name: the file, as written.
        offset: sector in the file where the data of a flat extent starts.
        after_blank: the line before is blank (QEMU then counts this extent twice).
    """

    __slots__ = ("after_blank", "kind", "name", "offset", "sectors")

    def __init__(self, sectors: int, kind: bytes, name: bytes, offset: int, *, after_blank: bool = False) -> None:
        self.sectors = sectors
        self.kind = kind
        self.name = name
        self.offset = offset
        self.after_blank = after_blank


def _bad(detail: str, *, kind: str = "corrupt", field: str | None = None, limit: int | None = None) -> ImageError:
    return ImageError(kind, STRUCTURE, detail, field=field, limit=limit)


def c_text(data: bytes) -> bytes:
    """Return ``data`` up to its first NUL, which ends a descriptor."""
    return data.partition(b"\0")[0]


def window(data: bytes) -> bytes:
    """Return the part of a descriptor in which QEMU looks for the CIDs and the parent's name."""
    return c_text(data[: DESCRIPTOR_BYTES - 1])


def content_id(text: bytes, *, parent: bool = False) -> int:
    """Return the CID, or the parent's; 32 bits. ``text`` is a ``window``.

    As in QEMU the first place where the word stands counts, one character after it is skipped, and the number is
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


def _quoted(text: bytes, word: bytes, limit: int) -> bytes | None:
    """Return what stands in quotes after ``word=`` at the start of a line, or ``None`` if the word is not there.

    Raises:
        ImageError: ``corrupt``: the word stands first elsewhere, or twice, or its value has no end.
    """
    name = word.decode()
    at = text.find(word)
    if at < 0:
        return None
    start = at + len(word) + 2
    if not _starts_line(text, at) or text[start - 2 : start] != b'="':
        raise _bad(f'"{name}" stands where readers disagree on what it means', field=name)
    end = text.find(b'"', start, start + limit + 1)
    if end < 0:
        raise _bad("the value has no closing quote, or is too long", field=name, limit=limit)
    value = text[start:end]
    if b"\n" in value:
        raise _bad("the value does not end on its line", field=name)
    again = text.find(word, end)
    while again >= 0:
        if _starts_line(text, again):
            raise _bad("the line is there twice", field=name)
        again = text.find(word, again + len(word))
    return value


def create_type(text: bytes) -> bytes:
    """Return the value of ``createType`` (at most 127 bytes). ``text`` is the whole descriptor, a ``c_text``.

    Raises:
        ImageError: ``invalid-format``, there is none; ``corrupt``, readers would disagree on it.
    """
    value = _quoted(text, b"createType", MAX_CREATE_TYPE)
    if value is None:
        raise _bad("there is no createType", kind="invalid-format", field="createType")
    return value


def parent_name(text: bytes) -> bytes | None:
    """Return the value of ``parentFileNameHint``, or ``None``. ``text`` is the whole descriptor, a ``c_text``.

    Raises:
        ImageError: ``corrupt``, readers would disagree on it: not at the start of a line, there twice, or past
            the 20 sectors that QEMU looks at.
    """
    name = _quoted(text, b"parentFileNameHint", MAX_PARENT_NAME)
    if name is None:
        return None
    if text.find(b'"', text.find(b"parentFileNameHint") + 20) >= DESCRIPTOR_BYTES - 1:
        raise _bad("the name lies where QEMU does not look for it", field="parentFileNameHint", limit=DESCRIPTOR_BYTES)
    return name or None


def lines(text: bytes) -> Iterator[bytes]:
    """Yield the lines without their ends.

    Raises:
        ImageError: ``too-large``, more than ``MAX_LINES``, or one longer than ``MAX_LINE``.
    """
    start = 0
    for _ in range(MAX_LINES):
        end = text.find(b"\n", start)
        if end < 0:
            end = len(text)
        if end - start > MAX_LINE:
            raise _bad("a line is too long", kind="too-large", limit=MAX_LINE)
        yield text[start:end]
        start = end + 1
        if start >= len(text):
            return
    raise _bad("there are too many lines", kind="too-large", limit=MAX_LINES)


def extent_lines(text: bytes) -> list[ExtentLine]:
    """Return the extents in order; ``text`` is the whole descriptor, a ``c_text``.

    Lines that describe nothing (0 sectors) are left out, as in QEMU. QEMU also leaves out, without a word, extents
    that are not RW and kinds that it does not know; the disk it shows is then shorter than it is, so those are
    refused here.

    Raises:
        ImageError: ``corrupt``, ``unsupported-feature``, ``too-large``.
    """
    found: list[ExtentLine] = []
    blank = False
    for line in lines(text):
        extent = _extent_line(line, blank)
        blank = not line.strip(_BLANKS)
        if extent is None:
            continue
        if len(found) == MAX_EXTENTS:
            raise _bad("there are too many extents", kind="too-large", limit=MAX_EXTENTS)
        found.append(extent)
    return found


def _extent_line(line: bytes, after_blank: bool) -> ExtentLine | None:
    """Read one line; ``None`` if it is not an extent's, or an empty one's."""
    head, quote, tail = line.partition(b'"')
    words = head.split()
    if not words or words[0].upper() not in ACCESS:
        return None
    shown = printable(line, 60)
    if words[0] != b"RW":
        raise _bad(f"an extent is not RW: {shown}", kind="unsupported-feature", field="access")
    if len(words) < 3:
        raise _bad(f"an extent line is not complete: {shown}", field="extent")
    if words[2] not in KINDS:
        raise _bad(f"an extent is of a kind that is not read: {shown}", kind="unsupported-feature", field="type")
    sectors = _decimal(words[1])
    name, closing, rest = tail.partition(b'"')
    if len(words) != 3 or not quote or not closing or sectors is None or sectors < 0:
        raise _bad(f'an extent line does not read RW SECTORS KIND "NAME": {shown}', field="extent")
    if not 0 < len(name) <= MAX_EXTENT_NAME or b"\r" in name:
        raise _bad(f"an extent's file name is empty or too long: {shown}", field="extent", limit=MAX_EXTENT_NAME)
    offset = _leading_decimal(rest.strip(_BLANKS))
    if words[2] == b"FLAT":
        if offset is None or offset < 0:
            raise _bad(f"a flat extent does not say where it starts: {shown}", field="offset")
    elif offset is not None:
        raise _bad(f"only a FLAT extent has an offset: {shown}", field="offset")
    if sectors > INT64_MAX // SECTOR or (offset or 0) > INT64_MAX // SECTOR:
        raise _bad(f"an extent is longer than any file: {shown}", kind="too-large", field="extent")
    if not sectors:
        return None
    return ExtentLine(sectors, words[2], name, offset or 0, after_blank=after_blank)


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
