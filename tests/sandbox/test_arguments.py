"""Calls that a cell may make, with arguments that no program would use: each kind of cell gives Linux's own answer."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import libc, raw, run_guest, sentence
from tests.sandbox.numbers import USER_TOP

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant

if TYPE_CHECKING:
    from tests.sandbox.cells import Ask

    from instar.sandbox.files import GrantedFile

FORBIDDEN = "the cell was killed: it made a system call that no cell may make"
MiB = 1 << 20
_data = ctypes.create_string_buffer(64)
_data_at = ctypes.addressof(_data)
_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_page_at = ctypes.addressof(ctypes.c_char.from_buffer(_page))
_function_at = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0

EFAULT, EINVAL, ENOMEM, EFBIG = -14, -22, -12, -27
NOWHERE, KERNEL, NO_ADDRESS, TOP = 8, -USER_TOP, 1 << 63, -4096
R, W, RW = 5, 6, 7
_PREAD, _PWRITE, _CLOCK = 17, 18, 228

#: Name, call number, arguments, answer. File 5 may be read, 6 written, 7 both; all have 8192 bytes, up to 16384.
CALLS: tuple[tuple[str, int, tuple[int, ...], int], ...] = (
    ("pread to nowhere", _PREAD, (R, NOWHERE, 10, 0), EFAULT),
    ("pread to the kernel", _PREAD, (R, KERNEL, 10, 0), EFAULT),
    ("pread to no address", _PREAD, (R, NO_ADDRESS, 10, 0), EFAULT),
    ("pread to the last page", _PREAD, (R, TOP, 10, 0), EFAULT),
    ("pread to code", _PREAD, (R, _function_at, 10, 0), EFAULT),
    ("pread to a range that wraps", _PREAD, (R, _data_at, -1, 0), EFAULT),
    ("pread to a range that wraps to 0", _PREAD, (R, -5, 5, 0), EFAULT),
    ("pread into the hole in the middle of addresses", _PREAD, (R, USER_TOP - 4096, 4096, 0), EFAULT),
    ("pread of nothing to nowhere", _PREAD, (R, NOWHERE, 0, 0), 0),
    ("pread before the start", _PREAD, (R, _data_at, 10, -1), EINVAL),
    ("pread at the lowest offset", _PREAD, (R, _data_at, 10, -1 << 63), EINVAL),
    ("pread past the end", _PREAD, (R, _data_at, 10, 8192), 0),
    ("pread across the end", _PREAD, (R, _data_at, 10, 8187), 5),
    ("pread far past the end", _PREAD, (R, _data_at, 10, 1 << 40), 0),
    ("pread with high bits in the descriptor", _PREAD, (1 << 40 | R, _data_at, 10, 0), 10),
    ("pread with all high bits in the descriptor", _PREAD, (-1 << 32 | RW, _data_at, 10, 0), 10),
    ("pwrite from nowhere", _PWRITE, (W, NOWHERE, 10, 0), EFAULT),
    ("pwrite from the kernel", _PWRITE, (W, KERNEL, 10, 0), EFAULT),
    ("pwrite from no address", _PWRITE, (W, NO_ADDRESS, 10, 0), EFAULT),
    ("pwrite from a range that wraps", _PWRITE, (W, _data_at, -1, 0), EFAULT),
    ("pwrite from code", _PWRITE, (W, _function_at, 10, 0), 10),
    ("pwrite of nothing from nowhere", _PWRITE, (W, NOWHERE, 0, 0), 0),
    ("pwrite before the start", _PWRITE, (W, _data_at, 10, -1), EINVAL),
    ("pwrite at the limit", _PWRITE, (W, _data_at, 1, 16384), EFBIG),
    ("pwrite past the limit", _PWRITE, (W, _data_at, 1, 1 << 40), EFBIG),
    ("pwrite across the limit", _PWRITE, (W, _data_at, 10, 16381), 3),
    ("pwrite of nothing at the limit", _PWRITE, (W, _data_at, 0, 16384), 0),
    ("pwrite of nothing past the limit", _PWRITE, (W, _data_at, 0, 20000), 0),
    ("pwrite with high bits in the descriptor", _PWRITE, (1 << 40 | RW, _data_at, 10, 0), 10),
    ("write from nowhere", 1, (3, NOWHERE, 10), EFAULT),
    ("write from the kernel", 1, (3, KERNEL, 10), EFAULT),
    ("write of nothing", 1, (3, NOWHERE, 0), 0),
    ("read of nothing", 0, (4, _data_at, 0), 0),
    ("clock_gettime to nowhere", _CLOCK, (1, NOWHERE), EFAULT),
    ("clock_gettime to the kernel", _CLOCK, (1, KERNEL), EFAULT),
    ("clock_gettime to code", _CLOCK, (1, _function_at), EFAULT),
    ("clock_gettime", _CLOCK, (1, _data_at), 0),
    ("mmap of nothing", 9, (0, 0, 3, 0x22, -1, 0), EINVAL),
    ("mmap of more than there are addresses", 9, (0, 1 << 48, 3, 0x22, -1, 0), ENOMEM),
    ("mmap of more than the limit", 9, (0, 1 << 33, 3, 0x22, -1, 0), ENOMEM),
    ("mmap of all", 9, (0, -1, 3, 0x22, -1, 0), ENOMEM),
    ("mmap at a place of its choice", 9, (1 << 40, 4096, 3, 0x22, -1, 0), ENOMEM),
    ("mmap at a place of its choice, a low one", 9, (1 << 20, 4096, 3, 0x22, -1, 0), ENOMEM),
    ("mmap at a place that is no address", 9, (-1, 4096, 3, 0x22, -1, 0), ENOMEM),
    ("munmap of nothing", 11, (0, 0), EINVAL),
    ("munmap off a page", 11, (4097, 4096), EINVAL),
    ("munmap of the kernel", 11, (KERNEL, 4096), EINVAL),
    ("munmap past the end of addresses", 11, (USER_TOP - mmap.PAGESIZE, 1 << 40), EINVAL),
    ("munmap where nothing is", 11, (1 << 20, 4096), 0),
    ("mremap of nothing", 25, (0, 4096, 8192, 1, 0), EFAULT),
    ("mremap to nothing", 25, (_page_at, 4096, 0, 1, 0), EINVAL),
    ("mremap off a page", 25, (_page_at + 1, 4096, 8192, 1, 0), EINVAL),
    ("mremap to more than the limit", 25, (_page_at, 4096, 1 << 33, 1, 0), ENOMEM),
    ("madvise off a page", 28, (_page_at + 1, 4096, 4), EINVAL),
    ("madvise where nothing is", 28, (1 << 20, 4096, 4), ENOMEM),
    ("madvise of nothing", 28, (1 << 20, 0, 4), 0),
)


@pytest.mark.parametrize("kind", KINDS)
class TestCalls:
    """Calls that a cell may make, with arguments that no program would."""

    @pytest.mark.parametrize(("number", "words", "answer"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
    def test_have_this_answer(
        self, number: int, words: tuple[int, ...], answer: int, files: list[Grant], kind: str
    ) -> None:
        reply = run_guest(
            lambda job, granted, ask: b"%d" % raw(number, *words), files, kind=kind, file_bytes=16384, memory=256 * MiB
        )
        assert int(reply) == answer

    @pytest.mark.parametrize("number", [_PREAD, _PWRITE])
    @pytest.mark.parametrize(
        "fd", [-1, 0, 1, 2, 3, 4, 8, 9, 1023, (1 << 31) - 1, -(1 << 31), 1 << 31, 1 << 32, 1 << 40]
    )
    def test_on_descriptors_that_were_not_granted_end_the_cell(
        self, number: int, fd: int, files: list[Grant], kind: str
    ) -> None:
        with pytest.raises(SandboxError) as caught:
            run_guest(lambda job, granted, ask: b"%d" % raw(number, fd, _data_at, 1, 0), files, kind=kind)
        assert (caught.value.kind, sentence(caught.value, kind)) == ("died", FORBIDDEN)

    @pytest.mark.parametrize(("number", "fd"), [(_PREAD, W), (_PWRITE, R), (0, R), (1, RW), (0, 3), (1, 4)])
    def test_the_other_way_than_granted_end_the_cell(self, number: int, fd: int, files: list[Grant], kind: str) -> None:
        with pytest.raises(SandboxError) as caught:
            run_guest(lambda job, granted, ask: b"%d" % raw(number, fd, _data_at, 1, 0), files, kind=kind)
        assert (caught.value.kind, sentence(caught.value, kind)) == ("died", FORBIDDEN)
        assert [os.pread(file.fd, 9000, 0) for file in files] == [b"x" * 8192] * 3

    def test_that_read_an_answer_to_nowhere_do_not_lose_it(self, kind: str) -> None:
        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            os.write(3, b"\x01\0\0\0QN")
            return b"%d, then %s" % (raw(0, 4, NOWHERE, 5), os.read(4, 6))

        assert run_guest(guest, kind=kind, serve=lambda asked: None) == b"-14, then \x01\0\0\0AN"

    def test_across_the_end_of_memory_read_only_what_there_is_room_for(self, files: list[Grant], kind: str) -> None:
        """Linux reads up to the end; a monitor refuses the whole."""
        page = mmap.PAGESIZE
        room = mmap.mmap(-1, 3 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        assert libc.mprotect(ctypes.c_void_p(start + 2 * page), page, 0) == 0

        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return repr([raw(number, RW, start + 2 * page - 10, 100, 0) for number in (_PREAD, _PWRITE)]).encode()

        try:
            answers = eval(run_guest(guest, files, kind=kind))
        finally:
            libc.mprotect(ctypes.c_void_p(start + 2 * page), page, 3)
        assert answers == ([10, 10] if kind == "process" else [EFAULT, EFAULT])
