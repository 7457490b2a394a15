"""The JSON writer, against the standard library's reader."""

from __future__ import annotations

import json
import re

from fuzz.targets import wire
from instar.cli.json import dumps
from instar.core.wire import WireError, decode, encode

#: A sequence of UTF-8 in its first, longest form, as far as it goes; then any other byte.
_SEQUENCE = re.compile(
    rb"[\0-\x7f]|[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{0,2}|[\xf0-\xf7][\x80-\xbf]{0,3}"
    rb"|[\xf8-\xfb][\x80-\xbf]{0,4}|[\xfc\xfd][\x80-\xbf]{0,5}|[\x80-\xff]",
    re.DOTALL,
)
_NO_CHARACTERS = {*range(0xFDD0, 0xFDF0), *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF))}


def seeds() -> list[bytes]:
    """Return encoded values, and texts that are not UTF-8."""
    texts = (b"\xc3", b"\xe2\x82\xe2\x82\xac", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbf\xbf", b"\xf8\x88\x80\x80\x80")
    return [*wire.seeds(), *(encode({"text": text}) for text in texts)]


def _speakable(value: object) -> bool:
    """Tell whether all keys are ASCII, as the names of QEMU's fields are."""
    if isinstance(value, dict):
        return all(k.isascii() and _speakable(v) for k, v in value.items())
    return all(map(_speakable, value)) if isinstance(value, list) else True


def one_input(data: bytes) -> None:
    """Whatever a cell may send is written as JSON that others read as the same value."""
    try:
        value = decode(data)
    except WireError:
        return
    if not _speakable(value):
        return
    text = dumps(value)
    assert text.isascii()
    assert json.loads(text) == _as_json(value)


def _character(data: bytes) -> str:
    try:
        char = "\0" if data == b"\xc0\x80" else data.decode()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}"
    return "\N{REPLACEMENT CHARACTER}" if ord(char) in _NO_CHARACTERS else char


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        return "".join(_character(found[0]) for found in _SEQUENCE.finditer(value))
    if isinstance(value, str):
        return _as_json(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list):
        return [_as_json(v) for v in value]
    if isinstance(value, dict):
        return {_as_json(k): _as_json(v) for k, v in value.items()}
    return value
