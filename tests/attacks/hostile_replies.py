"""Replies that are to cost the host memory and time, made by hand so that making them costs little itself.

Each function takes no arguments and returns a guest, for ``exploited.run_exploited``. ``MODULE:a_N`` of a name in
``REPLIES`` is made on demand.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from instar.sandbox.cell import Guest

MiB = 1 << 20
#: The longest replies that are taken, less what the rest of a reply needs.
_INFO, _CHECK = (32 << 20) - 4096, (8 << 20) - 4096


def _n(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _s(text: bytes) -> bytes:
    return b"s" + _n(len(text)) + text


def _b(data: bytes) -> bytes:
    return b"b" + _n(len(data)) + data


def _l(count: int, body: bytes) -> bytes:
    return b"l" + _n(count) + body


def _d(*pairs: bytes) -> bytes:
    return b"d" + _n(len(pairs) // 2) + b"".join(pairs)


def _info(format: bytes = b"qcow2", **changes: bytes) -> bytes:
    """Return the encoded description of an image, with encoded values changed or added."""
    members = {
        "format": _s(format),
        "virtual_size": b"i\x01\x00",
        "cluster_size": b"N",
        "encrypted": b"F",
        "dirty": b"F",
        "corrupt": b"F",
        "references": _l(0, b""),
        "snapshots": _l(0, b""),
        "format_specific": b"N",
        "extra": _d(),
        "has_dirty_flag": b"T",
        **changes,
    }
    return _d(*(part for key, value in members.items() for part in (_s(key.encode()), value)))


def _specific(value: bytes, key: bytes = b"compat") -> bytes:
    return _info(format_specific=_d(_s(b"type"), _s(b"qcow2"), _s(b"data"), _d(_s(key), value)))


def _report(**changes: bytes) -> bytes:
    from instar.core.finding import Report
    from instar.core.wire import encode

    wire = Report().to_wire()
    assert isinstance(wire, dict)
    members = {**{key: encode(value) for key, value in wire.items()}, **changes}
    report = _d(*(part for key, value in members.items() for part in (_s(key.encode()), value)))
    return _d(_s(b"facts"), _info(), _s(b"report"), report)


def _ok(value: bytes) -> bytes:
    return _d(_s(b"ok"), value)


def _many(item: bytes, most: int = _INFO) -> bytes:
    """Return a list that fills a reply with one item, over and over."""
    count = most // len(item)
    return _l(count, item * count)


def _keyed(most: int, value: bytes) -> bytes:
    """Return a dict that fills a reply with different keys."""
    one = len(_s(b"%08x" % 0)) + len(value)
    count = most // one
    return b"d" + _n(count) + b"".join(_s(b"%08x" % n) + value for n in range(count))


def _nested(depth: int, item: bytes, most: int = _INFO) -> bytes:
    """Return lists in lists, as deep as may be, filled at the bottom."""
    value = _many(item, most - 5 * depth)
    for _ in range(depth):
        value = _l(1, value)
    return value


def _snapshots(count: int, name: bytes = b"a snapshot of some day", **fields: bytes) -> bytes:
    members = {
        "icount": b"i\x01\x05",
        "vm-clock-nsec": b"i\x04\x0a\x00\x00\x00",
        "name": _s(name),
        "date-sec": b"i\x04\x5a\x00\x00\x00",
        "date-nsec": b"i\x01\x00",
        "vm-clock-sec": b"i\x03\x0a\x00\x00",
        "id": _s(b"65536"),
        "vm-state-size": b"i\x05\x01\x00\x00\x00\x00",
        **fields,
    }
    row = _d(*(part for key, value in members.items() for part in (_s(key.encode()), value)))
    return _l(count, row * count)


_REFERENCE = _l(4, _s(b"extents.0") + _b(b"x" * 4096) + b"N" + b"F")
_BIG = b"i\x10" + b"\x7f" + b"\xff" * 15
_FINDING = _l(6, _s(b"leak") + _s(b"s" * 200) + _s(b"\x01" * 7000) + b"N" + _s(b"") + _l(0, b""))
_WIDE = "\U0001f600".encode() + b"x" * (_INFO - 4)


def _error(**fields: bytes) -> bytes:
    body = _d(*(part for key, value in fields.items() for part in (_s(key.encode()), value)))
    return _d(_s(b"error"), body)


_IMAGE_ERROR = {"class": _s(b"image"), "kind": _s(b"corrupt"), "structure": _s(b"s"), "detail": _s(b"d")}

#: The named ones first, then what is of the same kind. All are for ``info``.
INFO: dict[str, Callable[[], bytes]] = {
    "lists of one None": lambda: _ok(_specific(_many(_l(1, b"N")))),
    "dicts of one None": lambda: _ok(_specific(_many(_d(_s(b"a"), b"N")))),
    "None": lambda: _ok(_specific(_many(b"N"))),
    "None in extra": lambda: _ok(_info(extra=_d(_s(b"parts"), _many(b"N")))),
    "small dicts in extra": lambda: _ok(_info(extra=_d(_s(b"extents"), _many(_d(_s(b"a"), b"T", _s(b"b"), b"F"))))),
    "empty lists": lambda: _ok(_specific(_many(_l(0, b"")))),
    "empty dicts": lambda: _ok(_specific(_many(_d()))),
    "empty texts": lambda: _ok(_specific(_many(_s(b"")))),
    "empty bytes": lambda: _ok(_specific(_many(_b(b"")))),
    "numeric texts": lambda: _ok(_specific(_many(_s(b"1")))),
    "numbers of 127 bits": lambda: _ok(_specific(_many(_BIG))),
    "negative numbers": lambda: _ok(_specific(_many(b"i\x02\x80\x00"))),
    "lists as deep as may be": lambda: _ok(_specific(_nested(6, b"N"))),
    "lists deeper than may be": lambda: _ok(_specific(_l(1, b"l\0\0\0\1" * 1000 + b"N"))),
    "a tower of lists that fills the reply": lambda: b"l\0\0\0\1" * (_INFO // 5),
    "different keys": lambda: _ok(_specific(_keyed(_INFO, b"N"))),
    "different keys at the top": lambda: _keyed(_INFO, b"N"),
    "one key of 30 MiB": lambda: _ok(_specific(b"N", b"k" * (30 * MiB))),
    "a key twice": lambda: _ok(_d(_s(b"k" * MiB), b"N", _s(b"k" * MiB), b"N")),
    "one text of 30 MiB": lambda: _ok(_specific(_s(b"x" * (30 * MiB)))),
    "one text of 30 MiB of escapes": lambda: _ok(_specific(_s(b"\x01" * (30 * MiB)))),
    "one text that one character makes four times as large": lambda: _ok(_specific(_s(_WIDE))),
    "many texts that one character makes large": lambda: _ok(_specific(_many(_s("\U0001f600".encode() + b"x" * 4000)))),
    "one text of bytes that are no UTF-8": lambda: _ok(_specific(_s(b"\xff" * (30 * MiB)))),
    "bytes of 30 MiB": lambda: _ok(_specific(_b(b"\xff" * (30 * MiB)))),
    "a format of 30 MiB": lambda: _ok(_info(b"q" * (30 * MiB))),
    "a count of 2^32 - 1": lambda: _ok(_specific(b"l\xff\xff\xff\xff")),
    "a count of as many as there are bytes": lambda: _ok(_specific(_l(_INFO, b"s" * _INFO))),
    "counts that reach to the end in every list": lambda: b"".join(
        b"l" + _n(n) for n in range(MiB, MiB - 5 * 12, -5)
    ) + b"N" * MiB,
    "65,537 snapshots": lambda: _ok(_info(snapshots=_snapshots(65_537, b"x"))),
    "a million snapshots without a field": lambda: _ok(_info(snapshots=_many(_d()))),
    "snapshots with a name of 65,535 characters": lambda: _ok(_info(snapshots=_snapshots(400, b"x" * 65_535))),
    "65,536 snapshots whose names are escapes": lambda: _ok(_info(snapshots=_snapshots(65_536, b"\x1b" * 200))),
    "65,536 snapshots whose names are wide": lambda: _ok(
        _info(snapshots=_snapshots(65_536, "\U0001f600".encode() * 50))
    ),
    "1,024 references of 4,096 bytes": lambda: _ok(_info(references=_l(1024, _REFERENCE * 1024))),
    "8,000 references of 4,096 bytes": lambda: _ok(_info(references=_many(_REFERENCE))),
    "a million references that are none": lambda: _ok(_info(references=_many(_l(0, b"")))),
    "a role of 30 MiB": lambda: _ok(
        _info(references=_l(1, _l(4, _s(b"r" * (30 * MiB)) + _b(b"x") + b"N" + b"F")))
    ),
    "bitmaps without an end": lambda: _ok(
        _specific(
            _many(_d(_s(b"flags"), _l(0, b""), _s(b"name"), _s(b"b"), _s(b"granularity"), b"i\x01\x01")), b"bitmaps"
        )
    ),
    "extents without an end": lambda: _ok(
        _info(
            b"vmdk",
            format_specific=_d(
                _s(b"type"), _s(b"vmdk"), _s(b"data"), _d(_s(b"extents"), _many(_d(_s(b"filename"), _s(b"x"))))
            ),
        )
    ),
    "an error with a detail of 30 MiB": lambda: _error(**{**_IMAGE_ERROR, "detail": _s(b"\x1b" * (30 * MiB))}),
    "an error with a structure of 30 MiB": lambda: _error(**{**_IMAGE_ERROR, "structure": _s(b"\x1b" * (30 * MiB))}),
    "an error with a thousand keys": lambda: _d(_s(b"error"), _keyed(_INFO, b"N")),
    "values of an option": lambda: _error(
        **{"class": _s(b"option"), "code": _s(b"x"), "detail": _s(b"d"), "values": _keyed(_INFO - 99, b"N")}
    ),
    "a value and an error": lambda: _d(_s(b"ok"), _info(), _s(b"error"), _many(b"N")),
    "an ok that is a list": lambda: _ok(_many(b"N")),
    "nothing": lambda: b"",
    "something after the value": lambda: _ok(_info()) + b"N" * _INFO,
}  # fmt: skip
CHECK: dict[str, Callable[[], bytes]] = {
    "1,000 findings of 7,200 characters": lambda: _ok(_report(findings=_l(1000, _FINDING * 1000))),
    "1,001 findings": lambda: _ok(_report(findings=_l(1001, _FINDING * 1001))),
    "findings that are none": lambda: _ok(_report(findings=_many(_l(0, b""), _CHECK))),
    "values of a finding": lambda: _ok(
        _report(
            findings=_l(
                1, _l(6, _s(b"leak") + _s(b"s") + _s(b"d") + b"N" + _s(b"qcow2-refcount-leak") + _many(_BIG, _CHECK))
            )
        )
    ),
    "a detail of 7 MiB": lambda: _ok(
        _report(
            findings=_l(1, _l(6, _s(b"leak") + _s(b"s") + _s(b"\x1b" * (7 * MiB)) + b"N" + _s(b"") + _l(0, b"")))
        )
    ),
    "different keys in the report": lambda: _ok(
        _d(_s(b"facts"), _info(), _s(b"report"), _keyed(_CHECK, b"N"))
    ),
    "numbers of 127 bits as totals": lambda: _ok(_report(total_clusters=_BIG, allocated_clusters=_BIG, leaks=_BIG)),
    "lists of one None as findings": lambda: _ok(_report(findings=_many(_l(1, b"N"), _CHECK))),
}  # fmt: skip
CREATE: dict[str, Callable[[], bytes]] = {
    "sizes without an end": lambda: _ok(_d(_s(b"sizes"), _many(b"i\x01\x00", _CHECK))),
    "lists of one None": lambda: _ok(_many(_l(1, b"N"), _CHECK)),
    "different keys": lambda: _ok(_keyed(_CHECK, b"N")),
    "sizes of 127 bits": lambda: _ok(
        _d(
            _s(b"virtual_size"), _BIG, _s(b"unit"), _BIG, _s(b"unit_name"), _s(b"x"), _s(b"sizes"), _l(1, _BIG),
            _s(b"metadata_bytes"), _BIG,
        )
    ),
}  # fmt: skip
MANY: dict[str, Callable[[], bytes]] = {
    "rows of None": lambda: _ok(_many(b"N", 64 * MiB - 4096)),
    "writes of one None": lambda: _ok(
        _l(1, _d(_s(b"ok"), _d(), _s(b"writes"), _many(_l(1, b"N"), 64 * MiB - 4096)))
    ),
    "writes of no byte": lambda: _ok(
        _l(
            1,
            _d(
                _s(b"ok"), _d(), _s(b"writes"),
                _many(_l(4, b"i\x01\x00" * 3 + _b(b"")), 64 * MiB - 4096),
            ),
        )
    ),
    "a write of 60 MiB": lambda: _ok(
        _l(1, _d(_s(b"ok"), _d(), _s(b"writes"), _l(1, _l(4, b"i\x01\x00" * 3 + _b(b"x" * (60 * MiB))))))
    ),
}  # fmt: skip


def _guest(data: bytes) -> Guest:
    from instar.core.wire import decode, take

    def guest(job: bytes, files: object, ask: Callable[[object], object]) -> bytes:
        if take(decode(job), "args", dict).get("announce"):
            ask({"do": "format", "format": "qcow2"})
        return data

    return guest


def _made(make: Callable[[], bytes]) -> Callable[[], Guest]:
    """Return what makes a guest whose reply is made in the cell: no byte of it counts as the host's before."""

    def guest_of() -> Guest:
        def guest(job: bytes, files: object, ask: Callable[[object], object]) -> bytes:
            return _guest(make())(job, files, ask)  # type: ignore[arg-type]

        return guest

    return guest_of


