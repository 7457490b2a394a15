"""Whatever a guest puts in its registers: the monitor answers as Linux would, within the grants, or ends the cell.

The sequences run in a process of their own, against real memory and files, beside a model (``fuzz.kvm_world``).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from fuzz.kvm_world import ANCHORS, CALLS, EARLIER, GARBAGE, IN_PAGES, ROOT, STEP, Child, at, step, usable
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import kvm_model as rules
from instar.sandbox.kvm.calls import Frames, Heap

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_x86 = pytest.mark.skipif(not usable(), reason="guests of virtual machines are x86-64, and so is their monitor")
PAGE = rules.PAGE

# --- random sequences ------------------------------------------------------------------------------------------------

_little = st.one_of(
    st.integers(-20, 20), st.sampled_from([0, 1, -1, 5, 4095, 4096, 4097, -4096]), st.integers(-9999, 9999)
)
_kind = st.one_of(st.integers(0, len(ANCHORS) - 1), st.integers(EARLIER, EARLIER + 3), st.integers(0, 255))
_any = st.tuples(_kind, _little)
_pointer = st.tuples(st.one_of(st.integers(3, len(ANCHORS) - 1), st.integers(EARLIER, EARLIER + 3)), _little)
_place = st.one_of(
    st.tuples(st.integers(EARLIER, EARLIER + 3), st.just(0)),
    st.tuples(st.integers(EARLIER, EARLIER + 3).map(lambda kind: kind | IN_PAGES), st.integers(-2, 5)),
    _pointer,
)
_length = st.one_of(st.tuples(st.just(0), st.integers(0, 9000)), _any)
_pages = st.one_of(st.tuples(st.just(IN_PAGES), st.integers(0, 13)), _any)
_fd = st.tuples(st.sampled_from([0, 0, 0, GARBAGE]), st.integers(-1, 12))
_offset = st.one_of(st.tuples(st.just(0), st.integers(0, 10_100)), st.tuples(st.just(2), st.integers(-9, 9)), _any)
_small = st.tuples(st.just(0), st.integers(0, 9))
_flags = st.tuples(st.just(0), st.sampled_from([0x22, 0x22, 0x22, 0x22, 0x4022, 0x20, 0x32, 0x02, 0x23, 0x122, 0x21]))
_WORDS = {
    "read": (st.just((0, rules.FD_DOWN)) | _fd, _pointer, _length),
    "write": (st.just((0, rules.FD_UP)) | _fd, _pointer, _length),
    "pread64": (st.tuples(st.just(0), st.integers(5, 9)) | _fd, _pointer, _length, _offset),
    "pwrite64": (st.tuples(st.just(0), st.integers(5, 9)) | _fd, _pointer, _length, _offset),
    "mmap": (st.just((0, 0)) | _any, _pages, st.just((0, 3)) | _small, _flags),
    "munmap": (_place, _pages),
    "mremap": (_place, _pages, _pages, st.just((0, 1)) | _small),
    "brk": (_any,),
    "madvise": (_place, _pages, st.just((0, 4)) | st.just((0, 8)) | _small),
    "clock_gettime": (_small, _pointer),
    "exit_group": (_any,),
}


@st.composite
def _steps(draw: st.DrawFn) -> bytes:
    """Draw one step, most of whose words make sense."""
    name = draw(st.sampled_from([*_WORDS, "mmap", "mmap", "munmap", "mremap", "any"]))
    if name == "any":
        words = [draw(_any) for _ in range(6)]
        number = draw(st.integers(0, len(CALLS) - 1))
    else:
        words = [draw(row) for row in _WORDS[name]]
        words += [(0, 0)] * (6 - len(words))
        number = list(rules.NUMBERS).index(name)
    return STEP.pack(number, draw(st.integers(0, 255)), *(part for row in words for part in row))


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.end()


#: How many sequences the property takes; more by hand.
SEQUENCES = int(os.environ.get("INSTAR_CALL_SEQUENCES", "150"))


@needs_x86
def test_any_calls_change_what_the_model_says_and_nothing_else(child: Child) -> None:
    @settings(max_examples=SEQUENCES, deadline=None, database=None, derandomize=SEQUENCES == 150)
    @given(st.lists(_steps(), min_size=1, max_size=25).map(b"".join))
    def holds(data: bytes) -> None:
        child.play(data)

    holds()


@needs_x86
def test_any_registers_change_what_the_model_says_and_nothing_else(child: Child) -> None:
    chance = random.Random(7)
    for _ in range(SEQUENCES):
        child.play(chance.randbytes(STEP.size * chance.randrange(1, 20)))


# --- what the sequences are to find, one by one ---------------------------------------------------------------------

DATA, MORE, TEXT, CODE, LONE = (first * PAGE for first in (0x10, 0x13, 0x15, 0x18, 0x20))
FIRST = (EARLIER, 0)
MAP = ((0, 3), (0, 0x22))
R, W, RW, IN, INTO = ((0, rules.FD_FILES + n) for n in range(5))


def n(value: int) -> tuple[int, int]:
    return (0, value)


def pages(count: int) -> tuple[int, int]:
    return (IN_PAGES, count)


def pwrite(*words: tuple[int, int]) -> bytes:
    return step("pwrite64", *words)


@needs_x86
@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param(
            pwrite(RW, at(DATA), n(10), at(10_000, -5)), id="a write is cut at the limit on the file's length"
        ),
        pytest.param(pwrite(RW, at(DATA), n(10), at(10_000)), id="a write from the limit on is EFBIG"),
        pytest.param(pwrite(RW, at(DATA), n(0), at(10_000, 5)), id="a write of nothing past the limit is 0"),
        pytest.param(pwrite(RW, at(TEXT, PAGE), at(1 << 63), n(0)), id="a write of an endless length is EFAULT"),
        pytest.param(pwrite(RW, at(DATA), n(1), (ANCHORS.index((1 << 64) - 1), 0)), id="a negative offset is EINVAL"),
        pytest.param(step("pread64", R, at(MORE, -100), n(4300), n(3)), id="what adjoins is one range"),
        pytest.param(step("pread64", R, at(TEXT, -1), n(2), n(0)), id="a read does not change what is read-only"),
        pytest.param(step("pread64", R, at(TEXT, 2 * PAGE - 1), n(2), n(0)), id="a hole is EFAULT"),
        pytest.param(
            step("pread64", R, at(rules.USER_END, -1), n(2), n(0)), id="the end of the user's half is the end"
        ),
        pytest.param(
            step("pread64", R, (ANCHORS.index((1 << 64) - 1), 0), n(2), n(0)), id="a range that wraps is none"
        ),
        pytest.param(
            step("pread64", (GARBAGE, 5), at(DATA), n(2), n(0)), id="the upper half of a descriptor is nothing"
        ),
        pytest.param(step("pread64", (0, 6), at(DATA), n(2), n(0)), id="a file that may be written is not read"),
        pytest.param(step("pread64", (0, 10), at(DATA), n(2), n(0)), id="a file that was not granted is not read"),
        pytest.param(pwrite(R, at(DATA), n(2), n(0)), id="a file that may be read is not written"),
        pytest.param(step("pread64", IN, at(DATA), n(4000), n(9)), id="a read is cut at the end of a window"),
        pytest.param(step("pread64", IN, at(DATA), n(1), n(1499)), id="the last byte of a window is read"),
        pytest.param(step("pread64", IN, at(DATA), n(1), n(1500)), id="behind a window there is nothing"),
        pytest.param(step("pread64", IN, at(DATA), n(1), n(-700)), id="before a window there is nothing"),
        pytest.param(step("pread64", IN, at(DATA), n(9), at(1 << 63, -600)), id="an offset never wraps into a window"),
        pytest.param(step("pread64", IN, at(TEXT, PAGE), n(9), n(1500)), id="the end of a window is no pardon"),
        pytest.param(pwrite(INTO, at(DATA), n(4000), n(9)), id="a write is cut at the end of a window"),
        pytest.param(pwrite(INTO, at(DATA), n(1), n(1500)), id="a write behind a window is EFBIG"),
        pytest.param(pwrite(INTO, at(DATA), n(1), n(-1)), id="a write before a window is EINVAL"),
        pytest.param(pwrite(IN, at(DATA), n(1), n(0)), id="a window for reading is not written"),
        pytest.param(step("read", n(rules.FD_UP), at(DATA), n(2), extra=1), id="the way up is not read"),
        pytest.param(step("write", n(rules.FD_DOWN), at(DATA), n(2)), id="the way down is not written"),
        pytest.param(
            step("mmap", n(0), pages(2), *MAP)
            + step("pread64", R, FIRST, n(5000), n(0))
            + step("munmap", FIRST, pages(2))
            + step("mmap", n(0), pages(12), *MAP),
            id="memory is zero when it is given again",
        ),
        pytest.param(
            step("mmap", n(0), pages(12), *MAP) + step("mmap", n(0), n(1), *MAP), id="no more than the heap is given"
        ),
        pytest.param(
            step("mmap", n(0), pages(2), *MAP)
            + step("mmap", n(0), pages(1), *MAP)
            + step("pread64", R, FIRST, n(5000), n(0))
            + step("mremap", FIRST, pages(2), pages(4), n(1)),
            id="what grows and moves keeps its contents",
        ),
        pytest.param(
            step("mmap", n(0), pages(9), *MAP)
            + step("munmap", FIRST, pages(8))
            + step("mremap", (EARLIER | IN_PAGES, 2), pages(6), pages(7), n(1))
            + step("mmap", n(0), pages(1), *MAP),
            id="what was never given does not grow",
        ),
        pytest.param(step("munmap", at(DATA), pages(3)), id="what the guest was born with stays"),
        pytest.param(step("madvise", at(MORE), pages(3), n(4)), id="advice does not empty what is read-only"),
        pytest.param(step("clock_gettime", n(0), at(MORE, -8)), id="the time is told across regions"),
        pytest.param(step("clock_gettime", n(0), at(TEXT, -8)), id="the time is not told to what is read-only"),
    ],
)
def test_rule(child: Child, sequence: bytes) -> None:
    child.play(sequence)


@needs_x86
def test_a_read_does_not_wait_for_more_than_has_come() -> None:
    """Adjoining regions are two reads here; the second must not wait, as nobody may ever send anything again."""
    program = f"""
