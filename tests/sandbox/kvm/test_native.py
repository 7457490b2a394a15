"""Memory by address and C functions by name: the quick way and the public way do the same."""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instar.sandbox.kernel import address_of
from instar.sandbox.kvm import native

if TYPE_CHECKING:
    from instar.sandbox.kvm.native import Tools

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="call numbers of x86-64 Linux"
)
WAYS = {"C module": native._with_c_module, "ctypes": native._with_ctypes}
_GETPID, _WRITE, _NANOSLEEP = 39, 1, 35
PAGE = 4096


@pytest.fixture(params=WAYS)
def tools(request: pytest.FixtureRequest) -> Tools:
    """Each way: a system call, its error, a view, a symbol."""
    return WAYS[request.param]()


def test_call_gives_what_the_call_gives(tools: Tools) -> None:
    assert tools[0](_GETPID, 0, 0, 0, 0, 0, 0) == os.getpid()


def test_failed_call_leaves_its_error(tools: Tools) -> None:
    assert (tools[0](9999, 0, 0, 0, 0, 0, 0), tools[1]()) == (-1, errno.ENOSYS)
    assert (tools[0](_WRITE, 9999, 0, 0, 0, 0, 0), tools[1]()) == (-1, errno.EBADF)


def test_call_enters_no_python_frame(tools: Tools) -> None:
    """A frame could bring memory that is gone when it is left, and a photo would have been taken in between."""
    entered: list[str] = []
    sys.setprofile(lambda frame, event, _: entered.append(event))
    try:
        tools[0](_GETPID, 0, 0, 0, 0, 0, 0)
    finally:
        sys.setprofile(None)
    assert "call" not in entered


def test_call_passes_words_whole(tools: Tools) -> None:
    reader, writer = os.pipe()
    try:
        text = b"over the wire"
        assert tools[0](_WRITE, writer, address_of(text), len(text), 0, 0, 0) == len(text)
        assert os.read(reader, 100) == text
        assert (tools[0](_WRITE, writer, (1 << 64) - 8, 8, 0, 0, 0), tools[1]()) == (-1, errno.EFAULT)
    finally:
        os.close(reader)
        os.close(writer)


def test_nobody_else_runs_in_the_middle_of_a_call(tools: Tools) -> None:
    """It keeps the interpreter's lock, or the photo would be blurred."""
    seen: list[float] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            seen.append(time.monotonic())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        duration = struct.pack("=qq", 0, 50_000_000)
        began = time.monotonic()
        assert tools[0](_NANOSLEEP, address_of(duration), 0, 0, 0, 0, 0) == 0
        ended = time.monotonic()
    finally:
        stop.set()
        thread.join()
    between = [moment for moment in seen if began < moment < ended]
    # It may have its turn before the call and after it, but there is a pause as long as the call.
    pauses = [b - a for a, b in zip([began, *between], [*between, ended], strict=True)]
    assert max(pauses) > 0.049


def test_view_is_the_memory_itself(tools: Tools) -> None:
    data = bytearray(b"before")
    import ctypes

    place = ctypes.addressof(ctypes.c_char.from_buffer(data))
    view = tools[2](place, 6, native._WRITE)
    view[0:2] = b"af"
    assert data == b"affore"
    data[5:] = b"?"
    assert bytes(view) == b"affor?"
    assert (view.nbytes, view.itemsize, view.readonly) == (6, 1, False)


def test_view_for_reading_cannot_be_written(tools: Tools) -> None:
    data = b"fixed"
    view = tools[2](address_of(data), 5, native._READ)
    assert view.readonly
    assert bytes(view) == data
    with pytest.raises(TypeError):
        view[0] = 0


def test_symbol_is_where_the_function_is() -> None:
    for name in ("PyObject_CallNoArgs", "syscall"):
        found = {make()[3](name) for make in WAYS.values()}
        assert len(found) == 1
        assert found.pop() > PAGE


def test_symbol_that_is_not_there_is_an_error(tools: Tools) -> None:
    with pytest.raises((OSError, AttributeError)):
        tools[3]("no_such_function_in_any_library")


def _mappings() -> list[tuple[int, int, str]]:
    rows = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(text, 16) for text in span.split("-"))
        rows.append((start, end, rights))
    return rows


@pytest.mark.parametrize("align", [PAGE, 1 << 21])
def test_new_memory_is_zero_aligned_and_a_mapping_of_its_own(align: int) -> None:
    length = 3 * PAGE
    address = native.new_memory(length, align=align)
    assert address % align == 0
    assert (address, address + length, "rw-p") in _mappings()
    view = native.view_at(address, length, writable=True)
    assert bytes(view) == bytes(length)
    view[-1] = 7
    assert native.view_at(address, length)[length - 1] == 7


def test_memory_that_there_is_not_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot allocate") as caught:
        native.new_memory(1 << 60, align=PAGE)
    assert caught.value.errno == errno.ENOMEM


def test_map_shared_is_the_file_itself() -> None:
    fd = os.memfd_create("instar-test")
    try:
        os.ftruncate(fd, PAGE)
        view = native.view_at(native.map_shared(fd, PAGE), PAGE, writable=True)
        view[:5] = b"hello"
        assert os.pread(fd, 5, 0) == b"hello"
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        native.map_shared(fd, PAGE)
    assert caught.value.errno == errno.EBADF
