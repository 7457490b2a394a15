"""Errors: one line each, facts as fields, nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.errors import HostError, ImageError, InstarError, InternalError, OptionError, SandboxError, printable


@given(st.text() | st.binary())
def test_any_text_becomes_printable(text):
    shown = printable(text)
    assert not [c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) <= 0xDFFF]


def test_long_texts_are_capped():
    assert len(printable("x" * 10000)) == 4097


def test_direction_marks_cannot_reorder_a_line():
    assert "‮" not in printable("a‮b")


def test_an_image_error_says_file_format_structure_and_numbers():
    error = ImageError(
        "corrupt",
        "L1 table",
        "it is too long",
        field="l1_size",
        offset=36,
        value=9,
        limit=8,
        format="qcow2",
        path="a\n",
    )
    assert str(error) == r"a\x0a: qcow2 L1 table: it is too long (l1_size = 9, limit 8, at byte 36)"
    assert error.facts()["limit"] == 8
    assert error.facts()["kind"] == "corrupt"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OptionError("x", "y"), 1),
        (ImageError("corrupt", "x", "y"), 1),
        (HostError(2, "x", "open", "No such file or directory"), 1),
        (SandboxError("died", "x"), 70),
        (InternalError("x"), 71),
    ],
)
def test_exit_codes_tell_whose_fault_it_was(error, code):
    assert error.exit_code == code
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1f \x20", r"\x1f  "),
        ("~\x7f\x9f\xa0", "~\\x7f\\x9f\xa0"),
        (b"\x80\xff", r"\x80\xff"),
        ("\ud800\udbff\udc7f", r"\ud800\udbff\udc7f"),
        ("\udd00\udfff", r"\udd00\udfff"),
        ("\u2027\u2028\u202e\u202f", "\u2027\\u2028\\u202e\u202f"),
        ("\u205f\u2060\u2066\u2069\u206f\u2070", "\u205f\\u2060\\u2066\\u2069\\u206f\u2070"),
        ("\xac\xad\xae\u061b\u061c\u180e\u200a\u200b\u200f", "\xac\\xad\xae\u061b\\u061c\\u180e\u200a\\u200b\\u200f"),
        ("\ufeff\ufff9\ufffb\ufffc\U000e0001\U000e007f", "\\ufeff\\ufff9\\ufffb\ufffc\\U000e0001\\U000e007f"),
        ("\ud7ff\ue000", "\ud7ff\ue000"),
        ("\udc7f\udc80\udcff", r"\udc7f\x80\xff"),
    ],
)
def test_escapes_what_a_terminal_would_obey_and_nothing_else(text, shown):
    assert printable(text) == shown


def test_a_text_is_cut_behind_its_limit_and_shows_that():
    assert printable("abc", 3) == "abc"
    assert printable("abcd", 3) == "abc…"
    assert printable(b"abcd", 3) == "abc…"
    assert printable("é".encode() * 3, 3) == "ééé"
    assert printable("€".encode() * 5000) == "€" * 4096 + "…"


def test_an_image_error_says_only_what_it_knows():
    assert str(ImageError("corrupt", "header", "words")) == "header: words"
    assert str(ImageError("corrupt", "", "words")) == "words"
    assert str(ImageError("corrupt", "header", "words", value=0)) == "header: words (value = 0)"
    assert str(ImageError("corrupt", "header", "words", field="size")) == "header: words (size)"
    assert str(ImageError("corrupt", "header", "words", limit=0, offset=0)) == "header: words (limit 0, at byte 0)"
    assert str(ImageError("corrupt", "s", "x" * 500)) == "s: " + "x" * 400 + "…"
    assert str(ImageError("corrupt", "s" * 90, "x", field="f" * 90)) == "s" * 80 + "…: x (" + "f" * 80 + "…)"


@pytest.mark.parametrize(
    ("field", "value", "expected", "shown"),
    [
        ("version", 3, 1, "version = 3, expected 1"),
        ("magic", 0x514649FB, 0x00444551, "magic = 0x514649fb, expected 0x444551"),
        ("magic", 0, 0x514649FB, "magic = 0x00000000, expected 0x514649fb"),
        ("signature", 0, 0xBEDA107F, "signature = 0x00000000, expected 0xbeda107f"),
        ("LUKS magic", 1, 0x4C554B53BABE, "LUKS magic = 0x000000000001, expected 0x4c554b53babe"),
        ("cookie", 1 << 63, 0x6378737061727365, "cookie = 0x8000000000000000, expected 0x6378737061727365"),
        ("magic", 5, None, "magic = 5"),
        ("magic", -5, 1 << 64, "magic = -0x00000000000000005, expected 0x010000000000000000"),
    ],
)
def test_what_must_be_equal_is_expected_and_no_limit(field, value, expected, shown):
    error = ImageError("corrupt", "s", "d", field=field, value=value, expected=expected)
    assert str(error) == f"s: d ({shown})"
    assert "limit" not in error.facts()


def test_facts_are_those_that_are_known():
    assert ImageError("corrupt", "header", "words").facts() == {
        "class": "ImageError",
        "kind": "corrupt",
        "message": "header: words",
        "structure": "header",
    }
    full = {"format": "f", "field": "x", "offset": 0, "value": 1, "limit": 2, "expected": 3, "path": "p", "name": "n"}
    facts = ImageError("denied", "s", "d", **full).facts()
    assert {key: facts[key] for key in full} == full
    assert OptionError("the-code", "words", key="k", value=None).facts() == {
        "class": "OptionError",
        "kind": "option",
        "message": "words",
        "code": "the-code",
        "key": "k",
    }
    error = HostError(13, "p", "open", "Permission denied", hint="try\n")
    assert str(error) == r"p: cannot open: Permission denied; try\x0a"
    assert error.facts() == {
        "class": "HostError",
        "kind": "host",
        "message": str(error),
        "errno": 13,
        "path": "p",
        "action": "open",
    }
    error.lock = "write"
    assert error.facts()["lock"] == "write"
    assert str(HostError(2, "p\n", "open", "gone")) == r"p\x0a: cannot open: gone"
    died = SandboxError("died", "words", path="p", story="s")
    assert died.facts() == {
        "class": "SandboxError",
        "kind": "died",
        "message": "p: sandbox died: words",
        "path": "p",
        "story": "s",
    }
    assert SandboxError("limit", "x" * 401).facts() == {
        "class": "SandboxError",
        "kind": "limit",
        "message": "sandbox limit: " + "x" * 400 + "…",
    }
    assert InternalError("x" * 401).facts() == {
        "class": "InternalError",
        "kind": "internal",
        "message": "internal error, please report it: " + "x" * 400 + "…",
    }
    assert (InstarError().facts(), InstarError().role, InstarError().image) == (
        {"class": "InstarError", "kind": "error", "message": ""},
        None,
        None,
    )
