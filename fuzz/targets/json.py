"""The JSON writer, against the standard library's reader."""

from __future__ import annotations

import json

from fuzz.targets import wire
from instar.cli.json import dumps
from instar.core.wire import WireError, decode


def seeds() -> list[bytes]:
    """Return encoded values."""
    return wire.seeds()


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


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return "".join("\N{REPLACEMENT CHARACTER}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in value)
    if isinstance(value, list):
        return [_as_json(v) for v in value]
    if isinstance(value, dict):
        return {_as_json(k): _as_json(v) for k, v in value.items()}
    return value
