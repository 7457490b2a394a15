"""The fork server itself: a process that has imported only instar, forks a cell for each order, and reaps it.

Law: it has one thread, reads no image, and trusts its caller, whose user it shares. It ends with its last caller.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket  # noqa: TID253 - a process of its own, whose start nobody waits for twice
import sys

from instar.core.wire import WireError, decode, take, take_size
from instar.guest.main import preload_all
from instar.sandbox.cell import MAX_FILES, Grant, Limits
from instar.sandbox.process.cell import become_cell
from instar.sandbox.process.channel import CellChannel
from instar.sandbox.process.seal import close_from, leave_namespaces
from instar.sandbox.process.server import FD_CONTROL, MESSAGE_BYTES, READY


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
        preload_all()
        server = Server(control)
    except Exception as error:
        control.send(f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:400])
        return
    control.send(READY)
    gc.freeze()
    server.run()


class Server:
    """Cells that run, by process number, each with the socket that its caller ends it with and is told its end by."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._cells: dict[int, socket.socket] = {}
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
            ready = {fd for fd, _ in self._poll.poll()}
            # Orders come last: they bring new descriptors, which must not be taken for those polled.
            for pid, status in list(self._cells.items()):
                if status.fileno() in ready:
                    self._poll.unregister(status)
                    os.kill(pid, signal.SIGKILL)
            if self._wake in ready:
                self._reap()
            if self._control.fileno() in ready:
                going = self._take_order()
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

    def _take_order(self) -> bool:
        """Carry out one order; tell whether there may be more."""
        try:
            message, fds, _flags, _address = socket.recv_fds(self._control, MESSAGE_BYTES, MAX_FILES + 3)
        except ConnectionError:
            return False
        if not message:
            return False
        try:
            self._fork_cell(decode(message), fds)
        except (WireError, ValueError):
            pass  # the caller sees the ends of its pipes close
        except OSError as error:
            CellChannel(fds[0], fds[1]).send(b"X", f"fork: {error.strerror}".encode())
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork_cell(self, order: object, fds: list[int]) -> None:
        value = order if isinstance(order, dict) else {}
        rows = take(value, "files", list)
        limits = Limits(
            memory=take_size(value, "memory"),
            cpu_seconds=take_size(value, "cpu_seconds"),
            file_bytes=take_size(value, "file_bytes"),
        )
        up, down, status_fd, *rest = fds
        if len(rest) != len(rows):
            raise WireError("descriptors are missing")
        files = [Grant(fd, mode, size) for fd, (mode, size) in zip(rest, rows, strict=True)]
        # No handler of the server may run in the cell.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                become_cell(up, down, files, limits, server, namespaces=False)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        status = socket.socket(fileno=os.dup(status_fd))
        self._cells[pid] = status
        self._poll.register(status, select.POLLIN)
