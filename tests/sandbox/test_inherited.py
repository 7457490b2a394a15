"""What a cell does not get from the process that it is forked from: memory shared with others, environment, arguments.

Each attack is made from inside: native code of an attacker knows where its caller's memory was.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import libc, run_guest, serve_nothing
from tests.sandbox.exploited import run_exploited
from tests.sandbox.guests import CANARY

from instar.core.errors import SandboxError
from instar.sandbox.cell import Limits
from instar.sandbox.process import inherited
from instar.sandbox.process.cell import ProcessCell
from instar.sandbox.process.inherited import forget_environment, shared_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEXT = b"the caller's own data"
_LENGTH = 3 * 4096
_READ, _WRITE, _SHARED = mmap.PROT_READ, mmap.PROT_WRITE, mmap.MAP_SHARED


def _at(buffer: object) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]


def _map(fd: int, rights: int, flags: int = _SHARED) -> int:
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(_LENGTH), rights, flags, fd, ctypes.c_long(0))
    assert at not in (None, ctypes.c_void_p(-1).value)
    return int(at)


def _of_a_file(path: Path, rights: int) -> int:
    path.write_bytes(_TEXT.ljust(_LENGTH, b"\0"))
    fd = os.open(path, os.O_RDWR)
    try:
        return _map(fd, rights)
    finally:
        os.close(fd)


def _of_a_memfd(_: Path) -> int:
    fd = os.memfd_create("caller")
    try:
        os.ftruncate(fd, _LENGTH)
        return _map(fd, _READ | _WRITE)
    finally:
        os.close(fd)


def _of_dev_zero(_: Path) -> int:
    fd = os.open("/dev/zero", os.O_RDWR)
    try:
        return _map(fd, _READ | _WRITE)
    finally:
        os.close(fd)


def _of_system_v(_: Path) -> int:
    number = libc.shmget(0, ctypes.c_size_t(_LENGTH), 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(number, None, 0)
    libc.shmctl(number, 0, None)  # IPC_RMID: gone with its last user
    return int(at)


def _only_written(path: Path) -> int:
    at = _of_a_file(path, _READ | _WRITE)
    libc.mprotect(ctypes.c_void_p(at), _LENGTH, _WRITE)
    return at


def _later_inaccessible(path: Path) -> int:
    at = _of_a_file(path, _READ | _WRITE)
    libc.mprotect(ctypes.c_void_p(at), _LENGTH, 0)
    return at


_kept: list[object] = []


def _of_multiprocessing(_: Path) -> int:
    array = RawArray("c", _LENGTH)
    _kept.append(array)
    return ctypes.addressof(array)


def _of_python(_: Path) -> int:
    made = mmap.mmap(-1, _LENGTH)
    _kept.append(made)
    return _at(made)


#: Memory that a program may share, and whether it can be written (a cell must not even read what cannot).
SHARED: dict[str, tuple[Callable[[Path], int], bool]] = {
    "multiprocessing's array": (_of_multiprocessing, True),
    "Python's mmap": (_of_python, True),
    "a file": (lambda path: _of_a_file(path, _READ | _WRITE), True),
    "a file that is only read": (lambda path: _of_a_file(path, _READ), False),
    "a file that is only written": (_only_written, True),
    "a file that cannot be accessed for now": (_later_inaccessible, False),
    "memory with a descriptor": (_of_a_memfd, True),
    "the zero device": (_of_dev_zero, True),
    "System V": (_of_system_v, True),
}


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, bool]]:
    make, writable = SHARED[request.param]
    at = make(tmp_path / "shared")
    if writable:
        ctypes.memmove(at, _TEXT, len(_TEXT))
    yield at, writable
    if not _kept:
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(_LENGTH))
    _kept.clear()


@pytest.mark.parametrize("kind", KINDS)
class TestSharedMemory:
    @pytest.mark.parametrize("offset", [0, 4096, _LENGTH - 1])
    def test_cannot_be_written(self, shared: tuple[int, bool], kind: str, offset: int) -> None:
        at, writable = shared
        with pytest.raises(SandboxError, match="crashed") as caught:
            run_guest(lambda job, files, ask: b"%d" % len(repr(ctypes.memset(at + offset, 0x58, 1))), kind=kind)
        assert caught.value.kind == "died"
        if writable:
            libc.mprotect(ctypes.c_void_p(at), _LENGTH, _READ | _WRITE)
            assert ctypes.string_at(at, _LENGTH) == _TEXT.ljust(_LENGTH, b"\0")

    def test_cannot_be_read(self, shared: tuple[int, bool], kind: str) -> None:
        at, _ = shared
        with pytest.raises(SandboxError, match="crashed"):
            run_guest(lambda job, files, ask: ctypes.string_at(at, 1), kind=kind)

    def test_cannot_be_had_back(self, shared: tuple[int, bool], kind: str) -> None:
        """Where it was, there may be other memory; never what was there."""
        at, _ = shared
        with pytest.raises(SandboxError):
            run_guest(
                lambda job, files, ask: b"%d %d" % (libc.madvise(at, 4096, 4), ctypes.memset(at, 1, 1)), kind=kind
            )


def test_memory_that_is_not_shared_stays(tmp_path: Path) -> None:
    data = bytearray(b"private")
    assert run_guest(lambda job, files, ask: bytes(data)) == b"private"


def test_what_is_shared_is_told_by_the_letter() -> None:
    maps = b"""\
