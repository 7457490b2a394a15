"""What the monitor's answers have to be, by a model that shares no code with it: pages in a dict, files in bytearrays.

Law: the model knows Linux's rules and the grants, and nothing of how the monitor finds them. Where there is a choice
(which range ``mmap`` gives), it says what is allowed and follows the answer.
"""

from __future__ import annotations

import errno
import struct
from functools import cache

PAGE = 4096
USER_END = 1 << 47
READ, WRITE, EXECUTE = 1, 2, 4
WORD = (1 << 64) - 1
MOST_BYTES = 0x7FFFF000
CLOCKS = (0, 1, 2, 3, 4, 5, 6, 7)

#: The regions of the guest: name, first page, pages, access. Three adjoin, one ends where the user's half ends.
DATA, MORE, TEXT, CODE, LONE, STACK = (0x10, 3), (0x13, 2), (0x15, 2), (0x18, 1), (0x20, 1), ((USER_END >> 12) - 2, 2)
HEAP = (0x700000000, 12)
REGIONS: tuple[tuple[str, tuple[int, int], int], ...] = (
    ("data", DATA, READ | WRITE),
    ("more", MORE, READ | WRITE),
    ("text", TEXT, READ),
    ("code", CODE, READ | EXECUTE),
    ("lone", LONE, READ | WRITE),
    ("heap", HEAP, READ | WRITE),
    ("stack", STACK, READ | WRITE),
)
HEAP_START, HEAP_END = HEAP[0] * PAGE, (HEAP[0] + HEAP[1]) * PAGE

_ENDS = sorted(first + count for _, (first, count), _ in REGIONS)

FD_UP, FD_DOWN, FD_FILES = 3, 4, 5
#: How the files from ``FD_FILES`` on are granted. All are open for reading and writing: it is the grant that counts.
GRANTS = ("r", "w", "rw", "r", "rw")
#: Open in the monitor too, but granted to nobody.
STRANGERS = (0, 1, 2, 10, 11)
FILE_BYTES = 10_000
SIZES = (5000, 3000, 9999, 4000, 4000)
#: Start and size of what is granted of a file, if that is not all.
WINDOWS = (None, None, None, (700, 1500), (700, 1500))

#: x86-64 (linux/arch/x86/entry/syscalls/syscall_64.tbl).
NUMBERS = {
    "read": 0, "write": 1, "mmap": 9, "munmap": 11, "brk": 12, "pread64": 17, "pwrite64": 18, "mremap": 25,
    "madvise": 28, "clock_gettime": 228, "exit_group": 231,
}  # fmt: skip
NAMES = {number: name for name, number in NUMBERS.items()}

Words = tuple[int, int, int, int, int, int]
#: What an answer may be: a number, or the name of an exception.
Answer = int | str


class Wrong(AssertionError):
    """The monitor did what it must not."""