TABLES = {"info": INFO, "check": CHECK, "create": CREATE, "many": MANY}


def __getattr__(name: str) -> Callable[[], Guest]:
    """Find ``info_3`` and its like: the fourth of the replies to ``info``."""
    table, _, number = name.rpartition("_")
    if table not in TABLES:
        raise AttributeError(name)
    return _made(list(TABLES[table].values())[int(number)])


def largest_lawful() -> Guest:
    """Describe a qcow2 with the most snapshots that it may have, each with a name of some length."""
    return _made(lambda: _ok(_info(snapshots=_snapshots(65_536, b"a snapshot of some day, with a name"))))()


def chain_link() -> Guest:
    """Name the image whose number is next in the image, and fill the reply with snapshots up to 8 MiB."""
    import os

    def guest(job: bytes, files: list, ask: Callable[[object], object]) -> bytes:  # type: ignore[type-arg]
        number = int(os.pread(5, 8, 0))
        reference = _l(4, _s(b"backing") + _b(b"%d" % (number + 1)) + _s(b"qcow2") + b"F")
        value = _info(references=_l(1, reference), snapshots=_snapshots(35_000, b"x" * 20))
        return _guest(_ok(value))(job, files, ask)  # type: ignore[arg-type]

    return guest


def chain_link_of_values() -> Guest:
    """As ``chain_link``, filled with values that take much more memory than bytes."""
    import os

    def guest(job: bytes, files: list, ask: Callable[[object], object]) -> bytes:  # type: ignore[type-arg]
        number = int(os.pread(5, 8, 0))
        reference = _l(4, _s(b"backing") + _b(b"%d" % (number + 1)) + _s(b"qcow2") + b"F")
        value = _info(references=_l(1, reference), extra=_d(_s(b"parts"), _many(_l(1, b"N"), 8 * MiB)))
        return _guest(_ok(value))(job, files, ask)  # type: ignore[arg-type]

    return guest


