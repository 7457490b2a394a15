"""Programs as cells meet them: with threads, timers, tracers, other allocators, much memory, numpy in the guest.

Each is a process of its own, and every cell in it is a machine. Where there are many of a kind, each has one of the
Pythons that are installed here in turn; ``INSTAR_ALL_CASES=1`` tries it in all of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import needs_kvm
from tests.sandbox.cells import SOURCE
from tests.sandbox.test_server import PYTHONS, find_python

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = needs_kvm

#: What each program begins with.
_BEGIN = f"""
import os, sys, time
sys.path[:0] = [{str(SOURCE)!r}]
os.chdir(sys.argv[1])
import instar
from instar.core.errors import SandboxError
from instar.sandbox.cell import Limits
from instar.sandbox.kvm.cell import KvmCell
from instar.sandbox.process.cell import ProcessCell

def work(*, direct, times=1, kind="kvm"):
    for _ in range(times):
        for format in ("qcow2", "vhdx"):
            isolation = instar.Isolation(kind, single_threaded=direct)
            name = f"disk.{{format}}"
            instar.create(name, "64M", format=format, isolation=isolation)
            assert instar.info(name, isolation=isolation).virtual_size == 64 << 20
            assert instar.check(name, isolation=isolation).clean
            assert isolation.said == []

def run(guest, cell=KvmCell):
    return cell(direct=True, guest=guest).run(b"", [], Limits(), None)
"""


def run(program: str, folder: Path, *options: str, python: str = sys.executable, **variables: str) -> str:
    """Run a program to its end and return what it printed; its standard error must stay empty."""
    done = subprocess.run(
        [python, *options, "-c", _BEGIN + program, str(folder)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    return find_python(request.param)


@cache
def installed() -> list[str]:
    """Return the interpreters that are here, the newest first."""
    found = []
    for version in reversed(PYTHONS):
        with contextlib.suppress(pytest.skip.Exception):
            found.append(find_python(version))
    return found


def in_turn(kinds: Iterable[str], kind: str) -> list[str]:
    """Return the interpreters in which one of many kinds is tried."""
    found = installed()
    return found if os.environ.get("INSTAR_ALL_CASES") else [found[list(kinds).index(kind) % len(found)]]


class TestThreads:
    def test_many_of_them_make_cells(self, python: str, tmp_path: Path) -> None:
        program = """
import threading
wrong = []
def make(number):
    name = f"{number}.qcow2"
    for _ in range(4):
        isolation = instar.Isolation("kvm")
        instar.create(name, (number + 1) << 20, format="qcow2", isolation=isolation)
        if instar.info(name, isolation=isolation).virtual_size != (number + 1) << 20:
            wrong.append(number)
threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(wrong)
"""
        assert run(program, tmp_path, python=python) == "[]\n"

    def test_loop_that_takes_signals_over(self, python: str, tmp_path: Path) -> None:
        program = """
import asyncio, signal
async def main():
    loop, seen = asyncio.get_running_loop(), []
    for number in (signal.SIGALRM, signal.SIGUSR1):
        loop.add_signal_handler(number, seen.append, number)
    for _ in range(3):
        work(direct=True)
        await asyncio.to_thread(work, direct=False)
    names = (asyncio.to_thread(instar.info, "disk.qcow2", isolation=instar.Isolation("kvm")) for _ in range(4))
    await asyncio.gather(*names)
    child = await asyncio.create_subprocess_exec("true")
    assert await child.wait() == 0
    # A monitor's own clock is a SIGALRM: none of it may come back here.
    await asyncio.sleep(0.1)
    print(seen)
asyncio.run(main())
"""
        assert run(program, tmp_path, python=python) == "[]\n"


class TestSignals:
    def test_timers_of_the_program_go_on(self, python: str, tmp_path: Path) -> None:
        program = """
import signal
hits = dict.fromkeys((signal.SIGALRM, signal.SIGPROF, signal.SIGVTALRM, signal.SIGCHLD), 0)
def handler(number, frame):
    hits[number] += 1
for number in hits:
    signal.signal(number, handler)
for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
    signal.setitimer(timer, 0.001, 0.001)
work(direct=True, times=3)
work(direct=False)
end = time.monotonic() + 5
while not all(hits.values()) and time.monotonic() < end:
    pass
print(all(hits.values()), signal.getitimer(signal.ITIMER_REAL)[1])
for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
    signal.setitimer(timer, 0)  # the interpreter's end takes the handlers away
"""
        assert run(program, tmp_path, python=python) == "True 0.001\n"

    @pytest.mark.parametrize("way", ["reap", "ignore"])
    def test_children_that_are_reaped_behind_our_back(self, way: str, tmp_path: Path) -> None:
        program = f"""
