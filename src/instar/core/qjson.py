"""Read JSON as QEMU does on its command line: its liberties, its limits, its sentences.

Law: any text gives a value or a ``JsonError`` whose text is QEMU's, in time and depth bounded by its length and
``MAX_NESTING``. The standard library's reader is no stand-in: QEMU also takes strings in single quotes, and words its
errors otherwise.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAX_NESTING = 64
#: Since this version an error is told with its place.
_PLACES_SINCE = (10, 1)
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_DIGITS = frozenset("0123456789")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
#: Two bytes that QEMU takes for the end of a text, as no UTF-8 has them.
_NO_TEXT = "\udcfe\udcff"
_HEX = frozenset("0123456789abcdefABCDEF")
_INT64 = 1 << 63


class JsonError(ValueError):
    """The text is no JSON; ``str(error)`` is what QEMU says."""


class _Token:
    __slots__ = ("at", "kind", "text")

    def __init__(self, kind: str, text: str, at: int) -> None:
        self.kind = kind
        self.text = text
        self.at = at


class _Reader:
    """The tokens of one text, and where reading them has come to."""

    def __init__(self, text: str, generation: tuple[int, int]) -> None:
        self._text = text
        self._at = 0
        self._places = generation >= _PLACES_SINCE
        self.token = _Token("start", "", 0)
        self.take()

    def more(self) -> bool:
        """Tell whether anything stands behind what has been read; a whole value need not be read to tell."""
        return self.token.kind != "end"

    def error(self, token: _Token, what: str) -> JsonError:
        place = ""
        if self._places:
            before = self._text[: token.at]
            place = f"{before.count(chr(10)) + 1}:{token.at - (before.rfind(chr(10)) + 1) + 1}: "
        return JsonError(f"{place}JSON parse error, {what}")

    def quote(self, token: _Token) -> str:
        """Return the quote that a text ends with, and began with."""
        return self._text[token.at]

    def early(self) -> JsonError:
        return self.error(self.token, "premature end of input" if self._places else "premature EOI")

    def _next(self) -> _Token:
        text = self._text
        while self._at < len(text) and text[self._at] in " \t\r\n":
            self._at += 1
        start = self._at
        if start == len(text):
            return _Token("end", "", start)
        first = text[start]
        if first in "{}[]:,":
            self._at += 1
            return _Token(first, first, start)
        if first in "\"'":
            return self._string(first, start)
        if first in _LETTERS:
            while self._at < len(text) and text[self._at] in _LETTERS:
                self._at += 1
            return _Token("word", text[start : self._at], start)
        if first in _DIGITS or first == "-":
            return self._number(start)
        raise self._stray(start, start + 1)

    def _stray(self, start: int, end: int) -> JsonError:
        return self.error(_Token("", "", start), f"stray '{self._text[start:end]}'")

    def _string(self, quote: str, start: int) -> _Token:
        text = self._text
        at = start + 1
        while at < len(text) and text[at] != quote:
            if text[at] < " " or text[at] in _NO_TEXT:
                raise self._stray(start, at + 1)
            at += 2 if text[at] == "\\" else 1
        if at >= len(text):
            raise self._stray(start, len(text))
        self._at = at + 1
        return _Token("string", text[start + 1 : at], start)

    def _digits(self) -> bool:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in _DIGITS:
            self._at += 1
        return self._at > start

    def _sees(self, letters: str) -> bool:
        if self._at < len(self._text) and self._text[self._at] in letters:
            self._at += 1
            return True
        return False

    def _number(self, start: int) -> _Token:
        kind = "int"
        self._sees("-")
        good = self._sees("0") or self._digits()
        if good and self._sees("."):
            kind, good = "float", self._digits()
        if good and self._sees("eE"):
            self._sees("+-")
            kind, good = "float", self._digits()
        if not good:
            raise self._stray(start, self._at + 1)
        return _Token(kind, self._text[start : self._at], start)

    def take(self) -> _Token:
        """Return the token that is next, and go on to the one behind."""
        token = self.token
        if token.kind == "end":
            raise self.early()
        if token.kind == "bad":
            raise JsonError(token.text)
        try:
            self.token = self._next()
        except JsonError as error:
            # What cannot be read is complained of when it is needed.
            self.token = _Token("bad", str(error), self._at)
        return token

    def key(self, depth: int) -> str:
        """Return the next token, which must be a text."""
        token = self.token
        if self._places and token.kind not in ("string", "end", "bad"):
            raise self.error(token, "expecting key")
        key = _value(self, depth + 1)
        if not isinstance(key, str):
            raise self.error(token, "key is not a string in object")
        return key


def loads(text: str, generation: tuple[int, int]) -> Json:
    """Return the value of a text, as the QEMU of a version reads it.

    Raises:
        JsonError: it is none.
    """
    reader = _Reader(text, generation)
    if reader.token.kind == "end":
        raise JsonError("Expecting a JSON value")
    value = _value(reader, 0)
    if reader.more():
        raise JsonError("Expecting at most one JSON value")
    return value


def _value(reader: _Reader, depth: int) -> Json:
    if depth > MAX_NESTING:
        raise JsonError("JSON nesting depth limit exceeded")
    token = reader.take()
    if token.kind == "{":
        return _object(reader, depth)
    if token.kind == "[":
        return _array(reader, depth)
    if token.kind == "string":
        return _unescape(reader, token)
    if token.kind == "word":
        words: dict[str, Json] = {"true": True, "false": False, "null": None}
        if token.text not in words:
            raise reader.error(token, f"invalid keyword '{token.text}'")
        return words[token.text]
    if token.kind == "int" and len(token.text) <= 20 and -_INT64 <= int(token.text) < 2 * _INT64:
        return int(token.text)
    if token.kind in ("int", "float"):
        return float(token.text)
    raise reader.error(token, "expecting value")


def _object(reader: _Reader, depth: int) -> Json:
    found: dict[str, Json] = {}
    if reader.token.kind == "}":
        reader.take()
        return found
    while True:
        key = reader.key(depth)
        token = reader.take()
        if token.kind != ":":
            raise reader.error(token, "missing : in object pair")
        start = reader.token
        value = _value(reader, depth + 1)
        if key in found:
            raise reader.error(start, "duplicate key")
        found[key] = value
        token = reader.take()
        if token.kind == "}":
            return found
        if token.kind != ",":
            raise reader.error(token, "expected separator in dict")


def _array(reader: _Reader, depth: int) -> Json:
    found: list[Json] = []
    if reader.token.kind == "]":
        reader.take()
        return found
    while True:
        found.append(_value(reader, depth + 1))
        token = reader.take()
        if token.kind == "]":
            return found
        if token.kind != ",":
            raise reader.error(token, "expected separator in list")


def _unescape(reader: _Reader, token: _Token) -> str:
    text = token.text
    if "\\" not in text and text.isascii():
        return text
    out: list[str] = []
    at = 0
    while at < len(text):
        if text[at] != "\\":
            if not _is_character(ord(text[at])):
                raise reader.error(token, "invalid UTF-8 sequence in string")
            out.append(text[at])
            at += 1
        elif text[at + 1] in _ESCAPES:
            out.append(_ESCAPES[text[at + 1]])
            at += 2
        elif text[at + 1] == "u":
            start, code = at, _hex4(text, at + 2)
            if code < 0:
                # QEMU shows four characters, of which one may be the quote behind the text.
                shown = (text[at + 2 : at + 6] + reader.quote(token))[:4]
                raise reader.error(token, f"\\u{shown} is not a valid Unicode character")
            at += 6
            # Two halves make one character; a half alone is none.
            low = _hex4(text, at + 2) if 0xD800 <= code < 0xDC00 and text[at : at + 2] == "\\u" else -1
            if 0xDC00 <= low < 0xE000:
                code = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF)
                at += 6
            if not _is_character(code):
                raise reader.error(token, f"{text[start:at]} is not a valid Unicode character")
            # A zero is two bytes in QEMU, as it ends a text in C.
            out.append(chr(code) if code else "\udcc0\udc80")
        else:
            raise reader.error(token, "invalid escape sequence in string")
    return "".join(out)


def _hex4(text: str, at: int) -> int:
    digits = text[at : at + 4]
    return int(digits, 16) if len(digits) == 4 and _HEX.issuperset(digits) else -1


def _is_character(code: int) -> bool:
    """Tell whether Unicode has, or may come to have, a character of this number."""
    return not (0xD800 <= code < 0xE000 or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE)
