"""JSON as QEMU reads it; its answers to real lines are compared in ``tests/cli``."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import needs_qemu_img, run

from instar.core.qjson import MAX_NESTING, JsonError, loads

#: A zero is another thing in QEMU (below), and numbers that are no characters are none.
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs", "Cn")))
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(_ANY, st.booleans())
def test_reads_what_the_standard_library_writes(value, ascii):
    assert loads(json.dumps(value, ensure_ascii=ascii), (7, 2)) == value


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


#: What QEMU 7.2 says of a text, and where QEMU 11.1 says it was (without that, both say the same).
COMPLAINTS = [
    ('{"a" 1}', "missing : in object pair", "1:6"),
    ('{"a":1 "b"}', "expected separator in dict", "1:8"),
    ('{"a":[1 2]}', "expected separator in list", "1:9"),
    ('{"a":1,\n "a":2}', "duplicate key", "2:6"),
    ('{"a":nil}', "invalid keyword 'nil'", "1:6"),
    ('{"a":}', "expecting value", "1:6"),
    ('{"a":"\\x"}', "invalid escape sequence in string", "1:6"),
    ('{"a":"\\u12g4"}', "\\u12g4 is not a valid Unicode character", "1:6"),
    ('{"a":"\\u123"}', '\\u123" is not a valid Unicode character', "1:6"),
    ("{'a':'\\u1'}", "\\u1' is not a valid Unicode character", "1:6"),
    ('{"a":"\\ud83d"}', "\\ud83d is not a valid Unicode character", "1:6"),
    ('{"a":"\\ude00"}', "\\ude00 is not a valid Unicode character", "1:6"),
    ('{"a":"\\ud83d\\u0041"}', "\\ud83d is not a valid Unicode character", "1:6"),
    ('{"a":"\\ud83d\\ude0"}', "\\ud83d is not a valid Unicode character", "1:6"),
    ('{"a":"\\ud83dxude00"}', "\\ud83d is not a valid Unicode character", "1:6"),
    ('{"a":"\\udbff\\udfff"}', "\\udbff\\udfff is not a valid Unicode character", "1:6"),
    ('{"a":"\\ufdd0"}', "\\ufdd0 is not a valid Unicode character", "1:6"),
    ('{"a":"\\ufdef"}', "\\ufdef is not a valid Unicode character", "1:6"),
    ('{"a":"\\ufffe"}', "\\ufffe is not a valid Unicode character", "1:6"),
    ('{"a":"\uffff"}', "invalid UTF-8 sequence in string", "1:6"),
    ('{"a":"\udcfd"}', "invalid UTF-8 sequence in string", "1:6"),
    ('{"a":"x\udcfe"}', "stray '\"x\udcfe'", "1:6"),
    ('{"a":"x\udcff"}', "stray '\"x\udcff'", "1:6"),
    ('{"a":#}', "stray '#'", "1:6"),
    ('{"a":-}', "stray '-}'", "1:6"),
    ('{"a":1.}', "stray '1.}'", "1:6"),
    ('{"a":1e}', "stray '1e}'", "1:6"),
    ('{"a":1e+}', "stray '1e+}'", "1:6"),
    ('{"a":"x', "stray '\"x'", "1:6"),
    ('{"a":"x\x1f"}', "stray '\"x\x1f'", "1:6"),
]


@pytest.mark.parametrize(("text", "words", "place"), COMPLAINTS)
def test_names_what_is_wrong_and_newer_versions_where(text, words, place):
    for version, before in (((7, 2), ""), ((10, 0), ""), ((10, 1), f"{place}: "), ((11, 1), f"{place}: ")):
        with pytest.raises(JsonError) as caught:
            loads(text, version)
        assert str(caught.value) == f"{before}JSON parse error, {words}"


@needs_qemu_img
@pytest.mark.parametrize(("text", "words", "place"), COMPLAINTS)
def test_qemu_says_the_same(text, words, place):
    done = run("qemu-img", "info", f"json:{text}")
    # QEMU prints what it read, and its own rule of how far that was, for a control character.
    assert f"Could not parse the JSON options: JSON parse error, {words}" in done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        (" false\t", False),
        ("null\r\n", None),
        ("[]", []),
        ("{}", {}),
        ("[[],{}]", [[], {}]),
        ("0", 0),
        ("-0", 0),
        ("-9223372036854775808", -(1 << 63)),
        ("-9223372036854775809", -9223372036854775808.0),
        ("18446744073709551615", (1 << 64) - 1),
        ("18446744073709551616", 18446744073709551616.0),
        ("1.5", 1.5),
        ("1e2", 100.0),
        ("2E+1", 20.0),
        ("2e-1", 0.2),
        ("0.5", 0.5),
        ('"\\b\\f\\n\\r\\t\\/\\\\\\"\\\'"', "\b\f\n\r\t/\\\"'"),
        ('"\\u0041\\u00e9"', "Aé"),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\ud800\\udc00\\udbff\\udffd"', "\U00010000\U0010fffd"),
        ('"\\ufdcf\\ufdf0\\ufffd\\ue000\\ud7ff"', "\ufdcf\ufdf0\ufffd\ue000\ud7ff"),
        ('"\\u0000a"', "\udcc0\udc80a"),
        ('"é\\n"', "é\n"),
        ("'\"'", '"'),
        ('"\'"', "'"),
    ],
)
def test_reads_every_kind_of_value(text, value):
    found = loads(text, (11, 1))
    assert found == value
    assert type(found) is type(value)


def test_depth_is_taken_up_to_its_bound_in_lists_objects_and_keys():
    for before, behind in (("[", "]"), ('{"a":', "}")):
        fits = before * MAX_NESTING + "1" + behind * MAX_NESTING
        assert loads(fits, (11, 1))
        with pytest.raises(JsonError, match=r"^JSON nesting depth limit exceeded$"):
            loads(before + fits + behind, (11, 1))


def test_what_is_broken_behind_a_whole_value_is_too_much_not_wrong():
    with pytest.raises(JsonError, match="at most one"):
        loads("1 #", (11, 1))


def test_keys_are_texts():
    for text in ("{1:2}", "{[]:2}", "{true:1}"):
        with pytest.raises(JsonError, match=r"^JSON parse error, key is not a string in object$"):
            loads(text, (7, 2))
        with pytest.raises(JsonError, match=r"^1:2: JSON parse error, expecting key$"):
            loads(text, (11, 1))
