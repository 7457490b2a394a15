"""What back ends and the host share of the operating system: holding signals, keeping off the standard streams.

Law: cheap to import. ``signal`` itself costs 3 ms for its enumerations, so the C module below it is used.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
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


def hold_all_signals_but(*heard: int) -> None:
    """Block every other signal."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, set(_signal.valid_signals()) - {*heard})


def make_lethal(number: int) -> None:
    """Give a signal its default effect."""
    _signal.signal(number, _signal.SIG_DFL)


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


def tick(seconds: float, handler: Callable[[], None]) -> int:
    """Call ``handler`` whenever so much processor time has been used; return the signal by which that is done.

    Not by the clock: a call that waits for a slow file system is not to be interrupted. Whoever forked this process
    may have had signals written to a descriptor of its own; that ends.
    """
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGPROF, lambda *_: handler())
    _signal.setitimer(_signal.ITIMER_PROF, seconds, seconds)
    return int(_signal.SIGPROF)
