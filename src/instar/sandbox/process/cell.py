"""Start sealed processes: forked from here, or, where that is not safe, from the fork server.

Law: no guest code runs before the child is sealed, and no child outlives its host.
"""

from __future__ import annotations

import gc
import os
import posix
import sys
import time

from instar.core.errors import SandboxError
from instar.guest.main import heavy_part, main, preload
from instar.sandbox.cell import MAX_FILES
from instar.sandbox.files import GrantedFile
from instar.sandbox.posix import hold_signals, let_signals, safe_pipe
from instar.sandbox.process.channel import (
    CODE_FAULT,
    CODE_NO_MEMORY,
    CODE_UNSEALED,
    CellChannel,
    ServerGone,
    StartFailed,
    StartFault,
    converse,
    unpack_job,
)
from instar.sandbox.process.inherited import can_disinherit, disinherit
from instar.sandbox.process.policy import FD_DOWN, FD_FILES, FD_UP, RULES
from instar.sandbox.process.seal import arrange_descriptors, seal, why_unavailable

try:
    import _tracemalloc
except ImportError:  # an isolated subinterpreter has none, and forks nothing
    _tracemalloc = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from instar.sandbox.cell import Grant, Guest, Limits, Serve
    from instar.sandbox.process.channel import Running
    from instar.sandbox.process.policy import Rule

__all__ = ["ProcessCell", "become_cell", "why_unavailable"]

_SIGKILL = 9
#: How often a cell is ordered when each fork server that takes the order dies of something.
_TRIES = 3
#: How long the fork server may take to take an order.
_MOST_SECONDS_TO_ORDER = 60
#: How many tools sys.monitoring knows.
_MONITORING_TOOLS = 6
#: What a guest may need of the interpreter's depth, beside what the program that was forked has used up.
_DEPTH = 1000
_INT_MAX = (1 << 31) - 1


class Child:
    """A direct child that is, or is about to be, a cell."""

    __slots__ = ("_fds", "_pid", "down", "status", "up")

    def __init__(self, pid: int, up: int, down: int, *others: int) -> None:
        self._pid = pid
        self._fds = [up, down, *others]
        self.up = up
        self.down = down
        self.status: int | None = None

    def end(self) -> int | None:
        """See ``Running.end``."""
        if self._pid:
            try:
                # While it is not reaped its number is nobody else's, so the signal cannot hit a stranger. A cell that
                # is about to die by itself keeps the status of its own death.
                pid, status = posix.waitpid(self._pid, os.WNOHANG)
                if not pid:
                    os.kill(self._pid, _SIGKILL)
                    status = posix.waitpid(self._pid, 0)[1]
                self.status = status
            except (ProcessLookupError, ChildProcessError):
                pass  # the caller's program reaps children behind our back
            self._pid = 0
        while self._fds:
            os.close(self._fds.pop())
        return self.status


class Order:
    """What one cell is for: the ends of its pipes, its files, its limits."""

    __slots__ = ("down", "files", "limits", "up")

    def __init__(self, up: int, down: int, files: Sequence[Grant], limits: Limits) -> None:
        self.up = up
        self.down = down
        self.files = files
        self.limits = limits


def become_cell(
    take_order: Callable[[], Order],
    parent: int,
    *,
    kvm: int | None = None,
    memory: int = 0,
    spare: bool = False,
    guest: Guest = main,
    direct: bool = True,
    rules: tuple[Rule, ...] = RULES,
) -> NoReturn:
    """Turn this freshly forked process into a cell, run one job, and end. Never returns.

    ``direct`` is false for a fork of the fork server, which has entered namespaces and given up what it inherited.

    With ``kvm``, a descriptor of the device, the guest runs in a virtual machine with ``memory`` bytes to spare, and
    this process is its monitor; the machine is made before the order is taken, which comes later for a ``spare``.
    Signals must be held, so that no handler of the program that was forked runs here.
    """
    code = CODE_FAULT
    # What was garbage before the fork is not ours: a finaliser could do what a cell may not, and kill it.
    gc.disable()
    try:
        sys.setrecursionlimit(min(sys.getrecursionlimit() + _DEPTH, _INT_MAX))
        _stop_watching()

        def body() -> NoReturn:
            os._exit(_live(guest))

        monitor = failure = None
        try:
            if direct:
                disinherit()
            if kvm is not None:
                from instar.sandbox.kvm.monitor import Monitor

                monitor = Monitor(kvm, body, memory)
                if spare:
                    monitor.start_in_advance()
        except Exception as error:
            if spare:
                os._exit(CODE_UNSEALED)  # the order that will come may find better times
            failure = error
        order = take_order()
        channel = CellChannel(order.up, order.down)
        try:
            if failure is not None:
                raise failure
            machine = () if monitor is None else (monitor.processor_fd,)
            arrange_descriptors(order.up, order.down, order.files, *machine)
            # From here on the old numbers may be those of granted files.
            channel = CellChannel(FD_UP, FD_DOWN)
            if monitor is None:
                seal(order.files, order.limits, parent, namespaces=direct, rules=rules)
            else:
                monitor.seal(order.files, order.limits, parent, namespaces=direct)
        except Exception as error:
            what = str(error) if isinstance(error, StartFault) else f"{type(error).__name__}: {error}"
            channel.send(b"F" if isinstance(error, StartFault) else b"X", what.encode("utf-8", "replace")[:400])
            os._exit(CODE_UNSEALED)
        channel.send(b"S", b"")
        if monitor is None:
            body()
        code = monitor.run(channel)
    finally:
        os._exit(code)


