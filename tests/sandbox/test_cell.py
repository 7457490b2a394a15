"""However a guest behaves: the host gets one reply or one clear ``SandboxError``, in time, and no process is left."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import (
    SOURCE,
    children,
    has_children,
    is_alive,
    make_cell,
    open_fds,
    run_guest,
    serve_nothing,
    wait_until,
)

from instar.core.errors import HostError, SandboxError
from instar.sandbox.cell import Grant, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sandbox.cells import Ask, Guest

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile

MiB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert not has_children(), "a cell is left behind"
    assert open_fds() == before, "a descriptor is left open"


@pytest.mark.parametrize("kind", ["none", *KINDS])
class TestAnyCell:
    """What holds in every kind of cell, and without isolation."""

    def test_gives_the_job_to_the_guest_and_returns_its_reply(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            return job[::-1]

        assert make_cell(kind, guest).run(b"abc", [], Limits(), serve_nothing) == b"cba"

    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3 * MiB])
    def test_carries_jobs_and_replies_of_any_length(self, kind: str, size: int) -> None:
        job = os.urandom(size)
        assert make_cell(kind, lambda job, files, ask: job).run(job, [], Limits(), serve_nothing) == job

    def test_numbers_files_from_zero_and_tells_their_modes_and_sizes(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"hello")
        fd = os.open(tmp_path / "a", os.O_RDWR)
        try:

            def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
                files[1].write(5, b"!")
                facts = [(f.number, f.mode, f.size) for f in files]
                return repr((facts, files[0].read(0, 10), files[0].read(100, 10))).encode()

            grants = [Grant(fd, "r", 5), Grant(fd, "rw", 5)]
            reply = make_cell(kind, guest).run(b"", grants, Limits(file_bytes=6), serve_nothing)
            assert eval(reply) == ([(0, "r", 5), (1, "rw", 5)], b"hello!", b"")
        finally:
            os.close(fd)

    def test_serves_requests_in_order(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            return repr([ask({"n": n, "pad": b"x" * 4000}) for n in range(5)]).encode()

        seen: list[Wire] = []

        def serve(request: Wire) -> Wire:
            assert isinstance(request, dict)
            seen.append(request["n"])
            return [request["n"], b"y" * 200_000]

        reply = make_cell(kind, guest).run(b"", [], Limits(requests=9), serve)
        assert [n for n, _ in eval(reply)] == seen == list(range(5))

    @pytest.mark.parametrize(
        "error", [HostError(28, "disk", "write", "No space left on device"), KeyboardInterrupt(), ValueError("a fault")]
    )
    def test_ends_with_what_serving_a_request_raises(self, kind: str, error: BaseException) -> None:
        went_on = []

        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            try:
                ask(1)
            except Exception:
                went_on.append("it took the error for its own")
            return b""

        def serve(request: Wire) -> Wire:
            raise error

        with pytest.raises(type(error)) as caught:
            make_cell(kind, guest).run(b"", [], Limits(wall_seconds=10, requests=1), serve)
        assert caught.value is error
        assert went_on == []

    def test_refuses_a_reply_that_is_too_long(self, kind: str) -> None:
        with pytest.raises(SandboxError) as caught:
            make_cell(kind, lambda job, files, ask: bytes(1001)).run(b"", [], Limits(reply_bytes=1000), serve_nothing)
        assert caught.value.kind == "limit"
        assert "1000" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
class TestDeath:
    """A guest that ends in any other way than by a reply."""

    @pytest.mark.parametrize(
        ("guest", "said"),
        [
            (lambda job, files, ask: ctypes.string_at(0), "it used memory or an instruction that it may not use"),
            (lambda job, files, ask: os._exit(7), "ended with code 7"),
            (lambda job, files, ask: os._exit(0), "ended with code 0"),
            (lambda job, files, ask: 1 / 0, "ended with code 4"),
            (lambda job, files, ask: sys.exit(0), "ended with code 4"),
            (lambda job, files, ask: "no bytes", "ended with code 4"),
            (lambda job, files, ask: os.abort(), "a system call that no cell may make"),
            (lambda job, files, ask: os.close(3), "a system call that no cell may make"),
        ],
        ids=["crashes", "exits", "exits well", "raises", "raises SystemExit", "gives no bytes", "aborts", "closes"],
    )
    def test_is_named(self, kind: str, guest: Guest, said: str) -> None:
        with pytest.raises(SandboxError, match=said) as caught:
            run_guest(guest, kind=kind)
        assert caught.value.kind == "died"
        assert ("(SIG" in str(caught.value)) == ("code" not in said and kind == "process")

    def test_is_named_the_same_every_time(self, kind: str) -> None:
        for _ in range(100 if kind == "process" else 20):
            with pytest.raises(SandboxError, match="ended with code 7"):
                run_guest(lambda job, files, ask: os._exit(7), kind=kind)  # type: ignore[arg-type]

    def test_by_a_kill_from_outside_is_named(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            ask(1)
            return b""

        def serve(request: Wire) -> Wire:
            os.kill(children()[0], signal.SIGKILL)
            return None

        with pytest.raises(SandboxError, match="killed from outside") as caught:
            run_guest(guest, serve=serve, kind=kind)
        assert caught.value.kind == "died"

    def test_by_recursion_ends_in_time(self, kind: str) -> None:
        def deep(n: int) -> int:
            return deep(n + 1)

        with pytest.raises(SandboxError) as caught:
            run_guest(lambda job, files, ask: deep(0), kind=kind)  # type: ignore[arg-type,return-value]
        assert caught.value.kind == "died"

    def test_by_recursion_in_c_ends_in_time(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            sys.setrecursionlimit(1 << 30)
            nested: list[object] = []
            for _ in range(1_000_000):
                nested = [nested]
            return repr(nested).encode()

        with pytest.raises(SandboxError) as caught:
            run_guest(guest, kind=kind)
        assert caught.value.kind in ("died", "limit")

    def test_is_seen_by_a_caller_whom_a_broken_pipe_would_kill(self, kind: str) -> None:
        program = f"""
