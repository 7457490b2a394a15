"""The limit of open files is as before when the last call that raised it has ended, whichever ends first."""

from __future__ import annotations

import resource

import pytest

from instar.host.descriptors import Descriptors

LIMIT = 256


@pytest.fixture(autouse=True)
def _low_limit():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("first", [0, 1], ids=["first goes first", "first goes last"])
def test_calls_at_once_keep_what_the_other_needs(first: int) -> None:
    calls = [Descriptors(400), Descriptors(800)]
    needed = calls[1].needed
    assert soft() == needed
    calls.pop(first).give_back()
    assert soft() == needed
    calls[0].give_back()
    calls[0].give_back()
    assert soft() == LIMIT


def test_few_more_change_nothing() -> None:
    room = Descriptors(1)
    assert soft() == LIMIT
    room.give_back()
    assert soft() == LIMIT
