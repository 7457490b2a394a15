"""Whatever the system refuses, cuts short or kills while images are made, each name holds all of an image or what it
held before.

Faults are put into real system calls by strace, one by one at every step that was seen to touch the image's folder;
short writes really write a part. Ordinary runs take a sample, always the same one; ``INSTAR_ALL_CASES=1`` takes all.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.support import extents, same_bytes

import instar
from instar.cli.session import NO_WALLS
from instar.core.errors import HostError
from instar.formats import creatable
from instar.host.create_many import create_many

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = bool(os.environ.get("INSTAR_ALL_CASES"))
SOURCE = Path(__file__).parent.parent.parent / "src"
STRACE = shutil.which("strace")
#: What changes a file, a name or a descriptor. Not every machine has all of them.
CALLS = (
    *("openat", "close", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "fchmod", "fchown", "fcntl"),
    *("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
)
#: The program with chance and time pinned; names of temporary files stay different from one another.
PINNED = """
import os, sys, time
names = iter(range(1 << 30))
os.urandom = lambda size: bytes(range(size)) if size >= 64 else next(names).to_bytes(size, "big")
time.time = lambda: 1.7e9
sys.argv[0] = "instar"
from instar.cli.main import start
start()
"""
NAME = "disk"
GiB = 1 << 30


@functools.cache
def _why_no_strace() -> str | None:
    if STRACE is None:
        return "strace is not installed"
    words = [STRACE, "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=1", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"strace cannot put faults in here: {done.stderr.strip()}"


@pytest.fixture
def _strace() -> None:
    if reason := _why_no_strace():
        pytest.skip(reason)


class Case(NamedTuple):
    """One creation on the command line. ``earlier`` are files that are there before it."""

    name: str
    format: str
    options: str
    size: str
    earlier: tuple[str, ...] = ()


SPARSE, FLAT = "subformat=twoGbMaxExtentSparse", "subformat=monolithicFlat"
CASES = (
    Case("qcow2", "qcow2", "", "64M"),
    Case("qcow2-replaced", "qcow2", "", "64M", ("disk",)),
    Case("qcow2-data-file-replaced", "qcow2", "data_file=data", "64M", ("disk", "data")),
    Case("vmdk-sparse", "vmdk", SPARSE, "3G"),
    Case("vmdk-sparse-replaced", "vmdk", SPARSE, "3G", ("disk", "disk-s001", "disk-s002")),
    Case("vmdk-sparse-one-replaced", "vmdk", SPARSE, "3G", ("disk-s002",)),
    Case("vmdk-flat", "vmdk", f"{FLAT},preallocation=full", "1M"),
    Case("vmdk-flat-replaced", "vmdk", FLAT, "1M", ("disk", "disk-flat")),
    Case("vhdx", "vhdx", "", "1M"),
    Case("raw-full", "raw", "preallocation=full", "1M"),
    Case("raw-falloc-replaced", "raw", "preallocation=falloc", "1M", ("disk",)),
)
#: Ordinary runs have one kind of cell for each case.
MATRIX = [
    pytest.param(case, isolation, id=f"{case.name}-{isolation}")
    for number, case in enumerate(CASES)
    for isolation in (("none", "process") if ALL else (("none", "process")[number % 2],))
]
every_case = pytest.mark.parametrize(("case", "isolation"), MATRIX)


class Step(NamedTuple):
    """The ``number``-th time that a process makes a call, and that is one for the image's folder.

    ``unnamed``: it opens a file without a name.
    """

    call: str
    number: int
    unnamed: bool = False


class Outcome(NamedTuple):
    code: int
    said: str
    hit: bool
    folder: Path

    def files(self) -> dict[str, bytes]:
        """Return the files that have a name of the image's own."""
        return {path.name: _content(path) for path in self.folder.iterdir() if not _is_temporary(path)}

    def strays(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _is_temporary(path)]


def _is_temporary(path: Path) -> bool:
    return re.fullmatch(r"\.disk.*\.[0-9a-f]{12}\.instar|\.data\.[0-9a-f]{12}\.instar", path.name) is not None


def _content(path: Path) -> bytes:
    """Return length and every byte that is not a zero of a hole; disks of gigabytes have few."""
    with path.open("rb") as file:
        parts = []
        for start, end in extents(path):
            data = os.pread(file.fileno(), end - start, start).rstrip(b"\0")
            if kept := data.lstrip(b"\0"):
                parts.append(b"%d:%s" % (start + len(data) - len(kept), kept))
        return b"%d %s" % (path.stat().st_size, b" ".join(parts))


