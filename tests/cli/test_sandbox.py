"""``instar sandbox`` as a person types it, and the story of a cell's death under ``-v``."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from tests.sandbox.backends import NO_KVM, needs_kvm
from tests.sandbox.numbers import number_of
from tests.sandbox.surroundings import CANNOT
from tests.support import QEMU_IMG, instar, needs_qemu_img, qemu_img, run

from instar.cli.commands.sandbox import result_text
from instar.cli.commands.shared import report
from instar.cli.session import Session
from instar.core.errors import EXIT_SANDBOX, SandboxError
from instar.host.sandbox import SelfTestResult

ROOT = Path(__file__).parent.parent.parent
TRIAL = re.compile(r"  (ok|FAILED) +\d+ ms  (.+)")


_PRCTL, _MEMFD_CREATE = number_of(157), number_of(319)


def within(*steps, words=()):
    """Run the command in other surroundings; skip where they cannot be had."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
    env["PYTHONPATH"] = str(ROOT / "src")
    changed = [sys.executable, ROOT / "tests" / "sandbox" / "surroundings.py", *steps, "--"]
    done = run(*changed, sys.executable, "-m", "instar", "sandbox", *words, env=env)
    if done.returncode == CANNOT:
        pytest.skip(f"such surroundings cannot be made here: {done.stderr.strip()}")
    return done


class TestTable:
    def test_has_a_line_for_each_kind_and_each_test_and_a_verdict(self):
        done = instar("sandbox")
        assert (done.returncode, done.stderr) == (0, "")
        first, *lines, _, verdict = done.stdout.splitlines()
        assert verdict == f"--isolation=auto takes {'process' if NO_KVM else 'kvm'} on this host."
        if NO_KVM:
            assert first == f"kvm: cannot be started: {NO_KVM}"
        else:
            assert re.fullmatch(
                r"kvm: can be started, (\d+) of \1 tests passed, [\d.]+ ms from launch to result", first
            )
        assert any(line.startswith("process: can be started, ") for line in lines)
        trials = [found for line in lines if (found := TRIAL.fullmatch(line))]
        assert len(trials) >= 20 and {found[1] for found in trials} == {"ok"}
        assert {"computes", "cannot open a file", "is stopped after 1 s of processor time"} <= {t[2] for t in trials}

    def test_is_of_one_kind_if_one_is_asked_for(self):
        for done in (
            instar("sandbox", "--quick", "--isolation=process"),
            instar("--isolation=process", "sandbox", "--quick"),
            instar("sandbox", "--quick", INSTAR_ISOLATION="process"),
        ):
            assert done.returncode == 0
            assert "kvm:" not in done.stdout
            assert done.stdout.endswith("\n--isolation=process can be used on this host.\n")
            assert "processor time" not in done.stdout

    def test_says_more_when_asked_to(self):
        shown = instar("sandbox", "--quick", "-v", "--isolation=process").stdout
        assert shown.count("because: ") == len(TRIAL.findall(shown))
        assert "a system call that no cell may make (SIGSYS)" in shown

    @needs_kvm
    def test_tells_the_story_of_a_machine_when_asked_to(self):
        assert "page fault at 0x8" in instar("sandbox", "--quick", "-v", "--isolation=kvm").stdout

    def test_names_what_failed(self):
        trials = [{"name": "n", "reason": "r", "passed": False, "microseconds": 2, "said": "\x1b!", "story": None}]
        result = SelfTestResult("auto", [{"kind": "process", "reason": None, "launch": None, "trials": trials}])
        assert result_text(result, verbose=False) == (
            "process: can be started, 0 of 1 tests passed\n  FAILED      0 ms  n: \\x1b!\n\n"
            "--isolation=auto takes process on this host. Some tests FAILED: do not rely on these cells.\n"
        )


class TestHostWithoutCells:
    def test_is_told_why_and_gives_the_exit_code_of_the_sandbox(self):
        done = within(f"deny=EPERM:{_PRCTL}")  # and with it seccomp
        assert (done.returncode, done.stderr) == (EXIT_SANDBOX, "")
        assert "\nprocess: cannot be started: seccomp filters: Operation not permitted\n" in done.stdout
        assert done.stdout.endswith("\n--isolation=auto has no cell on this host.\n")

    def test_is_told_why_even_quietly(self):
        done = within(f"deny=EPERM:{_PRCTL}", words=["-q"])
        assert (done.returncode, done.stdout) == (EXIT_SANDBOX, "")
        assert [line.split(":")[1] for line in done.stderr.splitlines()] == [" kvm", " process"]

    def test_cannot_make_the_files_of_the_test(self):
        done = within(f"deny=ENOSYS:{_MEMFD_CREATE}")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "instar: a file in memory: cannot make it: Function not implemented\n"


