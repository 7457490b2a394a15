"""Whatever a guest does, each kind of cell gives the same verdict: the same kind of error and the same sentence.

Only the name of a signal in brackets is a process cell's own; a machine tells where its guest was instead (``story``).
Afterwards nothing is left of the cell, and the next one works.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS, needs_kvm
from tests.sandbox.cells import has_children, libc, open_fds, raw, run_guest, sentence
from tests.sandbox.numbers import ARM, USER_TOP

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.sandbox.cells import Ask, Guest

    from instar.sandbox.files import GrantedFile

CRASHED = "the cell crashed: it used memory or an instruction that it may not use"
UNDEFINED = "the cell crashed: it ran an instruction that there is not"
DIVIDED = "the cell crashed: it divided by zero"
FORBIDDEN = "the cell was killed: it made a system call that no cell may make"
STRANGE_FRAME = "the cell sent a frame of an unknown kind"
MiB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert not has_children(), "a cell is left behind"
    assert open_fds() == before, "a descriptor is left open"


def verdict(guest: Guest, kind: str, files: list[Grant] | None = None, **options: float) -> SandboxError:
    """Run a guest that must not succeed, see that the next one does, and return the error."""
    with pytest.raises(SandboxError) as caught:
        run_guest(guest, files or [], kind=kind, **options)
    assert run_guest(lambda job, files, ask: job[::-1], kind=kind, job=b"next") == b"txen"
    return caught.value


# --- machine code ---
# No guest can make memory executable, so all code is written before any cell is made.

_code = mmap.mmap(-1, 1 << 15, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
_code_at = ctypes.addressof(ctypes.c_char.from_buffer(_code))
_data = ctypes.create_string_buffer(64)
_data_at = ctypes.addressof(_data)
_function_at = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0


def load(code: str) -> int:
    """Write code, given as hexadecimal digits, and return its address."""
    place = _code.tell()
    data = bytes.fromhex(code)
    _code.write(data)
    _code.seek(place + max(64, len(data)))
    return _code_at + place


def call(code: str) -> Guest:
    """Return a guest that calls machine code."""
    function = ctypes.CFUNCTYPE(ctypes.c_long)(load(code))
    return lambda job, files, ask: b"it went on and returned %d" % function()


def word(number: int) -> str:
    return (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little").hex()


def _jump(address: int) -> str:
    return f"40000058 00001fd6 {word(address)}" if ARM else f"48b8 {word(address)} ffe0"


def _read(address: int) -> str:
    return f"80000058 000040f9 c0035fd6 1f2003d5 {word(address)}" if ARM else f"48b8 {word(address)} 488b00"


def _write(address: int) -> str:
    return f"80000058 1f0000f9 c0035fd6 1f2003d5 {word(address)}" if ARM else f"48b8 {word(address)} c60000"


_with_flag = "9c 48810c24 {} 9d".format  # pushf; or qword [rsp], {}; popf

#: Name, code, what is said.
_ON_BOTH: tuple[tuple[str, str, str], ...] = (
    ("reads through a null pointer", _read(0), CRASHED),
    ("reads an address that is none", _read(1 << 63), CRASHED),
    ("reads the kernel's memory", _read(-USER_TOP), CRASHED),
    ("reads the last byte there is", _read(-1), CRASHED),
    ("reads the kernel's vsyscall page", _read(-10 << 20), CRASHED),
    ("writes through a null pointer", _write(0), CRASHED),
    ("writes to code of the C library", _write(_function_at), CRASHED),
    ("jumps to 0", _jump(0), CRASHED),
    ("jumps into data", _jump(_data_at), CRASHED),
    ("jumps to an address that is none", _jump(1 << 63), CRASHED),
    ("jumps into the kernel", _jump(-1 << 31), CRASHED),
)
_ON_AARCH64: tuple[tuple[str, str, str], ...] = (
    ("udf", "00000000", UNDEFINED),
    ("hlt", "000040d4", UNDEFINED),
    ("hvc", "020000d4", UNDEFINED),
    ("smc", "030000d4", UNDEFINED),
    ("eret", "e0039fd6", UNDEFINED),
    ("msr daifset", "df4203d5", UNDEFINED),
    ("mrs ttbr0_el1", "002038d5", UNDEFINED),
    ("tlbi", "1f8708d5", UNDEFINED),
    ("brk", "200020d4", CRASHED),
    ("runs past the end of its stack", "e007bfa9 ffffff17", CRASHED),
    ("a call by svc with another immediate", "881580d2 e1ff1fd4", FORBIDDEN),
    ("a call with high bits in its number", "881580d2 2800c0f2 010000d4", FORBIDDEN),
)
_ON_X86_64: tuple[tuple[str, str, str], ...] = (
    ("returns to nowhere", "6a00 c3", CRASHED),
    ("uses data that is not aligned", "0f28442401", CRASHED),
    ("asks for a check of alignment and fails it", _with_flag("00000400") + "488b442401", CRASHED),
    ("runs past the end of its stack", "50 ebfd", CRASHED),
    ("moves its stack to nowhere", "31e4 50", CRASHED),
    ("ud2", "0f0b", UNDEFINED),
    ("ud1", "0fb900", UNDEFINED),
    ("an instruction of other days (into)", "ce", UNDEFINED),
    ("an instruction that is too long", "66" * 15 + "90", CRASHED),
    ("hlt", "f4", CRASHED),
    ("cli", "fa", CRASHED),
    ("sti", "fb", CRASHED),
    ("in from the port of calls", "e410", CRASHED),
    ("in from another port", "e460", CRASHED),
    ("out to another port", "e680", CRASHED),
    ("out to a serial line", "66baf803 ee", CRASHED),
    ("out of four bytes", "b839000000 e710", CRASHED),
    ("rep insb", "66ba1000 b905000000 4889e7 f36c", CRASHED),
    ("a higher I/O privilege, then cli", _with_flag("00300000") + "fa", CRASHED),
    ("rdmsr", "b9800000c0 0f32", CRASHED),
    ("wrmsr", "b9820000c0 0f30", CRASHED),
    ("mov from cr3", "0f20d8", CRASHED),
    ("mov to cr3", "0f22d8", CRASHED),
    ("mov from dr0", "0f21c0", CRASHED),
    ("lgdt", "0f011424", CRASHED),
    ("lidt", "0f011c24", CRASHED),
    ("ltr", "31c0 0f00d8", CRASHED),
    ("xsetbv", "31c9 0f01d1", CRASHED),
    ("wbinvd", "0f09", CRASHED),
    ("invlpg", "0f013c24", CRASHED),
    ("clts", "0f06", CRASHED),
    ("swapgs", "0f01f8", CRASHED),
    ("sysret", "480f07", CRASHED),
    ("iretq to nowhere", "6a00 48cf", CRASHED),
    ("a segment that there is not", "b8ff000000 8ee0", CRASHED),
    ("the kernel's own segment", "b810000000 8ed0", CRASHED),
    ("an interrupt", "cd21", CRASHED),
    ("int3", "cc", CRASHED),
    ("a debug exception", "f1", CRASHED),
    ("single steps", _with_flag("00010000") + "90 90 c3", CRASHED),
    ("a division by zero", "31c9 31d2 f7f1", DIVIDED),
    ("a division whose result is too large", "b800000080 99 b9ffffffff f7f9", DIVIDED),
    ("a division of bytes by zero", "b80002 0000 30c9 f6f1", DIVIDED),
    ("a call of x32", "b811000040 0f05", FORBIDDEN),
    ("a call with the direction flag set", "fd b839000000 0f05", FORBIDDEN),
    ("a call with the highest number", "b8ffffffff 0f05", FORBIDDEN),
    ("a call from a stack that is none", "31e4 b839000000 0f05", FORBIDDEN),
)  # fmt: skip
CODE = (*_ON_BOTH, *(_ON_AARCH64 if ARM else _ON_X86_64))
_GUESTS = [(name, call(code), said) for name, code, said in CODE]

#: Entries of 32-bit kernels. Which exception they are in a process depends on the processor and how Linux was built.
OLD_ENTRIES = (("int 0x80", "b814000000 cd80"), ("sysenter", "0f34"))
_OLD_GUESTS = [(name, call(code)) for name, code in OLD_ENTRIES if not ARM]

_SPIN = call("00000014" if ARM else "ebfe")
_CRASH = ctypes.CFUNCTYPE(ctypes.c_long)(load(_read(0)))


@pytest.mark.parametrize("kind", KINDS)
class TestCode:
    """Guests of a few instructions."""

    @pytest.mark.parametrize(("guest", "said"), [row[1:] for row in _GUESTS], ids=[row[0] for row in _GUESTS])
    def test_dies_of_it(self, guest: Guest, said: str, kind: str) -> None:
        error = verdict(guest, kind)
        assert (error.kind, sentence(error, kind)) == ("died", said)
        assert (error.story is None) == (kind == "process")
        if kind == "kvm":
            assert "rip 0x" in str(error.story)

    @pytest.mark.parametrize("guest", [row[1] for row in _OLD_GUESTS], ids=[row[0] for row in _OLD_GUESTS])
    def test_dies_of_an_entry_into_an_old_kernel(self, guest: Guest, kind: str) -> None:
        error = verdict(guest, kind)
        assert error.kind == "died"
        assert sentence(error, kind) in ((FORBIDDEN,) if kind == "kvm" else (FORBIDDEN, UNDEFINED, CRASHED))

    def test_meets_the_limit_of_processor_time_in_a_loop_without_any_call(self, kind: str) -> None:
        started = time.monotonic()
        error = verdict(_SPIN, kind, cpu_seconds=1)
        assert (error.kind, error.detail) == ("limit", "the cell used more than 1 s of processor time")
        assert time.monotonic() - started < 15

    def test_meets_the_wall_in_a_loop_without_any_call(self, kind: str) -> None:
        started = time.monotonic()
        error = verdict(_SPIN, kind, wall_seconds=0.3)
        assert (error.kind, error.detail) == ("limit", "the cell did not answer within 0.3 s")
        assert time.monotonic() - started < 10


# --- Python ---


def _spin(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    while True:
        pass


def _map_everything(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    while (start := raw(9, 0, MiB, 3, 0x22, -1, 0)) >= 0:
        ctypes.memset(start, 1, MiB)
    raise MemoryError


def _nest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    def deep(n: int) -> int:
        return deep(n + 1)

    return b"%d" % deep(0)


def _ask_for_ever(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    while True:
        ask(None)


def _end(code: int) -> Guest:
    return lambda job, files, ask: os._exit(code)  # type: ignore[arg-type]


#: Name, guest, limits, kind of error, sentence.
GUESTS: tuple[tuple[str, Guest, dict[str, float], str, str], ...] = (
    ("reads a null pointer", lambda j, f, a: ctypes.string_at(0), {}, "died", CRASHED),
    ("writes to code", lambda j, f, a: ctypes.memset(_function_at, 0, 1), {}, "died", CRASHED),
    ("frees what it never had", lambda j, f, a: libc.free(ctypes.c_void_p(_data_at + 8)), {}, "died", FORBIDDEN),
    ("aborts", lambda j, f, a: os.abort(), {}, "died", FORBIDDEN),
    ("kills itself", lambda j, f, a: os.kill(os.getpid(), signal.SIGKILL), {}, "died", FORBIDDEN),
    ("loops", _spin, {"wall_seconds": 0.3}, "limit", "the cell did not answer within 0.3 s"),
    ("computes", _spin, {"cpu_seconds": 1}, "limit", "the cell used more than 1 s of processor time"),
    ("waits", lambda j, f, a: os.read(4, 1), {"wall_seconds": 0.3}, "limit", "the cell did not answer within 0.3 s"),
    # More than the heap that a test runner may have left free, which a fork has as well.
    ("takes memory", lambda j, f, a: bytes(4096 * MiB), {"memory": 64 * MiB}, "limit",
     "the cell ran out of memory (limit 64 MiB)"),
    ("takes more memory than there are addresses", lambda j, f, a: bytes(1 << 50), {}, "limit",
     "the cell ran out of memory (limit 256 MiB)"),
    ("takes all memory in pieces", _map_everything, {"memory": 64 * MiB}, "limit",
     "the cell ran out of memory (limit 64 MiB)"),
    ("nests too deep", _nest, {}, "died", "the cell ended with code 4 and no answer"),
    ("asks for ever", _ask_for_ever, {"requests": 50}, "limit", "the cell made more than 50 requests"),
    ("replies too much", lambda j, f, a: bytes(1001), {"reply_bytes": 1000}, "limit",
     "the cell sent a message of 1001 bytes, the limit is 1000"),
    ("replies with no bytes", lambda j, f, a: "text", {}, "died", "the cell ended with code 4 and no answer"),
    ("raises", lambda j, f, a: 1 // 0, {}, "died", "the cell ended with code 4 and no answer"),
    ("says that it had no memory", _end(5), {"memory": 64 * MiB}, "limit", "the cell ran out of memory (limit 64 MiB)"),
    *((f"ends with {code}", _end(code), {}, "died", f"the cell ended with code {code} and no answer")
      for code in (0, 1, 2, 3, 4, 6, 127, 128, 139, 159, 199)),
    *((f"ends with {code}", _end(code), {}, "died", f"the cell ended with code {code & 255} and no answer")
      for code in (256, 259, -255)),
)  # type: ignore[assignment,return-value]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
class TestGuest:
    @pytest.mark.parametrize(
        ("guest", "limits", "error_kind", "said"), [row[1:] for row in GUESTS], ids=[row[0] for row in GUESTS]
    )
    def test_has_this_verdict(
        self,
        guest: Guest,
        limits: dict[str, float],
        error_kind: str,
        said: str,
        kind: str,
    ) -> None:
        with pytest.raises(SandboxError) as caught:
            run_guest(guest, kind=kind, serve=lambda asked: None, **limits)
        assert (caught.value.kind, sentence(caught.value, kind)) == (error_kind, said)

    def test_cannot_end_with_a_code_that_its_monitor_would_use(self, kind: str) -> None:
        """What a machine's monitor says by its exit code no guest can say, and for a process it means nothing."""
        for code in (200, 201, 205, 206, 255):
            error = verdict(_end(code), kind)
            assert error.kind == "died"
            assert "ended with code" in error.detail

    def test_dies_of_recursion_in_c(self, kind: str) -> None:
        nested: list[object] = []
        for _ in range(1_000_000):
            nested = [nested]

        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            sys.setrecursionlimit(1 << 30)
            return repr(nested).encode()

        try:
            error = verdict(guest, kind)
        finally:
            while nested:
                nested = nested.pop()  # type: ignore[assignment]
        assert error.kind in ("died", "limit")  # later Pythons count their recursion in C


