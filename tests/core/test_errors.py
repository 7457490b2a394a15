"""Errors: one line each, facts as fields, nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.errors import HostError, ImageError, InternalError, OptionError, SandboxError, printable


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
