"""The self-test tells the truth: every trial fails in a cell that lets through what it tries, and passes in ours."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS, NO_KVM, needs_kvm
from tests.sandbox.cells import SOURCE, has_children, make_cell, open_fds, serve_nothing

import instar
from instar.core.errors import EXIT_SANDBOX, OptionError, SandboxError
from instar.host.sandbox import SelfTestResult, _how_to_open, _output_of, self_test
from instar.sandbox.cell import Grant, Isolation, Limits
from instar.sandbox.process import inherited
from instar.sandbox.process.cell import ProcessCell
from instar.sandbox.process.policy import RULES, Rule
from instar.sandbox.selftest import FORBIDDEN, LIMITED, NOTHING, TRIALS, Trial, examine, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.sandbox.cells import Ask, Guest

    from instar.core.wire import Wire
    from instar.sandbox.cell import Cell, Serve
    from instar.sandbox.files import GrantedFile

    Make = Callable[[Guest], Cell]

BY_NAME = {trial.name: trial for trial in TRIALS}
PROCESS = Isolation("process")


def maker(kind: str) -> Make:
    return lambda guest: make_cell(kind, guest)


def leaky(*rules: Rule) -> Make:
    """Return what makes process cells that may also call this, or with any arguments what they may call anyway."""
    names = {rule.name for rule in rules}
    kept = tuple(rule for rule in RULES if rule.name not in names)
    return lambda guest: ProcessCell(direct=True, guest=guest, rules=(*kept, *rules))


class Changed:
    """A real cell, something about whose use is changed."""

    name = "changed"

    def __init__(self, guest: Guest, change: Callable[[list[Grant], Limits], Limits]) -> None:
        self.cell = ProcessCell(direct=True, guest=guest)
        self.change = change

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        files = list(files)
        return self.cell.run(job, files, self.change(files, limits), serve)


class TestTrials:
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_pass_in_our_cells_and_leave_nothing_behind(self, kind: str) -> None:
        before = open_fds()
        # In a process of its own: one that ever had threads, as a worker of xdist did, dies of what its malloc tries
        # when memory runs out.
        (cell,) = self_test(isolation=Isolation(kind)).cells
        assert [trial for trial in cell.trials if not trial.passed] == []
        assert len(cell.trials) == len(TRIALS)
        assert cell.reason is None
        assert cell.launch_seconds is not None
        assert 0 < cell.launch_seconds < 30
        assert not has_children()
        assert open_fds() == before

    def test_have_names_of_their_own_and_a_reason(self) -> None:
        assert len(BY_NAME) == len(TRIALS)
        assert all(trial.reason and trial.ends in ("reply", "died", "limit") for trial in TRIALS)
        assert all(trial.words for trial in TRIALS if trial.ends != "reply")

    @pytest.mark.parametrize("kind", KINDS)
    def test_that_wait_for_a_limit_are_left_out_of_a_quick_run(self, kind: str) -> None:
        trials = examine(maker(kind), quick=True)["trials"]
        assert isinstance(trials, list)
        assert len(trials) == len(TRIALS) - sum(trial.slow for trial in TRIALS) < len(TRIALS)


#: What a fork would have to be left with for a trial to fail.
INHERITED = {
    "has no environment": "forget_environment",
    "cannot write memory that its host shares": "drop_shared_memory",
}

#: What the filter would have to let through for a trial to get what it tries for.
HOLES = (
    ("open a file", Rule("openat", 257, 56, "any", "")),
    ("open /dev/kvm", Rule("openat", 257, 56, "any", "")),
    ("remove a file", Rule("unlink", 87, 35, "any", "")),
    ("read a file granted for writing", Rule("pread64", 17, 67, "any", "")),
    ("write a file granted for reading", Rule("pwrite64", 18, 68, "any", "")),
    ("read what was not granted", Rule("pread64", 17, 67, "any", "")),
    ("truncate a file", Rule("ftruncate", 77, 46, "any", "")),
    ("use ioctl", Rule("ioctl", 16, 29, "any", "")),
    ("make a socket", Rule("socket", 41, 198, "any", "")),
    ("start a process", Rule("clone", 56, 220, "any", "")),
    ("run a program", Rule("execve", 59, 221, "any", "")),
    ("signal another process", Rule("kill", 62, 129, "any", "")),
    ("touch another process's memory", Rule("process_vm_writev", 311, 271, "any", "")),
    ("map executable memory", Rule("mmap", 9, 222, "any", "")),
    ("map shared memory", Rule("mmap", 9, 222, "any", "")),
    ("watch another process", Rule("clock_gettime", 228, 113, "any", "")),
    ("change its limits", Rule("prlimit64", 302, 261, "any", "")),
)


class TestHoles:
    @pytest.mark.parametrize(("name", "rule"), HOLES, ids=[name for name, _ in HOLES])
    def test_in_the_filter_are_found_by_their_trial(self, name: str, rule: Rule) -> None:
        trial = BY_NAME.get(f"cannot {name}")
        if trial is None:
            pytest.skip("the call's number is not known on this machine")
        row = run_trial(leaky(rule), trial)
        assert not row["passed"], row
        assert "system call" not in str(row["said"])
        assert run_trial(leaky(), trial)["passed"]

    def test_are_tried_for_everything_forbidden(self) -> None:
        tried = {f"cannot {name}" for name, _ in HOLES} | {"ends at a wrong pointer"}
        assert {trial.name for trial in FORBIDDEN} <= tried | {*INHERITED}

    @pytest.mark.parametrize("name", INHERITED)
    def test_in_what_a_cell_inherits_are_found(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run_trial(leaky(), BY_NAME[name])["passed"]
        monkeypatch.setattr(inherited, INHERITED[name], lambda: None)
        assert not run_trial(leaky(), BY_NAME[name])["passed"]
        monkeypatch.undo()
        assert run_trial(leaky(), BY_NAME[name])["passed"]

    @pytest.mark.parametrize("trial", LIMITED, ids=[trial.name for trial in LIMITED])
    def test_in_the_limits_are_found(self, trial: Trial) -> None:
        loose = Limits(cpu_seconds=3, wall_seconds=2, file_bytes=1 << 20)
        assert not run_trial(lambda guest: Changed(guest, lambda _, __: loose), trial)["passed"]

    def test_through_which_a_file_changes_are_found_by_any_trial(self) -> None:
        def scribble(files: list[Grant], limits: Limits) -> Limits:
            os.pwrite(files[0].fd, b"x", 5)
            return limits

        row = run_trial(lambda guest: Changed(guest, scribble), NOTHING)
        assert not row["passed"]
        assert "something else" in str(row["said"])

    @pytest.mark.parametrize(
        "trial",
        [t for t in TRIALS if t.ends == "reply" and t is not NOTHING and t.name not in INHERITED],
        ids=lambda trial: trial.name,
    )
    def test_in_a_cell_that_does_not_do_what_it_should_are_found(self, trial: Trial) -> None:
        def spoiled(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            return trial.guest(job[1:], files[::-1], lambda question: ask({"other": question}))

        assert not run_trial(lambda _: ProcessCell(direct=True, guest=spoiled), trial)["passed"]


class TestCellThatFails:
    def test_at_its_start_is_not_available_and_says_why(self) -> None:
        row = examine(leaky(Rule("x", 1 << 40, 1 << 40, "any", "")))  # no filter can be made of that
        assert row["trials"] == [] and row["launch"] is None
        assert "could not be made" in str(row["reason"])

    def test_at_the_least_job_is_tried_no_further(self) -> None:
        def dead(guest: Guest) -> Cell:
            return ProcessCell(direct=True, guest=lambda job, files, ask: os._exit(9))

        row = examine(dead)
        assert row["reason"] is None and row["launch"] is None
        (trial,) = row["trials"]  # type: ignore[misc,union-attr]
        assert (trial["name"], trial["passed"]) == ("starts", False)  # type: ignore[call-overload,index]


class TestLibrary:
    def test_tests_cells_for_a_program_with_threads(self) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            before = open_fds()
            result = instar.self_test(isolation=PROCESS, quick=True)
            assert open_fds() == before
        finally:
            stop.set()
            thread.join()
        assert isinstance(result, instar.SelfTestResult)
        assert (result.passed, result.taken, result.exit_code) == (True, "process", 0)
        assert not has_children()

    def test_forks_nothing_of_a_program_that_made_no_promise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("the program itself was forked"))
        assert self_test(isolation=PROCESS, quick=True).passed

    def test_forks_from_a_program_that_promised_to_have_one_thread(self) -> None:
        code = (
            "import os, instar\n"
            "os.posix_spawn = None\n"
            "result = instar.self_test(isolation=instar.Isolation('process', single_threaded=True), quick=True)\n"
            "assert result.passed, result.cells[0].trials"
        )
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        subprocess.run([sys.executable, "-c", code], env=env, check=True)

    def test_covers_what_auto_may_take_and_never_none(self) -> None:
        result = self_test(quick=True)
        assert [cell.kind for cell in result.cells] == ["kvm", "process"]
        assert result.taken == ("process" if NO_KVM else "kvm")
        assert result.cells[0].reason == NO_KVM
        with pytest.raises(OptionError, match="no cell") as caught:
            self_test(isolation=Isolation("none"))
        assert caught.value.code == "bad-isolation"

    @needs_kvm
    def test_knows_where_the_guest_of_a_machine_died(self) -> None:
        (cell,) = self_test(isolation=Isolation("kvm"), quick=True).cells
        stories = {trial.name: trial.story for trial in cell.trials}
        assert "system call" in str(stories["cannot open a file"])
        assert "page fault at 0x8" in str(stories["ends at a wrong pointer"])

    def test_says_so_where_there_is_no_interpreter_to_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(SandboxError, match="No such file") as caught:
            self_test(isolation=PROCESS)
        assert caught.value.kind == "unavailable"
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(SandboxError, match="single_threaded"):
            self_test(isolation=PROCESS)

    def test_ends_the_fresh_process_when_it_is_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> bytes:
            raise KeyboardInterrupt

        monkeypatch.setattr("instar.host.sandbox.os.read", interrupt)
        before, began = open_fds(), time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            _output_of("import time; time.sleep(60)")
        assert time.monotonic() - began < 30
        assert open_fds() == before
        assert not has_children()


ROW: dict[str, Wire] = {
    "kind": "process",
    "reason": None,
    "launch": 1500,
    "trials": [
        {"name": n, "reason": "r", "passed": n == "a", "microseconds": 2, "said": "s", "story": None} for n in "ab"
    ],
}


class TestResult:
    def test_has_not_passed_when_one_trial_of_one_cell_failed(self) -> None:
        good = {**ROW, "kind": "kvm", "trials": ROW["trials"][:1]}  # type: ignore[index]
        assert SelfTestResult("auto", [good]).passed
        result = SelfTestResult("auto", [good, ROW])
        assert (result.passed, result.taken, result.exit_code) == (False, "kvm", EXIT_SANDBOX)
        assert result.cells[1].launch_seconds == 0.0015

    def test_has_not_passed_without_a_cell(self) -> None:
        result = SelfTestResult("kvm", [{"kind": "kvm", "reason": "no luck", "launch": None, "trials": []}])
        assert (result.passed, result.taken, result.exit_code) == (False, None, EXIT_SANDBOX)
        assert (result.cells[0].available, result.cells[0].hint) == (False, None)

    @pytest.mark.parametrize(
        ("mode", "gid", "euid", "words"),
        [
            (0o660, 54321, 1000, "in group 54321?"),
            (0o660, 0, 1000, "only root may open it"),
            (0o600, 54321, 1000, "only root may open it"),
            (0o666, 54321, 0, "--device /dev/kvm"),
        ],
    )
    def test_says_who_may_open_the_device(
        self, mode: int, gid: int, euid: int, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: euid)
        assert words in _how_to_open(os.stat_result((0o20000 | mode, 0, 0, 1, 0, gid, 0, 0, 0, 0)))


def test_cell_of_a_trial_gets_the_files_that_the_trials_think_it_gets() -> None:
    seen: list[str] = []

    def look(files: list[Grant], limits: Limits) -> Limits:
        seen.extend(grant.mode for grant in files)
        return limits

    run_trial(lambda guest: Changed(guest, look), NOTHING)
    assert seen == ["r", "w", "rw"]
    with pytest.raises(SandboxError):
        maker("process")(lambda *_: os.pread(8, 1, 0)).run(b"", [], Limits(), serve_nothing)
