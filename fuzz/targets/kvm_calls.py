"""The system calls of a guest, as its monitor answers them: registers are all that a guest can choose."""

from __future__ import annotations

import atexit

from fuzz.kvm_model import FD_DOWN, FD_FILES, FD_UP, PAGE
from fuzz.kvm_world import EARLIER, IN_PAGES, Child, at, step, usable

_child = Child()
atexit.register(_child.end)

_DATA, _MORE, _TEXT, _LONE = 0x10 * PAGE, 0x13 * PAGE, 0x15 * PAGE, 0x20 * PAGE
_MAPPED = ((0, 3), (0, 0x22))  # protection, flags
_FIRST = (EARLIER, 0)


def _n(value: int) -> tuple[int, int]:
    return (0, value)


def seeds() -> list[bytes]:
    """Return sequences as programs make them, and some at the edges."""
    page = (IN_PAGES, 1)
    return [
        step("pread64", _n(FD_FILES), at(_DATA, 7), _n(5000), _n(9))
        + step("pwrite64", _n(FD_FILES + 1), at(_MORE, -100), _n(4200), _n(9000))
        + step("pwrite64", _n(FD_FILES + 2), at(_TEXT), _n(1), at(10_000, -1))
        + step("pwrite64", _n(FD_FILES + 2), at(_TEXT), _n(1), at(10_000)),
        step("mmap", _n(0), (IN_PAGES, 4), *_MAPPED)
        + step("mmap", _n(0), page, *_MAPPED)
        + step("pread64", _n(FD_FILES), _FIRST, _n(5000), _n(0))
        + step("mremap", _FIRST, (IN_PAGES, 4), (IN_PAGES, 6), _n(1))
        + step("munmap", (EARLIER + 2, 0), (IN_PAGES, 6))
        + step("mmap", _n(0), (IN_PAGES, 11), *_MAPPED),
        step("read", _n(FD_DOWN), at(_MORE, -20), _n(4000), extra=60)
        + step("write", _n(FD_UP), at(_LONE), _n(5))
        + step("write", _n(FD_UP), at(_LONE, 4096 - 3), _n(3))
        + step("write", _n(FD_UP), at(_LONE, 4096 - 3), _n(4)),
        step("clock_gettime", _n(0), at(_MORE, -8))
        + step("clock_gettime", _n(1), at(_DATA, -1))
        + step("madvise", at(_DATA), (IN_PAGES, 4), _n(4))
        + step("madvise", at(_DATA), (IN_PAGES, 6), _n(4))
        + step("brk", _n(0))
        + step("exit_group", _n(263)),
    ]


def one_input(data: bytes) -> None:
    """Any calls change what the model says, and nothing else."""
    if usable():
        _child.play(data)