00400000-005d2000 r-xp 00001000 fe:00 1835094                            /usr/bin/python3.11
7f1234500000-7f1234600000 rw-s 00000000 00:01 1234                       /dev/zero (deleted)
7f1234600000-7f1234607000 r--s 00000000 fe:00 99                         /usr/lib/gconv/gconv-modules.cache
7f1234607000-7f1234608000 r--s 00000000 fe:00 98                         /home/x/file
7f1234608000-7f1234609000 rw-s 00000000 fe:00 97                         /tmp/gconv-modules.cache
7f1234710000-7f1234720000 ---s 00000000 00:00 0
7f1234720000-7f1234721000 r-xp 00000000 fe:00 1                          /home/a user/rw-s rw-s
7ffd5b5e4000-7ffd5b605000 rw-p 00000000 00:00 0                          [stack]
"""
    assert [start for start, _ in shared_ranges(maps)] == [
        0x7F1234500000,
        0x7F1234607000,
        0x7F1234608000,
        0x7F1234710000,
    ]


def test_where_nothing_says_what_is_shared_the_fork_server_makes_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited, "MAPS", "/proc/none")
    from instar.core.wire import decode, encode

    forked: list[int] = []
    monkeypatch.setattr(ProcessCell, "_fork", lambda *_: forked.append(1))
    reply = ProcessCell(direct=True).run(encode({"op": "none", "args": {}}), [], Limits(), serve_nothing)
    assert "error" in decode(reply)  # type: ignore[operator]
    assert not forked


@pytest.mark.parametrize("kind", KINDS)
class TestCommandLine:
    def test_has_nothing_of_the_environment_in_its_cells(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "image").write_bytes(bytes(512))
        secrets = {"AWS_SECRET_ACCESS_KEY": CANARY[::-1], "X": f"before {CANARY[::-1]} after"}
        done = run_exploited("tests.sandbox.guests:canaries", "info", "image", kind=kind, cwd=tmp_path, **secrets)
        assert (done.code, done.err) == (0, "")
        assert "virtual size: 0 B" in done.out

    def test_has_not_its_line_in_its_cells(self, kind: str, tmp_path: Path) -> None:
        """Names of files are still among the objects that the command works with; options by themselves are not."""
        name = CANARY[::-1]
        (tmp_path / name).write_bytes(bytes(512))
        done = run_exploited("tests.sandbox.guests:command_lines", "info", name, kind=kind, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert "virtual size: 0 B" in done.out


def _in_a_child(act: Callable[[], object]) -> str:
    """Run something in a fork and return what it gave."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, repr(act()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


class TestEnvironment:
    def test_is_gone_also_what_was_set_later_and_what_is_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {"LATER": "x" * 50, "LONG": "y" * 200_000, "SHORT": "z", "NONE": ""}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        libc.getenv.restype = ctypes.c_void_p
        places = [libc.getenv(name.encode()) for name in ("LATER", "LONG")]
        objects = [os.environb[name.encode()] for name in ("LATER", "LONG")]

        def act() -> object:
            forget_environment()
            return (
                dict(os.environ),
                [libc.getenv(name.encode()) for name in values],
                [ctypes.string_at(at, 50).strip(b"\0") for at in places],
                [thing.strip(b"\0") for thing in objects],
                Path("/proc/self/environ").read_bytes().strip(b"\0"),
                Path("/proc/self/cmdline").read_bytes().strip(b"\0"),
                b"z" + b"",
            )

        assert _in_a_child(act) == repr(({}, [None] * 4, [b""] * 2, [b""] * 2, b"", b"", b"z"))
        assert os.environ["LATER"] == "x" * 50, "the caller's own is as it was"

    def test_may_be_none(self) -> None:
        import subprocess

        program = (
            f"import sys; sys.path[:0] = [{str(Path(inherited.__file__).parents[3])!r}]\n"
            "from instar.sandbox.process.inherited import forget_environment\n"
            "import os\nlibrary = __import__('ctypes').CDLL(None)\n"
            "for step in (lambda: None, os.environ.clear, library.clearenv):\n"
            "    step(); forget_environment()\nprint('fine')"
        )
        done = subprocess.run([sys.executable, "-E", "-c", program], env={}, capture_output=True, check=False)
        assert (done.stdout, done.stderr) == (b"fine\n", b"")
