"""What is compared. Each case makes its files in a folder of its own and returns the ways to compare."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import instar
from bench.measure import ROOT, Way

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QEMU = "qemu-img"
#: The interpreter, and instar as an installed launcher starts it: the same program with the same flags.
BARE = (sys.executable, "-c", "pass")
OURS = (sys.executable, ROOT / "scripts" / "instar")


class Case:
    """One comparison: ``ways[0]`` is instar; ``turns`` is how often each way is timed."""

    def __init__(self, name: str, title: str, turns: int, make: Callable[[Path], list[Way]]) -> None:
        self.name = name
        self.title = title
        self.turns = turns
        self.make = make


def _library(folder: Path) -> list[Way]:
    ours = str(folder / "ours.qcow2")
    return [
        Way("instar.create()", call=lambda: instar.create(ours, "1G", format="qcow2")),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _command(folder: Path) -> list[Way]:
    return [
        Way("instar create", (*OURS, "create", "-q", "-f", "qcow2", folder / "ours.qcow2", "1G")),
        Way("python -c pass", BARE),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _metadata(folder: Path) -> list[Way]:
    words = ("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata")
    return [
        Way("instar create", (*OURS, *words, folder / "ours.qcow2", "1T")),
        Way("qemu-img create", (QEMU, *words, folder / "theirs.qcow2", "1T")),
    ]


def _info(folder: Path) -> list[Way]:
    image = folder / "snapshots.qcow2"
    subprocess.run([QEMU, "create", "-q", "-f", "qcow2", image, "1T"], check=True)
    for number in range(100):
        subprocess.run([QEMU, "snapshot", "-c", f"snapshot {number}", image], check=True)
    return [
        Way("instar info", (*OURS, "info", image)),
        Way("python -c pass", BARE),
        Way("qemu-img info", (QEMU, "info", image)),
    ]


def _check(folder: Path) -> list[Way]:
    image = folder / "checked.qcow2"
    subprocess.run([QEMU, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1T"], check=True)
    return [
        Way("instar check", (*OURS, "check", image)),
        Way("qemu-img check", (QEMU, "check", image)),
    ]


CASES = (
    Case("library", "create qcow2 1 GiB: library call against a process", 41, _library),
    Case("command", "create qcow2 1 GiB: command line", 41, _command),
    Case("info", "info, qcow2 of 1 TiB with 100 snapshots", 21, _info),
    Case("metadata", "create qcow2 1 TiB, preallocation=metadata", 5, _metadata),
    Case("check", "check, qcow2 of 1 TiB with all metadata", 3, _check),
)