import os, sys
sys.path[:0] = {[str(ROOT / "src"), str(ROOT)]!r}
from fuzz import kvm_model as rules
from fuzz.kvm_world import World
world = World()
os.set_blocking(rules.FD_DOWN, True)
from instar.sandbox.kvm.calls import Calls
from instar.sandbox.kvm.memory import GuestMemory
calls = Calls(GuestMemory(world._regions), [], heap=(rules.HEAP_START, rules.HEAP_END), file_bytes=0)
os.write(world._down, bytes(100))
sys.exit(calls.read({rules.FD_DOWN}, {MORE - 100}, 200))
"""
    done = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    try:
        _, said = done.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        done.send_signal(signal.SIGKILL)
        done.communicate()
        pytest.fail("it waits")
    assert done.returncode == 100, said.decode()


# --- parts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=30), max_size=6),
    tail=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_frames_are_whole_however_they_are_sent(bodies: list[bytes], tail: int, cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, sys.byteorder) + b"R" + body for body in bodies)
    stream = stream[: max(0, len(stream) - tail)]
    ends = {0}
    for body in bodies:
        ends.add(max(ends) + 5 + len(body))
    frames = Frames()
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    for start, end in pairwise(places):
        frames.feed(memoryview(stream)[start:end])
        assert frames.whole == (end in ends)
    assert frames.whole == (len(stream) in ends)


_span = st.tuples(st.integers(0, 23), st.integers(1, 24))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "take_at", "give_back"]), _span), max_size=40))
def test_heap_gives_what_is_free_and_nothing_twice(orders: list[tuple[str, tuple[int, int]]]) -> None:
    base = 0x7000_0000_0000
    heap, free = Heap(base, base + 24 * PAGE), set(range(24))

    def runs(count: int) -> list[int]:
        return [first for first in range(24) if all(page in free for page in range(first, first + count))]

    for order, (first, count) in orders:
        start = base + first * PAGE
        if order == "take":
            given_at = heap.take(count * PAGE)
            if given_at is None:
                assert runs(count) == []
            else:
                assert (given_at - base) // PAGE in runs(count)
                assert given_at % PAGE == 0
                free -= set(range((given_at - base) // PAGE, (given_at - base) // PAGE + count))
        elif order == "take_at":
            assert heap.take_at(start, count * PAGE) == (first in runs(count))
            if first in runs(count):
                free -= set(range(first, first + count))
        else:
            count = min(count, 24 - first)
            heap.give_back(start, start + count * PAGE)
            free |= set(range(first, first + count))
