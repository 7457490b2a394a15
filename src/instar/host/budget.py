"""What one operation may still cost: time of all its cells together, and room for what is kept of their replies.

Law: each cell gets what a question may use, or what is left of the operation if that is less. An image, or whoever has
taken over a cell, decides how many cells there are, so it must not matter.
"""

from __future__ import annotations

import time

from instar.core.errors import SandboxError
from instar.core.wire import Room, decode
from instar.sandbox.cell import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Cell, Grant, Isolation, Serve

MiB = 1 << 20
#: Room for the largest lawful reply, ``info`` of a qcow2 with 65,536 snapshots: 17 values each, and 4 Mi characters of
#: names. A chain of images has no more.
VALUES, MEMORY = 1_250_000, 96 * MiB


class Budget:
    """What one operation may still cost.

    ``question`` is what one of its cells may use.
    """

    __slots__ = ("_cpu", "_last", "_room", "_wall", "question")

    def __init__(
        self,
        question: Limits,
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
        values: int = VALUES,
        memory: int = MEMORY,
    ) -> None:
        """Begin an operation; it may use what one question may, where nothing else is said.

        Args:
            question: what one cell may use.
            cpu_seconds: of processor time, as far as the host sees it: that of its own children.
            wall_seconds: in which cells may run, one after another; so also a bound of processor time.
            values: how many may be kept of the replies.
            memory: bytes that these may take.
        """
        self.question = question
        self._cpu = float(question.cpu_seconds if cpu_seconds is None else cpu_seconds)
        self._wall = float(question.wall_seconds if wall_seconds is None else wall_seconds)
        self._room = Room(values=values, memory=memory)
        self._last = (0, 0)

    def limits(self) -> Limits:
        """Return what the next cell may use.

        Raises:
            SandboxError: ``limit``, there is nothing left.
        """
        if self._cpu <= 0 or self._wall <= 0:
            raise SandboxError("limit", "all cells of this operation together took longer than they may")
        most = self.question
        cpu, wall = min(most.cpu_seconds, int(-(-self._cpu // 1))), min(most.wall_seconds, self._wall)
        if (cpu, wall) == (most.cpu_seconds, most.wall_seconds):
            return most
        return most.but(cpu_seconds=cpu, wall_seconds=wall)

    def run(self, isolation: Isolation, job: bytes, files: Sequence[Grant], serve: Serve) -> bytes:
        """Run a job in a cell and count its time. See ``Cell.run``."""
        limits = self.limits()
        cell: Cell = isolation.open()
        started, before = time.monotonic(), _seconds_of_children()
        try:
            reply = cell.run(job, files, limits, serve)
        finally:
            self._wall -= time.monotonic() - started
            self._cpu -= _seconds_of_children() - before
        isolation.used.add(cell.name)
        return reply

    def decode(self, reply: bytes) -> Wire:
        """Decode a reply as far as there is room; it takes none from the next one unless it is kept.

        Raises:
            WireError: it cannot be decoded, or there is no room.
        """
        room = Room(values=self._room.values, memory=self._room.memory)
        value = decode(reply, room)
        self._last = (self._room.values - room.values, self._room.memory - room.memory)
        return value

    def keep(self) -> None:
        """Count what was decoded last as kept, until the operation ends."""
        self._room.take(*self._last)
        self._last = (0, 0)


def _seconds_of_children() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
