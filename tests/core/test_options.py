"""Reading ``-o`` lists and values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.errors import OptionError
from instar.core.options import Option, asks_help, read_settings, split_list, split_pairs
from instar.core.units import INT64_MAX, UINT64_MAX

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


def facts_of(call, *args, **more):
    with pytest.raises(OptionError) as caught:
        call(*args, **more)
    return caught.value.code, dict(caught.value.values), str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value", "words"),
    [
        ("lazy=x", "lazy", "x", "option 'lazy' is on or off, not 'x'"),
        (
            "size=x",
            "size",
            "x",
            "option 'size': 'x' is not a size; write a number with an optional suffix b, k, M, G, T, P or E",
        ),
        ("size=-1", "size", "-1", "option 'size': -1 is out of range"),
        ("bits=x", "bits", "x", "option 'bits': 'x' is not a whole number"),
        (
            "bits=18446744073709551616",
            "bits",
            "18446744073709551616",
            "option 'bits': 18446744073709551616 is too large",
        ),
    ],
)
def test_an_error_names_the_option_and_what_was_typed(text, key, value, words):
    _, values, said = facts_of(read, text)
    assert values == {"key": key, "value": value}
    assert said == words


def test_an_error_of_a_list_an_unknown_key_or_a_choice_has_its_facts():
    said = "',' is not a list of KEY=VALUE, separated by commas"
    assert facts_of(split_list, ",") == ("bad-option-list", {"value": ","}, said)
    code, values, _ = facts_of(read, "foo=1")
    known = ["bits", "lazy", "mode", "name", "nocow", "size"]
    assert (code, values) == ("unknown-option", {"key": "foo", "format": "test", "accepted": known})
    assert facts_of(ROWS[3].pick, "x") == (
        "bad-choice",
        {"key": "mode", "qapi": "the-mode", "value": "x"},
        "option 'mode' does not accept 'x'; it takes off, full, none",
    )
    settings = read("bits=-9223372036854775809")
    assert facts_of(settings.number, ROWS[2]) == (
        "bad-integer",
        {"key": "bits", "qapi": "bits"},
        "option 'bits': 9223372036854775807 is too large",
    )


def test_an_integer_is_named_with_dashes_or_by_its_own_name_in_qemu():
    for row, name in ((Option("a_b", "num", ""), "a-b"), (Option("a_b", "num", "", qapi="other"), "other")):
        settings = read_settings([row], [("a_b", "9223372036854775808")], format="test")
        assert facts_of(settings.number, row)[1]["qapi"] == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("bits=9223372036854775807", INT64_MAX),
        ("bits=-9223372036854775808", INT64_MAX + 1),
        ("bits=0", 0),
        ("bits=00", 0),
        ("bits=0X1f", 31),
        ("bits=-0x10", (1 << 64) - 16),
        ("bits=\t\n\v\f\r 7", 7),
        ("bits=0B11", 3),
        ("bits=-18446744073709551615", 1),
    ],
)
def test_numbers_at_their_edges(text, value):
    assert read(text).values["bits"] == value
    if "18446744073709551615" not in text:
        assert read(text).number(ROWS[2]) == value


@pytest.mark.parametrize("text", ["", "+", "0x", "0b", "0b2", "1_0", "- 1", "--1", "é", "0o7", "1" * 401, "0x_1"])
def test_what_c_reads_as_no_number_is_none(text):
    assert code_of(read, f"bits={text}") == "bad-number"


def test_numbers_have_at_most_400_digits():
    assert code_of(read, "bits=" + "1" * 400) == "number-too-large"
    assert read("bits=" + "0" * 399 + "7").values["bits"] == 7


def test_sizes_reach_to_the_last_byte_of_64_bits():
    assert read("size=18446744073709551615").values["size"] == UINT64_MAX
    assert code_of(read, "size=18446744073709551616") == "size-out-of-range"
    assert read("size=0").values["size"] == 0


@pytest.mark.parametrize(
    ("word", "value"),
    [*((w, True) for w in ("on", "yes", "true", "y")), *((w, False) for w in ("off", "no", "false", "n"))],
)
def test_on_and_off_have_four_words_each(word, value):
    assert read(f"lazy={word}").values == {"lazy": value}


def test_settings_fall_back_to_the_row():
    settings = read("bits=3,name=a")
    mode, name = ROWS[3], ROWS[4]
    assert (settings.get(mode), settings.text(mode), settings.text(name)) == ("off", "off", "a")
    assert (settings.text(ROWS[0]), settings.get(ROWS[0])) == (None, None)
    assert settings.flag(ROWS[1]) is False
    assert read("lazy").flag(ROWS[1]) is True
    assert settings.number(ROWS[2]) == 3
    assert settings.raw == {"bits": "3", "name": "a"}
    assert read("lazy,nolazy").raw == {"lazy": "off"}
    with pytest.raises(TypeError, match="size"):
        settings.number(ROWS[0])


def test_a_row_describes_itself():
    assert ROWS[3].describe() == {
        "name": "mode",
        "type": "choice",
        "help": "Mode",
        "default": "off",
        "choices": ["off", "full", "none"],
        "extension": False,
    }
    row = Option("x", "num", "h", note="n", extension=True)
    assert row.describe() == {"name": "x", "type": "num", "help": "h", "default": None, "note": "n", "extension": True}
    assert (row.qapi, row.since, row.shown, row.choices, row.aliases) == ("x", (0, 0), None, (), {})
    assert ROWS[3].help_line() == "  mode=<str>             - Mode"
    assert ROWS[2].help_line() == "  bits=<num>             - Bits"


def test_warns_twice_of_a_good_notation_and_once_of_a_bad_one():
    for text, times in (("0x1k", 2), ("0x1kk", 1), ("0x1", 0), ("1k", 0)):
        heard = []
        try:
            read(f"size={text},name=0x1k", generation=(7, 2), warn=heard.append)
        except OptionError as error:
            assert (error.code, times) == ("bad-size", 1)  # noqa: PT017
        assert heard == [text] * times
    heard = []
    assert code_of(read, "size=0x1k", generation=(8, 0), warn=heard.append) == "bad-size"
    assert heard == []


def test_pairs_end_with_the_text():
    assert split_pairs("") == []
    assert split_pairs("a=,b") == [("a", ""), ("b", None)]
    assert split_pairs("a=1,,,b=2") == [("a", "1,"), ("b", "2")]
    assert asks_help([("help", "x"), ("?", "y"), ("helps", None)]) is False
    assert asks_help([("a", "1"), ("help", None)]) is True
