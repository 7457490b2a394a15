"""Names as QEMU reads them."""

from __future__ import annotations

import pytest

from instar.host.names import combine, protocol_of, strip_file_protocol


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("nbd://h/x", "nbd"),
        ("json:{}", "json"),
        ("file:x", "file"),
        ("a:b", "a"),
        ("./a:b", None),
        ("/a:b", None),
        ("a", None),
        (":", ""),
    ],
)
def test_a_colon_before_any_slash_ends_a_protocol(name, protocol):
    assert protocol_of(name) == protocol


def test_file_is_the_protocol_of_plain_files():
    assert strip_file_protocol("file:a:b") == "./a:b"
    assert strip_file_protocol("files:a") == "files:a"


@pytest.mark.parametrize(
    ("base", "name", "full"),
    [
        ("d/t", "b", "d/b"),
        ("t", "b", "b"),
        ("/t", "b", "/b"),
        ("d/t", "/b", "/b"),
        ("d/t", "json:{}", "json:{}"),
        ("d/t", "../b", "d/../b"),
    ],
)
def test_a_name_is_relative_to_the_folder_of_the_image(base, name, full):
    assert combine(base, name) == full
