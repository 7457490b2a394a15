"""Which tests reach a line of ``core`` and ``formats``, and what they say of a mutant; all in a copy of the tree.

Law: the caller's tree is never changed. This process never imports instar, so that each fork loads it with its mutant.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.mutants import change

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from tools.mutants import Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "fuzz", "tools", "docs", "bench", "pyproject.toml", "README.md", "CONTRIBUTING.md")
MUTATED = ("src/instar/core", "src/instar/formats")
#: Tests that run the code in their own process. Those that start cells or programs are slow, and reach little else.
TESTS = (
    "src/instar/core",
    "src/instar/formats",
    "tests/core",
    "tests/formats",
    "tests/guest",
    "tests/fuzz/test_targets.py",
    "tests/cli/test_argv.py",
    "tests/cli/test_json.py",
    "tests/cli/test_render.py",
    "tests/docs/test_pages.py::test_generated_parts_are_current",
)
#: A mutant may ask for anything: more is taken for a crash.
MEMORY = 4 << 30
FREE_DISK = 4 << 30
#: A mutant has this many times as long as its tests need, and some seconds.
PATIENCE, LEAST_SECONDS = 5, 10
FILES_AT_ONCE = 12
#: A test that takes longer runs after those that do not.
SLOW = 0.3
#: Tests of one mutant, the quickest first, take at most so long: what only a later one would kill, survives here.
MOST_SECONDS = 20.0
#: What small images of a format are said to be, which is quick and sees much.
ANSWERS = "tests/formats/test_answers.py::test_answers_are_those_that_were_decided_on["
#: Tests that look at declarations, which no line of a function may use.
DECLARED = ("tests/formats/test_declarations.py", "tests/docs/")


class Selector:
    """A plugin of pytest: runs the tests asked for in the order asked for, and tells which one failed."""

    def __init__(self, wanted: list[str]) -> None:
        self.order = {name: number for number, name in enumerate(wanted)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests asked for."""
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the first failure."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember what could not even be imported."""
        if report.failed:
            self.failed = self.failed or f"import of {report.nodeid}"


class Recorder:
    """A plugin of pytest: runs every test under its own name in the eyes of coverage, and takes its time."""

    def __init__(self, coverage: Any) -> None:  # noqa: ANN401 - no types where it is not installed
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Switch to the test's context."""
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up set-up, call and teardown; a test that was skipped, or fails without any mutant, does not count."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def passed(self) -> dict[str, float]:
        """Return the tests that count, with their seconds."""
        return {name: seconds for name, seconds in self.seconds.items() if name not in self.failed}


def pytest_main(arguments: list[str], *plugins: object) -> int:
    """Run pytest, the same in every run: no cache, no examples kept, no deadline, none drawn by chance."""
    hypothesis = importlib.import_module("hypothesis")
    hypothesis.settings.register_profile("mutate", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutate")
    pytest = importlib.import_module("pytest")
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--import-mode=importlib"]
    return int(pytest.main([*words, "--doctest-modules", *arguments], plugins=list(plugins)))


def in_fork(
    work: Callable[[], tuple[int, str]], seconds: float, folder: Path, *, quiet: bool = True
) -> tuple[int, str]:
    """Run ``work`` in a child with limits; return its code and word: -1 for a crash, -2 when it took too long."""
    answer = folder / "answer"
    answer.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 3
        try:
            os.setsid()
            for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
                del sys.modules[name]  # tests load it out of the copy
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2) if quiet else (0,):
                os.dup2(nowhere, number)
            code, word = work()
            answer.write_text(word)
        finally:
            os._exit(code)
    late = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        disk = os.statvfs(folder)
        late = time.monotonic() - start > seconds or disk.f_bavail * disk.f_frsize < FREE_DISK
        if late:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test left running
    word = answer.read_text() if answer.exists() else ""
    if late:
        return -2, word
    return (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1), word


