from __future__ import annotations

import random

import pytest

from instar.core.bits import Bits


def model_gaps(used: set[int], count: int, first: int, run: int) -> tuple[int, int]:
    lost, place, start = 0, -1, None
    for unit in range(first, count + 1):
        free = unit < count and unit not in used
        if free and start is None:
            start = unit
        if not free and start is not None:
            if unit - start >= run:
                lost += unit - start
                place = start if place < 0 else place
            start = None
    return lost, place


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_a_set_of_numbers(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.randrange(1, 300)
    bits, used = Bits(count), set()
    for _ in range(dice.randrange(12)):
        first = dice.randrange(count)
        units = set(range(first, first + dice.randrange(1, min(40, count - first) + 1)))
        assert bits.taken(first, len(units)) == len(units & used)
        assert bits.take(first, len(units)) == len(units & used)
        used |= units
    for run in (1, 2, 4, 8, 16):
        first = dice.randrange(count)
        assert bits.gaps(first, run) == model_gaps(used, count, first, run)


def test_gaps_are_found_behind_the_first_piece() -> None:
    count = (1 << 23) + 100
    bits = Bits(count)
    assert bits.take(0, count - 10) == 0
    assert bits.gaps(5) == (10, count - 10)
    assert bits.gaps(5, 16) == (0, -1)


def test_nothing_is_counted_where_there_is_nothing() -> None:
    assert Bits(0).gaps(0) == (0, -1)
    assert Bits(8).gaps(8) == (0, -1)
    assert Bits(8).gaps(100) == (0, -1)
