"""The fork server itself: a process that has imported only instar, forks a cell for each order, and reaps it.

Law: it has one thread, reads no image, and trusts its caller, whose user it shares. It ends with its last caller.
A caller of kvm cells gets its next one made in advance, when nothing else is going on.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket  # noqa: TID253 - a process of its own, whose start nobody waits for twice
import sys

from instar.core.wire import WireError, decode, take, take_size
from instar.guest.main import preload, preload_all
from instar.sandbox.cell import MAX_FILES, Grant, Limits
from instar.sandbox.process.cell import Order, become_cell
from instar.sandbox.process.channel import CODE_FAULT, CellChannel
from instar.sandbox.process.inherited import can_disinherit, drop_shared_memory
from instar.sandbox.process.policy import FD_DOWN, FD_UP
from instar.sandbox.process.seal import arrange_descriptors, close_from, leave_namespaces
from instar.sandbox.process.server import FD_CONTROL, MESSAGE_BYTES, READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

#: A cell that was made in advance goes when nobody has wanted one for so long.
_IDLE_SECONDS = 15


def serve() -> None:
    """Be the server: detach, import what cells need, and fork one for each order until the caller is gone."""
    # A process of its own session: the caller's Ctrl-C, terminal and wait() have nothing to do with it.
    if os.fork():
        os._exit(0)
    control = socket.socket(fileno=FD_CONTROL)
    try:
        os.setsid()
        os.chdir("/")
        close_from(FD_CONTROL + 1)
        # Entered once here and inherited by every cell, for which they would take longer than all the rest.
        leave_namespaces()
        if can_disinherit():
            drop_shared_memory()
        preload_all()
        server = Server(control)
    except Exception as error:
        control.send(f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:400])
        return
    control.send(READY)
    gc.freeze()
    server.run()


def read_preload(message: bytes) -> tuple[bytes, list[str]] | None:
    """Return a job to preload and the folders of its libraries, if an order has them.

    Raises:
        WireError: it is none.
    """
    value = decode(message)
    if "preload" not in value:  # type: ignore[operator]
        return None
    return take(value, "preload", bytes), [str(path) for path in take(value, "paths", list)]


def read_order(message: bytes, fds: list[int]) -> tuple[Order, int, int | None]:
    """Return an order, the descriptor by which its caller follows the cell, and that of the kvm device if it has one.

    Raises:
        WireError: it is none.
    """
    value = decode(message)
    rows = take(value, "files", list)
    limits = Limits(
        memory=take_size(value, "memory"),
        cpu_seconds=take_size(value, "cpu_seconds"),
        wall_seconds=take_size(value, "wall_milliseconds") / 1000,
        file_bytes=take_size(value, "file_bytes"),
    )
    others = 4 if take(value, "kvm", bool) else 3
    if len(fds) != len(rows) + others:
        raise WireError("descriptors are missing")
    up, down, status, *rest = fds
    kvm = rest.pop() if others == 4 else None
    files = [Grant(fd, mode, size, offset=at) for fd, (mode, size, at) in zip(rest, rows, strict=True)]
    return Order(up, down, files, limits), status, kvm


class Spare:
    """A kvm cell that waits for its order on ``socket``; its guest may have ``memory`` bytes."""

    __slots__ = ("memory", "pid", "socket")

    def __init__(self, pid: int, memory: int, order: socket.socket) -> None:
        self.pid = pid
        self.memory = memory
        self.socket = order

    def give(self, message: bytes, fds: list[int]) -> bool:
        """Hand over an order; tell whether it arrived."""
        try:
            socket.send_fds(self.socket, [message], fds, socket.MSG_NOSIGNAL)
            return True
        except OSError:
            return False


class Server:
    """Cells that run, by process number, each with the socket that its caller ends it with and is told its end by."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._cells: dict[int, socket.socket] = {}
        self._spare: Spare | None = None
        #: What the next spare is made of: the device, and the memory of the last cell. No device, no spare.
        self._kvm = -1
        self._memory = 0
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # A child's end arrives as a byte in a pipe, so that one poll waits for everything, on every kernel.
        self._wake, wake_write = os.pipe()
        for fd in (self._wake, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> None:
        """Serve until nobody holds the other end of the control socket."""
        going = True
        while going:
            ready = {fd for fd, _ in self._poll.poll(_IDLE_SECONDS * 1000 if self._spare else None)}
            if not ready:
                self._drop_spare()
            # Orders come last: they bring new descriptors, which must not be taken for those polled.
            for pid, status in list(self._cells.items()):
                if status.fileno() in ready:
                    self._poll.unregister(status)
                    os.kill(pid, signal.SIGKILL)
            if self._wake in ready:
                self._reap()
            if self._control.fileno() in ready:
                going = self._take_order()
            elif not self._cells and not self._spare and self._kvm >= 0 and ready:
                self._make_spare()
        self._drop_spare()
        for pid in self._cells:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        try:
            while os.read(self._wake, 512):
                pass
        except BlockingIOError:
            pass
        for pid in list(self._cells):
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status = self._cells.pop(pid)
                try:
                    self._poll.unregister(status)
                except KeyError:
                    pass
                try:
                    status.send(code.to_bytes(4, sys.byteorder), socket.MSG_DONTWAIT)
                except OSError:
                    pass
                status.close()
        if self._spare is not None and os.waitpid(self._spare.pid, os.WNOHANG)[0]:
            # Nobody orders from one that died by itself, and no other is made before the next order.
            self._spare.socket.close()
            self._spare = None
            self._forget_kvm()

    def _take_order(self) -> bool:
        """Carry out one order; tell whether there may be more."""
        try:
            message, fds, _flags, _address = socket.recv_fds(self._control, MESSAGE_BYTES, MAX_FILES + 4)
        except ConnectionError:
            return False
        if not message:
            return False
        try:
            self._start_cell(message, fds)
        except (WireError, ValueError):
            pass  # the caller sees the ends of its pipes close
        except OSError as error:
            CellChannel(fds[0], fds[1]).send(b"X", f"fork: {error.strerror}".encode())
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _start_cell(self, message: bytes, fds: list[int]) -> None:
        order, status_fd, kvm = read_order(message, fds)
        # What can fail comes before the cell is born: one that is in no table nobody could end.
        status = socket.socket(fileno=os.dup(status_fd))
        try:
            if kvm is not None:
                self._remember_kvm(kvm, order.limits.memory)
            pid = self._find_or_fork(message, fds, order, kvm)
        except BaseException:
            status.close()
            raise
        self._cells[pid] = status
        self._poll.register(status, select.POLLIN)

    def _find_or_fork(self, message: bytes, fds: list[int], order: Order, kvm: int | None) -> int:
        """Return the number of the process that carries the order out: the spare, or a new one."""
        spare, extra = self._spare, read_preload(message)
        if kvm is not None and extra is None and spare is not None:
            if spare.give(message, fds):
                spare.socket.close()
                self._spare = None
                return spare.pid
            self._end_spare()  # it has died; nothing is wrong with the next one
        if kvm is not None:
            import instar.sandbox.kvm.monitor  # noqa: F401 - once here, not in each fork
        server, memory = os.getpid(), order.limits.memory

        def child() -> NoReturn:
            if extra is not None:
                _preload_more(*extra)
            become_cell(lambda: order, server, kvm=kvm, memory=memory, direct=False)

        return _fork(child)

    def _remember_kvm(self, kvm: int, memory: int) -> None:
        """Keep what the next spare is made of; one with other memory goes."""
        kept = os.dup(kvm)
        self._forget_kvm()
        self._kvm, self._memory = kept, memory
        if self._spare is not None and self._spare.memory != memory:
            self._end_spare()

    def _forget_kvm(self) -> None:
        if self._kvm >= 0:
            os.close(self._kvm)
            self._kvm = -1

    def _make_spare(self) -> None:
        server, kvm, memory = os.getpid(), self._kvm, self._memory
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._forget_kvm()  # no spares for now; the next order tries again
            return
        try:
            pid = _fork(lambda: _become_spare(theirs.fileno(), kvm, memory, server))
        except OSError:
            ours.close()
            self._forget_kvm()
            return
        finally:
            theirs.close()
        self._spare = Spare(pid, memory, ours)

    def _drop_spare(self) -> None:
        """End the spare; no other is made before the next order."""
        self._forget_kvm()
        self._end_spare()

    def _end_spare(self) -> None:
        if self._spare is not None:
            self._spare.socket.close()
            os.kill(self._spare.pid, signal.SIGKILL)
            os.waitpid(self._spare.pid, 0)
            self._spare = None


def _fork(child: Callable[[], NoReturn]) -> int:
    """Fork a process that no handler of this one runs in, and return its number.

    Raises:
        OSError: as the system says.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            child()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return pid


def _preload_more(job: bytes, paths: list[str]) -> None:
    """Import what one job needs beyond ``preload_all``, as far as it is there; its guest says what it misses."""
    try:
        sys.path += paths
        preload(job)
    except Exception:
        pass


def _become_spare(order_fd: int, kvm: int, memory: int, server: int) -> NoReturn:
    """Be a spare: make the machine, wait for the order, become its cell. Ends with the server."""
    try:
        # Nothing of the server's may stay open here: who waits for a socket of its to close would wait for the spare.
        arrange_descriptors(order_fd, kvm, ())
        orders = socket.socket(fileno=FD_UP)

        def take_order() -> Order:
            message, fds, _flags, _address = socket.recv_fds(orders, MESSAGE_BYTES, MAX_FILES + 4)
            if not message:
                os._exit(0)
            return read_order(message, fds)[0]

        become_cell(take_order, server, kvm=FD_DOWN, memory=memory, spare=True, direct=False)
    finally:
        os._exit(CODE_FAULT)
