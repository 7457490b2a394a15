"""Places in a VHDX: what shares a byte with a region, and what only touches it."""

from __future__ import annotations

import pytest

from instar.formats.vhdx.bat import Regions

ROWS = [(10, 20, "b"), (0, 5, "a"), (30, 30, "empty"), (20, 25, "c")]


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        (0, 1, "a"),
        (4, 6, "a"),
        (5, 10, None),
        (5, 11, "b"),
        (9, 10, None),
        (19, 20, "b"),
        (20, 21, "c"),
        (24, 40, "c"),
        (25, 40, None),
        (0, 40, "a"),
        (6, 40, "b"),
    ],
)
def test_a_region_is_overlapped_by_what_shares_a_byte_with_it(start: int, end: int, name: str | None) -> None:
    assert Regions(ROWS).overlap(start, end) == name


def test_regions_are_in_order_and_empty_ones_are_none() -> None:
    assert Regions(ROWS).rows == [(0, 5, "a"), (10, 20, "b"), (20, 25, "c")]
    assert Regions(ROWS).end == 25
    assert (Regions([]).end, Regions([]).overlap(0, 100)) == (0, None)
