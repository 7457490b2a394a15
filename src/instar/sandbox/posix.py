"""What back ends and the host share of the operating system: holding signals, keeping off the standard streams.

Law: cheap to import. ``signal`` itself costs 3 ms for its enumerations, so the C module below it is used.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

#: First descriptor number that no library takes for standard input, output or error.
_FIRST_FREE = 3


def hold_signals() -> set[int]:
    """Keep every signal from this thread until ``let_signals``; return what that needs.

    A signal whose Python handler was due raises here, before anything is held.
    """
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals()))


def let_signals(held: set[int]) -> None:
    """Undo ``hold_signals``; what came meanwhile is delivered now, so this may raise what a handler raises."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, held)


def hold_all_signals_but(number: int) -> None:
    """Block every signal save ``number``, which gets its default effect. For a process that has no handlers."""
    _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, set(_signal.valid_signals()) - {number})


def above_stdio(fd: int) -> int:
    """Move a descriptor off the numbers 0 to 2, so that a program started without them cannot print into a file."""
    if fd >= _FIRST_FREE:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    finally:
        os.close(fd)


def safe_pipe() -> tuple[int, int]:
    """Make a pipe, both ends off the standard streams: ``(read, write)``."""
    read, write = os.pipe()
    try:
        read = above_stdio(read)
        return read, above_stdio(write)
    except OSError:
        os.close(read)
        raise
