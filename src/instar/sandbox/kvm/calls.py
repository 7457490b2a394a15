"""The system calls of a guest, answered: the same short list as a sealed process has, on the same files.

Law: everything in a call is hostile. A descriptor must be granted for that use, a pointer must lie in the guest's
memory for its whole length, an offset below the limit; what is not in the list ends the cell. A guest that passes
nonsense where Linux would give an error gets that error.
"""

from __future__ import annotations

import struct
import time

from instar.sandbox.kernel import syscall
from instar.sandbox.kvm.memory import PAGE, READ, USER_END, WRITE
from instar.sandbox.kvm.native import view_at
from instar.sandbox.process.policy import (
    ADVICE,
    CLOCKS,
    FD_DOWN,
    FD_FILES,
    FD_UP,
    MAP_OTHERS,
    MAP_PRIVATE_ANONYMOUS,
    MOVES,
    PROT_EXEC,
    RULES,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from instar.sandbox.cell import Grant
    from instar.sandbox.kvm.memory import GuestMemory

_EINTR, _ENOMEM, _EFAULT, _EINVAL, _EFBIG = 4, 12, 14, 22, 27
_MREMAP_MAYMOVE = 1
_DONTNEED = 4
#: Linux moves no more than this in one call (MAX_RW_COUNT).
_MOST_BYTES = 0x7FFFF000
_HEAD = 5
_INT64 = 1 << 63


class Forbidden(Exception):
    """The guest made a call that no cell may make; ends it."""


class Ended(Exception):
    """The guest ended by itself, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Heap:
    """Memory that a guest may still get, one range of guest-virtual addresses, given out in whole pages.

    What comes back is zeroed by giving it back to the system, so what is in use never exceeds the range.
    """

    __slots__ = ("_free",)

    def __init__(self, start: int, end: int) -> None:
        #: Free ranges in order, none of which touch.
        self._free = [(start, end)]

    def take(self, length: int) -> int | None:
        """Return the start of ``length`` free bytes; ``None`` if there are none."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= length:
                if end - start == length:
                    del self._free[index]
                else:
                    self._free[index] = (start + length, end)
                return start
        return None

    def take_at(self, start: int, length: int) -> bool:
        """Take ``length`` bytes at ``start`` if all of them are free; tell whether they were."""
        for index, (first, end) in enumerate(self._free):
            if first <= start and start + length <= end:
                self._free[index : index + 1] = [
                    row for row in ((first, start), (start + length, end)) if row[0] < row[1]
                ]
                return True
        return False

    def has_free(self, start: int, end: int) -> bool:
        """Tell whether any byte of a range is free."""
        return any(first < end and start < last for first, last in self._free)

    def give_back(self, start: int, end: int) -> None:
        """Free a range, some of which may be free already."""
        row = (start, end)
        kept = []
        for free in self._free:
            if free[1] < row[0] or free[0] > row[1]:
                kept.append(free)
            else:
                row = (min(free[0], row[0]), max(free[1], row[1]))
        kept.append(row)
        kept.sort()
        self._free = kept


class Frames:
    """Where the guest is in the messages that it sends to the host: between two, or within one."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    @property
    def whole(self) -> bool:
        """Tell whether the last message is complete."""
        return not self._head and not self._left

    def feed(self, data: memoryview) -> None:
        """Follow what has been sent."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(_HEAD - len(self._head), len(data) - at)
                self._head += bytes(data[at : at + step])
                if len(self._head) == _HEAD:
                    self._left = struct.unpack_from("=I", self._head)[0]
                    self._head = b""
            at += step


class Calls:
    """Answers a guest's calls. ``files`` are granted as descriptors ``FD_FILES`` onwards, here as in the guest.

    A window is a file of its own for the guest: it begins at zero there, and has an end.

    ``heap`` is the part of ``memory`` that is given out by ``mmap``; no write goes past ``file_bytes``.

    Attributes:
        frames: where the guest is in its messages.
    """

    __slots__ = (
        "_file_bytes", "_heap", "_heap_end", "_heap_start", "_memory", "_readable", "_waited", "_waits_since",
        "_windows", "_writable", "frames",
    )  # fmt: skip

    def __init__(self, memory: GuestMemory, files: Sequence[Grant], *, heap: tuple[int, int], file_bytes: int) -> None:
        self._memory = memory
        self._readable = {FD_FILES + n for n, g in enumerate(files) if "r" in g.mode}
        self._writable = {FD_FILES + n for n, g in enumerate(files) if "w" in g.mode}
        self._windows = {FD_FILES + n: (g.offset, g.size) for n, g in enumerate(files) if g.offset is not None}
        self._heap_start, self._heap_end = heap
        self._heap = Heap(*heap)
        self._file_bytes = file_bytes
        self.frames = Frames()
        self._waited = 0.0
        self._waits_since: float | None = None

    def waited(self) -> float:
        """Return how many seconds the guest has waited for the host so far."""
        return self._waited + (0.0 if self._waits_since is None else time.monotonic() - self._waits_since)

    def answer(self, number: int, words: tuple[int, int, int, int, int, int]) -> int:
        """Return what a system call gives: 0 or more, or the negative ``errno``. Words are unsigned, of 64 bits.

        Raises:
            Forbidden: no cell may make this call.
            Ended: the guest is done.
        """
        handler = _HANDLERS.get(number)
        if handler is None:
            raise Forbidden
        return handler(self, *words)

    def _transfer(self, name: str, fd: int, address: int, length: int, access: int, offset: int | None = None) -> int:
        """Make a call that moves bytes between a descriptor and the guest's memory, piece by piece."""
        pieces = self._memory.pieces(address, min(length, _MOST_BYTES), access)
        if pieces is None:
            return -_EFAULT
        done = 0
        for host, size in pieces:
            while True:
                result = (
                    syscall(name, fd, host, size) if offset is None else syscall(name, fd, host, size, offset + done)
                )
                if result != -_EINTR:
                    break
            if result < 0:
                return done or result
            done += result
            if result < size or offset is None:
                break  # of a pipe no more is asked than it gave at once: asking again could wait for ever
        return done

    def pread64(self, fd: int, address: int, length: int, offset: int, *_: int) -> int:
        """Read a granted file."""
        if _int32(fd) not in self._readable:
            raise Forbidden
        if offset >= _INT64:
            return -_EINVAL
        if self._memory.pieces(address, min(length, _MOST_BYTES), WRITE) is None:
            return -_EFAULT  # also where a window ends before
        start, room = self._window(_int32(fd), offset)
        return self._transfer("pread64", _int32(fd), address, min(length, room), WRITE, start + offset)

    def pwrite64(self, fd: int, address: int, length: int, offset: int, *_: int) -> int:
        """Write a granted file, up to the limit on its length."""
        if _int32(fd) not in self._writable:
            raise Forbidden
        if offset >= _INT64:
            return -_EINVAL
        if address + length > USER_END:
            return -_EFAULT  # before the length is cut to what there is room for
        start, room = self._window(_int32(fd), offset)
        room = min(room, max(self._file_bytes - start - offset, 0))
        if length and not room:
            return -_EFBIG
        return self._transfer("pwrite64", _int32(fd), address, min(length, room), READ, start + offset)

    def _window(self, fd: int, offset: int) -> tuple[int, int]:
        """Return where in the file a descriptor's first byte is, and how many there are from ``offset`` on."""
        start, size = self._windows.get(fd, (0, 1 << 64))
        return start, max(size - offset, 0)

    def read(self, fd: int, address: int, length: int, *_: int) -> int:
        """Read what the host sends."""
        if _int32(fd) != FD_DOWN:
            raise Forbidden
        self._waits_since = time.monotonic()
        try:
            return self._transfer("read", FD_DOWN, address, length, WRITE)
        finally:
            self._waited, self._waits_since = self.waited(), None

    def write(self, fd: int, address: int, length: int, *_: int) -> int:
        """Send to the host."""
        if _int32(fd) != FD_UP:
            raise Forbidden
        done = self._transfer("write", FD_UP, address, length, READ)
        left = max(done, 0)
        for host, size in self._memory.pieces(address, left, READ) or ():
            self.frames.feed(view_at(host, size))
        return done

    def mmap(self, address: int, length: int, protection: int, flags: int, *_: int) -> int:
        """Give memory."""
        flags &= 0xFFFFFFFF
        if protection & PROT_EXEC or flags & MAP_PRIVATE_ANONYMOUS != MAP_PRIVATE_ANONYMOUS:
            raise Forbidden
        if flags & ~(MAP_PRIVATE_ANONYMOUS | MAP_OTHERS):
            raise Forbidden
        if address or length > USER_END:
            return -_ENOMEM
        if not length:
            return -_EINVAL
        start = self._heap.take(_pages(length))
        return -_ENOMEM if start is None else start

    def munmap(self, address: int, length: int, *_: int) -> int:
        """Take memory back. What the guest was born with stays."""
        if address % PAGE or not length or address + length > USER_END:
            return -_EINVAL
        start, end = max(address, self._heap_start), min(address + _pages(length), self._heap_end)
        if start < end:
            self._discard(start, end - start)
            self._heap.give_back(start, end)
        return 0

    def mremap(self, address: int, old: int, new: int, flags: int, *_: int) -> int:
        """Make a piece of memory longer or shorter, elsewhere if need be."""
        if flags & 0xFFFFFFFF not in MOVES:
            raise Forbidden
        if address % PAGE or not new or not old or flags >> 32:
            return -_EINVAL
        if new > USER_END or old > USER_END:
            return -_ENOMEM
        old, new = _pages(old), _pages(new)
        source = self._memory.pieces(address, min(old, new), READ | WRITE)
        if source is None or self._memory.pieces(address, old, READ | WRITE) is None:
            return -_EFAULT
        if self._heap.has_free(address, address + old):
            return -_EFAULT
        if new <= old:
            self.munmap(address + new, old - new)
            return address
        if address >= self._heap_start and self._heap.take_at(address + old, new - old):
            return address
        if not flags & _MREMAP_MAYMOVE:
            return -_ENOMEM
        start = self._heap.take(new)
        if start is None:
            return -_ENOMEM
        place = start
        for host, size in source:
            for target, length in self._memory.pieces(place, size, WRITE) or ():
                view_at(target, length, writable=True)[:] = view_at(host, length)
                host += length
            place += size
        self.munmap(address, old)
        return start

    def brk(self, address: int, *_: int) -> int:
        """Refuse to grow the heap that the guest was born with; its allocator then asks for memory elsewhere."""
        return 0

    def madvise(self, address: int, length: int, advice: int, *_: int) -> int:
        """Take the contents of memory that the guest no longer needs."""
        if _int32(advice) not in ADVICE:
            raise Forbidden
        if address % PAGE or address + length > USER_END:
            return -_EINVAL
        if _int32(advice) == _DONTNEED and length:
            return self._discard(address, _pages(length))
        return 0

    def clock_gettime(self, clock: int, address: int, *_: int) -> int:
        """Tell the time; of the processor, the monitor's, which counts its guest."""
        if _int32(clock) not in CLOCKS:
            raise Forbidden
        pieces = self._memory.pieces(address, 16, WRITE)
        if pieces is None:
            return -_EFAULT
        now = struct.pack("=qq", *divmod(time.clock_gettime_ns(_int32(clock)), 1_000_000_000))
        at = 0
        for host, size in pieces:
            view_at(host, size, writable=True)[:] = now[at : at + size]
            at += size
        return 0

    def exit_group(self, code: int, *_: int) -> int:
        """End."""
        raise Ended(code & 0xFF)

    def _discard(self, address: int, length: int) -> int:
        pieces = self._memory.pieces(address, length, READ | WRITE)
        if pieces is None:
            return -_ENOMEM
        for host, size in pieces:
            if syscall("madvise", host, size, _DONTNEED) < 0:
                view_at(host, size, writable=True)[:] = bytes(size)
        return 0


def _pages(length: int) -> int:
    """Round up to whole pages."""
    return length + PAGE - 1 & -PAGE


def _int32(word: int) -> int:
    """Return the low half of a word as the kernel takes an ``int`` argument."""
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


#: Call number -> handler. The list is the process cell's; its names are those of the methods.
_HANDLERS: dict[int, Callable[..., int]] = {rule.numbers["x86_64"]: getattr(Calls, rule.name) for rule in RULES}
