"""JSON as QEMU reads it; its answers to real lines are compared in ``tests/cli``."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.qjson import MAX_NESTING, JsonError, loads

_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_ANY, st.booleans())
def test_reads_what_the_standard_library_writes(value, ascii):
    text = json.dumps(value, ensure_ascii=ascii)
    if "\\ud" not in text and "\x7f" not in text:
        assert loads(text, (7, 2)) == value


def test_takes_single_quotes():
    assert loads("{'a': ['b', \"'\"]}", (7, 2)) == {"a": ["b", "'"]}


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("", "Expecting a JSON value", None),
        ("{", "JSON parse error, premature EOI", "1:2: JSON parse error, premature end of input"),
        ("{x}", "JSON parse error, invalid keyword 'x'", "1:2: JSON parse error, expecting key"),
        ("[1] 2", "Expecting at most one JSON value", None),
        ('{"a":1,"a":2}', "JSON parse error, duplicate key", "1:12: JSON parse error, duplicate key"),
    ],
)
def test_words_errors_as_that_version(text, old, new):
    for version, words in (((7, 2), old), ((11, 1), new or old)):
        with pytest.raises(JsonError) as caught:
            loads(text, version)
        assert str(caught.value) == words


def test_depth_is_bounded():
    with pytest.raises(JsonError, match="nesting"):
        loads("[" * (MAX_NESTING + 2), (11, 1))


@given(st.text(alphabet="{}[]:,'\"\\\\u0d8aetrufalsn1-.E \n", max_size=24))
def test_any_text_is_a_value_or_an_error(text):
    for version in ((7, 2), (11, 1)):
        try:
            loads(text, version)
        except JsonError:
            pass
