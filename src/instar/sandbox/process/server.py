"""The fork server: a small process that has imported only instar and makes cells for programs with threads.

Law: the caller's memory and secrets are never in a cell, because the cell is not forked from the caller.
The server takes messages of descriptors on a ``SOCK_SEQPACKET`` socket, one message a cell, so callers
may share it across threads and forks. A caller that goes away takes its cells with it.
"""

from __future__ import annotations

import os
import select
import sys

from instar.core.errors import SandboxError
from instar.core.wire import WireError, decode, encode, take, take_size
from instar.sandbox.cell import MAX_FILES, Grant, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from instar.core.wire import Wire

_FD_CONTROL = 3
_MESSAGE_BYTES = 64 << 10
_SIGKILL = 9
_lock = None
_control: socket.socket | None = None


class Served:
    """A cell that the server forked. Closing ``status`` tells the server to kill it."""

    __slots__ = ("_ended", "_status_fd", "down", "status", "up")

    def __init__(self, up: int, down: int, status: int) -> None:
        self.up = up
        self.down = down
        self._status_fd = status
        self.status: int | None = None
        self._ended = False

    def end(self) -> int | None:
        """See ``Running.end``."""
        if self._ended:
            return self.status
        self._ended = True
        # A cell that has died by itself is reaped within moments; one that has not is killed by the close.
        poll = select.poll()
        poll.register(self._status_fd, select.POLLIN)
        if poll.poll(0 if _alive(self.up) else 2000):
            data = os.read(self._status_fd, 4)
            if len(data) == 4:
                self.status = int.from_bytes(data, sys.byteorder)
        for fd in (self._status_fd, self.up, self.down):
            os.close(fd)
        return self.status


def _alive(up: int) -> bool:
    """Tell whether the cell still holds its end of the channel."""
    poll = select.poll()
    poll.register(up, 0)
    return not any(event & select.POLLHUP for _, event in poll.poll(0))


def start_cell(files: Sequence[Grant], limits: Limits) -> Served:
    """Ask the server, which is started when there is none, for one cell.

    Raises:
        SandboxError: ``unavailable``.
    """
    request: Wire = {
        "files": [[g.mode, g.size] for g in files],
        "memory": limits.memory,
        "cpu_seconds": limits.cpu_seconds,
        "file_bytes": limits.file_bytes,
    }
    fds: list[int] = []
    try:
        for _ in range(3):
            fds += os.pipe()
        up_read, up_write, down_read, down_write, status_read, status_write = fds
        _send(encode(request), [up_write, down_read, status_write, *(g.fd for g in files)])
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise SandboxError("unavailable", f"the fork server cannot be reached: {error.strerror or error}") from None
    for fd in (up_write, down_read, status_write):
        os.close(fd)
    os.set_blocking(down_write, False)
    return Served(up_read, down_write, status_read)


def _send(message: bytes, fds: list[int]) -> None:
    """Send one message; a server that has died is replaced once."""
    import socket
    import threading

    global _lock, _control
    if _lock is None:
        _lock = threading.Lock()  # two locks made in a race cost at worst one spare server
    for attempt in (0, 1):
        with _lock:
            if _control is None:
                _control = _start_server()
            control = _control
        try:
            socket.send_fds(control, [message], fds)
            return
        except (BrokenPipeError, ConnectionError):
            with _lock:
                if _control is control:
                    control.close()
                    _control = None
            if attempt:
                raise


def _start_server() -> socket.socket:
    """Start the server, detached from this process, and return the socket that reaches it."""
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        code = f"import sys; sys.path.insert(0, {package!r}); from instar.sandbox.process.server import serve; serve()"
        null = os.open(os.devnull, os.O_RDWR)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", code],
                {"LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, null, 1),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _FD_CONTROL),
                ],
                setsigmask=(),
            )
        finally:
            os.close(null)
    try:
        os.waitpid(pid, 0)  # the first process hands over to a detached one and ends at once
    except ChildProcessError:
        pass
    return ours


def serve() -> None:
    """Be the server: detach, import what cells need, and fork one for each message until the caller is gone."""
    import signal
    import socket

    from instar.guest.main import OPERATIONS, preload

    # A process of its own session: the caller's Ctrl-C, terminal and wait() have nothing to do with it.
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.closerange(_FD_CONTROL + 1, 1 << 20)
    for operation in OPERATIONS:
        preload(encode({"op": operation, "args": {"format": None}}))
    control = socket.socket(fileno=_FD_CONTROL)
    # Each running cell: process, its pidfd, and the end of the status pipe whose closing by the caller kills it.
    cells: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    while True:
        for fd, _event in poll.poll():
            if fd == control.fileno():
                message, fds, _flags, _address = socket.recv_fds(control, _MESSAGE_BYTES, MAX_FILES + 3)
                if not message:
                    for pid, _status in cells.values():
                        os.kill(pid, _SIGKILL)
                    return
                started = _fork_cell(message, fds)
                if started is not None:
                    pid, status = started
                    pidfd = os.pidfd_open(pid)
                    cells[pidfd] = (pid, status)
                    poll.register(pidfd, select.POLLIN)
                    poll.register(status, 0)
            elif fd in cells:
                pid, status = cells.pop(fd)
                poll.unregister(fd)
                _unregister(poll, status)
                os.close(fd)
                _, code = os.waitpid(pid, 0)
                try:
                    os.write(status, code.to_bytes(4, sys.byteorder))
                except BrokenPipeError:
                    pass
                os.close(status)
            else:
                _unregister(poll, fd)
                for pid, status in cells.values():
                    if status == fd:
                        os.kill(pid, _SIGKILL)


def _unregister(poll: select.poll, fd: int) -> None:
    """Stop watching a descriptor, which may have been done before."""
    try:
        poll.unregister(fd)
    except KeyError:
        pass


def _fork_cell(message: bytes, fds: list[int]) -> tuple[int, int] | None:
    """Fork one cell; return its pid and the status descriptor, or ``None`` for a malformed message."""
    from instar.sandbox.process.cell import become_cell

    try:
        value = decode(message)
        rows = take(value, "files", list)
        limits = Limits(
            memory=take_size(value, "memory"),
            cpu_seconds=take_size(value, "cpu_seconds"),
            file_bytes=take_size(value, "file_bytes"),
        )
        up, down, status, *rest = fds
        if len(rest) != len(rows):
            raise WireError("descriptors are missing")
        files = [Grant(fd, mode, size) for fd, (mode, size) in zip(rest, rows, strict=True)]
    except (WireError, ValueError):
        for fd in fds:
            os.close(fd)
        return None
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        become_cell(up, down, files, limits, server)
    for fd in (up, down, *rest):
        os.close(fd)
    return pid, status
