"""What a sealed process may do, judged by the kernel: each allowed call works, is needed, and its neighbours kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import has_children, libc, own_syscall, raw, run_guest, syscall
from tests.sandbox.forbidden import FORBIDDEN
from tests.sandbox.numbers import ARM

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant
from instar.sandbox.process.policy import FD_FILES, RULES, Rule, build_filter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.sandbox.cells import Ask

    from instar.sandbox.files import GrantedFile

_KILLED = "a system call that no cell may make"
_TIME = ctypes.create_string_buffer(16)


@pytest.mark.parametrize("kind", KINDS)
class TestForbidden:
    @pytest.mark.parametrize(("number", "arguments"), [f[1:] for f in FORBIDDEN], ids=[f[0] for f in FORBIDDEN])
    def test_kills_the_cell(self, kind: str, number: int, arguments: tuple[int, ...], files: list[Grant]) -> None:
        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return b"it returned %d" % syscall(number, *arguments)

        with pytest.raises(SandboxError, match=_KILLED) as caught:
            run_guest(guest, files, kind=kind)
        assert caught.value.kind == "died"
        assert ("SIGSYS" in str(caught.value)) == (kind == "process")  # a monitor refuses before its own filter does
        assert not has_children()

    def test_covers_every_call_of_python_that_a_guest_might_make(
        self, kind: str, tmp_path: Path, files: list[Grant]
    ) -> None:
        for call in (
            lambda: os.open(tmp_path, os.O_RDONLY),
            lambda: __import__("wave"),
            lambda: os.getcwd(),
            # Not ``os.urandom``: newer C libraries keep what ``random`` has left in them, and need no call.
            lambda: syscall(318, ctypes.addressof(_TIME), 8, 0),
            lambda: print("x", file=open(2, "w")),  # noqa: SIM115
            lambda: time.sleep(0.01),
        ):
            with pytest.raises(SandboxError, match=_KILLED):
                run_guest(lambda job, granted, ask, call=call: repr(call()).encode(), files, kind=kind)


#: What a cell may call with zeros for arguments, by this machine's numbers.
_FREE = {rule.numbers["aarch64" if ARM else "x86_64"] for rule in RULES if rule.argument in ("any", "moves", "clocks")}
#: Bits that other programs' calls have in their numbers (32-bit ones, x32), and numbers that are no call's.
_ODD = (0xF0001, 0xF0002, 0xF0005, 1 << 30, 1 << 31, (1 << 32) | 0x1000, -1, -2, -4096)
#: uretprobe and uprobe: for probes that a tracer has put into a program, and an error or SIGILL elsewhere.
_UPROBES = (335, 336)


class TestNumbers:
    def test_that_no_rule_allows_kill_whatever_they_are(self) -> None:
        """Each from 0 to past the last, without good arguments: the filter judges the number alone."""
        for number in sorted({*range(480), *range(1024, 1080), *_ODD} - _FREE):

            def guest(job: bytes, granted: list[GrantedFile], ask: Ask, number: int = number) -> bytes:
                return b"%d" % own_syscall(number, 0, 0, 0, 0, 0, 0)

            if number in _UPROBES and not ARM:
                continue
            with pytest.raises(SandboxError, match=_KILLED):
                run_guest(guest)

    @pytest.mark.skipif(ARM, reason="only x86-64 has these calls")
    def test_of_uprobes_which_newer_kernels_let_pass_any_filter_do_nothing(self) -> None:
        for number in _UPROBES:
            with contextlib.suppress(SandboxError):  # SIGILL
                assert run_guest(lambda job, granted, ask, n=number: b"%d" % own_syscall(n)) == b"-1"


def _pread(files: list[GrantedFile], ask: Ask) -> object:
    return files[0].read(10, 5), files[2].read(8190, 100)


def _pwrite(files: list[GrantedFile], ask: Ask) -> object:
    files[1].write(1, b"y")
    return files[2].write(8192, b"y")


def _read(files: list[GrantedFile], ask: Ask) -> object:
    return ask("question")


def _mmap(files: list[GrantedFile], ask: Ask) -> object:
    return len(bytearray(64 << 20))


def _munmap(files: list[GrantedFile], ask: Ask) -> object:
    block = bytearray(64 << 20)
    del block
    return len(bytearray(64 << 20))


def _mremap(files: list[GrantedFile], ask: Ask) -> object:
    # Above 32 MiB malloc maps every block by itself, whatever a long run of tests has taught it.
    block = bytearray(40 << 20)
    for _ in range(10):
        block += bytes(1 << 20)
    return len(block)


def _brk(files: list[GrantedFile], ask: Ask) -> object:
    return sum(map(len, [bytes(100_000) for _ in range(1000)]))


def _madvise(files: list[GrantedFile], ask: Ask) -> object:
    blocks = [bytes(100_000) for _ in range(100)]
    del blocks[::2]
    libc.malloc_trim(0)
    return len(blocks)


def _clock(files: list[GrantedFile], ask: Ask) -> object:
    # Past the vDSO, which on some hosts answers for no clock.
    return raw(228, time.CLOCK_MONOTONIC, ctypes.addressof(_TIME))


NEEDS: dict[str, Callable[[list[GrantedFile], Ask], object]] = {
    "pread64": _pread,
    "pwrite64": _pwrite,
    "read": _read,
    "write": _read,
    "mmap": _mmap,
    "munmap": _munmap,
    "mremap": _mremap,
    "brk": _brk,
    "madvise": _madvise,
    "clock_gettime": _clock,
    "exit_group": lambda files, ask: None,
}


class TestAllowed:
    def test_every_rule_has_an_example(self) -> None:
        assert {r.name for r in RULES} == set(NEEDS)
        assert all(r.reason for r in RULES)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", NEEDS)
    def test_works(self, name: str, kind: str, files: list[Grant]) -> None:
        expected = {
            "pread64": (b"xxxxx", b"xx"),
            "read": "answer",
            "write": "answer",
            "mmap": 64 << 20,
            "clock_gettime": 0,
        }

        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return repr(NEEDS[name](granted, ask)).encode()

        reply = run_guest(guest, files, kind=kind, serve=lambda asked: "answer" if asked == "question" else None)
        if name in expected:
            assert reply == repr(expected[name]).encode()
        if name == "pwrite64":
            assert os.pread(files[1].fd, 2, 0) == b"xy"
            assert os.pread(files[2].fd, 9999, 8191) == b"xy"

    @pytest.mark.parametrize("name", NEEDS)
    def test_is_needed(self, name: str, files: list[Grant]) -> None:
        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return repr(NEEDS[name](granted, ask)).encode()

        rest = tuple(r for r in RULES if r.name != name)
        if name == "exit_group":  # without it the reply is there, and the end of the cell is not its own
            assert run_guest(guest, files, rules=rest) == b"None"
            with pytest.raises(SandboxError, match=_KILLED):
                run_guest(lambda job, granted, ask: os._exit(0), files, rules=rest)  # type: ignore[arg-type]
            return
        with pytest.raises(SandboxError, match=_KILLED):
            run_guest(guest, files, rules=rest, serve=lambda asked: "answer")

    @pytest.mark.parametrize("kind", KINDS)
    def test_reads_and_writes_each_of_two_hundred_files(self, kind: str, tmp_path: Path) -> None:
        fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(200)]
        try:

            def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
                for number, file in enumerate(granted):
                    file.write(0, b"%d" % number)
                return b" ".join(file.read(0, 10) for file in granted)

            grants = [Grant(fd, "rw", 0) for fd in fds]
            assert run_guest(guest, grants, kind=kind, file_bytes=100) == b" ".join(b"%d" % n for n in range(200))
            assert (tmp_path / "137").read_bytes() == b"137"
        finally:
            for fd in fds:
                os.close(fd)


class TestFilter:
    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    @pytest.mark.parametrize("count", [0, 1, 200])
    def test_jumps_stay_inside_the_program(self, machine: str, count: int) -> None:
        numbers = list(range(FD_FILES, FD_FILES + count))
        program = build_filter(machine, readable=numbers, writable=numbers)
        assert len(program) <= 4096  # BPF_MAXINSNS
        for index, (code, true, false, _) in enumerate(program):
            assert 0 <= true <= 255
            assert 0 <= false <= 255
            if code & 7 == 5:
                assert index + 1 + max(true, false) < len(program)

    def test_allows_nothing_without_rules(self) -> None:
        rows = build_filter("x86_64", readable=[], writable=[], rules=())
        assert {k for code, _, _, k in rows if code == 6} == {0x80000000}

    def test_knows_no_machine_by_half(self) -> None:
        for rule in RULES:
            assert isinstance(rule, Rule)
            assert set(rule.numbers) == {"x86_64", "aarch64"}
