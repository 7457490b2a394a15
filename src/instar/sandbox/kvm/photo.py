"""A consistent copy of this process's own memory, for a guest to live in.

Law: one system call copies everything. While it runs, the interpreter stands still in the middle of it, holding
its own lock, so the copy is of one moment. What was looked up before, which ranges there are and which of their
pages are in use, is looked up again afterwards: if it has changed, the photo is thrown away and taken once more.
All of that is done by one Python frame: one that was entered in between could bring memory that is there for the
photo alone, as the interpreter maps a piece of its stack of frames when the last one is full, and unmaps it later.
"""

from __future__ import annotations

import os
import struct
from _io import FileIO

from instar.sandbox.kernel import address_of, number_of, syscall
from instar.sandbox.kvm.memory import EXECUTE, PAGE, READ, USER_END, WRITE
from instar.sandbox.kvm.native import last_error, plain_syscall

#: Most ranges in one call (linux/uio.h, UIO_MAXIOV).
_MOST_RUNS = 1024
#: Anonymous ranges up to here are copied whole: asking which of their pages are in use costs more.
_SMALL = 16 * PAGE
#: Read-only mappings from here on are shared. A change of a machine's memory map takes some 30 µs, on a busy host
#: milliseconds, because the kernel waits for other processors.
_WORTH_SHARING = 512 << 10
#: Each mapped page costs 8 bytes of page tables.
_MOST_SHARED = 4 << 30
#: No more than this of shorter ones is copied.
MOST_SHORT_ONES = 8 << 20
_TRIES = 20
_SPARE_PAGES = 4
_UNUSED = b"-"
#: By the last byte of a row of /proc/self/pagemap: in use is what is present (bit 63) or swapped out (bit 62).
_IN_USE = _UNUSED * 64 + b"U" * 192
_MADV_DONTNEED = 4
_EFAULT = 14
#: Sizes of blocks for malloc and for Python's own allocator. Together below what malloc gives back to the system.
_HEADROOM_LARGE = 3000
_HEADROOM_SMALL = 400
_HEADROOM_BLOCKS = 16

#: (start, end, access, name, offset in the file of that name)
Area = tuple[int, int, int, str, int]
#: (start, end)
Run = tuple[int, int]


class PhotoError(Exception):
    """No photo can be taken of the process; the message says why."""


class BlurredError(PhotoError):
    """None can be taken now: memory moves. Another time it may stand still."""


def open_proc(path: str) -> FileIO:
    """Open a file of ``/proc``, whose size nobody knows; ``readall`` gives the whole of it.

    Raises:
        PhotoError: it cannot be opened.
    """
    try:
        return FileIO(path)
    except OSError as error:
        raise PhotoError(f"{path}: {error.strerror}") from None


class Album:
    """What of a process a guest gets.

    Attributes:
        copied: ranges that the guest may write, and short read-only ones; they get memory of their own.
        shared: long read-only ranges, which it sees where they are.
        zeros: the kernel's clock pages, which it sees as zeros.
        stack: the lowest address of the first thread's stack.
    """

    __slots__ = ("copied", "shared", "stack", "zeros")

    def __init__(self, maps: bytes, without: list[Run]) -> None:
        """Sort the lines of ``/proc/PID/maps``; ``without`` are ranges that belong to the monitor alone."""
        self.copied: list[Area] = []
        self.shared: list[Area] = []
        self.zeros: list[Area] = []
        self.stack = 0
        for line in maps.split(b"\n")[:-1]:
            words = line.split(None, 5)
            first, _, last = words[0].partition(b"-")
            start, end, rights = int(first, 16), int(last, 16), words[1]
            if rights[0] != 0x72 or end > USER_END or any(a < end and start < z for a, z in without):
                continue  # not readable, the kernel's (vsyscall), or not for the guest
            name = words[5].decode("utf-8", "replace") if len(words) > 5 else ""
            access = READ | (WRITE if rights[1] == 0x77 else 0) | (EXECUTE if rights[2] == 0x78 else 0)
            area = (start, end, access, name, int(words[2], 16))
            if name.startswith("[vvar"):
                self.zeros.append(area)
            elif access & WRITE:
                if rights[3] == 0x70:  # what is shared with other processes a guest must not write
                    self.copied.append(area)
                if name == "[stack]":
                    self.stack = start
            elif name == "[vdso]":
                self.copied.append(area)
            else:
                self.shared.append(area)
        self._copy_short_ones()

    def _copy_short_ones(self) -> None:
        """Have short read-only mappings copied: each shared one costs a change of the machine's memory map."""
        kept: list[Area] = []
        group: list[Area] = []
        room = MOST_SHORT_ONES
        for area in (*self.shared, (0, 0, 0, "", 0)):
            if group and group[-1][1] != area[0]:
                length = group[-1][1] - group[0][0]
                if length < min(_WORTH_SHARING, room):
                    self.copied += group
                    room -= length
                else:
                    kept += group
                group = []
            group.append(area)
        self.shared = kept
        self.copied.sort()

    def bytes_to_copy(self) -> int:
        """Return the length of all ranges that get memory of their own, used or not."""
        return sum(area[1] - area[0] for area in self.copied)