def _stop_watching() -> None:
    """End what the program that was forked has set up to watch itself: it would run in the cell, and be part of it."""
    sys.settrace(None)
    sys.setprofile(None)
    gc.callbacks.clear()
    _tracemalloc.stop()
    if sys.version_info >= (3, 12):
        for tool in range(_MONITORING_TOOLS):
            if sys.monitoring.get_tool(tool) is not None:
                sys.monitoring.set_events(tool, 0)
        sys.deactivate_stack_trampoline()


def _live(guest: Guest) -> int:
    """Be the guest: take the job, do it, reply. Returns the code to end with, whatever happens."""
    try:
        gc.freeze()
        gc.enable()
        channel = CellChannel(FD_UP, FD_DOWN)
        job, rows = unpack_job(channel.receive(b"J"))
        granted = [GrantedFile(n, FD_FILES + n, *row) for n, row in enumerate(rows)]
        channel.send(b"R", guest(job, granted, channel.ask))
        return 0
    except MemoryError:
        return CODE_NO_MEMORY
    except BaseException:
        return CODE_FAULT


class ProcessCell:
    """A process sealed by rlimits, namespaces, Landlock and seccomp.

    ``direct`` forks the caller itself; without it a fork server does, so that neither the caller's threads
    nor its memory are anywhere near the guest. ``guest`` is what runs inside, and ``rules`` what it may call;
    both are for tests, and for direct cells only.
    """

    name = "process"

    def __init__(self, *, direct: bool, guest: Guest = main, rules: tuple[Rule, ...] = RULES) -> None:
        self._direct = direct
        self._guest = guest
        self._rules = rules

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        """See ``Cell.run``."""
        if len(files) > MAX_FILES:
            raise SandboxError("limit", f"{len(files)} files are too many for one cell, the limit is {MAX_FILES}")
        # What a fork shares with its caller only ``/proc`` says. The fork server shares nothing with anybody.
        self._direct = self._direct and can_disinherit()
        if self._direct and self._guest is main:
            preload(job)
        return self._run(job, files, limits, serve, None)

    def _run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve, kvm: int | None) -> bytes:
        failed: StartFailed | None = None
        for _ in range(_TRIES - 1):
            try:
                return self._once(job, files, limits, serve, kvm)
            except ServerGone:
                # While a server dies its socket still takes orders, which nobody reads. The next order starts another.
                continue
            except StartFailed as error:
                if failed is not None:
                    raise self._given_up(error) from None
                failed = error
        try:
            return self._once(job, files, limits, serve, kvm)
        except StartFailed as error:
            raise self._given_up(error) from None

    def _given_up(self, error: StartFailed) -> StartFailed:
        weaker = "process" if self.name == "kvm" else "none"
        protection = "" if self.name == "kvm" else ", without protection"
        error.detail += f"; it was tried more than once, --isolation={weaker} may work{protection}"
        return error

    def _once(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve, kvm: int | None) -> bytes:
        start = self._starter(job, files, limits, kvm)
        deadline = time.monotonic() + _MOST_SECONDS_TO_ORDER
        while True:
            if not self._direct:
                from instar.sandbox.process.server import get_ready

                get_ready(deadline - time.monotonic())
            # Between the birth of a cell and the ``try`` no interrupt may come, or nobody would end it.
            held = hold_signals()
            try:
                running = start()
            except BaseException:
                let_signals(held)
                raise
            try:
                let_signals(held)
                if running is not None:
                    return converse(running, job, limits, serve, files, monitored=kvm is not None)
            except BaseException:
                if running is not None:
                    running.end()  # ``converse`` has ended it, unless an interrupt came before it began
                raise

    def _starter(
        self, job: bytes, files: Sequence[Grant], limits: Limits, kvm: int | None
    ) -> Callable[[], Running | None]:
        """Return what starts the cell without waiting for anything; it gives ``None`` where it would have to."""
        if self._direct:
            return lambda: self._fork(files, limits, kvm)
        from instar.sandbox.process.server import order_of, start_cell

        order = order_of(files, limits, kvm, preload=heavy_part(job))
        return lambda: start_cell(order, files, kvm)

    def _fork(self, files: Sequence[Grant], limits: Limits, kvm: int | None) -> Child:
        fds: list[int] = []
        try:
            fds += safe_pipe()
            fds += safe_pipe()
            up_read, up_write, down_read, down_write = fds
            os.set_blocking(down_write, False)
            host = os.getpid()
            pid = posix.fork()
            if pid == 0:
                try:
                    order = Order(up_write, down_read, files, limits)
                    become_cell(
                        lambda: order, host, kvm=kvm, memory=limits.memory, guest=self._guest, rules=self._rules
                    )
                finally:
                    os._exit(CODE_FAULT)  # too deep for a call, or out of memory: no second copy of the caller goes on
        except (OSError, RuntimeError) as error:  # a subinterpreter may not fork
            for fd in fds:
                os.close(fd)
            reason = getattr(error, "strerror", None) or error
            raise SandboxError("unavailable", f"a process cannot be started: {reason}") from None
        os.close(up_write)
        # The cell's end of ``down`` stays open here too: writing to a dead cell is then no SIGPIPE.
        return Child(pid, up_read, down_write, down_read)