import signal
def reap(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, {"reap" if way == "reap" else "signal.SIG_IGN"})
work(direct=True, times=3)
work(direct=False)
print("fine")
"""
        assert run(program, tmp_path) == "fine\n"


#: How a program may have itself watched, by name. What watches keeps things, as a measuring tool would.
_WATCHES = {
    "trace": "def see(*what): kept.append(what[:1]); return see\nsys.settrace(see)",
    "profile": "def see(*what): kept.append(what[:1])\nsys.setprofile(see)",
    "collector": "import gc; gc.callbacks.append(lambda *what: kept.append(what)); gc.set_threshold(5)",
    "memory": "import tracemalloc; tracemalloc.start(25)",
    "faults": "import faulthandler; faulthandler.enable()",
    "faults later": "import faulthandler; faulthandler.dump_traceback_later(60)",
    "monitoring": """
if not hasattr(sys, "monitoring"):
    print("none")
    sys.exit()
watch = sys.monitoring
watch.use_tool_id(2, "test")
watch.register_callback(2, watch.events.LINE, lambda *what: kept.append(what[1:]))
watch.set_events(2, watch.events.LINE)
""",
}


class TestWatched:
    @pytest.mark.parametrize("watch", _WATCHES)
    def test_program_gets_its_cells_in_time(self, watch: str, tmp_path: Path) -> None:
        """The watcher is the program's: it neither runs in a guest nor keeps the program from being copied."""
        program = f"""
kept = []
{_WATCHES[watch]}
def guest(job, files, ask):
    count = len(kept)
    some = [[number] for number in range(100)]
    return b"%d" % (len(kept) - count)
seen = {{run(guest) for _ in range(10)}}
def took(kind):
    started = time.monotonic()
    work(direct=True, kind=kind)
    return time.monotonic() - started
usual, ours = took("process"), took("kvm")
work(direct=False)
sys.settrace(None), sys.setprofile(None)
print("fine" if ours < 10 * usual + 2 else f"slow: {{ours}} s instead of {{usual}} s", *seen)
"""
        for python in in_turn(_WATCHES, watch):
            assert run(program, tmp_path, python=python) in ("fine b'0'\n", "none\n")

    def test_coverage_is_measured(self, tmp_path: Path) -> None:
        pytest.importorskip("coverage")
        program = """
import coverage
watch = coverage.Coverage(data_file=None)
watch.start()
work(direct=True)
work(direct=False)
watch.stop()
print(any(name.endswith("sandbox/kvm/cell.py") for name in watch.get_data().measured_files()))
"""
        assert run(program, tmp_path) == "True\n"


#: Environments of interpreters. Those of malloc move what is where, and when it goes.
_VARIABLES = [
    "PYTHONMALLOC=malloc",
    "PYTHONMALLOC=debug",
    "PYTHONMALLOC=malloc_debug",
    "PYTHONDEVMODE=1",
    "PYTHONHASHSEED=0",
    "PYTHONFAULTHANDLER=1",
    "PYTHONTRACEMALLOC=1",
    "GLIBC_TUNABLES=glibc.malloc.tcache_count=0",
    "GLIBC_TUNABLES=glibc.malloc.check=3",
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
    "GLIBC_TUNABLES=glibc.pthread.rseq=0",
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX512F",
    "MALLOC_ARENA_MAX=1",
    "MALLOC_PERTURB_=165",
    "MALLOC_MMAP_THRESHOLD_=65536",
    "LD_BIND_NOW=1",
    "LC_ALL=C PYTHONUTF8=0",
]


class TestInterpreters:
    @pytest.mark.parametrize("variables", _VARIABLES)
    def test_works_with(self, variables: str, tmp_path: Path) -> None:
        more = dict(variable.split("=", 1) for variable in variables.split())
        for python in in_turn(_VARIABLES, variables):
            assert run("work(direct=True, times=2)\nprint('fine')", tmp_path, python=python, **more) == "fine\n"

    @pytest.mark.parametrize("options", ["-O", "-OO", "-B", "-I", "-X frozen_modules=off", "-X dev", "-bb -W error"])
    def test_works_under(self, options: str, tmp_path: Path) -> None:
        program = "work(direct=True)\nwork(direct=False)\nprint('fine')"
        assert run(program, tmp_path, *options.split()) == "fine\n"

    @pytest.mark.parametrize("where", ["-d", "malloc"])
    def test_works_with_another_malloc(self, where: str, tmp_path: Path) -> None:
        library = next(Path("/usr/lib").glob("*/libjemalloc.so.2"), None)
        if library is None:
            pytest.skip("jemalloc is not installed (Debian: libjemalloc2)")
        more = {"PYTHONMALLOC": "malloc"} if where == "malloc" else {}
        assert run("work(direct=True)\nprint('fine')", tmp_path, LD_PRELOAD=str(library), **more) == "fine\n"


