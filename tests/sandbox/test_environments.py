"""Machines as cells meet them: ordinary users, limits, containers. A cell works there, or says why it cannot.

Each program below is started by ``surroundings``, whose steps are real; ``auto`` may then fall back, ``kvm`` must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import needs_kvm
from tests.sandbox.cells import SOURCE
from tests.sandbox.surroundings import CANNOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_kvm

#: Each operation by the command line and by the library, forked directly and by the server; prints what came of it.
_PROBE = f"""
import json, os, subprocess, sys
sys.path[:0] = [{str(SOURCE)!r}]
import instar
os.environ["PYTHONPATH"] = sys.path[0]
kind = sys.argv[1]
found = []

def command(*words):
    line = [sys.executable, "-m", "instar", "--isolation=" + kind, words[0], "-v", *words[1:]]
    done = subprocess.run(line, capture_output=True, text=True)
    found.append([words[0], done.returncode, done.stderr.splitlines()])

def library(operation, *words, **more):
    for direct in (True, False):
        isolation = instar.Isolation(kind, single_threaded=direct)
        try:
            getattr(instar, operation)(*words, isolation=isolation, **more)
            code, said = 0, []
        except instar.InstarError as error:
            code, said = 1, [str(error)]
        found.append([operation, code, [*(f"instar: isolation: {{word}}" for word in isolation.said), *said]])

instar.create("disk", "64M", format="qcow2", isolation=instar.Isolation("none"))
for format in ("qcow2", "vhdx"):
    command("create", "-f", format, "disk." + format, "64M")
