"""The caller's side of the fork server: a small process, started once, that makes cells for programs with threads.

Law: the caller's memory and secrets are never in a cell, because the cell is not forked from the caller.
Orders are single messages on a ``SOCK_SEQPACKET`` socket, so threads and forked children of the caller may
share it. A caller that goes away takes its cells with it, and the last one the server.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import select
import sys
import weakref

from instar.core.errors import SandboxError, printable
from instar.core.wire import encode
from instar.sandbox.posix import above_stdio, hold_signals, let_signals, safe_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Limits

#: Descriptor number of the server's end of the socket, inside the server.
FD_CONTROL = 3
#: Longest order, and longest word of readiness.
MESSAGE_BYTES = 64 << 10
READY = b"ready"
_START_SECONDS = 30
_END_SECONDS = 10
#: Away from every number that the file actions of ``posix_spawn`` give out.
_AWAY = 10
_SIGNALS_TO_DEFAULT = (13, 17)  # SIGPIPE, SIGCHLD

_lock = _thread.allocate_lock()
_control: socket.socket | None = None
#: Cells that run for this process; a forked child must let go of them.
_running: weakref.WeakSet[Served] = weakref.WeakSet()


class Served:
    """A cell that the server forked. ``status`` is a socket: closing it asks for the cell's death.

    In a program with threads an interrupt can strike between any two steps. What it loses is closed when it is
    forgotten, the socket too, so no cell lives on.
    """

    __slots__ = ("__weakref__", "_fds", "_socket", "down", "status", "up")

    def __init__(self, up: int, down: int, status: socket.socket, *others: int) -> None:
        self.up = up
        self.down = down
        self._fds = [up, down, *others]
        self._socket: socket.socket | None = status
        self.status: int | None = None
        _running.add(self)

    def end(self) -> int | None:
        """See ``Running.end``. Waits for the server's word that the cell is dead and reaped."""
        if self._socket is not None and self._socket.fileno() >= 0:
            try:
                self._socket.shutdown(1)  # SHUT_WR: reaches the server although a forked process may hold a copy
            except OSError:
                pass  # the server is gone, and its cells with it
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            if poll.poll(_END_SECONDS * 1000):
                try:
                    data = self._socket.recv(4)
                except OSError:
                    data = b""
                if len(data) == 4:
                    self.status = int.from_bytes(data, sys.byteorder)
        self.let_go()
        return self.status

    def let_go(self) -> None:
        """Close everything, without a word."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._fds:
            os.close(self._fds.pop())
        _running.discard(self)


def start_cell(
    files: Sequence[Grant], limits: Limits, kvm: int | None = None, *, preload: bytes | None = None
) -> Served:
    """Order one cell; with ``kvm``, a descriptor of the device, one in a virtual machine.

    ``preload`` is what ``guest.main.heavy_part`` says of its job; libraries are looked for where this program has them.

    Raises:
        SandboxError: ``unavailable``.
    """
    import socket

    order: dict[str, Wire] = {
        "files": [[g.mode, g.size, g.offset] for g in files],
        "memory": limits.memory,
        "cpu_seconds": limits.cpu_seconds,
        "wall_milliseconds": int(limits.wall_seconds * 1000),
        "file_bytes": limits.file_bytes,
        "kvm": kvm is not None,
    }
    if preload is not None:
        folders: list[Wire] = [os.path.abspath(path) for path in sys.path if path and os.path.isdir(path)]
        order.update(preload=preload, paths=folders)
    fds: list[int] = []
    theirs = None
    try:
        fds += safe_pipe()
        fds += safe_pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        up_read, up_write, down_read, down_write = fds
        os.set_blocking(down_write, False)
        others = () if kvm is None else (kvm,)
        _send(encode(order), [up_write, down_read, theirs.fileno(), *(g.fd for g in files), *others])
    except (OSError, SandboxError) as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, SandboxError):
            raise
        reason = error.strerror or str(error)
        raise SandboxError("unavailable", f"the fork server cannot be reached: {reason}") from None
    finally:
        if theirs is not None:
            theirs.close()
    os.close(up_write)
    # The cell's end of ``down`` stays open here too: writing to a dead cell is then no SIGPIPE.
    return Served(up_read, down_write, ours, down_read)


def _send(message: bytes, fds: list[int]) -> None:
    """Send one message; a server that has died is replaced once."""
    import socket

    global _control
    # One at a time, so that nobody closes the socket under another's hands; a message takes microseconds.
    with _lock:
        for attempt in (0, 1):
            control = _running_server()
            try:
                socket.send_fds(control, [message], fds, socket.MSG_NOSIGNAL)
                return
            except ConnectionError:
                control.close()
                _control = None
                if attempt:
                    raise


def ensure_server() -> None:
    """Start the server if there is none, without which the first cell would have to wait for it.

    Raises:
        SandboxError: ``unavailable``.
    """
    with _lock:
        _running_server()


def _running_server() -> socket.socket:
    """Return the socket that reaches the server. The caller holds the lock."""
    global _control
    if _control is None:
        try:
            _control = _start_server()
        except OSError as error:
            raise SandboxError("unavailable", f"the fork server cannot be started: {error.strerror or error}") from None
    return _control


def _start_server() -> socket.socket:
    """Start the server, detached from this process, and wait until it is ready."""
    import socket

    if getattr(sys, "frozen", False) or not sys.executable:
        raise SandboxError(
            "unavailable",
            "this program has no Python interpreter of its own to start a fork server with;"
            " if it has one thread, say so with Isolation(single_threaded=True)",
        )
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    code = f"import sys; sys.path.insert(0, {package!r}); from instar.sandbox.process.serve import serve; serve()"
    argv = [sys.executable, "-I", "-S", *(["-B"] if sys.dont_write_bytecode else []), "-c", code]
    # Nothing of the caller's environment, save what its interpreter may need to find its own libraries.
    environment = {"LC_ALL": "C.UTF-8"}
    environment.update({k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            _spawn(argv, environment, theirs.fileno())
        ours.settimeout(_START_SECONDS)
        word = ours.recv(MESSAGE_BYTES)
        if word != READY:
            said = printable(word, 300) or "it ended at once"
            raise SandboxError("unavailable", f"the fork server did not start: {said}")
        ours.settimeout(None)
    except BaseException:
        ours.close()
        raise
    fd = ours.detach()
    return socket.socket(fileno=above_stdio(fd))


def _spawn(argv: list[str], environment: dict[str, str], control: int) -> None:
    fds: list[int] = []
    # An interrupt between the birth and the ``waitpid`` would leave a zombie.
    held = hold_signals()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        fds.append(null)
        fds += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _AWAY) for fd in (null, control)]
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, fds[1], number) for number in range(3)),
                (os.POSIX_SPAWN_DUP2, fds[2], FD_CONTROL),
            ],
            setsigmask=(),
            setsigdef=_SIGNALS_TO_DEFAULT,
        )
        try:
            os.waitpid(pid, 0)  # it hands over to a detached process and ends at once
        except ChildProcessError:
            pass  # the caller's program reaps children behind our back
    finally:
        for fd in fds:
            os.close(fd)
        let_signals(held)


def _after_fork_in_child() -> None:
    """Let go, in a forked child of the caller, of what belongs to the parent's threads."""
    global _lock
    _lock = _thread.allocate_lock()
    for served in list(_running):
        served.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)
