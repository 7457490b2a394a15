"""Wait for descriptors with a limit, also in programs that put their own functions in the place of Python's.

Law: where signals are held nobody waits, and nobody may switch to another thread of any kind. gevent, eventlet and
the like replace functions of ``os``, ``select``, ``socket`` and ``time`` by some that do, and take ``select.poll``
away; so the sandbox uses the C modules below those (``posix``, ``_socket``), and this.
"""

from __future__ import annotations

import select
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: poll(2)
READ, WRITE = 0x001, 0x004
_POLLFD = struct.Struct("=ihh")
#: Seconds between two looks, at first and at last.
_SHORT, _LONG = 0.0005, 0.02


def wait_for(wanted: Sequence[tuple[int, int]], seconds: float) -> list[int]:
    """Wait until one of the descriptors is ready for its events, or at its end, and return those that are.

    It looks once even if there is no time left. What else a program switches between runs meanwhile.
    """
    make_poll = getattr(select, "poll", None)
    if type(make_poll) is not type(len):
        return _look_again_and_again(wanted, seconds)
    poll = select.poll()
    for fd, events in wanted:
        poll.register(fd, events)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]


def _look_again_and_again(wanted: Sequence[tuple[int, int]], seconds: float) -> list[int]:
    """Do the same where somebody replaced ``select.poll``; then ``time.sleep`` lets the others run."""
    end = time.monotonic() + seconds
    pause = _SHORT
    while True:
        ready = look(wanted)
        left = end - time.monotonic()
        if ready or left <= 0:
            return ready
        time.sleep(min(pause, left))
        pause = min(pause * 1.3, _LONG)


def look(wanted: Sequence[tuple[int, int]]) -> list[int]:
    """Return those that are ready now, by a system call of our own.

    Raises:
        OSError: the call failed.
    """
    import os

    from instar.sandbox.kernel import syscall

    table = b"".join(_POLLFD.pack(fd, events, 0) for fd, events in wanted)
    # The kernel writes what it found into the same bytes, which nobody else has seen.
    count = syscall("ppoll", table, len(wanted), bytes(16), 0, 0)
    if count < 0:
        raise OSError(-count, os.strerror(-count))
    return [fd for fd, _, found in _POLLFD.iter_unpack(table) if found]