command("info", "disk")
command("check", "disk")
library("create", "new", "64M", format="vmdk")
library("info", "disk")
library("check", "disk")
print(json.dumps(found))
"""
_OPERATIONS = ["create", "create", "info", "check", "create", "create", "info", "info", "check", "check"]

#: A container as most engines make it.
CONTAINER = "namespaces=user,mount,pid,net,ipc,uts"
#: What the usual profile forbids and somebody might want here: mount, umount2, pivot_root, ptrace, unshare, setns,
#: add_key, request_key, keyctl, kexec_load, bpf, perf_event_open, userfaultfd.
PROFILE = ["deny=EPERM:165,166,155,101,272,308,248,249,250,246,321,298,323", "deny=ENOSYS:435"]
USER, GROUP = 61234, 61235


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, which those of pytest are not."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="instar-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def enter(folder: Path, kind: str, *steps: str) -> list[tuple[int, list[str]]]:
    """Run the probe in such surroundings; return exit code and complaints of each operation."""
    python = os.path.realpath(sys.executable)
    words = [step.replace("FOLDER", str(folder)) for step in steps]
    launcher = str(Path(__file__).parent / "surroundings.py")
    done = subprocess.run(
        [python, "-B", launcher, *words, "--", python, "-B", "-c", _PROBE, kind],
        cwd=folder, env={"LC_ALL": "C.UTF-8"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode == CANNOT:
        pytest.skip(f"these surroundings cannot be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert [operation for operation, _, _ in found] == _OPERATIONS
    return [(code, said) for _, code, said in found]


def works(folder: Path, *steps: str) -> None:
    """Fail unless every operation works in a machine, without a word."""
    assert enter(folder, "kvm", *steps) == [(0, [])] * len(_OPERATIONS)


def falls_back(folder: Path, reason: str, *steps: str) -> None:
    """Fail unless every operation works in a process, having said why it is no machine."""
    for code, said in enter(folder, "auto", *steps):
        assert code == 0, said
        assert len(said) == 1
        assert said[0].startswith("instar: isolation: kvm: ")
        assert reason in said[0]


def tree(*words: str) -> str:
    return "tree=FOLDER:" + ",".join(words)


class TestUsers:
    def test_root(self, folder: Path) -> None:
        works(folder)

    def test_ordinary_user_whose_group_may_use_the_device(self, folder: Path) -> None:
        works(
            folder,
            "namespaces=mount",
            tree("kvm", "proc", "pivot"),
            f"device=660:{GROUP}",
            f"user={USER}:{USER}:{GROUP}",
            "no-capabilities",
            "no-new-privileges",
        )

    def test_ordinary_user_with_few_processes(self, folder: Path) -> None:
        works(
            folder,
            "namespaces=mount",
            tree("kvm", "proc", "pivot"),
            f"device=660:{GROUP}",
            "limit=NPROC:8",
            f"user={USER}:{USER}:{GROUP}",
        )

    def test_ordinary_user_who_may_not_use_the_device_is_told(self, folder: Path) -> None:
        falls_back(
            folder,
            "/dev/kvm: Permission denied",
            "namespaces=mount",
            tree("kvm", "proc", "pivot"),
            f"device=660:{GROUP}",
            f"user={USER}:{USER}",
        )

    def test_kvm_by_name_is_refused_where_the_device_is(self, folder: Path) -> None:
        steps = ("namespaces=mount", tree("kvm", "proc", "pivot"), f"device=600:{GROUP}", f"user={USER}:{USER}")
        for code, said in enter(folder, "kvm", *steps):
            assert code in (1, 70)
            assert "/dev/kvm: Permission denied" in said[-1]
            assert "--isolation=process may work" in said[-1]


class TestLimits:
    """``prlimit`` before a program, as cloud services start theirs."""

    @pytest.mark.parametrize(
        "limit",
        [
            "AS:1073741824", "CPU:30", "MEMLOCK:0", "NOFILE:32", "STACK:1048576", "STACK:-1", "CORE:0", "SIGPENDING:0",
            "FSIZE:67108864", "NICE:0", "MSGQUEUE:0",
        ],
    )  # fmt: skip
    def test_a_machine_keeps_within(self, limit: str, folder: Path) -> None:
        works(folder, f"limit={limit}")

    def test_a_machine_keeps_within_those_of_image_services(self, folder: Path) -> None:
        works(folder, "limit=AS:1073741824", "limit=CPU:30")

    @pytest.mark.parametrize("mebibytes", [250, 300])
    def test_too_little_address_space_for_a_machine_is_said(self, mebibytes: int, folder: Path) -> None:
        falls_back(folder, "", f"limit=AS:{mebibytes << 20}")


class TestContainers:
    @pytest.mark.parametrize(
        "words",
        [("proc", "pivot"), ("proc", "pivot", "read-only"), ("proc",)],
        ids=["pivot", "read-only", "chroot"],
    )
    def test_machine_in_one(self, words: tuple[str, ...], folder: Path) -> None:
        works(folder, CONTAINER, tree("kvm", *words), "no-new-privileges")

    def test_machine_under_a_common_profile(self, folder: Path) -> None:
        works(folder, CONTAINER, tree("kvm", "proc", "pivot"), *PROFILE)

    def test_machine_in_one_of_roots(self, folder: Path) -> None:
        works(folder, "namespaces=mount,pid,net", tree("kvm", "proc", "pivot"), "no-capabilities", "no-new-privileges")

    def test_no_device_is_said(self, folder: Path) -> None:
        falls_back(folder, "/dev/kvm: No such file or directory", CONTAINER, tree("proc", "pivot"))

    def test_no_copying_of_memory_is_said(self, folder: Path) -> None:
        falls_back(
            folder,
            "process_vm_writev: Operation not permitted",
            CONTAINER,
            tree("kvm", "proc", "pivot"),
            *PROFILE,
            "deny=EPERM:310,311",
        )

    def test_no_proc_is_said(self, folder: Path) -> None:
        falls_back(folder, "/proc/self/", CONTAINER, tree("kvm", "pivot"), "no-new-privileges")

    @pytest.mark.parametrize("number", [28, 38, 272, 317, 436, 444, 446], ids=lambda n: f"without call {n}")
    def test_what_any_profile_denies_is_done_without_or_said(self, number: int, folder: Path) -> None:
        """No profile can be so odd that an operation fails which a weaker cell could do, or that it hangs."""
        for code, said in enter(folder, "auto", f"deny=EPERM:{number}"):
            assert code == 0, said
            assert all(word.startswith("instar: isolation: kvm: ") for word in said)
