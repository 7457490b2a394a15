"""A photo has every byte that the process may write, of one moment; what belongs to the monitor is not in it.

Photos are of processes of their own, with one thread: this one may have more.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.sandbox.kvm import photo
from instar.sandbox.kvm.memory import EXECUTE, PAGE, READ, USER_END, WRITE
from instar.sandbox.kvm.photo import Album, PhotoError, covers, runs_to_copy, used_runs

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(photo.__file__).parents[3]
needs_x86 = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="call numbers of x86-64 Linux"
)

# --- /proc/PID/maps --------------------------------------------------------------------------------------------------

#: As Linux 6.1 and 6.13 write them.
MAPS = b"""\
00400000-005d2000 r-xp 00001000 fe:00 1835094                            /usr/bin/python3.11
00651000-00652000 r--p 00051000 fe:00 1835094                            /usr/bin/python3.11
00652000-00655000 rw-p 00052000 fe:00 1835094                            /usr/bin/python3.11
01d15000-01d36000 rw-p 00000000 00:00 0                                  [heap]
7f1234500000-7f1234600000 rw-s 00000000 00:01 1234                       /dev/zero (deleted)
7f1234600000-7f1234700000 r--s 00000000 fe:00 99                         /usr/lib/gconv/gconv-modules.cache
7f1234700000-7f1234710000 ---p 00000000 00:00 0
7f1234710000-7f1234720000 rw-p 00000000 00:00 0
7f1234720000-7f1234721000 r-xp 00000000 fe:00 1                          /home/a user/my  lib (1).so (deleted)
7f1234721000-7f1234722000 rwxp 00000000 00:00 0                          [anon:code of a jit]
7f1234722000-7f1234723000 -w-p 00000000 00:00 0
7f1234723000-7f1234724000 --xp 00000000 00:00 0
7f1234724000-7f1234726000 rw-p 00000000 00:00 0                          [anon: monitor]
7ffd5b5e4000-7ffd5b605000 rw-p 00000000 00:00 0                          [stack]
7ffd5b6c5000-7ffd5b6c9000 r--p 00000000 00:00 0                          [vvar]
7ffd5b6c9000-7ffd5b6cb000 r--p 00000000 00:00 0                          [vvar_vclock]
7ffd5b6cb000-7ffd5b6cd000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0                  [vsyscall]
"""
#: Read-only, and too short to be worth a block of its own.
SHORT = {0x651000: "/usr/bin/python3.11", 0x7F1234720000: "/home/a user/my  lib (1).so (deleted)"}
ALBUM = Album(MAPS, [(0x7F1234724000, 0x7F1234726000)])


def names(areas: list[photo.Area]) -> list[tuple[int, str]]:
    return [(area[0], area[3]) for area in areas]


def test_what_may_be_written_is_copied() -> None:
    assert [row for row in names(ALBUM.copied) if row[0] not in SHORT] == [
        (0x652000, "/usr/bin/python3.11"),
        (0x1D15000, "[heap]"),
        (0x7F1234710000, ""),
        (0x7F1234721000, "[anon:code of a jit]"),
        (0x7FFD5B5E4000, "[stack]"),
        (0x7FFD5B6CB000, "[vdso]"),
    ]


def test_what_may_only_be_read_is_shared_or_if_it_is_short_copied() -> None:
    assert names(ALBUM.shared) == [
        (0x400000, "/usr/bin/python3.11"),
        (0x7F1234600000, "/usr/lib/gconv/gconv-modules.cache"),
    ]
    assert [row for row in names(ALBUM.copied) if row[0] in SHORT] == list(SHORT.items())
    read_only = [area for area in (*ALBUM.shared, *ALBUM.copied) if area[0] in SHORT or area in ALBUM.shared]
    assert not any(area[2] & WRITE for area in read_only), "a copy gives no right"


def test_areas_are_in_order_and_do_not_overlap() -> None:
    every = sorted((*ALBUM.copied, *ALBUM.shared, *ALBUM.zeros))
    assert all(one[1] <= other[0] for one, other in pairwise(every))
    assert ALBUM.copied == sorted(ALBUM.copied)
    assert ALBUM.shared == sorted(ALBUM.shared)


def test_read_only_neighbours_are_shared_or_copied_together() -> None:
    """Together they are one block of the machine's memory."""
    short = b"7f0000000000-7f0000040000 r--p 00000000 fe:00 1 /lib/a\n"
    short += b"7f0000040000-7f000007f000 r-xp 00040000 fe:00 1 /lib/a\n"
    more = b"7f000007f000-7f0000080000 r--p 0007f000 fe:00 1 /lib/a\n"
    assert (len(Album(short, []).copied), len(Album(short, []).shared)) == (2, 0)
    assert (len(Album(short + more, []).copied), len(Album(short + more, []).shared)) == (0, 3)