class TestSize:
    def test_program_of_hundreds_of_megabytes(self, tmp_path: Path) -> None:
        program = """
kept = [bytearray(b"x") * (1 << 20) for _ in range(200)]
table = {number: str(number) for number in range(300_000)}
def guest(job, files, ask):
    kept[100][5] = 1
    return b"%d %s" % (sum(map(len, kept)), table[299_999].encode())
print(run(guest), kept[100][5])
started = time.monotonic()
work(direct=True)
print("fine" if time.monotonic() - started < 20 else "slow")
"""
        assert run(program, tmp_path) == "b'209715200 299999' 120\nfine\n"

    def test_program_that_is_too_large_to_be_copied_is_told(self, tmp_path: Path) -> None:
        # A gibibyte that is mapped and never touched counts, and costs nothing.
        program = """
import mmap
kept = mmap.mmap(-1, 1100 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
isolation = instar.Isolation("auto", single_threaded=True)
instar.create("disk", "64M", format="qcow2", isolation=isolation)
print(isolation.said)
"""
        said = run(program, tmp_path)
        assert "kvm: " in said
        assert "too large" in said

    def test_memory_that_is_shared_with_others_is_not_the_guests(self, tmp_path: Path) -> None:
        program = """
import mmap
shared = mmap.mmap(-1, 1 << 20)
shared[0] = 7
def guest(job, files, ask):
    shared[0] = 8
    return b"it was written"
try:
    print(run(guest))
except SandboxError as error:
    print(error.kind, shared[0])
"""
        assert run(program, tmp_path) == "died 7\n"


#: One number over much arithmetic. What differs in one bit, in any of the processor's units, shows.
_COMPUTE = """
import bz2, hashlib, lzma, struct, zlib
try:
    import numpy as np
except ImportError:
    np = None
try:
    import zstandard
except ImportError:
    zstandard = None
data = bytes(pow(7, n, 65537) & 15 for n in range(100_000))
packed = [(module.decompress, module.compress(data)) for module in (zlib, lzma, bz2)]
if zstandard:
    packed.append((zstandard.ZstdDecompressor().decompress, zstandard.ZstdCompressor().compress(data)))
if np:
    dice = np.random.default_rng(1)
    a, b = dice.random((200, 200)), dice.random((200, 200))
    v, i = dice.random(50_000).astype(np.float32), dice.integers(0, 1 << 60, 20_000)

def compute():
    found = hashlib.sha256()
    if np:
        for x in (
            a @ b, a.astype("f4") @ b.astype("f4"), np.linalg.inv(a), np.linalg.eigvals(a[:50, :50]), v @ v, np.sin(v),
            np.exp(v), np.cumsum(v), np.sort(i), i ^ (i >> 3), np.fft.rfft(v), (v * 3).astype("f2"),
        ):
            found.update(np.ascontiguousarray(x).tobytes())
    for unpack, what in packed:
        assert unpack(what) == data
    for pack in (zlib.compress, lzma.compress, bz2.compress):
        found.update(pack(data[:30_000]))
    for name in ("md5", "sha1", "sha512", "sha3_256", "blake2b", "blake2s"):
        found.update(hashlib.new(name, data).digest())
    for x in (0.1 + 0.2, 2**0.5, 1e300 * 1e10, float("nan"), 7**-0.3):
        found.update(struct.pack("=d", x) + repr(x).encode())
    return found.digest()

def guest(job, files, ask):
    return compute()

outside = compute()
print([run(guest, cell) == outside for cell in (ProcessCell, KvmCell, KvmCell)], np is not None)
work(direct=True)
"""


class TestArithmetic:
    """With vectors of 512 bits, where there are any; a guest has one thread, and so had what it is a copy of."""

    def test_is_the_same_bit_for_bit(self, python: str, tmp_path: Path) -> None:
        assert run(_COMPUTE, tmp_path, python=python, OPENBLAS_NUM_THREADS="1").startswith("[True, True, True] ")

    @pytest.mark.parametrize("kernel", ["HASWELL", "SKYLAKEX", "SAPPHIRERAPIDS"])
    def test_is_the_same_in_the_kernels_of_numpy(self, kernel: str, tmp_path: Path) -> None:
        """It chooses one for the processor when it is loaded, if it is told nothing."""
        if kernel != "HASWELL" and " avx512f " not in Path("/proc/cpuinfo").read_text():
            pytest.skip("this processor has no vectors of 512 bits")
        program = _COMPUTE.replace("except ImportError:\n    np = None", "except ImportError:\n    sys.exit()", 1)
        for python in [sys.executable, *installed()]:
            said = run(program, tmp_path, python=python, OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE=kernel)
            if said:
                assert said == "[True, True, True] True\n"
                return
        pytest.skip("no Python here has numpy")
