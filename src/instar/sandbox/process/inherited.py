"""Take from a fork what it has of its parent's and no cell may have: shared memory, the environment, the command line.

Law: afterwards this process writes into no memory of another, and sees no later change of any. What is private here is
a copy; of that only the environment's texts and the command line as the kernel shows it are known to be gone.
"""

from __future__ import annotations

import os
import posix

from instar.sandbox.kernel import address_of, address_of_symbol, length_at, move, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAPS = "/proc/self/maps"
_STAT = "/proc/self/stat"
#: Fields 48 to 51 of ``/proc/self/stat`` (arg_start, arg_end, env_start, env_end), counted from behind the name.
_ARG_START, _ENV_END = 45, 48
_MAP_INACCESSIBLE = 0x02 | 0x10 | 0x20 | 0x4000  # private, fixed, anonymous, without reserve
_PIECE = 1 << 12
#: A cache of the C library's that it may look into at any conversion of text. It is the system's, and has no secrets.
_KEPT = b"/gconv-modules.cache"
_WORD = 8
_ZEROS = bytes(_PIECE)
_ZEROS_AT = address_of(_ZEROS)


class InheritanceError(Exception):
    """Something could not be taken away; no guest may run here."""


def disinherit() -> None:
    """Take all of it away. Nothing of the caller's program may run in this process any more.

    Raises:
        InheritanceError: the kernel refused it. OSError: there is no ``/proc``.
    """
    drop_shared_memory()
    forget_environment()


def can_disinherit() -> bool:
    """Tell whether a fork of this process could find out what it shares."""
    return os.access(MAPS, os.R_OK)


def drop_shared_memory() -> None:
    """Put inaccessible memory in the place of all that is shared with others, also of what may only be read.

    Raises:
        InheritanceError, OSError: see ``disinherit``.
    """
    for start, end in shared_ranges(_read(MAPS)):
        if syscall("mmap", start, end - start, 0, _MAP_INACCESSIBLE, -1, 0) != start:
            raise InheritanceError(f"shared memory at {start:#x} cannot be given up")


def shared_ranges(maps: bytes) -> list[tuple[int, int]]:
    """Return start and end of each shared mapping in the text of ``/proc/PID/maps``."""
    found = []
    at = -1
    # Few lines have the letter, so looking for it is much quicker than a look at each line.
    while (at := maps.find(b"s ", at + 1)) >= 0:
        begin = maps.rfind(b"\n", 0, at) + 1
        span, _, rights = maps[begin : at + 1].partition(b" ")
        line_end = maps.find(b"\n", at)
        kept = rights[1:2] == b"-" and maps.endswith(_KEPT, begin, line_end)
        if len(rights) == 4 and not kept:
            start, _, end = span.partition(b"-")
            found.append((int(start, 16), int(end, 16)))
    return found


def forget_environment() -> None:
    """Overwrite the environment, as C and as Python have it, and the command line as the kernel keeps it.

    Raises:
        OSError: see ``disinherit``.
    """
    fields = _read(_STAT).rpartition(b")")[2].split()
    first, end = int(fields[_ARG_START]), int(fields[_ENV_END])
    # One after the other at the end of the stack, unless somebody (PR_SET_MM) has moved them.
    if 0 < first < end < first + (64 << 20):
        _overwrite(first, end - first)
    for text in _environ(first):
        if not first <= text < end:  # set later
            _overwrite(text, length_at(text))
    for value in posix.environ.values():  # what ``os.environ`` is a view of
        if type(value) is bytes and (length := len(value)) > 1:  # shorter ones are everybody's
            if length <= _PIECE:
                move(address_of(value), _ZEROS_AT, length)
            else:
                _overwrite(address_of(value), length)
    posix.environ.clear()


def _overwrite(address: int, length: int) -> None:
    while length > 0:
        piece = min(length, _PIECE)
        move(address, _ZEROS_AT, piece)
        address, length = address + piece, length - piece


def _environ(stack_end: int) -> Iterator[int]:
    """Yield the address of each text of C's ``environ``, a list that ends with 0.

    In its first place it lies below ``stack_end`` and can be read in one piece; later it may be anywhere.
    """
    (at,) = _words(address_of_symbol("environ"), _WORD)
    step = min(stack_end - at, _PIECE) & -_WORD if 0 < stack_end - at < 64 * _PIECE else _WORD
    while at:
        for text in _words(at, max(step, _WORD)):
            if not text:
                return
            yield text
        at += max(step, _WORD)
        step = _WORD


def _words(address: int, length: int) -> memoryview:
    data = bytes(length)
    move(address_of(data), address, length)
    return memoryview(data).cast("Q")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 16 * _PIECE):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)
