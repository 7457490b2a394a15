"""Write JSON as qemu-img does: its key order, its indentation, its escapes.

Law: output of ``info`` and ``check`` equals qemu-img's byte for byte, so that even a diff of two texts works.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_REPLACEMENT = "\ufffd"
#: Orders of keys that have been worked out: rows of a list have the same, and there are many.
_orders: dict[tuple[str, ...], tuple[str, ...]] = {}
_MOST_ORDERS, _MOST_QUOTED = 64, 4096
#: The least number that needs so many bytes.
_LEAST = {1: 0, 2: 0x80, 3: 0x800, 4: 0x10000, 5: 0x200000, 6: 0x4000000}


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
    keys = tuple(mapping)
    order = _orders.get(keys)
    if order is None:
        order = tuple(keys[i] for _, _, i in sorted((bucket(key), -i, i) for i, key in enumerate(keys)))
        if len(_orders) < _MOST_ORDERS:
            _orders[keys] = order
    return [(key, mapping[key]) for key in order]


def quote(text: str) -> str:
    """Return a JSON string in ASCII; each sequence of bytes that is not UTF-8 becomes one U+FFFD, as in QEMU."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = "".join(_characters(text))
    return f'"{text.translate(_QUOTED)}"'


class _Quoted(dict[int, str]):
    """What stands for a character in JSON."""

    def __missing__(self, code: int) -> str:
        if 0x20 <= code < 0x7F:
            made = chr(code)
        elif not _is_character(code, 4 if code > 0xFFFF else 3 if code > 0x7FF else 2 if code > 0x7F else 1):
            made = "\\uFFFD"
        elif code > 0xFFFF:
            high, low = divmod(code - 0x10000, 0x400)
            made = f"\\u{0xD800 + high:04X}\\u{0xDC00 + low:04X}"
        else:
            made = f"\\u{code:04X}"
        if len(self) < _MOST_QUOTED:
            self[code] = made
        return made


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


_QUOTED = _Quoted({ord(char): shown for char, shown in _ESCAPES.items()})


def dumps(value: object, *, qemu_order: bool = True) -> str:
    """Return a value as JSON text with 4 spaces a level; an empty list or object takes two lines."""
    return "".join(pieces(value, qemu_order=qemu_order))


def pieces(value: object, *, qemu_order: bool = True, indent: int = 0) -> Iterator[str]:
    """Yield what ``dumps`` returns, piece by piece: of an image with many snapshots it is long."""
    if isinstance(value, (list, tuple)):
        inner = "\n" + "    " * (indent + 1)
        yield "["
        for index, member in enumerate(value):
            yield ("," if index else "") + inner
            yield from pieces(member, qemu_order=qemu_order, indent=indent + 1)
        yield "\n" + "    " * indent + "]"
    elif isinstance(value, dict):
        inner = "\n" + "    " * (indent + 1)
        comma = ""
        yield "{"
        for key, member in in_order(value) if qemu_order else value.items():
            start = f"{comma}{inner}{quote(key)}: "
            comma = ","
            if isinstance(member, (list, tuple, dict)):
                yield start
                yield from pieces(member, qemu_order=qemu_order, indent=indent + 1)
            else:
                yield start + _scalar(member)
        yield "\n" + "    " * indent + "}"
    else:
        yield _scalar(value)


def _scalar(value: object) -> str:
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
    raise TypeError(type(value).__name__)