def furnish(case: Case, folder: Path) -> Path:
    """Make the folder, and in it what is there before the creation."""
    folder.mkdir()
    for name in case.earlier:
        (folder / name).write_text(f"the earlier {name}")
    return folder


def attempt(
    source: Path, case: Case, isolation: str, folder: Path, *faults: tuple[Step, str], trace: tuple[str, ...] = ()
) -> Outcome:
    """Run a creation in a folder of its own, with faults in it."""
    shutil.rmtree(folder, ignore_errors=True)
    furnish(case, folder)
    log = folder.with_suffix(".log")
    calls = trace or tuple(step.call for step, _ in faults) or ("fsync",)
    words = [STRACE or "", "-f", "-qq", "-y", "-o", str(log), "-e", "trace=?" + ",?".join(calls)]
    if not any("signal" in fault for _, fault in faults):
        words.append("--seccomp-bpf")  # which stops the program at the traced calls only, but sends no signals
    for step, fault in faults:
        words += ["-e", f"inject={step.call}:{fault}:when={step.number}"]
    words += [sys.executable, "-P", "-c", PINNED, f"--isolation={isolation}", "create", "-q", "-f", case.format]
    words += ["-o", case.options] if case.options else []
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")} | {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [*words, NAME, case.size], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    traced = log.read_text(errors="replace")
    killed = any("SIGKILL" in fault for _, fault in faults) and (
        done.returncode == -signal.SIGKILL or "killed by SIGKILL" in traced
    )
    said = done.stderr.removeprefix(f"{NO_WALLS}\n")
    return Outcome(done.returncode, said, killed or "(INJECTED)" in traced, folder)


@functools.cache
def undisturbed(case: Case, isolation: str, base: Path) -> tuple[dict[str, bytes], list[Step]]:
    """Return the files that a creation makes, and its steps."""
    folder = base / f"{case.name}-{isolation}"
    attempt(base / "src", case, isolation, folder)  # so that everything is compiled
    made = attempt(base / "src", case, isolation, folder, trace=CALLS)
    assert (made.code, made.said, made.strays()) == (0, "", [])
    counts: dict[tuple[str, str], int] = {}
    steps = []
    for line in folder.with_suffix(".log").read_text(errors="replace").splitlines():
        if found := re.match(r"(\d+)\s+(\w+)\(", line):
            key = found[1], found[2]
            counts[key] = counts.get(key, 0) + 1
            # A new file has no name; every descriptor of one has its folder's instead.
            if re.search(rf'(?<!AT_FDCWD)<{re.escape(str(folder))}|"{re.escape(str(folder))}"', line):
                steps.append(Step(key[1], counts[key], "O_TMPFILE" in line))
    files = made.files()
    shutil.rmtree(folder)
    return files, list(dict.fromkeys(steps))


class Bench:
    """A case with its steps, ready to be disturbed."""

    def __init__(self, case: Case, isolation: str, tmp_path: Path, base: Path) -> None:
        self.case, self.isolation, self.source = case, isolation, base / "src"
        self.complete, self.steps = undisturbed(case, isolation, base)
        self.before = {path.name: _content(path) for path in furnish(case, tmp_path / "before").iterdir()}
        self.folder = tmp_path / "images"
        self.hits = 0

    def trials(self, faults: tuple[str, ...], few: int) -> list[tuple[Step, str]]:
        """Return each step with each fault, or a few of them: the same ones whenever this is run."""
        pool = [(step, fault) for step in self.steps for fault in faults]
        if ALL or len(pool) <= few:
            return pool
        return random.Random(f"{self.case.name} {faults}").sample(pool, few)

    def in_cell(self, step: Step) -> bool:
        """Tell whether a sealed process makes the call. It dies of a fault: for strace it makes a call there is not."""
        return self.isolation == "process" and self.case.format != "raw" and step.call == "pwrite64"

    def disturb(self, *faults: tuple[Step, str]) -> Outcome:
        outcome = attempt(self.source, self.case, self.isolation, self.folder, *faults)
        self.hits += outcome.hit
        return outcome

    def judge(self, outcome: Outcome, what: object) -> None:
        """Hold a run that came to its own end against the law: all or nothing, and a line about it."""
        files = outcome.files()
        if outcome.code == 0:
            assert files == self.complete, what
            assert outcome.said == "", what
            return
        assert files == self.before, (what, outcome.said)
        assert outcome.strays() == [], what
        assert outcome.code in (1, 70), (what, outcome.said)
        assert outcome.said.count("\n") == 1, (what, outcome.said)
        assert re.match(r"instar: (disk|data)", outcome.said), (what, outcome.said)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the program: one that is edited meanwhile opens more or fewer files."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def bench(case: Case, isolation: str, tmp_path: Path, base: Path, _strace: None) -> Iterator[Bench]:
    made = Bench(case, isolation, tmp_path, base)
    yield made
    assert made.hits, "no fault came through"
    print(f"{made.hits} faults came through")