import os, signal, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from instar.core.errors import SandboxError
from instar.sandbox.kvm import monitor
from instar.sandbox.process import cell
from tests.sandbox.cells import run_guest
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
def seal(*_, **__): os._exit(9)
cell.seal = monitor.seal = seal
try:
    run_guest(lambda job, files, ask: b"", job=bytes(1 << 20), kind={kind!r})
except SandboxError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
        assert "ended with code 9" in done.stdout, (done.returncode, done.stderr)

    def test_is_seen_where_children_are_reaped_by_the_system(self, kind: str) -> None:
        old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            assert run_guest(lambda job, files, ask: b"fine", kind=kind) == b"fine"
            with pytest.raises(SandboxError) as caught:
                run_guest(lambda job, files, ask: os._exit(7), kind=kind)  # type: ignore[arg-type]
            assert caught.value.kind == "died"
        finally:
            signal.signal(signal.SIGCHLD, old)

    def test_is_seen_where_the_program_reaps_every_child(self, kind: str) -> None:
        def reap(number: int, frame: object) -> None:
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        return
                except ChildProcessError:
                    return

        old = signal.signal(signal.SIGCHLD, reap)
        try:
            for _ in range(20):
                assert run_guest(lambda job, files, ask: b"fine", kind=kind) == b"fine"
                with pytest.raises(SandboxError):
                    run_guest(lambda job, files, ask: os._exit(7), kind=kind)  # type: ignore[arg-type]
        finally:
            signal.signal(signal.SIGCHLD, old)


