"""The calls of a cell with arguments that no allocator has: each flag by itself, each clock, memory past the limit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import children, raw, run_guest, status_of

from instar.core.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

_MMAP, _MREMAP, _MADVISE, _CLOCK, _BRK = 9, 25, 28, 228, 12
_PAGE = 4096
_OURS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
_FLAGS = {
    "MAP_FIXED": 0x10,
    "MAP_FIXED_NOREPLACE": 0x100000,
    "MAP_GROWSDOWN": 0x100,
    "MAP_LOCKED": 0x2000,
    "MAP_POPULATE": 0x8000,
    "MAP_NONBLOCK": 0x10000,
    "MAP_32BIT": 0x40,
    "MAP_DENYWRITE": 0x800,
    "MAP_EXECUTABLE": 0x1000,
    "MAP_SYNC": 0x80000,
    "MAP_UNINITIALIZED": 0x4000000,
    "bit 21": 1 << 21,
    "bit 24": 1 << 24,
    "bit 25": 1 << 25,
}
_EINVAL, _ENOMEM, _EOPNOTSUPP = -22, -12, -95


def _verdict(guest: Callable[..., bytes], kind: str, **limits: float) -> str:
    """Return what became of a guest: what it replied, or the kind of its end."""
    try:
        return run_guest(guest, kind=kind, **limits).decode()
    except SandboxError as error:
        return error.kind


def _one(*arguments: int) -> Any:
    return lambda job, files, ask: b"%d" % raw(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", [0x01, 0x03, 0x21, 0x23, 0x00, 0x02, 0x20])
def test_mmap_that_is_not_private_memory_of_its_own(sharing: int, kind: str) -> None:
    for fd in (-1, 3, 4, 5):
        assert _verdict(_one(_MMAP, 0, _PAGE, 3, sharing, fd, 0), kind) == "died", fd


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", _FLAGS)
def test_mmap_with_a_flag_that_fixes_shares_locks_or_grows(flag: str, kind: str) -> None:
    said = _verdict(_one(_MMAP, 1 << 40, _PAGE, 3, _OURS | _FLAGS[flag], -1, 0), kind)
    if flag in ("MAP_FIXED", "MAP_FIXED_NOREPLACE", "MAP_GROWSDOWN"):
        assert said == "died"
    else:  # what it may not place is either deadly or not placed where it was wished
        assert said == "died" or int(said) < 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rights", [4, 5, 6, 7, 1 << 24 | 7, 1 << 25 | 7])
def test_mmap_of_memory_that_can_be_executed(rights: int, kind: str) -> None:
    assert _verdict(_one(_MMAP, 0, _PAGE, rights, _OURS, -1, 0), kind) == "died"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", [1 << 12, 1 << 30, 1 << 40, (1 << 47) - (1 << 20), 1 << 32, 1 << 63])
def test_mmap_at_a_place_of_its_own_choice(address: int, kind: str) -> None:
    said = _verdict(_one(_MMAP, address, _PAGE, 3, _OURS, -1, 0), kind)
    assert said == "died" or int(said) < 0 or int(said) != address


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [2, 3, 4, 5, 6, 7, 8, 1 << 31, 1 << 32])
def test_mremap_to_a_place_of_its_own_choice(flags: int, kind: str) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        start = raw(_MMAP, 0, 4 * _PAGE, 3, _OURS, -1, 0)
        return b"%d" % raw(_MREMAP, start, _PAGE, _PAGE, flags, 1 << 40)

    said = _verdict(guest, kind)
    assert said == "died" or (flags == 1 << 32 and int(said) != 1 << 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", [*range(8, 16), -1, -2, -6, 1 << 31, (1 << 32) - 8, 0x7FFFFFFF])
def test_clock_that_is_not_of_time(clock: int, kind: str) -> None:
    import ctypes

    place = ctypes.create_string_buffer(16)
    said = _verdict(_one(_CLOCK, clock, ctypes.addressof(place)), kind)
    assert said == "died" or int(said) < 0


@pytest.mark.parametrize("kind", KINDS)
def test_clock_of_another_process(kind: str) -> None:
    """By its number alone: of init, of this program, of whoever has the lowest numbers (CPUCLOCK_SCHED and others)."""
    import ctypes

    place = ctypes.create_string_buffer(16)
    for pid in (1, 2, os.getpid(), os.getppid()):
        for which in (0, 1, 2, 4, 5, 6):
            clock = (~pid << 3 | which) & 0xFFFFFFFF
            said = _verdict(_one(_CLOCK, clock, ctypes.addressof(place)), kind)
            assert said == "died" or int(said) < 0, (pid, which)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("advice", [0, 1, 2, 3, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 25, 100, 101])
def test_madvise_that_gives_nothing_back(advice: int, kind: str) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        start = raw(_MMAP, 0, 4 * _PAGE, 3, _OURS, -1, 0)
        return b"%d" % raw(_MADVISE, start, _PAGE, advice)

    assert _verdict(guest, kind) == "died"


def _most_memory(guest: Callable[..., bytes], kind: str) -> int:
    """Return by how many KiB the cell of a guest had grown when it asked: pages, and tables of them."""
    seen: list[int] = []

    def serve(request: Any) -> None:
        for pid in children():
            status = status_of(pid)
            seen.append(int(status["VmRSS"].split()[0]) + int(status["VmPTE"].split()[0]))

    try:
        run_guest(guest, kind=kind, serve=serve, wall_seconds=60)
    except SandboxError:
        pass
    return max(seen) - seen[0]


def _touching(step: int, length: int, flags: int, count: int) -> Callable[..., bytes]:
    """Return a guest that maps memory ``step`` bytes apart, or where the kernel likes, and touches one page of each."""
    import ctypes

    def guest(job: bytes, files: object, ask: Any) -> bytes:
        wished = 1 << 40
        ask("before")
        for number in range(count):
            start = raw(_MMAP, wished if step else 0, length, 3, flags, -1, 0)
            if start < 0:
                ask(number)
                continue
            for at in range(start, start + length, 2 << 20):
                ctypes.memset(at, 1, 1)
            wished += step
            if number % 1000 == 999:
                ask(number)
        ask(count)
        return b"done"

    return guest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("step", "length", "flags", "count"),
    [
        pytest.param(1 << 30, _PAGE, _OURS | 0x10, 60_000, id="one page per GiB, fixed"),
        pytest.param(1 << 30, _PAGE, _OURS, 3_000, id="one page per GiB, wished"),
        pytest.param(0, 250 << 20, _OURS | 0x4000, 1, id="one page per 2 MiB, of memory that is not reserved"),
        pytest.param(0, _PAGE, _OURS | 0x20000, 3_000, id="stacks"),
        pytest.param(0, 2 << 20, _OURS | 0x4000, 3_000, id="more address space than there is"),
    ],
)
def test_page_tables_that_grow(step: int, length: int, flags: int, count: int, kind: str) -> None:
    most = _most_memory(_touching(step, length, flags, count), kind)
    assert most < (256 + 64) << 10, f"{most >> 10} MiB"


@pytest.mark.parametrize("kind", KINDS)
def test_holes_that_munmap_leaves_do_not_add_up(kind: str) -> None:
    """Map much, touch one page in two million, give the rest back, and map again."""
    import ctypes

    def guest(job: bytes, files: object, ask: Any) -> bytes:
        ask("before")
        for round_ in range(200):
            start = raw(_MMAP, 0, 8 << 20, 3, _OURS | 0x4000, -1, 0)
            if start < 0:
                break
            for at in range(start, start + (8 << 20), 2 << 20):
                ctypes.memset(at, 1, 1)
            for at in range(start, start + (8 << 20), 2 << 20):
                raw(11, at + _PAGE, (2 << 20) - _PAGE)
            if round_ % 20 == 19:
                ask(round_)
        return b"done"

    assert _most_memory(guest, kind) < (256 + 64) << 10


@pytest.mark.parametrize("kind", KINDS)
def test_brk_past_the_limit(kind: str) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        import ctypes

        now = raw(_BRK, 0)
        end = raw(_BRK, now + (4 << 30))
        if end > now:
            for at in range(now, end, _PAGE):
                ctypes.memset(at, 1, 1)
        return b"%d" % (end - now)

    said = _verdict(guest, kind)
    assert said in ("died", "limit") or int(said) <= 256 << 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["fork", "execve", "ptrace", "openat", "socket", "kill", "setrlimit", "prctl", "userfaultfd"]
)
def test_call_that_no_cell_may_make(name: str, kind: str) -> None:
    numbers = {
        "fork": 57, "execve": 59, "ptrace": 101, "openat": 257, "socket": 41, "kill": 62, "setrlimit": 160,
        "prctl": 157, "userfaultfd": 323,
    }  # fmt: skip
    assert _verdict(_one(numbers[name], 0, 0, 0, 0, 0, 0), kind) == "died"
