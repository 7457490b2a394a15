"""The process around a machine: it gives up its rights like any cell, and then does nothing but run the machine.

Law: after ``seal`` this process may use the granted files and its channel, as a process cell may, and two requests
of the one processor; an escape from the machine ends up in a process cell.
"""

from __future__ import annotations

import os
import time

from instar.sandbox.cell import Limits
from instar.sandbox.kvm.device import GET_SREGS, RUN, Kvm
from instar.sandbox.kvm.machine import Death, Machine
from instar.sandbox.kvm.native import ask_seldom_for_memory
from instar.sandbox.kvm.photo import BlurredError
from instar.sandbox.posix import hold_all_signals_but, tick
from instar.sandbox.process.channel import CAUSES, CODE_CAUSES, StartFault
from instar.sandbox.process.policy import FD_FILES, RULES, Rule
from instar.sandbox.process.seal import seal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from instar.sandbox.cell import Grant
    from instar.sandbox.process.channel import CellChannel

#: What a monitor may call: what its guest may (it makes those calls for it), and these.
MONITOR_RULES = (
    *RULES,
    Rule("ioctl", 16, 29, "processor", "run the machine, and ask where a guest was when it died"),
    Rule("rt_sigreturn", 15, 139, "any", "the clock that breaks an endless loop is a signal"),
)

#: How much the guest computes before the monitor looks at the clocks again.
_TICK_SECONDS = 0.05
#: Processor time in which a machine must have reached its first system call.
_START_SECONDS = 5
#: Memory that a monitor may need beside its guest's.
_OWN_MEMORY = 64 << 20


class Monitor:
    """Makes the machine (see ``Machine``) on the device at ``kvm``, which it closes; ``memory`` is for the guest.

    Raises:
        OSError, MemoryError, PhotoError: it cannot be made here. StartFault: it could not be made this time.
    """

    def __init__(self, kvm: int, body: Callable[[], NoReturn], memory: int) -> None:
        ask_seldom_for_memory()
        try:
            self._machine = Machine(Kvm(kvm), body, memory)
        except BlurredError as error:
            raise StartFault(str(error)) from None
        self._limits = Limits()
        self._deadline = 0.0
        self._started = False
        os.close(kvm)
        self._tick = tick(_TICK_SECONDS, self._look_at_the_clocks)

    @property
    def processor_fd(self) -> int:
        """Return the descriptor of the machine's processor; all others are closed."""
        return self._machine.processor.fd

    def start_in_advance(self) -> None:
        """Have the guest run up to its first system call before ``seal``; no order will have to wait for that.

        From here on this process can enter no namespaces: newer kernels have made a thread for KVM in it.

        Raises:
            StartFault: the machine does not work.
        """
        hold_all_signals_but(self._tick)
        self._start()

    def _start(self) -> None:
        try:
            self._machine.start()
        except Death as death:
            raise StartFault(death.detail) from None
        self._started = True

    def seal(self, files: Sequence[Grant], limits: Limits, parent: int, *, namespaces: bool) -> None:
        """Give up what is not needed any more (see ``process.seal``), and start the machine if that is yet to be done.

        The descriptors have been arranged, the processor's behind the files.

        Raises:
            SealError, OSError: a step that must not fail failed.
            StartFault: the machine does not work.
        """
        self._limits = limits
        self._machine.processor.fd = FD_FILES + len(files)
        own = Limits(
            memory=_OWN_MEMORY,
            # The kernel's limit comes after ours, which can say more.
            cpu_seconds=max(limits.cpu_seconds, _START_SECONDS) + 1,
            file_bytes=limits.file_bytes,
        )
        seal(
            files,
            own,
            parent,
            namespaces=namespaces,
            rules=MONITOR_RULES,
            processor=(self.processor_fd, [RUN, GET_SREGS]),
            signals=(self._tick,),
        )
        self._machine.grant(files, limits.file_bytes)
        if not self._started:
            self._start()

    def run(self, channel: CellChannel) -> int:
        """Run the guest and return the code to end with, having said through ``channel`` how it died."""
        self._deadline = time.monotonic() + self._limits.wall_seconds
        try:
            try:
                return min(self._machine.run(), CODE_CAUSES - 1)
            finally:
                self._deadline = 0.0  # a look at the clocks until here may still end it
        except Death as death:
            if self._machine.calls.frames.whole:
                channel.tell_story(death.detail)
            return CODE_CAUSES + CAUSES.index(death.cause)

    def _look_at_the_clocks(self) -> None:
        if not self._started and time.process_time() >= _START_SECONDS:
            raise Death("machine", f"it did not reach its first system call within {_START_SECONDS} s")
        if not self._deadline:
            return
        if time.process_time() >= self._limits.cpu_seconds:
            raise Death("processor-time", self._machine.where())
        if time.monotonic() - self._machine.calls.waited() >= self._deadline:
            raise Death("time", self._machine.where())
