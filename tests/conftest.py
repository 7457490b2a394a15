"""What holds for every test: nothing that one starts is there when the next one looks for what its cells have left."""

from __future__ import annotations

import sys


def pytest_runtest_teardown() -> None:
    """End the process in which the calls of a kvm cell are tried, which starts again when it is needed."""
    world = sys.modules.get("fuzz.kvm_world")
    if world is not None:
        world.Child.end_all()
