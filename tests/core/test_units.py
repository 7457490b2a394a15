"""Sizes between people and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compat.versions import VERSIONS, real
from tests.support import needs_qemu_img, run

from instar.core.units import align_up, ceil_div, format_size, is_power_of_two, parse_size, warns_of_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1b", 1),
        ("1B", 1),
        ("1k", 1024),
        ("1K", 1024),
        ("1M", 1 << 20),
        ("1G", 1 << 30),
        ("1t", 1 << 40),
        ("1P", 1 << 50),
        ("1e", 1 << 60),
        ("1.5k", 1536),
        ("1.k", 1024),
        (".5k", 512),
        ("0.1k", 102),
        ("0x200", 512),
        ("010", 10),
        ("+1k", 1024),
        (" 1k", 1024),
        ("-1", -1),
        ("16E", 1 << 64),
    ],
)
def test_reads_sizes_as_qemu_img_does(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "k",
        "1.5",
        "1.5b",
        "1e3",
        "1kB",
        "1KiB",
        "1MM",
        "1 k",
        "1k ",
        "0x",
        "0x1g",
        "0x10k",
        "1..5k",
        "inf",
        "nan",
        "١",
    ],
)
def test_refuses_what_is_no_size(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the text itself is the message
        parse_size(text)


@given(st.text(alphabet="0123456789.kKmMgGtTpPeEbBx+- ", max_size=12))
def test_any_text_is_a_size_or_a_value_error(text):
    try:
        assert isinstance(parse_size(text), int)
    except ValueError:
        pass


@needs_qemu_img
@pytest.mark.parametrize(
    "text",
    [
        "1.5k",
        ".5k",
        "0.1k",
        "1.0001M",
        "0.3333k",
        "3.999k",
        "1.k",
        "0x200",
        "010",
        "+1k",
        " 1k",
        "1e3",
        "1.5",
        "0x10k",
        "1kB",
        "-1",
    ],
)
def test_agrees_with_the_newest_qemu_img(text, tmp_path):
    done = run(real(VERSIONS[-1]), "create", "-f", "raw", "--", "t", text, cwd=tmp_path)
    try:
        size = parse_size(text)
    except ValueError:
        size = -1
    assert (done.returncode == 0) == (size >= 0)
    if size >= 0:
        assert f"size={size}\n" in done.stdout


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (".5k", None, 512),
        ("0x10k", 16384, None),
        ("-1", None, -1),
        ("-0", None, -1),
        ("-1k", None, None),
        ("1.9999999999999999999999k", 1024, 2048),
        ("99999999999999999999999k", None, None),
    ],
)
def test_notation_follows_the_version(text, old, new):
    for version, size in (((7, 2), old), ((10, 0), new)):
        if size is None:
            with pytest.raises(ValueError):  # noqa: PT011 - the text itself is the message
                parse_size(text, version)
        else:
            assert parse_size(text, version) == size


def test_warns_of_a_suffix_behind_hexadecimal_digits_only_where_it_was_taken():
    assert warns_of_size("0x10k", (7, 2))
    assert not any(warns_of_size(text, (7, 2)) for text in ("0x10", "0x10b", "10k", "0xk", "x"))
    assert not warns_of_size("0x10k", (10, 0))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (197120, "192 KiB"),
        (1 << 30, "1 GiB"),
        (1073995776, "1 GiB"),
        ((1 << 63) - 512, "8 EiB"),
    ],
)
def test_writes_sizes_with_three_digits(size, text):
    assert format_size(size) == text


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 30))
def test_rounding_up_is_the_next_multiple(value, step):
    rounded = align_up(value, step)
    assert rounded % step == 0
    assert 0 <= rounded - value < step
    assert ceil_div(value, step) * step == rounded


def test_powers_of_two():
    assert [n for n in range(-2, 20) if is_power_of_two(n)] == [1, 2, 4, 8, 16]
