"""What a cell has given up besides system calls, seen from outside while one stands still."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS, needs_kvm
from tests.sandbox.cells import SOURCE, children, open_fds, run_guest, status_of, wait_until

from instar.core.errors import SandboxError
from instar.sandbox import kernel, posix
from instar.sandbox.cell import Grant
from instar.sandbox.process import seal
from instar.sandbox.process.policy import RULES, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sandbox.cells import Ask

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile


def _ask(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    ask("look")
    return b"done"


def look(
    see: Callable[[int], object], files: list[Grant] | None = None, kind: str = "process", **limits: float
) -> object:
    """Look at a sealed cell that waits for an answer."""
    seen: list[object] = []

    def serve(request: Wire) -> Wire:
        (pid,) = children()
        seen.append(see(pid))
        return None

    assert run_guest(_ask, files or [], kind=kind, serve=serve, **limits) == b"done"
    return seen[0]


class TestCell:
    @pytest.mark.parametrize("kind", KINDS)
    def test_has_no_capability_and_can_gain_none(self, kind: str) -> None:
        status = look(status_of, kind=kind)
        assert isinstance(status, dict)
        for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_no_capability_where_namespaces_are_refused(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seal, "leave_namespaces", lambda: False)
        status = look(status_of, kind=kind)
        assert isinstance(status, dict)
        assert int(status["CapEff"], 16) == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_in_namespaces_of_its_own(self, kind: str) -> None:
        probe = os.fork()
        if probe == 0:
            os._exit(0 if seal.leave_namespaces() else 1)
        if os.waitstatus_to_exitcode(os.waitpid(probe, 0)[1]) != 0:
            pytest.skip("this kernel or container refuses new namespaces")
        spaces = look(lambda pid: {n: os.readlink(f"/proc/{pid}/ns/{n}") for n in ("user", "net", "ipc")}, kind=kind)
        assert isinstance(spaces, dict)
        for name, link in spaces.items():
            assert link != os.readlink(f"/proc/self/ns/{name}")

    def test_has_exactly_the_channel_and_the_granted_files(self, tmp_path: Path) -> None:
        paths = [tmp_path / str(n) for n in range(3)]
        fds = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
        far = os.dup2(fds[0], 900, inheritable=True)
        try:
            seen = look(
                lambda pid: {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")},
                [Grant(fd, "r", 0) for fd in reversed(fds)],
            )
        finally:
            for fd in (*fds, far):
                os.close(fd)
        assert isinstance(seen, dict)
        assert set(seen) == {3, 4, 5, 6, 7}
        assert [seen[n] for n in (5, 6, 7)] == [str(p) for p in reversed(paths)]
        assert seen[3].startswith("pipe:")
        assert seen[4].startswith("pipe:")
        assert seen[3] != seen[4]

    @pytest.mark.parametrize("up", [3, 4, 5, 6])
    @pytest.mark.parametrize("kind", KINDS)
    def test_finds_its_files_wherever_descriptors_were(self, kind: str, up: int, tmp_path: Path) -> None:
        """Each number that a cell uses is taken by another file beforehand, in a process of its own."""
        program = f"""
import os, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from instar.sandbox.cell import Grant
from tests.sandbox.cells import run_guest
fds = []
for n in range(4):
    fd = os.open({str(tmp_path)!r} + f"/{{n}}", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"%d" % n)
    fds.append(fd)
for n, number in enumerate([{up}, 3, 4, 5]):
    if number not in fds: os.dup2(fds[n], number); fds[n] = number
