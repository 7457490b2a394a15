"""What holds for every test: nothing that one starts is there when the next one looks for what its cells have left.

Many tests fork this process, or copy all of its memory into a machine. So what is here when they begin is put out of
the garbage collector's reach (it would touch, and thereby copy, every page in the fork), and those that copy most come
first, while there is little.
"""

from __future__ import annotations

import gc
import linecache
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: Parts of the tests that make cells out of this very process, and those with single tests that take long, for which
#: all other workers would have to wait at the end.
_FIRST = ("tests/sandbox/", "tests/host/test_sandbox.py", "tests/hostile/")


def pytest_configure() -> None:
    """Have signals: what a shell or ``nohup`` starts in the background ignores some, and so would what tests end."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have some come first; the order is otherwise as it was."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))


def pytest_collection_finish() -> None:
    """Let go of what collecting the tests needed, and leave the rest alone from now on."""
    linecache.clearcache()
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown() -> None:
    """End the process in which the calls of a kvm cell are tried, which starts again when it is needed."""
    world = sys.modules.get("fuzz.kvm_world")
    if world is not None:
        world.Child.end_all()
