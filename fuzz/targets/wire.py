"""The codec between cell and host."""

from __future__ import annotations

from instar.core.wire import WireError, decode, encode


def seeds() -> list[bytes]:
    """Return a job, a reply and an error."""
    return [
        encode({"op": "info", "args": {"format": None, "major": 11, "minor": 1, "parts": []}}),
        encode({"ok": {"sizes": [1 << 40, -1], "name": "\udcff", "raw": b"\0\xff", "flag": True}}),
        encode({"error": {"class": "image", "offset": None, "kind": "corrupt"}}),
    ]


def one_input(data: bytes) -> None:
    """Any bytes give a ``WireError`` or the one value whose encoding they are."""
    try:
        value = decode(data)
    except WireError:
        return
    assert encode(value) == data
