"""Reading ``-o`` lists and values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.errors import OptionError
from instar.core.options import Option, asks_help, read_settings, split_list

ROWS = (
    Option("size", "size", "Virtual disk size"),
    Option("lazy", "bool", "Lazy", shown="off"),
    Option("bits", "num", "Bits"),
    Option("mode", "choice", "Mode", default="off", choices=("off", "full"), aliases={"none": "off"}, qapi="the-mode"),
    Option("name", "str", "Name"),
    Option("nocow", "bool", "No copy on write"),
)


def read(text, **more):
    return read_settings(ROWS, split_list(text), format="test", **more)


def code_of(call, *args, **more):
    with pytest.raises(OptionError) as caught:
        call(*args, **more)
    return caught.value.code


def test_two_commas_are_one_comma_of_a_value():
    assert split_list("name=a,,b,lazy=on") == [("name", "a,b"), ("lazy", "on")]


@pytest.mark.parametrize("text", ["", ",", "a=1,", ",a=1", "a=1,,,"])
def test_refuses_lists_with_nothing_at_an_end(text):
    assert code_of(split_list, text) == "bad-option-list"


def test_a_list_may_end_with_a_comma_that_is_doubled():
    assert split_list("name=a,,") == [("name", "a,")]


def test_a_bare_key_is_on_and_a_bare_no_key_is_off():
    assert read("lazy").values == {"lazy": True}
    assert read("nolazy").values == {"lazy": False}


def test_a_key_that_begins_with_no_is_itself_unless_read_as_qemu_img_does():
    assert read("nocow").values == {"nocow": True}
    assert code_of(read, "nocow", no_is_off=True) == "unknown-option"


def test_the_last_setting_of_a_key_counts_and_id_is_ignored():
    assert read("bits=1,id=x,bits=2").values == {"bits": 2}


def test_an_unknown_key_names_those_that_are_known():
    with pytest.raises(OptionError, match=r"no option 'foo'; it takes bits, lazy, mode"):
        read("foo=1")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("lazy=maybe", "bad-bool"),
        ("lazy=ON", "bad-bool"),
        ("size=big", "bad-size"),
        ("size=-1", "size-out-of-range"),
        ("size=16E", "size-out-of-range"),
        ("bits=x", "bad-number"),
        ("bits=1k", "bad-number"),
        ("bits=08", "bad-number"),
        ("bits=99999999999999999999", "number-too-large"),
    ],
)
def test_refuses_values_of_the_wrong_type(text, code):
    assert code_of(read, text) == code


@pytest.mark.parametrize(
    ("text", "value"), [("bits=0x10", 16), ("bits=010", 8), ("bits=-1", (1 << 64) - 1), ("bits=+7", 7), ("bits= 7", 7)]
)
def test_numbers_are_read_as_c_does(text, value):
    assert read(text).values["bits"] == value


def test_choices_are_judged_later_with_aliases_and_default():
    mode = ROWS[3]
    assert read("mode=nonsense").values == {"mode": "nonsense"}
    assert (mode.pick(None), mode.pick("none"), mode.pick("full")) == ("off", "off", "full")
    with pytest.raises(OptionError, match="takes off, full, none") as caught:
        mode.pick("nonsense")
    assert caught.value.values["qapi"] == "the-mode"


def test_help_is_asked_for_by_a_bare_word_only():
    assert asks_help(split_list("bits=1,help"))
    assert asks_help(split_list("?"))
    assert not asks_help(split_list("name=help"))


def test_help_lines_are_padded_as_qemu_img_pads_them():
    assert ROWS[0].help_line() == "  size=<size>            - Virtual disk size"
    assert ROWS[1].help_line() == "  lazy=<bool (on/off)>   - Lazy"


@given(st.text(max_size=40))
def test_any_text_gives_settings_or_an_option_error(text):
    try:
        read(text)
    except OptionError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_doubled_comma_is_none_in_a_key():
    assert split_list("a,,b=1") == [("a", None), ("", None), ("b", "1")]


def test_numbers_beyond_63_bits_are_told_when_they_are_used():
    for text in ("18446744073709551615", "-18446744073709551608"):
        settings = read(f"bits={text}")
        row = next(row for row in ROWS if row.name == "bits")
        assert code_of(settings.number, row) == "bad-integer"
    assert read("bits=-1").number(row) == (1 << 64) - 1


def test_binary_numbers_are_read_as_by_the_newer_library():
    assert read("bits=0b101").values["bits"] == 5
    assert code_of(read, "bits=0b101", generation=(7, 2)) == "bad-number"
