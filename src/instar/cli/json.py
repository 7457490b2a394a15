"""Write JSON as qemu-img does: its key order, its indentation, its escapes.

Law: output of ``info`` and ``check`` equals qemu-img's byte for byte, so that even a diff of two texts works.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_REPLACEMENT = "\ufffd"
#: The least number that needs so many bytes.
_LEAST = {2: 0x80, 3: 0x800, 4: 0x10000, 5: 0x200000, 6: 0x4000000}


def bucket(key: str) -> int:
    """Return the place of a key among 512 buckets of QEMU's dictionaries, whose order its output follows.

    The hash is that of the TDB database (see QEMU, ``qobject/qdict.c``), observed on 5.2 to 11.1.
    """
    data = key.encode("utf-8", "surrogateescape")
    value = 0x238F13AF * len(data) & 0xFFFFFFFF
    for index, byte in enumerate(data):
        value = value + (byte << index * 5 % 24) & 0xFFFFFFFF
    return (1103515243 * value + 12345 & 0xFFFFFFFF) % 512


def in_order(mapping: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the members in the order in which QEMU prints them: by bucket, later insertions first."""
    rows = list(mapping.items())
    return [rows[i] for _, _, i in sorted((bucket(key), -i, i) for i, (key, _) in enumerate(rows))]


def quote(text: str) -> str:
    """Return a JSON string in ASCII; each sequence of bytes that is not UTF-8 becomes one U+FFFD, as in QEMU."""
    out = ['"']
    for char in text if text.isascii() else _characters(text):
        code = ord(char)
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif 0x20 <= code < 0x7F:
            out.append(char)
        elif code > 0xFFFF:
            code -= 0x10000
            out.append(f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}")
        else:
            out.append(f"\\u{code:04X}")
    return "".join([*out, '"'])


def _characters(text: str) -> Iterator[str]:
    """Yield the characters that QEMU reads in the bytes of a text (see QEMU, ``mod_utf8_codepoint``)."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte: the text never was one of bytes
        data = text.encode("utf-8", "surrogatepass")
    at = 0
    while at < len(data):
        lead = data[at]
        if lead < 0x80:
            at += 1
            yield chr(lead)
            continue
        # As many ones as the first byte begins with, so many bytes there are; up to six, as UTF-8 once had.
        length = 8 - (lead ^ 0xFF).bit_length()
        if not 2 <= length <= 6:
            at += 1
            yield _REPLACEMENT
            continue
        code, end = lead & 0x7F >> length, at + 1
        while end < at + length and end < len(data) and data[end] & 0xC0 == 0x80:
            code = code << 6 | data[end] & 0x3F
            end += 1
        whole, at = end == at + length, end
        yield chr(code) if whole and _is_character(code, length) else _REPLACEMENT


def _is_character(code: int, length: int) -> bool:
    """Tell whether QEMU takes a number for a character in so many bytes; zero may have two, as C cannot write it."""
    if code > 0x10FFFF or (code < _LEAST[length] and not (code == 0 and length == 2)):
        return False
    return not (0xD800 <= code < 0xE000 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE)


def dumps(value: object, *, qemu_order: bool = True, indent: int = 0) -> str:
    """Return a value as JSON text with 4 spaces a level; an empty list or object takes two lines."""
    inner = "    " * (indent + 1)
    outer = "    " * indent
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (str, bytes)):
        return quote(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
    if isinstance(value, (list, tuple)):
        members = [inner + dumps(v, qemu_order=qemu_order, indent=indent + 1) for v in value]
        return "[\n" + ",\n".join(members) + ("\n" if members else "") + outer + "]"
    if isinstance(value, dict):
        pairs = in_order(value) if qemu_order else list(value.items())
        members = [f"{inner}{quote(k)}: {dumps(v, qemu_order=qemu_order, indent=indent + 1)}" for k, v in pairs]
        return "{\n" + ",\n".join(members) + ("\n" if members else "") + outer + "}"
    raise TypeError(type(value).__name__)
