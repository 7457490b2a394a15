"""A percentage on a terminal, for what takes longer than a second."""

from __future__ import annotations

import sys
import time

#: Seconds of silence, and between two updates.
_PATIENCE = 1.0
_INTERVAL = 0.1


class Percent:
    """Shows ``(12.34/100%)`` on standard error, as qemu-img does with ``-p``."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PATIENCE
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Tell how far a job is; ``total`` is not 0."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            self._shown = True
            sys.stderr.write(f"    ({100 * done / total:.2f}/100%)\r")
            sys.stderr.flush()
        if done >= total and self._shown:
            self._shown = False
            sys.stderr.write(" " * 24 + "\r")
            sys.stderr.flush()