def _say(*pieces: bytes, then: Callable[[], object] = lambda: os._exit(0)) -> Guest:
    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(3, view) :]
        then()
        return b""

    return guest


#: What is written to the host, kind of error, sentence.
FRAMES: tuple[tuple[bytes, str, str], ...] = (
    (b"\0\0\0\0S", "protocol", STRANGE_FRAME),
    (b"\x05\0\0\0Xhello", "protocol", STRANGE_FRAME),
    (b"\0\0\0\0J", "protocol", STRANGE_FRAME),
    (b"\0\0\0\0A", "protocol", STRANGE_FRAME),
    (b"\0\0\0\0\0", "protocol", STRANGE_FRAME),
    (b"\x05\0\0\0Dhello\0\0\0\0S", "protocol", STRANGE_FRAME),
    (b"\x03\0\0\0Qabc", "protocol", "the cell's request cannot be read: "),
    (b"\xff\xff\xff\xffR", "limit", "the cell sent a message of 4294967295 bytes, the limit is 1048576"),
    (b"\xff\xff\xff\xffD", "limit", "the cell sent a message of 4294967295 bytes, the limit is 4096"),
    (b"\x09\0\0\0R123", "died", "the cell ended with code 0 and no answer"),
    (b"\x09\0", "died", "the cell ended with code 0 and no answer"),
    (b"\x05\0\0\0Dhello", "died", "the cell ended with code 0 and no answer"),
)