def chain_link_of_references() -> Guest:
    """As ``chain_link``, with 1,023 more names of 4,096 bytes."""
    import os

    def guest(job: bytes, files: list, ask: Callable[[object], object]) -> bytes:  # type: ignore[type-arg]
        number = int(os.pread(5, 8, 0))
        reference = _l(4, _s(b"backing") + _b(b"%d" % (number + 1)) + _s(b"qcow2") + b"F")
        value = _info(references=_l(1024, _REFERENCE * 1023 + reference))
        return _guest(_ok(value))(job, files, ask)  # type: ignore[arg-type]

    return guest


def announces_much() -> Guest:
    """Announce a format of as many values as fit into a message."""
    from instar.sandbox.process.channel import CellChannel

    def guest(job: bytes, files: object, ask: object) -> bytes:
        CellChannel(3, 4).send(b"Q", _d(_s(b"do"), _s(b"format"), _s(b"format"), _many(_l(1, b"N"))))
        return b""

    return guest


def tells_much() -> Guest:
    """Send the longest story that there may be, over and over."""
    from instar.sandbox.process.channel import CellChannel

    def guest(job: bytes, files: object, ask: object) -> bytes:
        for _ in range(64):
            CellChannel(3, 4).send(b"D", b"\x1b" * _INFO)
        return b""

    return guest


def asks_without_end() -> Guest:
    """Ask what no operation serves, as often as the host listens."""

    def guest(job: bytes, files: object, ask: Callable[[object], object]) -> bytes:
        for _ in range(2_000_000):
            ask({"do": "format", "format": "qcow2"})
        return b""

    return guest
