"""Guests that answer more than anybody should keep; light, as the command that runs them is measured."""

from __future__ import annotations

from tests.sandbox.exploited import replying, replying_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from instar.sandbox.cell import Guest
    from instar.sandbox.files import GrantedFile

_LIMIT = 32 << 20


def _list(count: int, member: bytes) -> bytes:
    return b"l" + count.to_bytes(4, "big") + member * count


def _text(text: bytes) -> bytes:
    return b"s" + len(text).to_bytes(4, "big") + text


def _key(name: str) -> bytes:
    return _text(name.encode())


def _facts(**others: bytes) -> Guest:
    """Return a guest that describes a qcow2 with some members, encoded, in the place of the honest ones."""
    from instar.core.image import ImageFacts
    from instar.core.wire import encode

    value = ImageFacts("qcow2", 1 << 20).to_wire()
    members = b"".join(_key(name) + others.get(name, encode(member)) for name, member in value.items())
    reply = b"d\0\0\0\1" + _key("ok") + b"d" + len(value).to_bytes(4, "big") + members
    announced = replying(None, format="qcow2")

    def guest(job: bytes, files: list[GrantedFile], ask: Callable[..., object]) -> bytes:
        announced(job, files, ask)  # type: ignore[arg-type]
        return reply

    return guest


def nones() -> Guest:
    """Answer a list of as many nothings as there is room for."""
    return replying_bytes(_list(_LIMIT - 100, b"N"))


def lists() -> Guest:
    """Answer facts with lists of one nothing."""
    return _facts(extra=b"d\0\0\0\1" + _key("bitmaps") + _list(_LIMIT // 6 - 200, b"l\0\0\0\1N"))


def dicts() -> Guest:
    """Answer facts with a list of dicts."""
    return _facts(snapshots=_list(_LIMIT // 14 - 200, b"d\0\0\0\1s\0\0\0\3abcN"))


def long_text() -> Guest:
    """Answer a text that takes four bytes a character."""
    return _facts(format=_text(b"\xf0\x9f\x98\x80" + b"x" * (_LIMIT - 1000)))


def numbers() -> Guest:
    """Answer huge numbers."""
    return _facts(snapshots=_list(_LIMIT // 18 - 200, b"i\x10\x40" + bytes(15)))


def deep() -> Guest:
    """Answer lists in lists in lists."""
    return replying_bytes(b"l\0\0\0\1" * (_LIMIT // 5 - 10) + b"N")


def keys() -> Guest:
    """Answer a dict with as many keys as there is room for."""

    def guest(job: bytes, files: list[GrantedFile], ask: Callable[..., object]) -> bytes:
        count = _LIMIT // 12 - 200
        reply = bytearray(b"d" + count.to_bytes(4, "big"))  # made in the cell, whose memory is not the host's
        for number in range(count):
            reply += b"s\0\0\0\6%06xN" % number
        return bytes(reply)

    return guest


def snapshots() -> Guest:
    """Answer as many snapshots as there may be, their texts as long as they may be and no UTF-8."""
    return _snapshots(65536, backing=False)


def chain() -> Guest:
    """Answer 8 MiB of snapshots, and name the image itself as its backing file, by another name each time."""
    return _snapshots(20_000, backing=True)


def _snapshots(count: int, *, backing: bool) -> Guest:
    from instar.core.wire import encode

    row = {
        "id": "\udcff" * (127 if backing else 30),
        "name": "\udcff" * (255 if backing else 33),
        "vm-state-size": -1,
        "date-sec": 1,
        "date-nsec": 1,
        "vm-clock-sec": 1,
        "vm-clock-nsec": 1,
        "icount": 1,
    }
    rows = _list(count, encode(row))  # type: ignore[arg-type]
    if not backing:
        return _facts(snapshots=rows)

    def guest(job: bytes, files: list[GrantedFile], ask: Callable[..., object]) -> bytes:
        # Each image's first bytes are the name of the next.
        name = files[0].read(0, 16).rstrip(b"\0")
        inner = _facts(snapshots=rows, references=encode([["backing", name, "qcow2", False]]))
        return inner(job, files, ask)  # type: ignore[arg-type]

    return guest


def slow() -> Guest:
    """Compute for six seconds, and name a backing file."""
    import time

    from instar.core.wire import encode

    def guest(job: bytes, files: list[GrantedFile], ask: Callable[..., object]) -> bytes:
        until = time.process_time() + 6
        while time.process_time() < until:
            sum(range(1000))
        name = files[0].read(0, 16).rstrip(b"\0")
        return _facts(references=encode([["backing", name, "qcow2", False]]))(job, files, ask)  # type: ignore[arg-type]

    return guest


def findings() -> Guest:
    """Answer a check with as many findings as there may be, all of texts that are as long as they may be."""
    from instar.core.finding import MAX_DETAIL, MAX_FINDINGS, MAX_STRUCTURE, Report
    from instar.core.image import ImageFacts

    report = Report()
    for _ in range(MAX_FINDINGS):
        text = "\U000e0041"
        report.add("corruption", text * MAX_STRUCTURE, text * MAX_DETAIL, offset=1 << 126, values=(1,) * 8)
    return replying({"facts": ImageFacts("qcow2", 1).to_wire(), "report": report.to_wire()}, format="qcow2")