@pytest.mark.parametrize("kind", KINDS)
class TestFrames:
    @pytest.mark.parametrize(("written", "error_kind", "said"), FRAMES)
    def test_of_a_guest_have_this_verdict(self, written: bytes, error_kind: str, said: str, kind: str) -> None:
        error = verdict(_say(written), kind, reply_bytes=MiB)
        assert error.kind == error_kind
        assert error.detail.startswith(said)

    @pytest.mark.parametrize("written", [b"\x09", b"\x09\0\0\0R", b"\x09\0\0\0R123", b"\x00\0\x10\0R" + bytes(99_999)])
    def test_cut_short_by_a_crash_are_no_answer(self, written: bytes, kind: str) -> None:
        error = verdict(_say(written, then=_CRASH), kind)
        assert (error.kind, sentence(error, kind)) == ("died", CRASHED)
        assert error.story is None

    def test_with_a_reply_are_the_reply_whatever_comes_then(self, kind: str) -> None:
        assert run_guest(_say(b"\x04\0\0\0Rfine", b"\0\0\0\0S", then=_CRASH), kind=kind) == b"fine"

    def test_with_a_story_of_the_guest_s_own_are_safe_to_print(self, kind: str) -> None:
        error = verdict(_say(b"\x08\0\0\0D\x1b[2J\xff\r\n!"), kind)
        assert error.story == "\\x1b[2J\\xff\\x0d\\x0a!"

    def test_with_a_long_story_are_cut(self, kind: str) -> None:
        error = verdict(_say(b"\xff\xff\0\0D" + b"x" * 0xFFFF), kind)
        assert len(str(error.story)) <= 1001

    @needs_kvm
    def test_with_a_story_do_not_hide_the_monitor_s(self, kind: str) -> None:
        error = verdict(_say(b"\x05\0\0\0Dhello", then=_CRASH), kind)
        assert error.story == "hello" if kind == "process" else "rip 0x" in str(error.story)

    def test_may_come_in_pieces_of_one_byte(self, kind: str) -> None:
        pieces = [bytes((byte,)) for byte in b"\x04\0\0\0Rfine"]
        assert run_guest(_say(*pieces), kind=kind) == b"fine"

    def test_cut_into_by_a_call_that_fails_go_on(self, kind: str) -> None:
        guest = _say(b"\x04\0\0\0R", then=lambda: (raw(1, 3, 0, 4), os.write(3, b"fine")))
        assert run_guest(guest, kind=kind) == b"fine"


