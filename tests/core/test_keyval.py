"""``KEY=VALUE,…`` as QEMU's newer switches read it; its answers to real lines are compared in ``tests/cli``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.errors import OptionError
from instar.core.keyval import parse


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", {}),
        ("secret", {"kind": "secret"}),
        ("secret,id=a,", {"kind": "secret", "id": "a"}),
        ("kind=x,a.b=1,a.c=2,,3", {"kind": "x", "a": {"b": "1", "c": "2,3"}}),
        ("a=1,a=2", {"a": "2"}),
    ],
)
def test_reads_a_tree(text, tree):
    assert parse(text, "kind") == tree


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (",", "keyval-key"),
        ("x,1a=2", "keyval-key"),
        ("x,a", "keyval-value"),
        ("a=1,a.b=2", "keyval-inconsistent"),
        ("a.b=1,a=2", "keyval-inconsistent"),
        ("a" * 128 + "=1", "keyval-long"),
    ],
)
def test_refuses_by_code(text, code):
    with pytest.raises(OptionError) as caught:
        parse(text, "kind")
    assert caught.value.code == code


@given(st.text(alphabet="ab1.,=-", max_size=20))
def test_any_text_is_a_tree_or_an_option_error(text):
    try:
        parse(text, "kind")
    except OptionError:
        pass
