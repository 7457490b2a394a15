"""What crosses the wall between host and cell: one strict, small, canonical encoding of plain values.

Law: ``decode`` gives a value or raises ``WireError``, in time and memory linear in the input, for any bytes; with a
``Room`` in no more memory than that has left, whatever the input.
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
_NONE, _TRUE, _FALSE, _INT, _BYTES, _STR, _LIST, _DICT = b"NTFibsld"


class WireError(ValueError):
    """The bytes are not an encoded value, or the value is not of the shape that was expected."""


class TooMuch(WireError):
    """There is no room for the value."""


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


class Room:
    """How many values may still be decoded, and how many bytes of memory they may take; several decodings may share it.

    Each ``None``, bool, number, text, list, dict and key counts as one value. Prices are those of CPython on 64 bits,
    or more.
    """

    __slots__ = ("memory", "values")

    def __init__(self, *, values: int, memory: int) -> None:
        self.values = values
        self.memory = memory

    def take(self, values: int, memory: int) -> None:
        """Count what is about to be made.

        Raises:
            TooMuch: there is no room for it.
        """
        self.values -= values
        self.memory -= memory
        if self.values < 0:
            raise TooMuch("it has too many values")
        if self.memory < 0:
            raise TooMuch("its values take too much memory")


#: What Python's objects take, in bytes: a place in a list, a number or an object's head, a text's head, a list, and
#: dicts of up to 5, up to 10 and more members.
_PLACE, _NUMBER, _HEAD, _LIST_HEAD = 9, 48, 80, 96
_SMALL_DICT, _MIDDLE_DICT, _MEMBER = 272, 480, 96
#: A longer text is counted before it is made: a character may take four bytes, however few there are of those that do.
_LONG = 1 << 12


def decode(data: bytes, room: Room | None = None) -> Wire:
    """Decode exactly one value; its members count against ``room`` before they are made.

    Raises:
        WireError: for anything but the output of ``encode``; ``TooMuch`` where there is no room.
    """
    decoder = _Decoder(data, room or Room(values=len(data) + 1, memory=1 << 62))
    decoder.room.take(1, 0)
    value = decoder.value(0)
    if decoder.at != len(data):
        raise WireError("there is something after the value")
    decoder.room.take(0, decoder.spent)
    return value


class _Decoder:
    """Where decoding stands; written for speed, as a host decodes a million values of one reply.

    ``spent`` are bytes of memory that have not been taken from the room yet. A key that is there often is one object.
    """

    __slots__ = ("_data", "_keys", "at", "room", "spent")

    def __init__(self, data: bytes, room: Room) -> None:
        self._data = data
        self._keys: dict[bytes, str] = {}
        self.room = room
        self.at = 0
        self.spent = 0

    def value(self, depth: int) -> Wire:
        """Return the next value, which has been counted as one, but for its memory."""
        data, at = self._data, self.at
        tag = data[at] if at < len(data) else 0
        if tag == _INT:
            size = data[at + 1] if at + 1 < len(data) else 0
            end = at + 2 + size
            if not 1 <= size <= _MAX_INT_BYTES or end > len(data):
                raise WireError("a number is cut short")
            number = int.from_bytes(data[at + 2 : end], "big", signed=True)
            if size > 1 and (number.bit_length() + 8) // 8 != size:
                raise WireError("a number is not in its shortest form")
            self.at = end
            self.spent += _NUMBER
            return number
        self.at = at + 1
        if tag == _STR:
            return self._text(self._piece())
        if tag == _NONE:
            return None
        if tag == _TRUE:
            return True
        if tag == _FALSE:
            return False
        if tag == _DICT:
            return self._dict(depth + 1)
        if tag == _LIST:
            return self._list(depth + 1)
        if tag == _BYTES:
            piece = self._piece()
            self._spend(_NUMBER + len(piece))
            return piece
        raise WireError("an unknown or truncated item")

    def _spend(self, memory: int) -> None:
        self.room.take(0, self.spent + memory)
        self.spent = 0

    def _count(self) -> int:
        """Return how many members, or bytes, there are to follow; each takes one byte at least."""
        start = self.at + 4
        count = int.from_bytes(self._data[self.at : start], "big")
        if start > len(self._data):
            raise WireError("an unknown or truncated item")
        if count > len(self._data) - start:
            raise WireError("a length reaches past the end")
        self.at = start
        return count

    def _piece(self) -> bytes:
        count = self._count()
        if count > self.room.memory:
            raise TooMuch("its values take too much memory")
        start = self.at
        self.at += count
        return self._data[start : self.at]

    def _text(self, piece: bytes) -> str:
        long = len(piece) > _LONG
        if long:
            self._spend(_HEAD + (len(piece) if piece.isascii() else 4 * len(piece)))
        try:
            text = piece.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            raise WireError("a text is not UTF-8") from None
        if not long:
            self.spent += text.__sizeof__()
        return text

    def _list(self, depth: int) -> list[Wire]:
        count = self._count()
        self._enter(depth, count, _LIST_HEAD + _PLACE * count)
        return [self.value(depth) for _ in range(count)]

    def _dict(self, depth: int) -> dict[str, Wire]:
        count = self._count()
        self._enter(depth, 2 * count, _SMALL_DICT if count <= 5 else _MIDDLE_DICT if count <= 10 else _MEMBER * count)
        data, keys = self._data, self._keys
        mapping: dict[str, Wire] = {}
        for _ in range(count):
            if data[self.at : self.at + 1] != b"s":
                raise WireError("a key is not a str, or is there twice")
            self.at += 1
            piece = self._piece()
            key = keys.get(piece)
            if key is None:
                key = keys[piece] = self._text(piece)
                self.spent += _MEMBER + _NUMBER + len(piece)  # in ``keys``
            if key in mapping:
                raise WireError("a key is not a str, or is there twice")
            mapping[key] = self.value(depth)
        return mapping

    def _enter(self, depth: int, values: int, memory: int) -> None:
        if depth > MAX_DEPTH and values:
            raise WireError("the value nests too deeply")
        self.room.take(values, self.spent + memory)
        self.spent = 0


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
