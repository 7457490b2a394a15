"""System calls by number: the quick way and the public way do the same."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from instar.sandbox import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

WAYS = {"C module": kernel._with_c_module, "ctypes": kernel._with_ctypes}
_PR_GET_DUMPABLE = 3


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Each way of making a call."""
    return WAYS[request.param]()[0]


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_copied_and_measured_by_address(way: str) -> None:
    _, move, length_at, address_of_symbol = WAYS[way]()
    text, copy = b"a text of C\0and more", bytes(20)
    assert length_at(kernel.address_of(text)) == 11
    move(kernel.address_of(copy), kernel.address_of(text), 20)
    assert copy == text
    assert address_of_symbol("environ") == kernel.address_of_symbol("environ")


def test_gives_what_the_call_gives(call: Callable[..., int]) -> None:
    assert call(kernel._numbers["prctl"], _PR_GET_DUMPABLE) in (0, 1, 2)


def test_gives_the_negative_errno(call: Callable[..., int]) -> None:
    assert call(9999) == -errno.ENOSYS
    assert call(kernel._numbers["unshare"], 1 << 62) == -errno.EINVAL


def test_passes_words_whole_and_bytes_by_address(call: Callable[..., int]) -> None:
    reader, writer = os.pipe()
    text = b"over the wire"
    write = {"x86_64": 1, "aarch64": 64}[os.uname().machine]
    assert call(write, writer, text, len(text)) == len(text)
    assert call(write, writer, kernel.address_of(text), len(text)) == len(text)
    assert os.read(reader, 100) == text * 2
    assert call(write, writer, (1 << 64) - 8, 8) == -errno.EFAULT
    os.close(reader)
    os.close(writer)


def test_a_call_that_is_not_known_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        kernel.syscall("reboot")
