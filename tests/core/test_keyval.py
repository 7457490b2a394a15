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


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("x,1a=2", "1a", "'1a' is not a key"),
        ("x,a..b=2", "a..b", "'a..b' is not a key"),
        ("x,a", "a", "'a' needs a value, as in a=VALUE"),
        ("a.b.c=1,a.b=2", "a.b", "'a.b' is given a value and members"),
        ("a.b=1,a.b.c.d=2", "a.b", "'a.b' is given a value and members"),
        ("b." + "a" * 128 + "=1", "a" * 128, f"the key '{'a' * 128}' is too long"),
    ],
)
def test_an_error_names_the_key(text, key, words):
    with pytest.raises(OptionError) as caught:
        parse(text, "kind")
    assert dict(caught.value.values) == {"key": key}
    assert str(caught.value) == words


def test_only_the_first_member_may_leave_out_its_key():
    assert parse("a.b", "kind") == {"kind": "a.b"}
    assert parse("1a", "kind") == {"kind": "1a"}
    with pytest.raises(OptionError):
        parse("a=1,b", "kind")
    with pytest.raises(OptionError):
        parse("=1", "kind")


def test_a_part_behind_the_first_may_be_a_number_and_is_at_most_127_long():
    assert parse("a.0=x,a.12=y", "kind") == {"a": {"0": "x", "12": "y"}}
    assert parse("a" * 127 + "=x", "kind") == {"a" * 127: "x"}
    for text in ("0.a=x", "a.0b=x", "a.²=x", "é=x", "a.é=x", "-a=x", "_a=x"):
        with pytest.raises(OptionError, match="is not a key"):
            parse(text, "kind")
    assert parse("a-_9=x", "kind") == {"a-_9": "x"}
    assert parse("a=", "kind") == {"a": ""}
    assert parse("a=,,", "kind") == {"a": ","}