@every_case
class TestRealCalls:
    def test_an_error_at_any_step_leaves_what_was_there(self, bench: Bench) -> None:
        reasons = {"EIO": os.strerror(errno.EIO), "ENOSPC": os.strerror(errno.ENOSPC)}
        for step, fault in bench.trials(("error=EIO", "error=ENOSPC"), 3):
            outcome = bench.disturb((step, fault))
            what = step, fault, outcome.said
            assert outcome.hit, what
            bench.judge(outcome, what)
            if outcome.code == 70:  # the cell could not be made, or was hit
                assert bench.isolation == "process" and step.call in ("pwrite64", "fcntl", "close"), what
            if outcome.code == 0:
                # Nothing was lost by it, or it came when all was done; and only a second name can be left over.
                assert step.call in ("close", "fcntl", "linkat", "unlinkat"), what
                assert len(outcome.strays()) <= (step.call == "unlinkat"), what
            elif outcome.code == 1:
                assert reasons[fault.partition("=")[2]] in outcome.said, what

    def test_an_interrupted_call_is_made_again(self, bench: Bench) -> None:
        bench.steps = [step for step in bench.steps if not bench.in_cell(step)]
        for step, fault in bench.trials(("error=EINTR",), 2):
            outcome = bench.disturb((step, fault))
            assert outcome.hit, step
            assert (outcome.code, outcome.said) == (0, ""), step
            assert (outcome.files(), outcome.strays()) == (bench.complete, []), step

    def test_a_write_of_nothing_is_made_again(self, bench: Bench) -> None:
        steps = [step for step in bench.steps if step.call == "pwrite64" and not bench.in_cell(step)]
        if not steps:
            bench.hits = 1  # in a cell, or none: the file system makes zeros itself
        for step in steps if ALL else steps[:1]:
            outcome = bench.disturb((step, "retval=0"))
            assert outcome.hit, step
            assert (outcome.code, outcome.said, outcome.files()) == (0, "", bench.complete), step

    def test_a_kill_at_any_step_loses_nothing(self, bench: Bench) -> None:
        for step, fault in bench.trials(("signal=SIGKILL",), 3):
            outcome = bench.disturb((step, fault))
            assert outcome.hit, step
            if outcome.code != -signal.SIGKILL:
                bench.judge(outcome, step)  # the cell was killed
                continue
            files = outcome.files()
            for name in bench.complete:
                assert files.get(name) in (bench.before.get(name), bench.complete[name]), (step, name)
            if NAME in files and files[NAME] == bench.complete[NAME]:
                assert files == bench.complete, step  # the image comes last
            if len(bench.complete) == 1 and not bench.before:
                assert outcome.strays() == [], step
            kept = [*files.values(), *map(_content, outcome.strays())]
            for name, data in bench.before.items():
                assert data in kept or files == bench.complete, (step, name)
            for stray in outcome.strays():
                assert _content(stray) in (*bench.before.values(), *bench.complete.values()), (step, stray.name)

    def test_a_step_more_than_there_are_is_not_hit(self, bench: Bench) -> None:
        calls = {step.call: step.number for step in bench.steps}
        last = [(name, number) for name, number in calls.items() if name not in ("openat", "close")]
        for name, number in last if ALL else random.Random(bench.case.name).sample(last, 1):
            outcome = bench.disturb((Step(name, number + 1), "error=EIO"))
            assert not outcome.hit
            assert (outcome.code, outcome.files(), outcome.strays()) == (0, bench.complete, [])
        bench.hits = 1

    def test_without_unnamed_files_an_error_leaves_no_temporary_name(self, bench: Bench) -> None:
        """A second fault after the file system said that it has none."""
        unnamed = [step for step in bench.steps if step.unnamed]
        ends = [step for step in bench.steps if step.call in ("pwrite64", "ftruncate", "fsync", "linkat", "renameat")]
        trials = [(first, end, error) for first in unnamed for end in ends for error in ("EIO", "EINTR")]
        for first, end, error in trials if ALL else random.Random(bench.case.name).sample(trials, 1):
            outcome = bench.disturb((first, "error=EOPNOTSUPP"), (end, f"error={error}"))
            bench.judge(outcome, (first, end, error))
            assert outcome.strays() == [], (first, end, error)