def _spin(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    while True:
        pass


@pytest.mark.parametrize("kind", KINDS)
class TestLimits:
    def test_processor_time(self, kind: str) -> None:
        started = time.monotonic()
        with pytest.raises(SandboxError, match="more than 1 s of processor time") as caught:
            run_guest(_spin, cpu_seconds=1, kind=kind)
        assert caught.value.kind == "limit"
        assert time.monotonic() - started < 15

    def test_wall_time(self, kind: str) -> None:
        started = time.monotonic()
        with pytest.raises(SandboxError, match=r"did not answer within 0\.3 s") as caught:
            run_guest(_spin, wall_seconds=0.3, kind=kind)
        assert caught.value.kind == "limit"
        assert 0.3 <= time.monotonic() - started < 5

    def test_wall_time_also_for_a_guest_that_talks(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            while True:
                ask(None)

        with pytest.raises(SandboxError, match="did not answer within") as caught:
            run_guest(guest, serve=lambda request: None, wall_seconds=0.3, kind=kind)
        assert caught.value.kind == "limit"

    def test_wall_time_does_not_count_what_the_host_takes_to_serve_as_long_as_it_may(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            for _ in range(2):
                ask(None)
            return b"fine"

        def serve(request: Wire) -> Wire:
            time.sleep(2)
            return None

        # Much longer than a cell takes to start on a busy machine.
        limits = {"wall_seconds": 3.5, "kind": kind, "serve": serve}
        assert run_guest(guest, serving_seconds=5, **limits) == b"fine"  # type: ignore[arg-type]
        for seconds in (0, 0.1):
            with pytest.raises(SandboxError, match="did not answer within"):
                run_guest(lambda j, f, ask: [ask(None) for _ in range(3)], serving_seconds=seconds, **limits)  # type: ignore

    def test_wall_time_is_over_for_a_guest_whose_requests_are_there_already(self, kind: str) -> None:
        """Who does not wait for answers keeps the host busy from one request to the next."""

        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            os.write(3, b"\x01\0\0\0QN" * 1000)
            while True:
                os.read(4, 1 << 16)

        served = []
        with pytest.raises(SandboxError, match="did not answer within"):
            run_guest(guest, serve=lambda request: served.append(time.sleep(0.02)), wall_seconds=0.5, kind=kind)
        assert len(served) < 30

    def test_length_of_a_request(self, kind: str) -> None:
        """What is long to read would be read on the host's time."""
        asked: Wire = "x" * 4000
        assert run_guest(lambda j, f, ask: ask(asked).encode(), serve=lambda request: request, kind=kind)  # type: ignore
        for request in ("x" * 5000, [None] * 40, [[[]]] * 1000):
            began = time.monotonic()
            with pytest.raises(SandboxError) as caught:
                run_guest(lambda j, f, ask, r=request: ask(r), kind=kind)  # type: ignore[misc]
            assert caught.value.kind in ("limit", "protocol")
            assert time.monotonic() - began < 2

    def test_only_a_reply_may_be_long(self, kind: str) -> None:
        for tag in b"SXQDZ":
            with pytest.raises(SandboxError, match="a message of 8388608 bytes, the limit is 4096"):
                run_guest(_send(b"\0\0\x80\0%c" % tag), reply_bytes=64 * MiB, kind=kind)

    def test_memory_in_one_piece(self, kind: str) -> None:
        with pytest.raises(SandboxError, match=r"ran out of memory \(limit 64 MiB\)") as caught:
            run_guest(lambda job, files, ask: bytes(100 * MiB), memory=64 * MiB, kind=kind)
        assert caught.value.kind == "limit"

    def test_memory_in_many_pieces(self, kind: str) -> None:
        # In a process of its own: one that ever had threads dies of what its malloc tries when memory runs out.
        program = f"""
import sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from instar.core.errors import SandboxError
from tests.sandbox.cells import run_guest
def guest(job, files, ask):
    kept = []
    while True:
        kept.append([kept])
try:
    run_guest(guest, memory=32 << 20, wall_seconds=100, kind={kind!r})
except SandboxError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == "sandbox limit: the cell ran out of memory (limit 32 MiB)\n", done.stderr

    def test_memory_is_there_up_to_the_limit(self, kind: str) -> None:
        assert run_guest(lambda job, files, ask: b"%d" % len(bytearray(50 * MiB)), memory=64 * MiB, kind=kind)

    def test_length_of_a_file(self, kind: str, tmp_path: Path) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            files[0].write(0, bytes(1000))
            try:
                files[0].write(1000, b"x")
            except OSError as error:
                return b"%d" % error.errno
            return b"it was written"

        fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
        try:
            assert run_guest(guest, [Grant(fd, "w", 0)], file_bytes=1000, kind=kind) == b"27"  # EFBIG
        finally:
            os.close(fd)
        assert (tmp_path / "a").stat().st_size == 1000

    def test_number_of_requests(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            while True:
                ask(None)

        with pytest.raises(SandboxError, match="more than 50 requests") as caught:
            run_guest(guest, serve=lambda request: None, requests=50, kind=kind)
        assert caught.value.kind == "limit"
        with pytest.raises(SandboxError, match="the cell made a request"):
            run_guest(guest, requests=0, kind=kind)

    def test_number_of_files(self, kind: str) -> None:
        with pytest.raises(SandboxError, match="201 files are too many"):
            run_guest(lambda job, files, ask: b"", [Grant(0, "r", 0)] * 201, kind=kind)


def _send(*frames: bytes) -> Guest:
    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        for frame in frames:
            view = memoryview(frame)
            while view:
                view = view[os.write(3, view) :]
        os._exit(0)

    return guest


@pytest.mark.parametrize("kind", KINDS)
class TestProtocol:
    """A guest that has been taken over writes what it wants to its host."""

    @pytest.mark.parametrize(
        ("frames", "error"),
        [
            ((b"\xff\xff\xff\xffR",), "limit"),
            ((b"\x00\x00\x00\x01R" + bytes(70000),), "limit"),
            ((b"\x01\0\0\0Zx",), "protocol"),
            ((b"\x00\0\0\0S",), "protocol"),
            ((b"\x00\0\0\0J",), "protocol"),
            ((b"\x00\0\0\0A",), "protocol"),
            ((b"\x03\0\0\0Qabc",), "protocol"),
            ((b"\x00\0\0\0Q",), "protocol"),
            ((b"\x09\0\0\0R123",), "died"),
            ((b"\x09\0",), "died"),
            ((b"",), "died"),
        ],
    )
    def test_breaks_are_named(self, kind: str, frames: tuple[bytes, ...], error: str) -> None:
        with pytest.raises(SandboxError) as caught:
            run_guest(_send(*frames), reply_bytes=1 << 20, serve=lambda request: None, kind=kind)
        assert caught.value.kind == error
        assert "\0" not in str(caught.value)

    def test_an_endless_stream_costs_the_host_no_memory(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            os.write(3, b"\xff\xff\x0f\x00R")
            while True:
                os.write(3, bytes(65536))

        # The first frame of a mebibyte is taken for the reply; what follows is never read.
        assert len(run_guest(guest, reply_bytes=1 << 20, kind=kind)) == 0xFFFFF

    def test_a_guest_that_reads_no_answers_meets_the_wall(self, kind: str) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            while True:
                os.write(3, b"\x01\0\0\0QN")

        with pytest.raises(SandboxError) as caught:
            run_guest(guest, serve=lambda request: bytes(10000), wall_seconds=1, kind=kind)
        assert caught.value.kind == "limit"

    def test_a_guest_that_reads_more_than_it_was_sent_meets_the_wall(self, kind: str) -> None:
        with pytest.raises(SandboxError) as caught:
            run_guest(lambda job, files, ask: os.read(4, 1), wall_seconds=0.3, kind=kind)
        assert caught.value.kind == "limit"


_WAITING_HOST = f"""
import os, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from tests.sandbox.cells import children, run_guest
def guest(job, files, ask):
    ask(1)
    while True: pass
def serve(asked):
    print(children()[0], flush=True)
try:
    run_guest(guest, serve=serve, wall_seconds=60, kind=sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", children())
"""


@pytest.mark.parametrize("kind", KINDS)
class TestHost:
    def _start(self, kind: str, program: str = _WAITING_HOST) -> tuple[subprocess.Popen[str], int]:
        host = subprocess.Popen([sys.executable, "-c", program, kind], stdout=subprocess.PIPE, text=True)
        assert host.stdout is not None
        return host, int(host.stdout.readline())

    def _finish(self, host: subprocess.Popen[str]) -> str:
        with host:
            assert host.stdout is not None
            return host.stdout.read()

    def test_takes_its_cell_along_when_it_is_killed(self, kind: str) -> None:
        host, cell = self._start(kind)
        assert is_alive(cell)
        host.kill()
        self._finish(host)
        assert wait_until(lambda: not is_alive(cell))

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
    def test_takes_its_cell_along_when_it_is_killed_as_another_user(self, kind: str) -> None:
        if kind == "kvm" and os.stat("/dev/kvm").st_mode & 0o006 != 0o006:
            pytest.skip("/dev/kvm is not for everybody here")
        imports = "import instar.sandbox.kvm.monitor\nos.setgid(65534); os.setuid(65534)\ndef guest"
        host, cell = self._start(kind, _WAITING_HOST.replace("def guest", imports, 1))
        host.kill()
        self._finish(host)
        assert wait_until(lambda: not is_alive(cell))

    def test_ends_its_cell_when_it_is_interrupted(self, kind: str) -> None:
        host, cell = self._start(kind)
        host.send_signal(signal.SIGINT)
        assert self._finish(host) == "interrupted []\n"
        assert not is_alive(cell)

    def test_leaves_no_cell_wherever_an_interrupt_strikes(self, kind: str) -> None:
        """Interrupts at short random times, in a loop of cells: none survives, none runs the host's code."""
        program = f"""
import os, random, signal, sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
from tests.sandbox.cells import has_children, open_fds, run_guest
host = os.getpid()
kind = {kind!r}
run_guest(lambda job, files, ask: b"", kind=kind)
before = open_fds()
hits = turns = 0
while turns < 150 or (hits <= 5 and turns < 2000):
    turns += 1
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, random.random() * {0.006 if kind == "process" else 0.03})
        run_guest(lambda job, files, ask: b"", kind=kind)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    except KeyboardInterrupt:
        if os.getpid() != host:
            print("a cell ran the host's code", flush=True)
        hits += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    if has_children():
        print("a child is left", flush=True)
print(hits > 5, len(open_fds()) - len(before) < 3)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == "True True\n", done.stderr
