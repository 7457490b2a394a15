"""JSON in qemu-img's hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.cli.json import dumps, in_order, quote


def test_keys_come_in_the_order_of_qemu():
    """The order of ``qemu-img info --output=json`` 11.1.2 for an image with everything."""
    keys = [
        "dirty-flag",
        "format-specific",
        "filename",
        "children",
        "virtual-size",
        "format",
        "backing-filename-format",
    ]
    expected = [
        "children",
        "backing-filename-format",
        "virtual-size",
        "filename",
        "format",
        "format-specific",
        "dirty-flag",
    ]
    keys.remove("children")
    keys.append("children")  # QEMU inserts it last, so it comes first within its bucket
    assert [key for key, _ in in_order(dict.fromkeys(keys))] == expected


def test_empty_list_and_object_take_two_lines():
    assert dumps({"children": [], "data": {}}) == '{\n    "children": [\n    ],\n    "data": {\n    }\n}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a"b\\', '"a\\"b\\\\"'),
        ("\x1b\n\x7f", '"\\u001B\\n\\u007F"'),
        ("é\U0001f600", '"\\u00E9\\uD83D\\uDE00"'),
        (b"a\xffb".decode("utf-8", "surrogateescape"), '"a\\uFFFDb"'),
        (b"<\xe2\x82><\xed\xa0\x80>".decode("utf-8", "surrogateescape"), '"<\\uFFFD><\\uFFFD>"'),
        (b"<\xc0\x80><\xc0\x81>".decode("utf-8", "surrogateescape"), '"<\\u0000><\\uFFFD>"'),
        ("\ufffe\ufdd0\U0001ffff\ud800", '"\\uFFFD\\uFFFD\\uFFFD\\uFFFD"'),
    ],
)
def test_strings_are_escaped_as_qemu_does(text, expected):
    assert quote(text) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
        max_leaves=20,
    )
)
def test_any_value_reads_back(value):
    def clean(v):
        if isinstance(v, str):
            return (
                v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if v.isascii() else json.loads(quote(v))
            )
        if isinstance(v, list):
            return [clean(m) for m in v]
        return {json.loads(quote(k)): clean(m) for k, m in v.items()} if isinstance(v, dict) else v

    assert json.loads(dumps(value)) == clean(value)