def runs_to_copy(areas: list[Area], pagemap: int) -> list[Run]:
    """Return runs of pages with all that have contents of their own, others being zeros; at most ``_MOST_RUNS``.

    Some unused pages come along: those that are likely to be used before the photo is taken.

    Raises:
        PhotoError: even with many unused pages there are more runs.
    """
    spare = _SPARE_PAGES
    while len(runs := used_runs(areas, pagemap, spare)) > _MOST_RUNS:
        spare *= 2
        if spare > USER_END // PAGE:
            raise PhotoError(f"its memory is in more than {_MOST_RUNS} pieces")
    return runs


def used_runs(areas: list[Area], pagemap: int, spare: int = 0) -> list[Run]:
    """Return the runs of pages in use, each with up to ``spare`` unused pages behind it or between it and the next."""
    runs: list[Run] = []
    for start, end, _, name, _ in areas:
        # What comes from a file has contents even where it was never touched.
        if end - start <= _SMALL or name[:1] == "/":
            runs.append((start, end))
            continue
        # One byte of each row is enough, and bytes are searched without making a number of each.
        rows = os.pread(pagemap, (end - start) // PAGE * 8, start // PAGE * 8)[7::8].translate(_IN_USE)
        first = rows.find(b"U")
        while first >= 0:
            last = rows.find(_UNUSED * (spare + 1), first)
            last = min((len(rows.rstrip(_UNUSED)) if last < 0 else last) + spare, len(rows))
            runs.append((start + first * PAGE, start + last * PAGE))
            first = rows.find(b"U", last)
    return runs


def covers(runs: list[Run], later: list[Run]) -> bool:
    """Tell whether every page of ``later`` is one of ``runs``; both are in order of their places."""
    index = 0
    for start, end in later:
        while index < len(runs) and not runs[index][0] <= start < runs[index][1]:
            index += 1
        if index == len(runs) or end > runs[index][1]:
            return False
    return True


def take_photo(memory: int, capacity: int, without: list[Run]) -> Album:
    """Copy this process to the ``capacity`` zeroed bytes at ``memory``: the areas of ``Album.copied``, without gaps.

    ``without`` are ranges that belong to the monitor, ``memory`` itself among them. The process must have one thread.

    Raises:
        PhotoError: it would be too large, changes all the time, or the kernel does not allow it.
    """
    kept = [_make_headroom()]
    number, process = number_of("process_vm_writev"), os.getpid()
    with open_proc("/proc/self/maps") as source, open_proc("/proc/self/pagemap") as pagemap:
        for _ in range(_TRIES):
            # The looks at the map and the copy are calls of C functions, made from here: see the law.
            source.seek(0)
            maps = source.readall()
            album = Album(maps, without)
            if album.bytes_to_copy() > capacity:
                raise PhotoError(f"its memory has grown past {capacity >> 20} MiB")
            if sum(area[1] - area[0] for area in album.shared) > _MOST_SHARED:
                raise PhotoError(f"it has more than {_MOST_SHARED >> 30} GiB of files mapped")
            runs = runs_to_copy(album.copied, pagemap.fileno())
            local, remote = vectors(album, runs, memory)
            at, to, count = address_of(local), address_of(remote), len(runs)
            # Written, not read: reading this way would make the kernel give up sharing each page with the parent first.
            done = plain_syscall(number, process, at, count, to, count, 0)
            source.seek(0)
            same = source.readall() == maps
            if done < 0 and (error := last_error()) != _EFAULT:
                raise PhotoError(f"process_vm_writev: {os.strerror(error)}")
            if same and done != sum(end - start for start, end in runs):
                raise PhotoError("a part of its memory cannot be read (a mapped file that was cut?)")
            if same and covers(runs, used_runs(album.copied, pagemap.fileno())):
                return album
            result = syscall("madvise", memory, capacity, _MADV_DONTNEED)
            if result < 0:
                raise PhotoError(f"madvise: {os.strerror(-result)}")
            kept.append(_make_headroom())
    raise BlurredError("its memory does not stand still")


def _make_headroom() -> list[object]:
    """Have both allocators touch the memory that the look-ups will need, so that it is there when they start.

    What is returned keeps the last of the small blocks, and with it the place that they came from.
    """
    large = [b"%d" % number * (_HEADROOM_LARGE // 2) for number in range(10, 10 + _HEADROOM_BLOCKS)]
    small = [b"%d" % number * (_HEADROOM_SMALL // 6) for number in range(100_000, 100_000 + 16 * _HEADROOM_BLOCKS)]
    return [large[0], small[-1]]


def vectors(album: Album, runs: list[Run], memory: int) -> tuple[bytes, bytes]:
    """Return where the runs are and where they go, both as ``struct iovec[]``."""
    sources: list[int] = []
    targets: list[int] = []
    place = memory
    number = 0
    for start, end, *_ in album.copied:
        while number < len(runs) and runs[number][0] < end and runs[number][0] >= start:
            first, last = runs[number]
            sources += (first, last - first)
            targets += (place + first - start, last - first)
            number += 1
        place += end - start
    return struct.pack(f"={len(sources)}Q", *sources), struct.pack(f"={len(targets)}Q", *targets)
