"""The caller's side of the fork server: a small process, started once, that makes cells for programs with threads.

Law: the caller's memory and secrets are never in a cell, because the cell is not forked from the caller.
Orders are single messages on a ``SOCK_SEQPACKET`` socket, so threads and forked children of the caller may
share it. A caller that goes away takes its cells with it, and the last one the server.
"""

from __future__ import annotations

import _socket
import _thread
import fcntl
import os
import posix
import struct
import sys
import weakref

from instar.core.errors import SandboxError, printable
from instar.core.wire import encode
from instar.sandbox.posix import above_stdio, hold_signals, let_signals, safe_pipe
from instar.sandbox.process.channel import ServerGone
from instar.sandbox.process.waiting import READ, WRITE, wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
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
_SIGKILL = 9
_SIGNALS_TO_DEFAULT = (13, 17)  # SIGPIPE, SIGCHLD

#: Held while a server is started, and by nobody who could switch to another thread of this program meanwhile.
_lock = _thread.allocate_lock()
_control: _Control | None = None
#: Cells that run for this process; a forked child must let go of them.
_running: weakref.WeakSet[Served] = weakref.WeakSet()


class Served:
    """A cell that the server forked. ``status`` is a socket: closing it asks for the cell's death.

    In a program with threads an interrupt can strike between any two steps. What it loses is closed when it is
    forgotten, the socket too, so no cell lives on.
    """

    __slots__ = ("__weakref__", "_fds", "_socket", "down", "status", "up")

    def __init__(self, up: int, down: int, status: _socket.socket, *others: int) -> None:
        self.up = up
        self.down = down
        self._fds = [up, down, *others]
        self._socket: _socket.socket | None = status
        self.status: int | None = None
        _running.add(self)

    def end(self) -> int | None:
        """See ``Running.end``. Waits for the server's word that the cell is dead and reaped."""
        if self._socket is not None and self._socket.fileno() >= 0:
            try:
                self._socket.shutdown(1)  # SHUT_WR: reaches the server although a forked process may hold a copy
            except OSError:
                pass  # the server is gone, and its cells with it
            if wait_for([(self._socket.fileno(), READ)], _END_SECONDS):
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


