"""Start sealed processes: forked from here, or, where that is not safe, from the fork server.

Law: no guest code runs before the child is sealed, and no child outlives its host.
"""

from __future__ import annotations

import os

from instar.core.errors import SandboxError
from instar.guest.main import main, preload
from instar.sandbox.cell import MAX_FILES
from instar.sandbox.files import GrantedFile
from instar.sandbox.process.channel import CellChannel, converse
from instar.sandbox.process.policy import FD_DOWN, FD_FILES, FD_UP
from instar.sandbox.process.seal import seal, why_unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Limits, Serve

    Guest = Callable[[bytes, list[GrantedFile], Callable[[Wire], Wire]], bytes]

__all__ = ["ProcessCell", "become_cell", "why_unavailable"]

_SIGKILL = 9


class Child:
    """A direct child that is, or is about to be, a cell."""

    __slots__ = ("_ended", "_pid", "down", "status", "up")

    def __init__(self, pid: int, up: int, down: int) -> None:
        self._pid = pid
        self.up = up
        self.down = down
        self.status: int | None = None
        self._ended = False

    def end(self) -> int | None:
        """See ``Running.end``."""
        if self._ended:
            return self.status
        self._ended = True
        os.close(self.down)
        # A child that closed its end by exiting is about to be a zombie: let its own status be the one reaped.
        os.close(self.up)
        try:
            os.kill(self._pid, _SIGKILL)
            self.status = os.waitpid(self._pid, 0)[1]
        except (ProcessLookupError, ChildProcessError):  # the caller's program reaps children behind our back
            self.status = None
        return self.status


def become_cell(
    up: int, down: int, files: Sequence[Grant], limits: Limits, parent: int | None, guest: Guest = main
) -> NoReturn:
    """Turn this freshly forked process into a cell, run one job, and end. Never returns."""
    try:
        try:
            seal(up, down, files, limits, parent)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:400]
            try:
                CellChannel(up, down).send(b"X", text)
            except OSError:
                CellChannel(FD_UP, FD_DOWN).send(b"X", text)
            os._exit(2)
        channel = CellChannel(FD_UP, FD_DOWN)
        job = channel.receive(b"J")
        granted = [GrantedFile(n, FD_FILES + n, g.mode, g.size) for n, g in enumerate(files)]
        channel.send(b"R", guest(job, granted, channel.ask))
        os._exit(0)
    finally:
        os._exit(4)


class ProcessCell:
    """A process sealed by rlimits, namespaces, Landlock and seccomp.

    ``direct`` forks the caller itself; without it a fork server does, so that neither the caller's threads
    nor its memory are anywhere near the guest. ``guest`` is what runs inside; tests put misbehaviour there.
    """

    name = "process"

    def __init__(self, *, direct: bool, guest: Guest = main) -> None:
        self._direct = direct
        self._guest = guest

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        """See ``Cell.run``."""
        if len(files) > MAX_FILES:
            raise SandboxError("limit", f"{len(files)} files are too many for one cell, the limit is {MAX_FILES}")
        if self._direct:
            return converse(self._fork(job, files, limits), job, limits, serve)
        from instar.sandbox.process.server import start_cell

        return converse(start_cell(files, limits), job, limits, serve)

    def _fork(self, job: bytes, files: Sequence[Grant], limits: Limits) -> Child:
        preload(job)
        fds: list[int] = []
        try:
            fds += os.pipe()
            fds += os.pipe()
            up_read, up_write, down_read, down_write = fds
            host = os.getpid()
            pid = os.fork()
            if pid == 0:
                become_cell(up_write, down_read, files, limits, host, self._guest)
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise SandboxError("unavailable", f"a process cannot be started: {error.strerror}") from None
        os.close(up_write)
        os.close(down_read)
        os.set_blocking(down_write, False)
        return Child(pid, up_read, down_write)
