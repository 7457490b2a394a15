"""One budget for all cells of an operation: each gets what is left, and nothing is left for ever."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from instar.core.errors import SandboxError
from instar.core.wire import TooMuch, encode
from instar.host.budget import Budget
from instar.host.describe import INFO_LIMITS, INFO_SECONDS, info_budget
from instar.sandbox.cell import Isolation, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from instar.sandbox.cell import Grant, Serve


class Using(Isolation):
    """Cells that use some time; remembers the limits of each."""

    __slots__ = ("seen", "use")

    def __init__(self, use: Callable[[], object]) -> None:
        super().__init__("process")
        self.name = "fake"
        self.use = use
        self.seen: list[Limits] = []

    def open(self) -> Using:  # type: ignore[override]
        return self

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        self.seen.append(limits)
        self.use()
        return b""


def test_a_cell_gets_what_a_question_may_use_as_long_as_there_is_more_left() -> None:
    cells = Using(lambda: None)
    info_budget().run(cells, b"", [], lambda asked: None)
    assert cells.seen == [INFO_LIMITS]


def test_wall_time_of_all_cells_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = info_budget()

    def use() -> None:
        now[0] += 50

    cells = Using(use)
    for _ in range(3):
        budget.run(cells, b"", [], lambda asked: None)
    assert [limits.wall_seconds for limits in cells.seen] == [60, 60, INFO_SECONDS - 100]
    with pytest.raises(SandboxError, match="all cells of this operation together"):
        budget.run(cells, b"", [], lambda asked: None)


def test_processor_time_of_all_cells_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from instar.host import budget as module

    spent = [0.0]
    monkeypatch.setattr(module, "_seconds_of_children", lambda: spent[0])

    def use() -> None:
        spent[0] += 6.5

    cells, budget = Using(use), info_budget()
    for _ in range(4):
        budget.run(cells, b"", [], lambda asked: None)
    # Whole seconds, as the kernel has them; the rest of the others is as it was.
    assert [limits.cpu_seconds for limits in cells.seen] == [20, 14, 7, 1]
    assert {(limits.memory, limits.reply_bytes) for limits in cells.seen} == {
        (INFO_LIMITS.memory, INFO_LIMITS.reply_bytes)
    }
    with pytest.raises(SandboxError, match="all cells of this operation together"):
        budget.limits()


def test_time_of_a_cell_that_fails_counts() -> None:
    def fail() -> None:
        time.sleep(0.02)
        raise SandboxError("died", "oh")

    budget = Budget(Limits(wall_seconds=0.01))
    with pytest.raises(SandboxError, match="oh"):
        budget.run(Using(fail), b"", [], lambda asked: None)
    with pytest.raises(SandboxError, match="longer than they may"):
        budget.limits()


def test_room_is_for_what_is_kept() -> None:
    reply = encode([None] * 600)
    budget = Budget(Limits(), values=1000, memory=1 << 20)
    for _ in range(3):
        budget.decode(reply)  # each takes the place of the one before
    budget.keep()
    with pytest.raises(TooMuch):
        budget.decode(reply)