class _Control:
    """The socket that reaches a server. It is closed when the last who uses it has let go, so under nobody's hands."""

    __slots__ = ("_socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket

    def send(self, message: bytes, fds: Sequence[int]) -> bool:
        """Send one message; tell whether it went, or the server has more than it can take now.

        Raises:
            OSError: it cannot be sent; ``ConnectionError`` if the server has died.
        """
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))
        try:
            self._socket.sendmsg([message], [rights], _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until the server can take a message; tell whether it can."""
        return bool(wait_for([(self._socket.fileno(), WRITE)], seconds))

    def __del__(self) -> None:
        self._socket.close()


def order_of(files: Sequence[Grant], limits: Limits, kvm: int | None = None, *, preload: bytes | None = None) -> bytes:
    """Return the order of one cell; with ``kvm``, a descriptor of the device, one in a virtual machine.

    ``preload`` is what ``guest.main.heavy_part`` says of its job; libraries are looked for where this program has them.
    """
    order: dict[str, Wire] = {
        "files": [[g.mode, g.size, g.offset] for g in files],
        "memory": limits.memory,
        "cpu_seconds": limits.cpu_seconds,
        "wall_milliseconds": int(limits.wall_seconds * 1000),
        "file_bytes": limits.file_bytes,
        "kvm": kvm is not None,
    }
    if preload is not None:
        order.update(preload=preload, paths=[*_library_folders()])
    return encode(order)


def _library_folders() -> list[str]:
    """Return where this program looks for libraries, without its working folder, which may be a stranger's.

    That is among them, often without anybody's wish, for ``-m``, ``-c`` and an empty item of ``PYTHONPATH``. A program
    that has everything in one folder, instar too, means it.
    """
    package = os.path.dirname(_package_folder())

    def is_strange(path: str) -> bool:
        return os.path.samefile(path, ".") and not os.path.samefile(path, package)

    try:
        return [path for path in sys.path if os.path.isabs(path) and os.path.isdir(path) and not is_strange(path)]
    except OSError:  # the working folder is gone, or one of the others just now
        return []


def _package_folder() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def start_cell(order: bytes, files: Sequence[Grant], kvm: int | None = None) -> Served | None:
    """Order one cell of a server that ``get_ready`` has found; ``None`` if that would be to wait. Never waits.

    Raises:
        ServerGone: the server has died since.
        SandboxError: ``unavailable``.
    """
    global _control
    control = _control
    if control is None:
        return None
    fds: list[int] = []
    ours = theirs = served = None
    try:
        fds += safe_pipe()
        fds += safe_pipe()
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        up_read, up_write, down_read, down_write = fds
        os.set_blocking(down_write, False)
        others = () if kvm is None else (kvm,)
        if control.send(order, [up_write, down_read, theirs.fileno(), *(g.fd for g in files), *others]):
            # The cell's end of ``down`` stays open here too: writing to a dead cell is then no SIGPIPE.
            fds = [up_write]
            served = Served(up_read, down_write, ours, down_read)
    except ConnectionError as error:
        if _control is control:
            _control = None
        raise ServerGone("unavailable", _unreachable(error)) from None
    except OSError as error:
        raise SandboxError("unavailable", _unreachable(error)) from None
    finally:
        for fd in fds:
            os.close(fd)
        for end in (theirs, ours if served is None else None):
            if end is not None:
                end.close()
    return served


def _unreachable(error: OSError) -> str:
    return f"the fork server cannot be reached: {error.strerror or error}"


def get_ready(seconds: float = _START_SECONDS) -> None:
    """Start the server if there is none, and wait, ``seconds`` at most, until it can take an order.

    Raises:
        SandboxError: ``unavailable``.
    """
    if not ensure_server().wait(seconds) or seconds <= 0:
        raise SandboxError("unavailable", "the fork server takes no orders")


def ensure_server() -> _Control:
    """Return what reaches the server, which is started if there is none.

    Raises:
        SandboxError: ``unavailable``.
    """
    global _control
    control = _control
    if control is not None:
        return control
    with _lock:
        if _control is None:
            try:
                _control = _Control(_start_server())
            except OSError as error:
                said = f"the fork server cannot be started: {error.strerror or error}"
                raise SandboxError("unavailable", said) from None
        return _control


def _start_server() -> _socket.socket:
    """Start the server, detached from this process, and wait until it is ready."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise SandboxError(
            "unavailable",
            "this program has no Python interpreter of its own to start a fork server with;"
            " if it has one thread, say so with Isolation(single_threaded=True)",
        )
    package = os.path.dirname(_package_folder())
    code = f"import sys; sys.path.insert(0, {package!r}); from instar.sandbox.process.serve import serve; serve()"
    argv = [sys.executable, "-I", "-S", *(["-B"] if sys.dont_write_bytecode else []), "-c", code]
    # Nothing of the caller's environment, save what its interpreter may need to find its own libraries.
    environment = {"LC_ALL": "C.UTF-8"}
    environment.update({k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ})
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    started: list[int] = []
    try:
        try:
            _spawn(argv, environment, theirs.fileno(), started)
        finally:
            theirs.close()
        ours.settimeout(_START_SECONDS)
        word = ours.recv(MESSAGE_BYTES)
        if word != READY:
            said = printable(word, 300) or "it ended at once"
            raise SandboxError("unavailable", f"the fork server did not start: {said}")
        ours.settimeout(None)
        return _socket.socket(fileno=above_stdio(ours.detach()))
    except TimeoutError:
        said = f"the fork server did not start within {_START_SECONDS} s"
        raise SandboxError("unavailable", said) from None
    finally:
        ours.close()
        for pid in started:
            _reap(pid)


def _spawn(argv: list[str], environment: dict[str, str], control: int, started: list[int]) -> None:
    """Start a process, and note its number in ``started`` before any interrupt can come."""
    fds: list[int] = []
    held = hold_signals()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        fds.append(null)
        fds += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _AWAY) for fd in (null, control)]
        started.append(
            posix.posix_spawn(
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
        )
    finally:
        for fd in fds:
            os.close(fd)
        let_signals(held)


def _reap(pid: int) -> None:
    """Reap the process that was started. It has handed over to a detached one, unless the start failed."""
    try:
        if not posix.waitpid(pid, os.WNOHANG)[0]:
            os.kill(pid, _SIGKILL)
            posix.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass  # the caller's program reaps children behind our back


def _after_fork_in_child() -> None:
    """Let go, in a forked child of the caller, of what belongs to the parent's threads."""
    global _lock
    # Another thread may have been starting a server, which this process then knows nothing of.
    _lock = _thread.allocate_lock()
    for served in list(_running):
        served.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)