def test_clock_pages_are_zeros() -> None:
    assert names(ALBUM.zeros) == [(0x7FFD5B6C5000, "[vvar]"), (0x7FFD5B6C9000, "[vvar_vclock]")]


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(0x7F1234500000, id="shared with other processes"),
        pytest.param(0x7F1234700000, id="no access"),
        pytest.param(0x7F1234722000, id="only to be written"),
        pytest.param(0x7F1234723000, id="only to be run"),
        pytest.param(0x7F1234724000, id="the monitor's"),
        pytest.param(0xFFFFFFFFFF600000, id="the kernel's"),
    ],
)
def test_is_not_for_the_guest(address: int) -> None:
    assert not [a for a in (*ALBUM.copied, *ALBUM.shared, *ALBUM.zeros) if a[0] <= address < a[1]]


def test_area_has_its_rights_and_its_place_in_the_file() -> None:
    areas = {area[0]: area for area in (*ALBUM.copied, *ALBUM.shared)}
    assert areas[0x400000] == (0x400000, 0x5D2000, READ | EXECUTE, "/usr/bin/python3.11", 0x1000)
    assert areas[0x652000] == (0x652000, 0x655000, READ | WRITE, "/usr/bin/python3.11", 0x52000)
    assert areas[0x651000][2] == READ
    assert areas[0x7F1234720000][2] == READ | EXECUTE
    assert areas[0x7F1234721000][2] == READ | WRITE | EXECUTE


def test_stack_is_found_and_sizes_are_added() -> None:
    assert ALBUM.stack == 0x7FFD5B5E4000
    assert ALBUM.bytes_to_copy() == 0x3000 + 0x21000 + 0x10000 + 0x1000 + 0x21000 + 0x2000 + 0x1000 + 0x1000
    assert Album(b"", []).stack == 0


@pytest.mark.parametrize(
    "without", [(0x1D20000, 0x1D21000), (0, 0x1D15001), (0x1D35FFF, USER_END), (0x1D15000, 0x1D36000)]
)
def test_area_of_which_the_monitor_has_a_part_is_left_out(without: tuple[int, int]) -> None:
    assert "[heap]" not in [area[3] for area in Album(MAPS, [without]).copied]


def test_neighbours_of_the_monitor_are_not_left_out() -> None:
    beside = [(0x1D14000, 0x1D15000), (0x1D36000, 0x1D37000)]
    assert "[heap]" in [area[3] for area in Album(MAPS, beside).copied]


def test_name_cannot_make_a_line() -> None:
    """The kernel writes every byte of a name as it is, but for the end of a line."""
    name = b"/tmp/x\r00001000-00002000 rw-p 00000000 00:00 0 \x0b\x0c\x85"
    album = Album(b"7f1234720000-7f1234721000 r-xp 00000000 fe:00 1   " + name + b"\n", [])
    every = [*album.copied, *album.shared, *album.zeros]
    assert [(area[0], area[2]) for area in every] == [(0x7F1234720000, READ | EXECUTE)]


# --- runs ------------------------------------------------------------------------------------------------------------

