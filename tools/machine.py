"""Run commands in an emulated machine: an initramfs with Python and the checkout, QEMU around it, and what it reports.

Used by `stock_kvm` (an ordinary KVM) and `arm` (another processor). What commands print goes to the first serial line,
which is shown as it comes; the second has one line, the last, which says how each command ended.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tools.initramfs import Entry, entries_of, write_cpio
from tools.machine_init import END, KVM_GROUP, READY

ROOT = Path(__file__).parent.parent
USER = 1000
#: What the commands find in the machine, at /project.
PROJECT = ("src", "tests", "pyproject.toml")
#: Exit status where something is missing that this machine cannot offer.
EXIT_MISSING = 77


@dataclass(frozen=True)
class Command:
    """What to run in the checkout, and how it should end.

    `{isolation}` in a word stands for the kind of cell. A user other than 0 is in the group kvm, and nothing else.
    """

    argv: tuple[str, ...]
    user: int = USER
    expect: int = 0


class Missing(Exception):
    """Something is not there without which nothing can be tried; the message says what."""


# --- the initramfs --------------------------------------------------------------------------------------------------


def stage_project(tree: Path) -> None:
    """Put what the commands work on below `tree`."""
    for name in PROJECT:
        source, target = ROOT / name, tree / "project" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def write_initramfs(file: Path, tree: Path, python: str, job: dict[str, Any], commands: Sequence[Command]) -> None:
    """Write what has been gathered below `tree` to `file`, with an /init that `python` runs.

    `job` is for `machine_init`: `modules`, `kvm` (the module, or None), `report` (the second line), `environment`.
    """
    (tree / "job.json").write_text(json.dumps({**job, "commands": [asdict(command) for command in commands]}))
    (tree / "etc").mkdir(exist_ok=True)
    (tree / "etc/passwd").write_text(f"root:x:0:0::/tmp:/bin/false\nuser:x:{USER}:{USER}::/tmp:/bin/false\n")
    (tree / "etc/group").write_text(f"root:x:0:\nuser:x:{USER}:\nkvm:x:{KVM_GROUP}:user\n")
    init = tree / "init"
    init.write_text(f"#!{python} -IBS\n{(ROOT / 'tools/machine_init.py').read_text()}")
    init.chmod(0o755)
    console = (Entry("dev", stat.S_IFDIR | 0o755), Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    with file.open("wb") as out:
        write_cpio(out, [*console, *entries_of(tree)])


# --- the machine ----------------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """What became of a machine: seconds until it was ready, if it was, and what came over its second line."""

    ready: float | None = None
    timed_out: bool = False
    second: str = ""


def boot(argv: Sequence[str | Path], second: Path, timeout: float) -> Ran:
    """Run QEMU to its end, or kill it after `timeout` seconds; show what comes over the first line as it comes."""
    ran, start, seen = Ran(), time.monotonic(), b""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:

        def late() -> None:
            ran.timed_out = True
            qemu.kill()

        timer = threading.Timer(timeout, late)
        timer.start()
        try:
            assert qemu.stdout
            while data := os.read(qemu.stdout.fileno(), 1 << 16):
                if ran.ready is None:
                    seen += data
                    if READY.encode() in seen:
                        ran.ready = time.monotonic() - start
                sys.stdout.buffer.write(data.replace(b"\r", b""))
                sys.stdout.flush()
            qemu.wait()
        finally:
            timer.cancel()
            qemu.kill()
    if second.exists():
        ran.second = second.read_text(errors="replace")
    return ran


def parse_end(text: str) -> dict[str, Any] | None:
    """Return the report of the machine's last line, or None if there is no whole one."""
    for line in reversed(text.replace("\r", "").split("\n")[:-1]):
        if line.startswith(END):
            try:
                report = json.loads(line.removeprefix(END))
            except ValueError:
                return None
            return report if isinstance(report, dict) and isinstance(report.get("codes"), list) else None
    return None


def complaints(ran: Ran, commands: Sequence[Command], timeout: float) -> list[str]:
    """Return what went wrong, in sentences; nothing if every command ended as it should."""
    if ran.timed_out:
        return [f"the machine was killed after {timeout:.0f} s"]
    report = parse_end(ran.second)
    if report is None:
        return ["the machine stopped without its last line"]
    found = [f"the machine failed: {report['error']}"] if "error" in report else []
    codes = report["codes"]
    if len(codes) != len(commands):
        found.append(f"{len(codes)} of {len(commands)} commands ran")
    for command, code in zip(commands, codes, strict=False):
        if code != command.expect:
            found.append(f"exit status {code} instead of {command.expect}: {shlex.join(command.argv)}")
    return found


def stop(number: int, frame: FrameType | None) -> None:
    """End in order when told to, so that no machine is left running."""
    sys.exit(128 + number)
