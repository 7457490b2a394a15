"""A guest's pointer becomes a host address only where every byte of its range is the guest's, with the right asked for.

Beside a model that asks it of each byte.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.sandbox.kvm.memory import EXECUTE, PAGE, READ, USER_END, WRITE, GuestMemory, Region


@st.composite
def _regions(draw: st.DrawFn) -> list[Region]:
    """Draw small regions that do not overlap, some of which adjoin, in the guest, here, or in both."""
    regions = []
    at, host = draw(st.integers(0, 5)), 1000
    for _ in range(draw(st.integers(0, 6))):
        length = draw(st.integers(1, 6))
        host += draw(st.sampled_from([0, 0, 3]))
        access = draw(st.sampled_from([READ, READ | WRITE, READ | WRITE, READ | EXECUTE]))
        regions.append(Region(at, at + length, access, host=host, physical=0))
        at += length + draw(st.sampled_from([0, 0, 2]))
        host += length
    return draw(st.permutations(regions))


@settings(max_examples=500, deadline=None)
@given(_regions(), st.integers(-3, 45), st.integers(-2, 45), st.sampled_from([READ, WRITE, READ | WRITE, EXECUTE]))
def test_pieces_are_the_bytes_of_the_range_in_order_or_nothing(
    regions: list[Region], address: int, length: int, access: int
) -> None:
    hosts = {
        byte: region.host + byte - region.start
        for region in regions
        if region.access & access == access
        for byte in range(region.start, region.end)
    }
    wanted = [hosts.get(byte) for byte in range(address, address + length)]
    pieces = GuestMemory(regions).pieces(address, length, access)
    if address < 0 or length < 0 or None in wanted:
        assert pieces is None
    else:
        assert pieces is not None
        assert [host + n for host, size in pieces for n in range(size)] == wanted
        assert all(size > 0 for _, size in pieces)
        assert all(sum(one) != other[0] for one, other in pairwise(pieces)), "not joined"


@settings(max_examples=200, deadline=None)
@given(_regions(), st.integers(-3, 45))
def test_find_gives_the_region_around_an_address(regions: list[Region], address: int) -> None:
    wanted = [region for region in regions if region.start <= address < region.end]
    assert GuestMemory(regions).find(address) is (wanted[0] if wanted else None)


TOP = Region(USER_END - PAGE, USER_END, READ | WRITE, host=PAGE, physical=0)
BOTTOM = Region(0, PAGE, READ | WRITE, host=9 * PAGE, physical=0)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(USER_END - 1, 2, id="past the user's half"),
        pytest.param(USER_END, 0, id="nothing, but there"),
        pytest.param((1 << 64) - 1, 2, id="wraps to the bottom"),
        pytest.param(USER_END - 1, (1 << 64) - 1, id="wraps to itself"),
        pytest.param(0, 1 << 64, id="everything"),
        pytest.param(1 << 63, 1, id="negative"),
        pytest.param(0xFFFF_8000_0000_0000, 1, id="the kernel's half"),
        pytest.param(0x8000_0000_0000, 1, id="no address at all"),
        pytest.param(-1, 1, id="before the bottom"),
        pytest.param(0, -1, id="a negative length"),
        pytest.param(PAGE, 1, id="just behind"),
        pytest.param(USER_END - PAGE - 1, 2, id="just before"),
    ],
)
def test_gives_nothing(address: int, length: int) -> None:
    pieces = GuestMemory([BOTTOM, TOP]).pieces(address, length, READ)
    assert pieces is None or (length == 0 and pieces == [])


def test_gives_the_last_byte_and_the_first() -> None:
    memory = GuestMemory([TOP, BOTTOM])
    assert memory.pieces(USER_END - 1, 1, WRITE) == [(2 * PAGE - 1, 1)]
    assert memory.pieces(0, PAGE, READ) == [(9 * PAGE, PAGE)]


def test_has_no_memory_without_regions() -> None:
    assert GuestMemory([]).pieces(0, 1, READ) is None
    assert GuestMemory([]).pieces(4096, 0, READ) == []
    assert GuestMemory([]).find(0) is None


def test_region_that_reaches_past_the_users_half_ends_with_it() -> None:
    memory = GuestMemory([Region(USER_END - PAGE, USER_END + PAGE, READ, host=PAGE, physical=0)])
    assert memory.pieces(USER_END - 1, 1, READ) == [(2 * PAGE - 1, 1)]
    assert memory.pieces(USER_END - 1, 2, READ) is None
    assert memory.pieces(USER_END, 1, READ) is None