grants = [Grant(fd, "r", 1) for fd in fds]
print(run_guest(lambda job, files, ask: b"".join(f.read(0, 1) for f in files), grants, kind={kind!r}))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("b'"), done.stderr

    def test_has_the_limits_it_was_given(self) -> None:
        def see(pid: int) -> dict[str, tuple[int, int]]:
            names = ("AS", "CPU", "FSIZE", "CORE", "NPROC", "MEMLOCK", "NOFILE")
            limits = {n: resource.prlimit(pid, getattr(resource, f"RLIMIT_{n}")) for n in names}
            return {**limits, "size": (int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * mmap.PAGESIZE, 0)}

        seen = look(see, memory=100 << 20, cpu_seconds=7, file_bytes=12345)
        assert isinstance(seen, dict)
        assert seen["CPU"] == (7, 8)
        assert seen["FSIZE"] == (12345, 12345)
        assert all(seen[n] == (0, 0) for n in ("CORE", "NPROC", "MEMLOCK", "NOFILE"))
        assert abs(seen["AS"][0] - seen["size"][0] - (100 << 20)) < 8 << 20

    @needs_kvm
    def test_has_as_a_monitor_limits_that_come_after_those_of_its_guest(self) -> None:
        """Its guest's memory is there before it is sealed; its guest's time it watches itself, and can say more."""

        def see(pid: int) -> dict[str, tuple[int, int]]:
            names = ("AS", "CPU", "FSIZE", "CORE", "MEMLOCK", "NOFILE")
            limits = {n: resource.prlimit(pid, getattr(resource, f"RLIMIT_{n}")) for n in names}
            return {**limits, "size": (int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * mmap.PAGESIZE, 0)}

        seen = look(see, kind="kvm", memory=100 << 20, cpu_seconds=7, file_bytes=12345)
        assert isinstance(seen, dict)
        assert seen["CPU"] == (8, 9)
        assert seen["FSIZE"] == (12345, 12345)
        assert all(seen[n] == (0, 0) for n in ("CORE", "MEMLOCK", "NOFILE"))
        assert seen["size"][0] > 100 << 20
        assert seen["AS"][0] - seen["size"][0] <= 64 << 20

    def test_cannot_be_debugged_or_dumped_by_other_processes_of_its_user(self) -> None:
        # A process that is not dumpable has its /proc files owned by root whoever runs it.
        program = f"""
import os, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from tests.sandbox.cells import children, run_guest
def serve(asked):
    print(os.stat(f"/proc/{{children()[0]}}/environ").st_uid)
def guest(job, files, ask):
    ask(1)
    return b""
run_guest(guest, serve=serve)
"""
        done = _as_nobody(program)
        assert done.stdout == "0\n", done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks_all_signals_but_the_one_that_says_it_used_too_much_time(self, kind: str) -> None:
        status = look(status_of, kind=kind)
        assert isinstance(status, dict)
        blocked = int(status["SigBlk"], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1, number
        assert not blocked >> (signal.SIGXCPU - 1) & 1
        assert not int(status["SigCgt"], 16) >> (signal.SIGXCPU - 1) & 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_outlives_the_signals_that_a_terminal_sends_to_all(self, kind: str) -> None:
        def see(pid: int) -> None:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP):
                os.kill(pid, number)

        look(see, kind=kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_goes_on_after_being_stopped(self, kind: str) -> None:
        def see(pid: int) -> None:
            os.kill(pid, signal.SIGSTOP)
            assert wait_until(lambda: status_of(pid)["State"][0] == "T")
            os.kill(pid, signal.SIGCONT)

        look(see, kind=kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_runs_no_finaliser_of_the_program_it_was_forked_from(self, kind: str, tmp_path: Path) -> None:
        class Knot:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                os.close(os.open(tmp_path, os.O_RDONLY))

        gc.disable()
        try:
            Knot()
            assert run_guest(lambda job, files, ask: b"%d" % gc.collect(), kind=kind)
        finally:
            gc.enable()
            gc.collect()  # while the folder is there

    @pytest.mark.parametrize("kind", KINDS)
    def test_runs_no_signal_handler_of_the_program_it_was_forked_from(self, kind: str, tmp_path: Path) -> None:
        marks = tmp_path / "marks"

        def handler(number: int, frame: object) -> None:
            with marks.open("a") as file:
                file.write(f"{os.getpid()}\n")

        old = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)  # an emulated handler takes half a millisecond
        try:
            for _ in range(30):
                assert run_guest(lambda job, files, ask: b"x", kind=kind) == b"x"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert set(marks.read_text().split()) == {str(os.getpid())}


class TestLandlock:
    def test_refuses_files_even_to_who_has_the_system_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if seal.landlock_version() < 1:
            pytest.skip("this kernel has no Landlock")
        victim = tmp_path / "victim"

        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            try:
                os.unlink(victim)
            except OSError as error:
                return b"%d" % error.errno
            return b"gone"

        unlink = Rule("unlink", 87, 35, "any", "for this test")
        victim.touch()
        assert run_guest(guest, rules=(*RULES, unlink)) == b"13"
        assert victim.exists()
        monkeypatch.setattr(seal, "landlock", lambda: False)
        assert run_guest(guest, rules=(*RULES, unlink)) == b"gone"


class TestSealing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_never_lets_a_guest_run_if_a_step_fails(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(program: object) -> None:
            raise seal.SealError("seccomp: not today")

        monkeypatch.setattr(seal, "seccomp", refuse)
        with pytest.raises(SandboxError, match="not today") as caught:
            run_guest(lambda job, files, ask: b"it ran", kind=kind)
        assert caught.value.kind == "unavailable"

    @pytest.mark.parametrize("kind", KINDS)
    def test_does_not_write_its_failure_into_a_granted_file(
        self, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "no limits here")

        monkeypatch.setattr(seal, "limit_resources", refuse)
        fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(40)]
        try:
            with pytest.raises(SandboxError, match="no limits here"):
                run_guest(lambda job, files, ask: b"", [Grant(fd, "rw", 0) for fd in fds], kind=kind)
        finally:
            for fd in fds:
                os.close(fd)
        assert all(path.read_bytes() == b"" for path in tmp_path.iterdir())

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_guest_cannot_claim_that_it_was_never_sealed(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            os.write(3, b"\x05\0\0\0Xhello")
            return b""

        with pytest.raises(SandboxError) as caught:
            run_guest(guest, kind=kind)
        assert caught.value.kind == "protocol"

    def test_works_for_an_ordinary_user(self) -> None:
        program = f"""
import sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from tests.sandbox.cells import run_guest
print(run_guest(lambda job, files, ask: job))
"""
        done = _as_nobody(program)
        assert done.stdout == "b'job'\n", done.stderr

    @pytest.mark.parametrize("soft", [1, 2, 30])
    def test_respects_the_limits_of_its_caller(self, soft: int) -> None:
        program = f"""
import resource, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from tests.sandbox.cells import children, run_guest
resource.setrlimit(resource.RLIMIT_CPU, ({soft}, {soft}))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
def serve(asked):
    (pid,) = children()
    print(resource.prlimit(pid, resource.RLIMIT_CPU), resource.prlimit(pid, resource.RLIMIT_AS)[0] <= 1 << 30)
def guest(job, files, ask):
    ask(1)
    return b""
run_guest(guest, serve=serve, cpu_seconds=600, memory=4 << 30)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == f"({max(1, soft - 1)}, {soft}) True\n", done.stderr

    def test_says_that_this_machine_can_seal(self) -> None:
        assert seal.why_unavailable() is None

    def test_says_why_a_machine_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seal, "machine", lambda: "vax")
        assert seal.why_unavailable() == "no system call policy for vax"


class TestCloseFrom:
    @pytest.mark.parametrize("old_kernel", [False, True])
    def test_closes_everything_from_a_number_on(self, old_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if old_kernel:  # one without close_range: point the call at a number that no kernel has
            monkeypatch.setitem(kernel._numbers, "close_range", 9999)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(writer, 700)
            seal.close_from(10)
            low = [fd for fd in range(2000) if _is_open(fd)]
            os._exit(1 if any(fd >= 10 for fd in low) else 0)
        os.close(writer)
        os.close(reader)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestPosix:
    def test_moves_descriptors_off_the_standard_streams(self, tmp_path: Path) -> None:
        program = f"""
import os, sys
sys.path[:0] = {[str(SOURCE)]!r}
from instar.sandbox.posix import above_stdio, safe_pipe
for fd in (0, 1, 2): os.close(fd)
fd = above_stdio(os.open({str(tmp_path / "x")!r}, os.O_RDWR | os.O_CREAT))
read, write = safe_pipe()
os.write(fd, repr((fd >= 3, read >= 3, write >= 3, os.get_inheritable(read))).encode())
"""
        subprocess.run([sys.executable, "-c", program], check=False)
        assert (tmp_path / "x").read_text() == "(True, True, True, False)"

    def test_delivers_held_signals_when_they_are_let_go(self) -> None:
        got: list[int] = []
        old = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
        held = posix.hold_signals()
        try:
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert got == []
        finally:
            posix.let_signals(held)
        assert got == [signal.SIGUSR1]
        signal.signal(signal.SIGUSR1, old)

    @pytest.mark.parametrize("kind", KINDS)
    def test_leaks_no_descriptor(self, kind: str) -> None:
        before = open_fds()
        for _ in range(20):
            run_guest(lambda job, files, ask: b"", kind=kind)
        assert open_fds() == before


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _as_nobody(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user without rights; as ourselves where we are one."""
    extra = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    base = Path(sys.base_prefix)
    if extra and not _readable_by_all(base):
        # the interpreter lies in a folder of root's: load all that is needed before giving up rights
        program = "import os, sys\n" + program.replace(
            "run_guest\n",
            "run_guest\nimport instar.sandbox.process.cell\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n",
            1,
        )
        extra = {}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/", **extra
    )


def _readable_by_all(path: Path) -> bool:
    return all(p.stat().st_mode & 0o005 == 0o005 for p in (path, *path.parents))
