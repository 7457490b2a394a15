"""What crosses the wall between host and cell: one strict, small, canonical encoding of plain values.

Law: ``decode`` gives a value or raises ``WireError``, in time and memory linear in the input, for any bytes.
A value is ``None``, a bool, an int below 2^127, bytes, str, a list, or a dict with str keys.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Wire = None | bool | int | bytes | str | list["Wire"] | dict[str, "Wire"]
    T = TypeVar("T")

#: Deepest nesting of lists and dicts.
MAX_DEPTH = 12
_MAX_INT_BYTES = 16


class WireError(ValueError):
    """The bytes are not an encoded value, or the value is not of the shape that was expected."""


def encode(value: Wire) -> bytes:
    """Encode a value.

    Raises:
        WireError: the value is of no type that may cross, or nests too deeply.
    """
    out = bytearray()
    _encode(value, out, 0)
    return bytes(out)


def _encode(value: Wire, out: bytearray, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise WireError("the value nests too deeply")
    if value is None:
        out += b"N"
    elif value is True:
        out += b"T"
    elif value is False:
        out += b"F"
    elif isinstance(value, int):
        size = (value.bit_length() + 8) // 8
        if size > _MAX_INT_BYTES:
            raise WireError("the number is too large")
        out += b"i%c" % size
        out += value.to_bytes(size, "big", signed=True)
    elif isinstance(value, (bytes, bytearray)):
        out += b"b" + len(value).to_bytes(4, "big")
        out += value
    elif isinstance(value, str):
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise WireError("a text has a surrogate that stands for no byte") from None
        out += b"s" + len(data).to_bytes(4, "big")
        out += data
    elif isinstance(value, list):
        out += b"l" + len(value).to_bytes(4, "big")
        for member in value:
            _encode(member, out, depth + 1)
    elif isinstance(value, dict):
        out += b"d" + len(value).to_bytes(4, "big")
        for key, member in value.items():
            if not isinstance(key, str):
                raise WireError("a key is not a str")
            _encode(key, out, depth + 1)
            _encode(member, out, depth + 1)
    else:
        raise WireError(f"a {type(value).__name__} may not cross")


def decode(data: bytes) -> Wire:
    """Decode exactly one value.

    Raises:
        WireError: for anything but the output of ``encode``.
    """
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise WireError("there is something after the value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Wire, int]:
    if depth > MAX_DEPTH:
        raise WireError("the value nests too deeply")
    tag = data[at : at + 1]
    at += 1
    if tag == b"N":
        return None, at
    if tag == b"T":
        return True, at
    if tag == b"F":
        return False, at
    if tag == b"i":
        size = data[at] if at < len(data) else 0
        if not 1 <= size <= _MAX_INT_BYTES or at + 1 + size > len(data):
            raise WireError("a number is cut short")
        number = int.from_bytes(data[at + 1 : at + 1 + size], "big", signed=True)
        if (number.bit_length() + 8) // 8 != size:
            raise WireError("a number is not in its shortest form")
        return number, at + 1 + size
    if tag not in (b"b", b"s", b"l", b"d") or at + 4 > len(data):
        raise WireError("an unknown or truncated item")
    count = int.from_bytes(data[at : at + 4], "big")
    at += 4
    if count > len(data) - at:
        raise WireError("a length reaches past the end")
    if tag == b"b":
        return data[at : at + count], at + count
    if tag == b"s":
        try:
            return data[at : at + count].decode("utf-8", "surrogateescape"), at + count
        except UnicodeDecodeError:
            raise WireError("a text is not UTF-8") from None
    if tag == b"l":
        members: list[Wire] = []
        for _ in range(count):
            member, at = _decode(data, at, depth + 1)
            members.append(member)
        return members, at
    mapping: dict[str, Wire] = {}
    for _ in range(count):
        key, at = _decode(data, at, depth + 1)
        if not isinstance(key, str) or key in mapping:
            raise WireError("a key is not a str, or is there twice")
        mapping[key], at = _decode(data, at, depth + 1)
    return mapping, at


def take(value: Wire, key: str, kind: type[T]) -> T:
    """Return member ``key`` of a dict, which must be of exactly the type ``kind``.

    Raises:
        WireError: it is not there or is of another type.
    """
    member = value.get(key) if isinstance(value, dict) else None
    if type(member) is not kind:
        raise WireError(f"'{key}' is missing or is not of type {kind.__name__}")
    return member


def take_optional(value: Wire, key: str, kind: type[T]) -> T | None:
    """Return member ``key`` of a dict, which may be ``None`` or absent; see ``take``."""
    if isinstance(value, dict) and value.get(key) is None:
        return None
    return take(value, key, kind)


def take_size(value: Wire, key: str, *, limit: int = (1 << 64) - 1) -> int:
    """Return a non-negative number no larger than ``limit``; see ``take``."""
    number = take(value, key, int)
    if not 0 <= number <= limit:
        raise WireError(f"'{key}' is out of range")
    return number
