"""Real memory, pipes and files around the monitor's handler of calls, in a process of its own, each step checked.

Law: after every call all memory and every file are as the model says, byte for byte; between the guest's regions,
in host memory, lie canaries. What the handler gives to the system is looked at on its way, too: descriptors must be
granted, addresses must be those of a region that allows it.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from fuzz import kvm_model as rules
from fuzz.kvm_model import PAGE, WORD, Model, Wrong, contents

ROOT = Path(__file__).parent.parent
#: One step: which call, and how each of its six words is made.
STEP = struct.Struct("=BB" + "Bh" * 6)
MOST_STEPS = 40
#: Seconds after which a child that has not answered hangs.
_PATIENCE = 30.0

_EDGES = sorted({page * PAGE for _, (first, count), _ in rules.REGIONS for page in (first, first + count)})
#: Words are one of these plus a little.
ANCHORS = (
    0, PAGE, rules.FILE_BYTES, *_EDGES, 1 << 31, 1 << 32, rules.USER_END, 1 << 63, WORD,
    rules.MOST_BYTES, 0xFFFF_8000_0000_0000, WORD - PAGE + 1,
)  # fmt: skip
#: From here on a word is what an earlier ``mmap`` or ``mremap`` gave, plus a little.
EARLIER = 48
IN_PAGES, GARBAGE = 0x40, 0x80
_OTHERS = (2, 10, 16, 57, 59, 101, 311, 0x4000_0000, 0xFFFF_FFFF)
CALLS = (*rules.NUMBERS.values(), *_OTHERS)


def word(kind: int, value: int, given: list[int]) -> int:
    """Make one register."""
    index = kind & 0x3F
    if kind & IN_PAGES:
        value *= PAGE
    if index >= EARLIER:
        base = given[(index - EARLIER) % len(given)] if given else rules.HEAP_START
    else:
        base = ANCHORS[index % len(ANCHORS)]
    made = base + value
    return (made ^ 0xDEAD_BEEF << 32 if kind & GARBAGE else made) & WORD


class World:
    """One guest's memory and files; ``play`` runs a sequence of calls against them."""

    def __init__(self) -> None:
        from instar.sandbox.kernel import syscall
        from instar.sandbox.kvm.memory import Region
        from instar.sandbox.kvm.native import view_at

        total = 2 + sum(count + 1 for _, (_, count), _ in rules.REGIONS)
        self._arena = mmap.mmap(-1, total * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = _address(self._arena)
        self._host: dict[int, tuple[int, int]] = {}  # guest page -> place in the arena, access
        self._regions = []
        place = 1
        # The other way round than in the guest, so that what adjoins there does not adjoin here; heap and stack do.
        for name, (first, count), access in reversed(rules.REGIONS):
            if name != "heap":
                place += 1
            host = base + place * PAGE
            self._regions.append(
                Region(first * PAGE, (first + count) * PAGE, access, host=host, physical=place * PAGE, name=name)
            )
            for number in range(count):
                self._host[first + number] = (place * PAGE, access)
                place += 1
        used = {at for at, _ in self._host.values()}
        self._canaries = [page * PAGE for page in range(total) if page * PAGE not in used]
        self._canary = contents("canary", PAGE)
        self._by_host = {base + at: access for at, access in self._host.values()}
        self._calls: Any = import_module("instar.sandbox.kvm.calls")
        self._real_syscall, self._real_view = syscall, view_at
        vars(self._calls).update(syscall=self._watched_syscall, view_at=self._watched_view)
        self._up, self._down = _arrange(len(rules.GRANTS))

    # --- what the handler asks of the system ------------------------------------------------------------------------

    def _lies_within(self, host: int, size: int, access: int) -> None:
        for page in range(host & -PAGE, host + size, PAGE):
            if self._by_host.get(page, 0) & access != access:
                raise Wrong(f"the handler used host memory at {page:#x}, which does not allow it")

    def _watched_syscall(self, name: str, *words: int) -> int:
        if name in ("read", "write", "pread64", "pwrite64"):
            fd, host, size = words[:3]
            file = fd - rules.FD_FILES
            mode = rules.GRANTS[file] if 0 <= file < len(rules.GRANTS) else ""
            allowed = {
                "read": fd == rules.FD_DOWN,
                "write": fd == rules.FD_UP,
                "pread64": "r" in mode,
                "pwrite64": "w" in mode,
            }
            if not allowed[name]:
                raise Wrong(f"{name} on descriptor {fd}")
            self._lies_within(host, size, rules.READ if "write" in name else rules.WRITE)
        elif name == "madvise":
            self._lies_within(words[0], words[1], rules.READ | rules.WRITE)
        else:
            raise Wrong(f"the handler made the call {name}")
        return int(self._real_syscall(name, *words))

    def _watched_view(self, address: int, length: int, *, writable: bool = False) -> memoryview:
        self._lies_within(address, length, rules.WRITE if writable else rules.READ)
        return self._real_view(address, length, writable=writable)

    # --- a sequence -------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        from instar.sandbox.cell import Grant
        from instar.sandbox.kvm.memory import GuestMemory

        self.model = Model()
        for at in self._canaries:
            self._arena[at : at + PAGE] = self._canary
        for page, data in self.model.pages.items():
            at = self._host[page][0]
            self._arena[at : at + PAGE] = bytes(data)
        for number, file in enumerate(self.model.files):
            os.ftruncate(rules.FD_FILES + number, 0)
            os.pwrite(rules.FD_FILES + number, file, 0)
        _drain(self._up)
        _drain(rules.FD_DOWN)
        self._given: list[int] = []
        grants = [
            Grant(100 + n, mode, 0 if window is None else window[1], offset=None if window is None else window[0])
            for n, (mode, window) in enumerate(zip(rules.GRANTS, rules.WINDOWS, strict=True))
        ]
        self._handler = self._calls.Calls(
            GuestMemory(self._regions), grants, heap=(rules.HEAP_START, rules.HEAP_END), file_bytes=rules.FILE_BYTES
        )

    def play(self, data: bytes) -> None:
        """Run the calls that ``data`` says, and check everything after each.

        Raises:
            Wrong: something is not as it must be.
        """
        self._reset()
        for at in range(0, min(len(data), MOST_STEPS * STEP.size) - STEP.size + 1, STEP.size):
            which, extra, *made = STEP.unpack_from(data, at)
            number = CALLS[which % len(CALLS)]
            words = tuple(word(made[n], made[n + 1], self._given) for n in range(0, 12, 2))
            if number == rules.NUMBERS["read"]:
                self._send(extra * 61)
            self._step(number, words)  # type: ignore[arg-type]

    def _send(self, count: int) -> None:
        data = contents(f"message {len(self.model.coming)}", max(0, count - len(self.model.coming)))
        os.write(self._down, data)
        self.model.coming += data

    def _step(self, number: int, words: rules.Words) -> None:
        clock_before = time.time()
        try:
            answer: rules.Answer = self._handler.answer(number, words)
        except self._calls.Forbidden:
            answer = "Forbidden"
        except self._calls.Ended as end:
            answer = f"Ended {end.code}"
        told = None
        if number == rules.NUMBERS["clock_gettime"] and answer == 0:
            told = self._told(words, clock_before)
        before = len(self.model.sent)
        self.model.check(number, words, answer, told)
        if number in (9, 25) and isinstance(answer, int) and answer > 0:
            self._given.append(answer)
        sent = _drain(self._up)
        if sent != self.model.sent[before:]:
            raise Wrong(f"{len(sent)} bytes went to the host, not {len(self.model.sent) - before}, or others")
        if self._handler.frames.whole != self.model.message_is_whole:
            raise Wrong(f"frames.whole is {self._handler.frames.whole} after {bytes(self.model.sent[-20:])!r}")
        self._compare(number, words)

    def _told(self, words: rules.Words, before: float) -> bytes:
        told = self._read_memory(words[1], 16)
        seconds, nanoseconds = struct.unpack("=qq", told)
        if not 0 <= nanoseconds < 1_000_000_000:
            raise Wrong(f"a clock says {nanoseconds} ns")
        now = time.clock_gettime(rules.int32(words[0]))
        if not 0 <= now - (seconds + nanoseconds / 1e9) <= time.time() - before + 1:
            raise Wrong(f"clock {words[0]} says {seconds}.{nanoseconds:09}, and it is {now}")
        return told

    def _read_memory(self, address: int, length: int) -> bytes:
        out = b""
        while len(out) < length:
            at = address + len(out)
            place = self._host[at // PAGE][0]
            out += self._arena[place + at % PAGE : place + min(PAGE, at % PAGE + length - len(out))]
        return out

    def _compare(self, number: int, words: rules.Words) -> None:
        what = f"after {rules.NAMES.get(number, number)}({', '.join(map(hex, words))})"
        for page, data in self.model.pages.items():
            at = self._host[page][0]
            if self._arena[at : at + PAGE] != data:
                raise Wrong(f"page {page:#x} of the guest is not as it should be {what}")
        for at in self._canaries:
            if self._arena[at : at + PAGE] != self._canary:
                raise Wrong(f"host memory beside a region changed {what}")
        for index, file in enumerate(self.model.files):
            if os.pread(rules.FD_FILES + index, 1 << 20, 0) != file:
                raise Wrong(f"file {index} is not as it should be {what}")
        for fd in rules.STRANGERS:
            if os.pread(fd, 1 << 20, 0) != contents(f"stranger {fd}", 2000) or os.lseek(fd, 0, os.SEEK_CUR):
                raise Wrong(f"descriptor {fd}, which nobody granted, was used {what}")


def _address(arena: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(arena))


def _drain(fd: int) -> bytes:
    out = b""
    while True:
        try:
            out += os.read(fd, 1 << 20)
        except BlockingIOError:
            return out


def _arrange(count: int) -> tuple[int, int]:
    """Put pipes and files at their numbers; return the host's ends of the pipes."""
    import fcntl

    up_read, up_write = os.pipe2(os.O_NONBLOCK)
    down_read, down_write = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(up_write, fcntl.F_SETPIPE_SZ, 1 << 20)
    ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (up_read, down_write, up_write, down_read)]
    os.dup2(ours[2], rules.FD_UP)
    os.dup2(ours[3], rules.FD_DOWN)
    wanted = {fd: f"stranger {fd}" for fd in rules.STRANGERS}
    wanted.update({rules.FD_FILES + n: f"file {n}" for n in range(count)})
    for fd, name in wanted.items():
        made = os.memfd_create("instar-test")
        if "stranger" in name:
            os.pwrite(made, contents(name, 2000), 0)
        moved = fcntl.fcntl(made, fcntl.F_DUPFD, 100)
        os.close(made)
        os.dup2(moved, fd)
        os.close(moved)
    return ours[0], ours[1]


def serve() -> None:
    """Be the child: take sequences from descriptor 0, say on descriptor 1 what was wrong, if anything."""
    import fcntl

    orders, replies = fcntl.fcntl(0, fcntl.F_DUPFD, 200), fcntl.fcntl(1, fcntl.F_DUPFD, 200)
    world = World()
    while head := _take(orders, 4):
        data = _take(orders, int.from_bytes(head, "little"))
        try:
            world.play(data)
            said = b""
        except BaseException:
            said = traceback.format_exc().encode("utf-8", "replace")
        os.write(replies, len(said).to_bytes(4, "little") + said)


def _take(fd: int, size: int) -> bytes:
    out = b""
    while len(out) < size:
        piece = os.read(fd, size - len(out))
        if not piece:
            return b""
        out += piece
    return out


class Child:
    """A process with a world in it, started when it is first needed, and again when it has died."""

    _all: ClassVar[list[Child]] = []

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        Child._all.append(self)

    def play(self, data: bytes) -> None:
        """See ``World.play``.

        Raises:
            AssertionError: something is not as it must be, or the process died or hangs.
        """
        if self._process is None:
            paths = [str(ROOT / "src"), str(ROOT)]
            code = f"import sys; sys.path[:0] = {paths!r}; from fuzz.kvm_world import serve; serve()"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(len(data).to_bytes(4, "little") + data)
        fd = self._process.stdout.fileno()
        ready = select.select([fd], [], [], _PATIENCE)[0]
        head = _take(fd, 4) if ready else b""
        if not head:
            self.end()
            raise AssertionError("the handler killed its process" if ready else "the handler hangs")
        said = _take(fd, int.from_bytes(head, "little"))
        if said:
            raise AssertionError(said.decode())

    @classmethod
    def end_all(cls) -> None:
        """End all processes; each starts again when it is needed."""
        for child in cls._all:
            child.end()

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def usable() -> bool:
    """Tell whether this machine is one that the handler is for."""
    return sys.platform == "linux" and os.uname().machine == "x86_64"


def step(call: str, *words: tuple[int, int], extra: int = 0) -> bytes:
    """Return one step: a call by name, and ``(kind, value)`` of each of its words."""
    flat = [number for pair in (*words, *((0, 0),) * (6 - len(words))) for number in pair]
    return STEP.pack(list(rules.NUMBERS).index(call), extra, *flat)


def at(address: int, more: int = 0) -> tuple[int, int]:
    """Return the word ``address + more``, which must be one of the anchors and a little."""
    return (ANCHORS.index(address), more)