@needs_kvm
class TestDeviceThatMayNotBeOpened:
    def test_by_this_user_is_said_to_belong_to_a_group(self, tmp_path):
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        steps = ("namespaces=mount", f"tree={tmp_path}:kvm,proc,pivot", "device=660:54321", "user=65534:65534")
        done = within(*steps, words=["--quick"])
        first, hint = done.stdout.splitlines()[:2]
        assert first == "kvm: cannot be started: /dev/kvm: Permission denied"
        assert hint == "  is the user in group 54321? 'usermod -aG 54321 USER', then log in again"
        assert done.stdout.endswith("\n--isolation=auto takes process on this host.\n")
        assert done.returncode == 0

    def test_because_it_is_not_there_is_said_to_need_virtualisation(self, tmp_path):
        steps = ("namespaces=user,mount,pid", f"tree={tmp_path}:no-kvm,proc,pivot")
        done = within(*steps, words=["--quick", "--isolation=kvm"])
        assert done.returncode == EXIT_SANDBOX
        assert done.stdout.startswith(
            "kvm: cannot be started: /dev/kvm: No such file or directory\n  is virtualisation"
        )


class TestJson:
    def test_has_every_fact(self):
        done = instar("sandbox", "--quick", "--output=json")
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        assert (said["isolation"], said["passed"]) == ("auto", True)
        assert said["taken"] == ("process" if NO_KVM else "kvm")
        kvm, process = said["cells"]
        assert (kvm["kind"], kvm["available"], kvm["reason"]) == ("kvm", NO_KVM is None, NO_KVM)
        assert process["passed"] and process["launch-microseconds"] > 0
        assert set(process["tests"][0]) == {"name", "because", "passed", "microseconds", "said", "story"}

    def test_of_a_refusal_is_an_object_too(self):
        done = instar("sandbox", "--output=json", "--isolation=none")
        assert done.returncode == 1
        assert json.loads(done.stderr)["error"]["code"] == "bad-isolation"


class TestWords:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["disk.qcow2"], "takes no file name, not 'disk.qcow2'"),
            (["--output=xml"], "human or json"),
            (["--isolation=jail"], "no isolation 'jail'"),
            (["--isolation=none"], "ask for auto, kvm or process"),
            (["--frob"], "--frob"),
        ],
    )
    def test_that_are_wrong_are_refused_in_one_line(self, words, expected):
        done = instar("sandbox", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert expected in done.stderr

    def test_of_help_fit_a_terminal(self):
        done = instar("sandbox", "--help")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 120
        assert "sandbox" in instar("--help").stdout

    def test_quiet_says_nothing_when_all_is_well(self):
        done = instar("sandbox", "-q", "--quick")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestDialectOfQemu:
    def test_has_no_such_command(self):
        done = instar("sandbox", dialect="qemu-img")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("qemu-img: Command not found: sandbox\n")
        assert "sandbox" not in instar("--help", dialect="qemu-img").stdout

    @needs_qemu_img
    def test_answers_as_qemu_img_does(self):
        version = re.search(r"version (\d+\.\d+)", qemu_img("--version").stdout)
        assert version is not None
        done = instar("sandbox", dialect="qemu-img", INSTAR_QEMU_VERSION=version[1])
        assert QEMU_IMG is not None
        theirs = run(QEMU_IMG, "sandbox")
        assert (done.returncode, done.stderr) == (theirs.returncode, theirs.stderr)


class TestStory:
    ERROR = SandboxError("died", "the cell crashed", path="d", story="rip 0x1 \x1b")

    def told(self, capsys, *, verbose, json=False, as_qemu=False):
        session = Session(as_qemu=as_qemu)
        session.verbose = verbose
        assert report(session, self.ERROR, lambda _: "qemu-img: words", json=json) == EXIT_SANDBOX
        return capsys.readouterr().err

    def test_follows_the_error_when_asked_for(self, capsys):
        said = self.told(capsys, verbose=True)
        assert said == "instar: d: sandbox died: the cell crashed\ninstar: cell: rip 0x1 \\x1b\n"
        assert self.told(capsys, verbose=True, as_qemu=True) == "qemu-img: words\ninstar: cell: rip 0x1 \\x1b\n"

    def test_is_not_told_otherwise(self, capsys):
        assert "rip" not in self.told(capsys, verbose=False)
        assert "rip" not in self.told(capsys, verbose=False, as_qemu=True)

    @pytest.mark.parametrize("verbose", [False, True])
    def test_is_a_fact_for_programs_and_nothing_else(self, verbose, capsys):
        facts = json.loads(self.told(capsys, verbose=verbose, json=True))["error"]
        assert (facts["kind"], facts["path"], facts["story"]) == ("died", "d", "rip 0x1 \x1b")