_spans = st.lists(st.integers(0, 30), unique=True, max_size=10).map(
    lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@given(_spans, _spans)
def test_covers_means_that_every_page_was_there(runs: list[tuple[int, int]], later: list[tuple[int, int]]) -> None:
    pages = {page for start, end in runs for page in range(start, end)}
    wanted = {page for start, end in later for page in range(start, end)}
    said = covers(runs, later)
    if said:
        assert wanted <= pages
    elif wanted <= pages:
        # Only where one of the later runs lies across two that touch: said to have changed, though it has not.
        assert any(end in [start for start, _ in runs] for _, end in runs)


class Touched:
    """Memory of this process whose pages are used one by one, never in huge ones."""

    def __init__(self, pages: int, touched: list[int]) -> None:
        self._map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(15)  # MADV_NOHUGEPAGE
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.area = (self.start, self.start + pages * PAGE, READ | WRITE, "", 0)
        for page in touched:
            self._map[page * PAGE] = 1

    def runs(self, look: Callable[[list[photo.Area], int], list[photo.Run]] = used_runs) -> list[tuple[int, int]]:
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            found = look([self.area], pagemap)
        finally:
            os.close(pagemap)
        return [((start - self.start) // PAGE, (end - self.start) // PAGE) for start, end in found]


@needs_x86
@pytest.mark.parametrize(
    ("touched", "runs"),
    [
        ([], []),
        ([0], [(0, 1)]),
        ([199], [(199, 200)]),
        ([0, 199], [(0, 1), (199, 200)]),
        ([7, 8, 9, 11, 50], [(7, 10), (11, 12), (50, 51)]),
        (list(range(200)), [(0, 200)]),
    ],
)
def test_pages_in_use_are_runs(touched: list[int], runs: list[tuple[int, int]]) -> None:
    assert Touched(200, touched).runs() == runs


@needs_x86
def test_small_areas_and_those_of_files_are_whole() -> None:
    memory = Touched(16, [3])
    assert memory.runs() == [(0, 16)]
    memory = Touched(200, [3])
    memory.area = (*memory.area[:3], "/usr/bin/python3.11", 0)
    assert memory.runs() == [(0, 200)]


@needs_x86
@pytest.mark.parametrize(("pages", "step"), [(6000, 2), (4000, 3), (9000, 5)])
def test_no_more_runs_than_one_call_takes(pages: int, step: int) -> None:
    touched = list(range(0, pages, step))
    memory = Touched(pages, touched)
    assert len(memory.runs()) == len(touched)
    runs = memory.runs(runs_to_copy)
    assert len(runs) <= 1024
    assert covers(runs, memory.runs())
    assert all(0 <= start < end <= pages for start, end in runs)
    assert all(one[1] <= other[0] for one, other in pairwise(runs)), "in order, each page once"


@needs_x86
@given(st.sets(st.integers(0, 99), max_size=12), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_spare_pages_come_behind_what_is_in_use(touched: set[int], spare: int) -> None:
    memory = Touched(100, sorted(touched))
    runs = memory.runs(lambda areas, pagemap: used_runs(areas, pagemap, spare))
    found = [page for start, end in runs for page in range(start, end)]
    assert sorted(set(found)) == found
    assert touched <= set(found)
    near = {page + more for page in touched for more in range(spare + 1)}
    assert set(found) >= {page for page in near if page < 100}
    between = {page for a, b in pairwise(sorted(touched)) if b - a <= 2 * spare + 1 for page in range(a, b)}
    assert set(found) <= {page for page in near | between if page < 100}


@needs_x86
def test_more_areas_than_one_call_takes_are_refused() -> None:
    areas = [(n * 2 * PAGE, (n * 2 + 1) * PAGE, READ | WRITE, "", 0) for n in range(1025)]
    with pytest.raises(PhotoError, match="1024 pieces"):
        runs_to_copy(areas, -1)


# --- photos ----------------------------------------------------------------------------------------------------------

_HEAD = f"""
import ctypes, gc, json, mmap, os, sys
sys.path.insert(0, {str(SOURCE)!r})
from instar.sandbox.kvm import photo
from instar.sandbox.kvm.native import new_memory, view_at
PAGE = 4096
ROOM = 96 << 20
place = new_memory(ROOM, align=PAGE)
without = [(place, place + ROOM)]
def address(buffer):
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
def anonymous(pages):
    made = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return made, address(made)
def in_photo(album, at):
    '''Return where in the copy an address lies.'''
    where = place
    for start, end, *_ in album.copied:
        if start <= at < end:
            return where + at - start
        where += end - start
def say(**facts):
    print(json.dumps(facts))
"""


def run(program: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_x86
def test_copy_is_the_memory() -> None:
    facts = run("""
data = bytearray(os.urandom(3_000_000))
small = bytearray(b"a small object")
sparse, there = anonymous(1000)
sparse[5 * PAGE : 5 * PAGE + 5] = b"hello"
album = photo.take_photo(place, ROOM, without)
data_copy = bytes(view_at(in_photo(album, address(data)), len(data)))
small_copy = bytes(view_at(in_photo(album, address(small)), len(small)))
sparse_copy = bytes(view_at(in_photo(album, there), len(sparse)))
say(data=data_copy == data, small=small_copy == small, sparse=sparse_copy == sparse[:])
""")
    assert facts == {"data": True, "small": True, "sparse": True}


@needs_x86
def test_copy_has_the_objects_of_the_interpreter() -> None:
    """Each object's header: its type is the same word in the copy; counts of references may have moved on."""
    facts = run("""
keep = [object() for _ in range(1000)] + [{"n": n} for n in range(1000)]
album = photo.take_photo(place, ROOM, without)
good = 0
for thing in keep:
    copy = bytes(view_at(in_photo(album, id(thing)), 16))
    good += int.from_bytes(copy[8:], "little") == id(type(thing))
say(good=good)
""")
    assert facts == {"good": 2000}


@needs_x86
def test_copy_is_not_the_memory_itself() -> None:
    facts = run("""
data = bytearray(b"before" * 1000)
album = photo.take_photo(place, ROOM, without)
data[:] = b"later!" * 1000
first = bytes(view_at(in_photo(album, address(data)), 6)).decode()
view_at(in_photo(album, address(data)), 6, writable=True)[:] = b"guest!"
say(copy=first, memory=data[:6].decode())
""")
    assert facts == {"copy": "before", "memory": "later!"}


@needs_x86
def test_what_is_excluded_is_nowhere_in_the_copy() -> None:
    facts = run("""
secret, there = anonymous(50)
with open("/dev/urandom", "rb", buffering=0) as source:
    source.readinto(secret)
album = photo.take_photo(place, ROOM, [*without, (there, there + len(secret))])
whole = bytes(view_at(place, album.bytes_to_copy()))
areas = [*album.copied, *album.shared, *album.zeros]
say(found=whole.find(secret[0:16]) >= 0 or whole.find(secret[-16:]) >= 0,
    overlap=[area for area in areas for start, end in [*without, (there, there + len(secret))]
             if area[0] < end and start < area[1]])
""")
    assert facts == {"found": False, "overlap": []}


@needs_x86
def test_is_taken_again_when_memory_moves() -> None:
    facts = run("""
copies, kept = [], []
real = photo.vectors
def vectors(*words):
    copies.append(1)
    if len(copies) == 1:
        made, _ = anonymous(64)
        made[0:9] = b"at first "
        kept.append(made)
    if len(copies) == 2:
        kept[0][40 * PAGE : 40 * PAGE + 6] = b"second"  # a page that was not in use
    return real(*words)
photo.vectors = vectors
album = photo.take_photo(place, ROOM, without)
there = address(kept[0])
say(again=len(copies) >= 3, first=bytes(view_at(in_photo(album, there), 9)).decode(),
    second=bytes(view_at(in_photo(album, there) + 40 * PAGE, 6)).decode())
""")
    assert facts == {"again": True, "first": "at first ", "second": "second"}


@needs_x86
def test_what_never_stands_still_has_no_photo() -> None:
    facts = run("""
kept = []
real = photo.vectors
def vectors(*words):
    kept.append(anonymous(20 + len(kept)))
    return real(*words)
photo.vectors = vectors
try:
    photo.take_photo(place, ROOM, without)
except photo.PhotoError as error:
    say(error=str(error), tries=len(kept))
""")
    assert facts["error"] == "its memory does not stand still"
    assert 3 < facts["tries"] < 100


@needs_x86
def test_nothing_of_a_photo_that_was_thrown_away_is_left() -> None:
    """What is no part of the last try must be zeros, or the guest would have memory of another moment."""
    facts = run("""
copies = []
real = photo.covers
big, there = anonymous(500)
big[400 * PAGE] = 7
def covers(*words):
    copies.append(1)
    if len(copies) == 1:
        big.madvise(4)  # MADV_DONTNEED: the page is zeros again, and not in use
        return False
    return real(*words)
photo.covers = covers
album = photo.take_photo(place, ROOM, without)
say(same=bytes(view_at(in_photo(album, there), len(big))) == big[:], again=len(copies) > 1)
""")
    assert facts == {"same": True, "again": True}


@needs_x86
def test_what_is_too_large_has_no_photo() -> None:
    facts = run("""
big, _ = anonymous(30_000)
try:
    photo.take_photo(place, ROOM, without)
except photo.PhotoError as error:
    say(error=str(error), used=any(view_at(place, PAGE)))
""")
    assert facts == {"error": "its memory has grown past 96 MiB", "used": False}


@needs_x86
def test_leaves_no_descriptor_open() -> None:
    facts = run("""
before = os.listdir("/proc/self/fd")
photo.take_photo(place, ROOM, without)
say(same=before == os.listdir("/proc/self/fd"))
""")
    assert facts == {"same": True}


def test_file_that_is_not_there_is_a_photo_error(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="No such file"):
        photo.open_proc(str(tmp_path / "none"))
