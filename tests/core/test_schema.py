"""Schemas: what is declared passes, and a value with one thing more, less or other does not."""

from __future__ import annotations

import pytest

from instar.core.schema import (
    NUMBER64,
    by_key,
    choice,
    data,
    flag,
    mapping,
    nothing,
    number,
    optional,
    record,
    row,
    rows,
    text,
    word,
)
from instar.core.wire import WireError

CHECKS = {
    "number": (number(10, least=-1), [-1, 0, 10], [-2, 11, True, None, "1", 1 << 100, b"\1"]),
    "number64": (NUMBER64, [-(1 << 63), (1 << 64) - 1], [-(1 << 63) - 1, 1 << 64, False]),
    "text": (text(3), ["", "abc", "\udcff\x1b"], ["abcd", b"abc", None, 1, ["a"]]),
    "data": (data(3, least=1), [b"\0", b"abc"], [b"", b"abcd", "abc", None]),
    "flag": (flag, [True, False], [0, 1, None, "true"]),
    "choice": (choice("raw", "qcow2"), ["raw", "qcow2"], ["", "RAW", "raw\n", b"raw", None, ["raw"], {"raw": 1}]),
    "word": (word(12), ["backing", "extents.12", "data-file"], ["", "x" * 13, "0", "a b", "a\x1b", "é", "A", None]),
    "nothing": (nothing, [None], [False, 0, "", []]),
    "optional": (optional(number(5)), [None, 5], [6, False, "x"]),
    "rows": (rows(number(5), 2, least=1), [[1], [1, 2]], [[], [1, 2, 3], [1, None], (1,), {1: 2}, None]),
    "row": (row(number(5), text(1)), [[1, "a"]], [[1], [1, "a", None], ["a", 1], [], None, {"a": 1}]),
    "record": (
        record({"a": number(5)}, {"b": text(1)}),
        [{"a": 1}, {"a": 1, "b": "x"}],
        [{}, {"b": "x"}, {"a": 1, "c": 1}, {"a": "x"}, {"a": 1, "b": None}, [["a", 1]], None],
    ),
    "mapping": (
        mapping(word(), number(5), 2),
        [{}, {"a": 1, "b": 5}],
        [{"a": 1, "b": 1, "c": 1}, {"A": 1}, {"a": "x"}, {"a": 6}, None, []],
    ),
    "by_key": (
        by_key("type", {"x": record({"type": choice("x"), "size": number()})}),
        [{"type": "x", "size": 1}],
        [{"type": "y", "size": 1}, {"size": 1}, {"type": "x"}, {"type": ["x"]}, {"type": None}, None, ["type"]],
    ),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in CHECKS for value in CHECKS[name][1]])
def test_what_is_declared_passes(name: str, value: object) -> None:
    CHECKS[name][0](value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in CHECKS for value in CHECKS[name][2]])
def test_nothing_else_does(name: str, value: object) -> None:
    with pytest.raises(WireError):
        CHECKS[name][0](value)  # type: ignore[arg-type]


def test_fault_names_the_place_by_declared_keys_alone() -> None:
    check = record({"outer": rows(record({"inner": number()}), 5)})
    with pytest.raises(WireError, match=r"^outer: inner: it is no number$"):
        check({"outer": [{"inner": 1}, {"inner": "\x1b"}]})
    with pytest.raises(WireError, match=r"^outer: it has a key that there is not$"):
        check({"outer": [{"inner": 1, "\x1b]0;": 1}]})