@needs_kvm
class TestStory:
    """What a machine tells about a death, for those who look for the reason (it is shown under ``-v``)."""

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            (_read(8), "page fault at 0x8, rip {:#x}"),
            ("0f0b", "undefined instruction, rip {:#x}"),
            ("e680", "rip {:#x}"),
            ("b839000000 0f05", "system call 57 ("),
            ("50 ebfd", "stack overflow at 0x"),
        ],
    )
    def test_names_what_it_was_and_where(self, code: str, told: str) -> None:
        place = load(code)
        function = ctypes.CFUNCTYPE(ctypes.c_long)(place)
        error = verdict(lambda job, files, ask: b"%d" % function(), "kvm")
        offset = {"b": 7}.get(code[0], 10 if code[:2] == "48" else 0)
        assert told.format(place + offset) in str(error.story)
        assert f"rip {place + offset:#x}" in str(error.story) or "stack overflow" in told
        assert "rsp 0x" in str(error.story)

    def test_names_the_library_that_it_was_in(self) -> None:
        error = verdict(lambda job, files, ask: ctypes.string_at(0), "kvm")  # type: ignore[arg-type,return-value]
        assert ".so" in str(error.story)

    def test_tells_where_a_guest_was_that_used_too_much_processor_time(self) -> None:
        error = verdict(_SPIN, "kvm", cpu_seconds=1)
        assert "rip 0x" in str(error.story)

    def test_is_not_part_of_the_sentence(self) -> None:
        error = verdict(_SPIN, "kvm", cpu_seconds=1)
        assert "rip" not in str(error)

    def test_the_port_of_calls_does_what_a_call_does_and_no_more(self) -> None:
        """A machine's guest may use the port itself: it is the same list of calls."""
        error = verdict(_BY_PORT, "kvm")
        assert (error.kind, error.detail) == ("died", FORBIDDEN)
        error = verdict(_BY_PORT_TO_NOWHERE, "kvm")
        assert error.kind == "died"


_BY_PORT = call("b839000000 e610 c3")
_BY_PORT_TO_NOWHERE = call("b81c000000 31ff 31f6 ba04000000 48b9" + word(1 << 63) + "e610 c3")