#: Format -> options of images that are made in process, and their size.
IN_PROCESS = {
    "raw": [("", 1 << 20), ("preallocation=full", 3 << 20)],
    "qcow2": [("", GiB), ("preallocation=metadata,extended_l2=on", GiB), ("data_file=data,data_file_raw=on", GiB)],
    "vmdk": [("", GiB), ("subformat=streamOptimized", GiB), (SPARSE, 3 * GiB), (FLAT, GiB)],
    "vpc": [("", GiB), ("subformat=fixed", GiB)],
    "vhdx": [("", GiB), ("subformat=fixed", 1 << 20)],
    "qed": [("", GiB)],
    "qcow": [("", GiB)],
    "vdi": [("", GiB), ("static=on", GiB)],
    "parallels": [("", GiB)],
    "luks": [("key-secret=s,iter-time=10", 1 << 20)],
}
IMAGES = [(name, *case) for name, cases in IN_PROCESS.items() for case in cases]
every_image = pytest.mark.parametrize(("format", "options", "size"), IMAGES)


def test_every_format_is_tried() -> None:
    assert set(IN_PROCESS) == {row.name for row in creatable()}


@pytest.fixture
def _pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "urandom", lambda length: bytes(n % 251 for n in range(length)))
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    monkeypatch.setattr("instar.host.create.key_rate", lambda _: 100_000, raising=False)
    monkeypatch.setattr("instar.host.secrets.key_rate", lambda _: 100_000)


def make(folder: Path, format: str, options: str, size: int, *, many: bool = False) -> dict[str, Path]:
    """Make an image in a folder of its own, as the working folder; return its files."""
    folder.mkdir()
    os.chdir(folder)
    words = [tuple(word.split("=", 1)) for word in options.split(",") if word]
    isolation, secrets = instar.Isolation("none"), {"s": b"pass"}
    if many:
        jobs = [{"filename": NAME, "size": size, "format": format, "options": words}]
        (result,) = create_many(jobs, isolation=isolation, secrets=secrets)
        if isinstance(result, Exception):
            raise result
    else:
        instar.create(NAME, size, format=format, options=words, isolation=isolation, secrets=secrets)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.usefixtures("_pinned")
class TestShortWrites:
    @every_image
    @pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
    def test_make_the_same_bytes(
        self, format: str, options: str, size: int, many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = make(tmp_path / "whole", format, options, size, many=many)
        real, chance, cut = os.pwrite, random.Random(f"{format}{options}"), 0

        def short(fd: int, data: bytes | memoryview, offset: int) -> int:
            nonlocal cut
            # Now and then as little as can be, else any part; never so little that it takes for ever.
            least = 1 if chance.random() < 0.1 or len(data) < 1024 else len(data) // 8
            part = chance.randint(least, max(least, len(data)))
            cut += part < len(data)
            return real(fd, memoryview(data)[:part], offset)

        monkeypatch.setattr(os, "pwrite", short)
        parts = make(tmp_path / "parts", format, options, size, many=many)
        monkeypatch.undo()
        assert cut or format == "raw"
        assert parts.keys() == whole.keys()
        for name, path in whole.items():
            same_bytes(path, parts[name])

    @every_image
    def test_of_a_limit_end_with_an_error_and_nothing_made(
        self, format: str, options: str, size: int, tmp_path: Path
    ) -> None:
        """The system writes up to the limit and no further: a real short write, then a refusal."""
        whole = make(tmp_path / "whole", format, options, size)
        end = max(path.stat().st_size for path in whole.values())
        chance = random.Random(f"{format}{options}")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        for number in range(3):
            limit = chance.randrange(end) if number else end - 1
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
                with pytest.raises(HostError) as caught:
                    make(tmp_path / str(number), format, options, size)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert caught.value.errno == errno.EFBIG
            assert os.listdir(tmp_path / str(number)) == []

    @pytest.mark.parametrize(("format", "options", "size"), [i for i in IMAGES if i[0] in ("qcow2", "vmdk", "vhdx")])
    def test_of_a_limit_in_a_cell_are_told_by_the_program(
        self, format: str, options: str, size: int, tmp_path: Path
    ) -> None:
        whole = make(tmp_path / "whole", format, options, size)
        # Half of what is written into the longest file, not of what it is made long in the end.
        limit = max(end for path in whole.values() for _, end in [(0, 0), *extents(path)]) // 2
        folder = tmp_path / "limited"
        folder.mkdir()
        words = [sys.executable, "-m", "instar", "--isolation=process", "create", "-f", format, NAME, str(size)]
        done = subprocess.run(
            [*words, *(["-o", options] if options else [])],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")} | {"PYTHONPATH": str(SOURCE)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert re.fullmatch(rf"instar: disk.*: {os.strerror(errno.EFBIG)}\n", done.stderr)
        assert (done.returncode, done.stdout, os.listdir(folder)) == (1, "", [])