@cache
def contents(name: str, size: int) -> bytes:
    """Return what is in a region, a file or a canary at first: no piece of it looks like another."""
    seed = sum(name.encode()) * 7919
    return b"".join(struct.pack("=I", seed + at * 2654435761 & 0xFFFFFFFF) for at in range(size // 4 + 1))[:size]


def int32(word: int) -> int:
    """Return a register as the kernel takes an ``int``."""
    return struct.unpack("=i", struct.pack("=I", word & 0xFFFFFFFF))[0]  # type: ignore[no-any-return]


def whole_pages(length: int) -> int:
    """Return how many pages hold so many bytes."""
    return -(-length // PAGE)


class Model:
    """The guest as it should be after each call.

    Attributes:
        pages: contents by page number. access: rights by page number. given: pages of the heap in use.
        files: of the granted ones. sent: everything that went to the host. coming: what the host sent, not yet read.
    """

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.access: dict[int, int] = {}
        for name, (first, count), access in REGIONS:
            data = bytes(count * PAGE) if name == "heap" else contents(name, count * PAGE)
            for number in range(count):
                self.pages[first + number] = bytearray(data[number * PAGE : (number + 1) * PAGE])
                self.access[first + number] = access
        self.heap = range(HEAP[0], HEAP[0] + HEAP[1])
        self.given: set[int] = set()
        self.files = [bytearray(contents(f"file {n}", size)) for n, size in enumerate(SIZES)]
        self.sent = bytearray()
        self.coming = bytearray()

    # --- memory -----------------------------------------------------------------------------------------------------

    def allows(self, address: int, length: int, access: int) -> bool:
        """Tell whether every byte of a range is the guest's, with these rights."""
        if address + length > USER_END:
            return False
        last = address + length - 1
        for page in range(address // PAGE, last // PAGE + 1) if length else ():
            if self.access.get(page, 0) & access != access:
                return False
        return True

    def load(self, address: int, length: int) -> bytes:
        """Return bytes of the guest's memory."""
        out = bytearray()
        while len(out) < length:
            at = address + len(out)
            out += self.pages[at // PAGE][at % PAGE : at % PAGE + length - len(out)]
        return bytes(out)

    def store(self, address: int, data: bytes) -> None:
        """Change bytes of the guest's memory."""
        done = 0
        while done < len(data):
            at = (address + done) % PAGE
            piece = data[done : done + PAGE - at]
            self.pages[(address + done) // PAGE][at : at + len(piece)] = piece
            done += len(piece)

    def blank(self, pages: range) -> None:
        """Empty some pages."""
        for page in pages:
            self.pages[page][:] = bytes(PAGE)

    def _free_run(self, count: int) -> bool:
        run = 0
        for page in self.heap:
            run = 0 if page in self.given else run + 1
            if run >= count:
                return True
        return False

    def _take(self, start: int, count: int, what: str) -> None:
        pages = range(start // PAGE, start // PAGE + count)
        if start % PAGE or not all(page in self.heap for page in pages):
            raise Wrong(f"{what} gave {count} pages at {start:#x}, which is not all heap")
        if self.given.intersection(pages):
            raise Wrong(f"{what} gave {count} pages at {start:#x}, of which some are in use")
        self.given.update(pages)

    # --- calls ------------------------------------------------------------------------------------------------------

    def check(self, number: int, words: Words, answer: Answer, told: bytes | None = None) -> None:
        """Hold one answer to the rules, and do what it says. ``told`` are the bytes that a clock gave.

        Raises:
            Wrong: it may not be.
        """
        name = NAMES.get(number)
        if name is None:
            self._equal(number, words, answer, "Forbidden")
        elif name in ("read", "write", "pread64", "mmap", "mremap"):
            getattr(self, f"_{name}")(words, answer)
        elif name == "clock_gettime":
            self._clock(words, answer, told)
        else:
            self._equal(number, words, answer, getattr(self, f"_{name}")(*words))

    @staticmethod
    def _equal(number: int, words: Words, answer: Answer, wanted: Answer) -> None:
        if answer != wanted:
            text = ", ".join(f"{word:#x}" for word in words)
            raise Wrong(f"{NAMES.get(number, number)}({text}) gave {answer}, not {wanted}")

    def _file(self, fd: int, right: str) -> bytearray | None:
        number = int32(fd) - FD_FILES
        return self.files[number] if 0 <= number < len(GRANTS) and right in GRANTS[number] else None

    def _pread64(self, words: Words, answer: Answer) -> None:
        fd, address, length, offset, *_ = words
        file = self._file(fd, "r")
        length = min(length, MOST_BYTES)
        wanted: Answer
        if file is None:
            wanted = "Forbidden"
        elif offset >> 63:
            wanted = -errno.EINVAL
        elif not self.allows(address, length, WRITE):
            wanted = -errno.EFAULT
        elif length and offset + length >> 63:
            # No file is that long. Kernels differ in whether they say so.
            wanted = answer if answer in (0, -errno.EINVAL, -errno.EOVERFLOW) else 0
        else:
            start, size = WINDOWS[int32(fd) - FD_FILES] or (0, len(file))
            data = bytes(file[start : start + size][offset : offset + length])
            self.store(address, data)
            wanted = len(data)
        self._equal(17, words, answer, wanted)

    def _pwrite64(self, fd: int, address: int, length: int, offset: int, *_: int) -> Answer:
        file = self._file(fd, "w")
        if file is None:
            return "Forbidden"
        if offset >> 63:
            return -errno.EINVAL
        if address + length > USER_END:
            return -errno.EFAULT
        start, size = WINDOWS[int32(fd) - FD_FILES] or (0, FILE_BYTES)
        if length and offset >= size:
            return -errno.EFBIG
        length = min(length, max(size - offset, 0))
        if not self.allows(address, length, READ):
            return -errno.EFAULT
        if length:
            offset += start
            file.extend(bytes(max(0, offset - len(file))))
            file[offset : offset + length] = self.load(address, length)
        return length

    def _read(self, words: Words, answer: Answer) -> None:
        fd, address, length, *_ = words
        wanted: Answer
        count = min(length, len(self.coming))
        if int32(fd) != FD_DOWN:
            wanted = "Forbidden"
        elif not self.allows(address, min(length, MOST_BYTES), WRITE):
            wanted = -errno.EFAULT
        elif not length:
            wanted = 0
        elif not count:
            wanted = -errno.EAGAIN  # in this world the host's pipe does not block
        else:
            wanted = self._in_part(address, count, answer)
            self.store(address, bytes(self.coming[:wanted]))
            del self.coming[:wanted]
        self._equal(0, words, answer, wanted)

    def _write(self, words: Words, answer: Answer) -> None:
        fd, address, length, *_ = words
        length = min(length, MOST_BYTES)
        wanted: Answer = -errno.EFAULT
        if int32(fd) != FD_UP:
            wanted = "Forbidden"
        elif self.allows(address, length, READ):
            wanted = self._in_part(address, length, answer)
            self.sent += self.load(address, wanted)
        self._equal(1, words, answer, wanted)

    @staticmethod
    def _in_part(address: int, count: int, answer: Answer) -> int:
        """Return what a pipe may have taken or given: all, or no more than what lies in the first of two regions."""
        least = min([count, *(last * PAGE - address for last in _ENDS if last * PAGE > address)])
        return answer if isinstance(answer, int) and least <= answer <= count else count

    @property
    def message_is_whole(self) -> bool:
        """Tell whether what was sent ends with a whole message."""
        at = 0
        while at + 5 <= len(self.sent):
            at += 5 + int(struct.unpack_from("=I", self.sent, at)[0])
        return at == len(self.sent)

    def _mmap(self, words: Words, answer: Answer) -> None:
        address, length, protection, flags, *_ = words
        wanted: Answer = -errno.ENOMEM
        # Private and anonymous, perhaps without reserve, for a stack, or in huge pages of some size; nothing else.
        if protection & EXECUTE or flags & 0x22 != 0x22 or flags & 0x03F9BFDD:
            wanted = "Forbidden"
        elif not length and not address:
            wanted = -errno.EINVAL
        elif not address and length <= USER_END and self._free_run(whole_pages(length)):
            if not isinstance(answer, int) or answer < 0:
                raise Wrong(f"mmap of {length:#x} bytes gave {answer} though there is room")
            self._take(answer, whole_pages(length), "mmap")
            return
        self._equal(9, words, answer, wanted)

    def _munmap(self, address: int, length: int, *_: int) -> Answer:
        if address % PAGE or not length or address + length > USER_END:
            return -errno.EINVAL
        self._give_back(address, length)
        return 0

    def _give_back(self, address: int, length: int) -> None:
        first = max(address // PAGE, self.heap.start)
        pages = range(first, max(first, min(address // PAGE + whole_pages(length), self.heap.stop)))
        self.blank(pages)
        self.given.difference_update(pages)

    def _mremap(self, words: Words, answer: Answer) -> None:
        address, old, new, flags, *_ = words
        wanted: Answer
        before, after = whole_pages(old), whole_pages(new)
        pages = range(address // PAGE, address // PAGE + before)
        if flags & 0xFFFFFFFE:
            wanted = "Forbidden"
        elif address % PAGE or not new or not old or flags >> 32:
            wanted = -errno.EINVAL
        elif new > USER_END or old > USER_END:
            wanted = -errno.ENOMEM
        elif not self.allows(address, before * PAGE, READ | WRITE) or any(
            page in self.heap and page not in self.given for page in pages
        ):
            wanted = -errno.EFAULT
        elif after <= before:
            wanted = address
            if answer == wanted and after < before:
                self._give_back(address + after * PAGE, (before - after) * PAGE)
        else:
            more = range(pages.stop, pages.start + after)
            grows = pages.start in self.heap and all(p in self.heap and p not in self.given for p in more)
            moves = bool(flags & 1) and self._free_run(after)
            if grows and answer == address:
                self.given.update(more)
                return
            if moves and isinstance(answer, int) and answer >= 0:
                data = self.load(address, before * PAGE)
                self._take(answer, after, "mremap")
                self._give_back(address, before * PAGE)
                self.store(answer, data)
                return
            wanted = -errno.ENOMEM if not grows and not moves else "a place"
        self._equal(25, words, answer, wanted)

    def _madvise(self, address: int, length: int, advice: int, *_: int) -> Answer:
        if int32(advice) not in (4, 8):
            return "Forbidden"
        if address % PAGE or address + length > USER_END:
            return -errno.EINVAL
        if int32(advice) == 4 and length:
            count = whole_pages(length)
            if not self.allows(address, count * PAGE, READ | WRITE):
                return -errno.ENOMEM
            self.blank(range(address // PAGE, address // PAGE + count))
        return 0

    def _clock(self, words: Words, answer: Answer, told: bytes | None) -> None:
        clock, address, *_ = words
        wanted: Answer = 0
        if int32(clock) not in CLOCKS:
            wanted = "Forbidden"
        elif not self.allows(address, 16, WRITE):
            wanted = -errno.EFAULT
        self._equal(228, words, answer, wanted)
        if wanted == 0:
            assert told is not None
            self.store(address, told)

    def _brk(self, *_: int) -> Answer:
        return 0

    def _exit_group(self, code: int, *_: int) -> Answer:
        return f"Ended {code & 0xFF}"
