"""What a sealed process may do, judged by the kernel: each allowed call works, is needed, and its neighbours kill."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.cells import has_children, libc, run_guest, syscall

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant
from instar.sandbox.process.policy import FD_DOWN, FD_FILES, FD_UP, RULES, Rule, build_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.sandbox.cells import Ask

    from instar.sandbox.files import GrantedFile

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="raw call numbers here are those of x86-64")

_KILLED = "a system call that no cell may make"
_BUFFER = ctypes.create_string_buffer(b"/etc/passwd", 4096)
_AT = ctypes.addressof(_BUFFER)
_PAGE = mmap.mmap(-1, 4096)
_PAGE_AT = ctypes.addressof(ctypes.c_char.from_buffer(_PAGE))
_HOST = os.getpid()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Grant]]:
    """File 0 for reading, 1 for writing, 2 for both; each with 8 KiB. All are opened for both."""
    fds = []
    for name in ("r", "w", "rw"):
        (tmp_path / name).write_bytes(b"x" * 8192)
        fds.append(os.open(tmp_path / name, os.O_RDWR))
    yield [Grant(fd, mode, 8192) for fd, mode in zip(fds, ("r", "w", "rw"), strict=True)]
    for fd in fds:
        os.close(fd)


READ, WRITE, BOTH = FD_FILES, FD_FILES + 1, FD_FILES + 2

#: What a guest that has been taken over would try: name, call number, arguments.
FORBIDDEN: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("open", 2, (_AT, 0)),
    ("openat", 257, (-100, _AT, 0)),
    ("openat2", 437, (-100, _AT, _AT, 24)),
    ("open_by_handle_at", 304, (-100, _AT, 0)),
    ("creat", 85, (_AT, 0)),
    ("close", 3, (READ,)),
    ("close_range", 436, (3, 100, 0)),
    ("stat", 4, (_AT, _AT)),
    ("fstat", 5, (READ, _AT)),
    ("lseek", 8, (READ, 0, 0)),
    ("dup", 32, (READ,)),
    ("dup2", 33, (READ, 1)),
    ("dup3", 292, (READ, 1, 0)),
    ("fcntl", 72, (READ, 1)),
    ("ioctl", 16, (READ, 0x5401, _AT)),
    ("ftruncate", 77, (BOTH, 0)),
    ("fallocate", 285, (BOTH, 0, 0, 4096)),
    ("fsync", 74, (BOTH,)),
    ("sendfile", 40, (BOTH, READ, 0, 100)),
    ("splice", 275, (FD_DOWN, 0, BOTH, 0, 100, 0)),
    ("copy_file_range", 326, (READ, 0, BOTH, 0, 100, 0)),
    ("unlink", 87, (_AT,)),
    ("rename", 82, (_AT, _AT)),
    ("chmod", 90, (_AT, 0)),
    ("mount", 165, (_AT, _AT, _AT, 0, 0)),
    ("chroot", 161, (_AT,)),
    ("socket", 41, (2, 1, 0)),
    ("socketpair", 53, (1, 1, 0, _AT)),
    ("connect", 42, (READ, _AT, 16)),
    ("sendmsg", 46, (FD_UP, _AT, 0)),
    ("recvmsg", 47, (FD_DOWN, _AT, 0)),
    ("pipe", 22, (_AT,)),
    ("memfd_create", 319, (_AT, 0)),
    ("memfd_secret", 447, (0,)),
    ("userfaultfd", 323, (0,)),
    ("fork", 57, ()),
    ("vfork", 58, ()),
    ("clone", 56, (17, 0, 0, 0, 0)),
    ("clone3", 435, (_AT, 88)),
    ("execve", 59, (_AT, 0, 0)),
    ("execveat", 322, (-100, _AT, 0, 0, 0)),
    ("exit (of one thread)", 60, (0,)),
    ("ptrace", 101, (16, _HOST, 0, 0)),
    ("process_vm_readv", 310, (_HOST, _AT, 1, _AT, 1, 0)),
    ("process_vm_writev", 311, (_HOST, _AT, 1, _AT, 1, 0)),
    ("process_madvise", 440, (3, _AT, 1, 4, 0)),
    ("pidfd_open", 434, (_HOST, 0)),
    ("pidfd_getfd", 438, (3, 0, 0)),
    ("kill of the host", 62, (_HOST, 9)),
    ("kill of itself", 62, (0, 0)),
    ("tgkill", 234, (_HOST, _HOST, 9)),
    ("rt_sigaction", 13, (11, 0, 0, 8)),
    ("rt_sigprocmask", 14, (0, 0, _AT, 8)),
    ("rt_sigreturn", 15, ()),
    ("sigaltstack", 131, (0, _AT)),
    ("prctl", 157, (4, 1, 0, 0, 0)),
    ("arch_prctl", 158, (0x1004, _AT)),
    ("seccomp", 317, (1, 0, _AT)),
    ("personality", 135, (0x400000,)),
    ("setrlimit", 160, (9, _AT)),
    ("prlimit64", 302, (0, 9, _AT, 0)),
    ("setuid", 105, (0,)),
    ("capset", 126, (_AT, _AT)),
    ("unshare", 272, (0x10000000,)),
    ("setns", 308, (READ, 0)),
    ("bpf", 321, (0, _AT, 120)),
    ("perf_event_open", 298, (_AT, 0, -1, -1, 0)),
    ("io_uring_setup", 425, (8, _AT)),
    ("io_uring_enter", 426, (READ, 1, 1, 0, 0, 0)),
    ("io_setup", 206, (8, _AT)),
    ("keyctl", 250, (0, 0, 0)),
    ("add_key", 248, (_AT, _AT, _AT, 1, 0)),
    ("shmget", 29, (0, 4096, 0o1600)),
    ("mq_open", 240, (_AT, 0o100, 0o600, 0)),
    ("futex", 202, (_AT, 0, 0, 0, 0, 0)),
    ("nanosleep", 35, (_AT, 0)),
    ("getrandom", 318, (_AT, 1, 0)),
    ("getpid", 39, ()),
    ("sched_setaffinity", 203, (0, 8, _AT)),
    ("readv", 19, (FD_DOWN, _AT, 0)),
    ("writev", 20, (FD_UP, _AT, 0)),
    ("preadv", 295, (READ, _AT, 0, 0, 0)),
    ("pwritev", 296, (BOTH, _AT, 0, 0, 0)),
    ("preadv2", 327, (READ, _AT, 0, 0, 0, 0)),
    ("pwritev2", 328, (BOTH, _AT, 0, 0, 0, 0)),
    # allowed calls with other arguments
    ("pread of a file granted for writing", 17, (WRITE, _AT, 1, 0)),
    ("pread of a descriptor never granted", 17, (BOTH + 1, _AT, 1, 0)),
    ("pread of standard input", 17, (0, _AT, 1, 0)),
    ("pread of the channel", 17, (FD_DOWN, _AT, 1, 0)),
    ("pread with high bits in the number of a stranger", 17, ((1 << 32) | 0, _AT, 1, 0)),
    ("pwrite to a file granted for reading", 18, (READ, _AT, 1, 0)),
    ("pwrite to a descriptor never granted", 18, (BOTH + 1, _AT, 1, 0)),
    ("pwrite to the channel", 18, (FD_UP, _AT, 1, 0)),
    ("read of what it writes to the host", 0, (FD_UP, _AT, 1)),
    ("read of a granted file, which would move its offset", 0, (READ, _AT, 1)),
    ("write to what it reads from the host", 1, (FD_DOWN, _AT, 1)),
    ("write to a granted file", 1, (BOTH, _AT, 1)),
    ("write to standard error", 1, (2, _AT, 1)),
    ("mmap of executable memory", 9, (0, 4096, 7, 0x22, -1, 0)),
    ("mmap of a granted file", 9, (0, 4096, 1, 0x01, READ, 0)),
    ("mprotect to executable", 10, (_PAGE_AT, 4096, 5)),
    ("mprotect", 10, (_PAGE_AT, 4096, 1)),
    ("pkey_mprotect", 329, (_PAGE_AT, 4096, 5, -1)),
    ("remap_file_pages", 216, (_PAGE_AT, 4096, 0, 0, 0)),
    ("mlock", 149, (_PAGE_AT, 4096)),
    ("shmat", 30, (0, 0, 0)),
    ("madvise that poisons a page of the machine", 28, (_PAGE_AT, 4096, 100)),
    ("a call of the x32 ABI", 0x40000000 | 17, (READ, _AT, 1, 0)),
    ("a call that does not exist", 9999, ()),
    ("call number -1", -1, ()),
)


class TestForbidden:
    @pytest.mark.parametrize(("number", "arguments"), [f[1:] for f in FORBIDDEN], ids=[f[0] for f in FORBIDDEN])
    def test_kills_the_cell(self, number: int, arguments: tuple[int, ...], files: list[Grant]) -> None:
        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return b"it returned %d" % syscall(number, *arguments)

        with pytest.raises(SandboxError, match=_KILLED) as caught:
            run_guest(guest, files)
        assert caught.value.kind == "died"
        assert not has_children()

    def test_kills_a_32_bit_call(self) -> None:
        # mov eax, 20 (getpid of i386); int 0x80; ret
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

        with pytest.raises(SandboxError, match=f"{_KILLED}|SIGSEGV"):
            run_guest(lambda job, granted, ask: b"%d" % call())

    def test_covers_every_call_of_python_that_a_guest_might_make(self, tmp_path: Path, files: list[Grant]) -> None:
        for call in (
            lambda: os.open(tmp_path, os.O_RDONLY),
            lambda: __import__("wave"),
            lambda: os.getcwd(),
            lambda: os.urandom(8),
            lambda: print("x", file=open(2, "w")),  # noqa: SIM115
            lambda: time.sleep(0.01),
        ):
            with pytest.raises(SandboxError, match=_KILLED):
                run_guest(lambda job, granted, ask, call=call: repr(call()).encode(), files)


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
    # A clock that no vDSO answers, as all are on some hosts.
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) > 0


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

    @pytest.mark.parametrize("name", NEEDS)
    def test_works(self, name: str, files: list[Grant]) -> None:
        expected = {"pread64": (b"xxxxx", b"xx"), "read": "answer", "write": "answer", "mmap": 64 << 20}

        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return repr(NEEDS[name](granted, ask)).encode()

        reply = run_guest(guest, files, serve=lambda asked: "answer" if asked == "question" else None)
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

    def test_reads_and_writes_each_of_two_hundred_files(self, tmp_path: Path) -> None:
        fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(200)]
        try:

            def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
                for number, file in enumerate(granted):
                    file.write(0, b"%d" % number)
                return b" ".join(file.read(0, 10) for file in granted)

            grants = [Grant(fd, "rw", 0) for fd in fds]
            assert run_guest(guest, grants, file_bytes=100) == b" ".join(b"%d" % n for n in range(200))
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