class Tree:
    """A copy of the checkout, in which files may be broken, and what is known of its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.verdicts = folder / "verdicts"
        folder.mkdir()
        for name in COPIED:
            source, goal = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy2(source, goal)
        self.modules = sorted(str(p.relative_to(folder)) for m in MUTATED for p in (folder / m).rglob("*.py"))
        #: Seconds that a test takes; the tests that reach a line of a module.
        self.seconds: dict[str, float] = {}
        self.reached: dict[str, dict[int, set[str]]] = {}

    def _known(self, cache: Path) -> dict[str, Path]:
        """Return where it is kept what a file of tests reaches: other sources are another place."""
        files = self._files()
        shared = hashlib.sha256()
        for path in sorted(p for name in ("src", "tests", "fuzz") for p in (self.folder / name).rglob("*.py")):
            if not path.name.startswith("test_"):
                shared.update(f"{path.relative_to(self.folder)}\0".encode() + path.read_bytes())
        known = {}
        for name in files:
            state = shared.copy()
            state.update(name.encode() + (self.folder / name.partition("::")[0]).read_bytes())
            known[name] = cache / f"{state.hexdigest()[:24]}.json"
        return known

    def learn(self, cache: Path, number: int = 0, jobs: int = 1) -> None:
        """Run each file of tests once, with coverage, unless that has been done; of ``jobs`` shares one."""
        os.chdir(self.folder)
        missing = sorted((n, g) for n, g in self._known(cache).items() if not g.exists())
        # In several runs, so that not all is lost by an end between them.
        for start in range(number, len(missing), jobs * FILES_AT_ONCE):
            some = dict(missing[start : start + jobs * FILES_AT_ONCE : jobs])
            code, _ = in_fork(lambda some=some: self._record(some), 7200, self.folder, quiet=False)  # type: ignore[misc]
            if code:
                raise SystemExit(f"mutate: the tests cannot be run (pytest: {code})")

    def recall(self, cache: Path) -> None:
        """Take up what has been learnt."""
        os.chdir(self.folder)
        for stored in (json.loads(goal.read_text()) for goal in self._known(cache).values()):
            self.seconds.update(stored["seconds"])
            for path, lines in stored["reached"].items():
                table = self.reached.setdefault(path, {})
                for line, tests in lines.items():
                    table.setdefault(int(line), set()).update(tests)

    def _files(self) -> list[str]:
        """Return the files with tests, as pytest takes them."""
        names = []
        for name in TESTS:
            path = self.folder / name
            pattern = "*.py" if name.startswith("src/") else "test_*.py"
            names += [str(p.relative_to(self.folder)) for p in sorted(path.rglob(pattern))] if path.is_dir() else [name]
        return names

    def _record(self, goals: dict[str, Path]) -> tuple[int, str]:
        coverage = importlib.import_module("coverage").Coverage(
            data_file=None, config_file=False, source=[str(self.folder / m) for m in MUTATED], messages=False
        )
        recorder = Recorder(coverage)
        coverage.start()
        code = pytest_main(list(goals), recorder)
        coverage.stop()
        if code not in (0, 1, 5):  # 5: there is no test in these files
            return code, ""
        for name in sorted(recorder.failed):
            print(f"mutate: left out, as it fails without any mutant: {name}", file=sys.stderr)
        seconds = recorder.passed()
        reached: dict[str, dict[str, dict[int, list[str]]]] = {name: {} for name in goals}
        owners = {
            test: next((n for n in goals if test.startswith(n.partition("::")[0] + "::")), None) for test in seconds
        }
        for path in self.modules:
            for line, tests in coverage.get_data().contexts_by_lineno(str(self.folder / path)).items():
                for test in tests:
                    owner = owners.get(test)
                    if owner is not None:
                        reached[owner].setdefault(path, {}).setdefault(line, []).append(test)
        for name, goal in goals.items():
            mine = {test: taken for test, taken in seconds.items() if owners[test] == name}
            goal.write_text(json.dumps({"seconds": mine, "reached": reached[name]}))
        return 0, ""

    def tests_for(self, mutant: Mutant) -> list[list[str]]:
        """Return the tests that may see a mutant, in the order to run: those close to its module, then others.

        What runs at import concerns all tests that use the module or, as it may have nothing but declarations,
        its package.
        """
        lines = self.reached.get(mutant.path, {})
        if mutant.function:
            first, last = mutant.statement
            wanted = set[str]().union(*(lines.get(n, set()) for n in range(first, last + 1)))
        else:
            wanted = set[str]().union(*lines.values())
            package = f"{Path(mutant.path).parent}/"
            if package != "src/instar/core/" or len(wanted) < 50:
                for path, others in self.reached.items():
                    if path.startswith(package):
                        wanted = wanted.union(*others.values())
            wanted |= {t for t in self.seconds if t.startswith(DECLARED)}
        folder, module = Path(mutant.path).parent, Path(mutant.path).stem
        mirror = str(folder).replace("src/instar", "tests")
        exact = f"{mirror}/test_{module}.py"
        answers = f"{ANSWERS}{folder.name}]"
        first_of_all = () if mutant.function else DECLARED
        near = (exact if mirror == "tests/core" else f"{mirror}/", answers, *first_of_all)

        def rank(test: str) -> tuple[bool, bool, bool, bool, float, str]:
            seconds = self.seconds[test]
            slow = seconds > SLOW and test != answers
            return (
                not test.startswith(first_of_all),
                not test.startswith(near),
                slow,
                not test.startswith((exact, answers)),
                seconds,
                test,
            )

        order: list[str] = []
        left = MOST_SECONDS
        for test in sorted(wanted, key=rank):
            left -= self.seconds[test]
            if left < 0 and order:
                break
            order.append(test)
        groups = [[t for t in order if t.startswith(near)], [t for t in order if not t.startswith(near)]]
        return [group for group in groups if group]

    def judge(self, mutant: Mutant, text: str) -> dict[str, object]:
        """Return what became of a mutant: killed, survived, timeout or no tests."""
        groups = self.tests_for(mutant)
        verdict: dict[str, object] = {"mutant": mutant.name, "line": mutant.line, "result": "no tests", "by": ""}
        path = self.folder / mutant.path
        original, times = path.read_text(encoding="utf-8"), path.stat()
        compiled = Path(importlib.util.cache_from_source(str(path)))
        aside = compiled.with_suffix(".aside")
        if compiled.exists():
            compiled.rename(aside)
        path.write_text(text, encoding="utf-8")
        start = time.monotonic()
        try:
            for group in groups:
                allowed = LEAST_SECONDS + PATIENCE * sum(self.seconds[t] for t in group)
                code, by = in_fork(lambda group=group: self._try(group), allowed, self.folder)  # type: ignore[misc]
                verdict["by"] = by
                verdict["result"] = {0: "survived", -2: "timeout"}.get(code, "killed")
                if code in (4, 5):
                    raise SystemExit(f"mutate: pytest does not find the tests of {mutant.name}")
                if code:
                    break
        finally:
            path.write_text(original, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if aside.exists():
                aside.rename(compiled)
        verdict["seconds"] = round(time.monotonic() - start, 2)
        verdict["change"] = change(original, text)
        return verdict

    def _try(self, wanted: list[str]) -> tuple[int, str]:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        selector = Selector(wanted)
        files = list(dict.fromkeys(name.partition("::")[0] for name in wanted))
        code = pytest_main(["-x", f"--basetemp={self.folder / 'tmp'}", *files], selector)
        return code, selector.failed
