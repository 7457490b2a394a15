"""Time several ways to do one thing, turn by turn, so that the machine's moods hit all of them alike."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parent.parent
_QUIET = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


class Way:
    """One way to do the thing: its name, and a command to start, or a function to call.

    ``clock`` is a function that does the thing elsewhere and returns how many seconds it took.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path] = (),
        *,
        call: Callable[[], object] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.call = call
        self.clock = clock
        self.seconds: list[float] = []

    def once(self) -> float:
        """Do it and return how many seconds it took.

        Raises:
            RuntimeError: the program failed.
        """
        if self.clock is not None:
            return self.clock()
        if self.call is not None:
            start = time.perf_counter()
            self.call()
            return time.perf_counter() - start
        env = environment()
        start = time.perf_counter()
        pid = os.posix_spawnp(self.command[0], self.command, env, file_actions=_QUIET)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"{self.command} failed")
        return took

    @property
    def median(self) -> float:
        """Return the middle of all times, in seconds."""
        return median(self.seconds)

    def peak(self) -> int:
        """Run the command once more and return its peak memory in bytes; the largest of its processes counts."""
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(ROOT / "bench" / "peak.py"), *self.command],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout) << 10


def environment() -> dict[str, str]:
    """Return what every program is started with."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "INSTAR_"))}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C.UTF-8"}


def alternate(ways: Sequence[Way], *, turns: int) -> None:
    """Let every way have its turn, ``turns`` times, after one that is not counted."""
    for turn in range(turns + 1):
        for way in ways:
            took = way.once()
            if turn:
                way.seconds.append(took)
