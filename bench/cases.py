"""What is compared. Each case makes its files in a folder of its own and returns the ways to compare."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import instar
from bench.measure import ROOT, Way

if TYPE_CHECKING:
    from collections.abc import Callable

QEMU = "qemu-img"
#: The interpreter, and instar as an installed launcher starts it: the same program with the same flags.
BARE = (sys.executable, "-c", "pass")
OURS = (sys.executable, ROOT / "scripts" / "instar")
IN_PROCESS = ("--isolation=process",)
#: Images of a batch.
_MANY = 1000
PROCESS = instar.Isolation("process")


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
        Way("instar.create(), process", call=lambda: instar.create(ours, "1G", format="qcow2", isolation=PROCESS)),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _batch(folder: Path) -> list[Way]:
    """Return ways to make many images; each tells the time of one. In memory: a disk would be what is measured."""
    if Path("/dev/shm").is_dir():
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        atexit.register(shutil.rmtree, folder)

    def many(isolation: instar.Isolation) -> float:
        for old in folder.glob("ours*"):
            old.unlink()
        jobs = ({"filename": f"{folder}/ours{n}", "size": "1G", "format": "qcow2"} for n in range(_MANY))
        start = time.perf_counter()
        assert all(isinstance(made, instar.CreateResult) for made in instar.create_many(jobs, isolation=isolation))
        return (time.perf_counter() - start) / _MANY

    return [
        Way("create_many()", clock=lambda: many(instar.Isolation())),
        Way("create_many(), process", clock=lambda: many(PROCESS)),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _command(folder: Path) -> list[Way]:
    return [
        Way("instar create", (*OURS, "create", "-q", "-f", "qcow2", folder / "ours.qcow2", "1G")),
        Way("instar create, process", (*OURS, *IN_PROCESS, "create", "-q", "-f", "qcow2", folder / "ours.qcow2", "1G")),
        Way("python -c pass", BARE),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _metadata(folder: Path) -> list[Way]:
    words = ("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata")
    return [
        Way("instar create", (*OURS, *words, folder / "ours.qcow2", "1T")),
        Way("instar create, process", (*OURS, *IN_PROCESS, *words, folder / "ours.qcow2", "1T")),
        Way("qemu-img create", (QEMU, *words, folder / "theirs.qcow2", "1T")),
    ]


def _info(folder: Path) -> list[Way]:
    image = folder / "snapshots.qcow2"
    subprocess.run([QEMU, "create", "-q", "-f", "qcow2", image, "1T"], check=True)
    for number in range(100):
        subprocess.run([QEMU, "snapshot", "-c", f"snapshot {number}", image], check=True)
    return [
        Way("instar info", (*OURS, "info", image)),
        Way("instar info, process", (*OURS, *IN_PROCESS, "info", image)),
        Way("python -c pass", BARE),
        Way("qemu-img info", (QEMU, "info", image)),
    ]


def _check(folder: Path) -> list[Way]:
    image = folder / "checked.qcow2"
    subprocess.run([QEMU, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1T"], check=True)
    return [
        Way("instar check", (*OURS, "check", image)),
        Way("instar check, process", (*OURS, *IN_PROCESS, "check", image)),
        Way("qemu-img check", (QEMU, "check", image)),
    ]


def _cells(word: str, file: Path, kinds: tuple[str, ...]) -> list[Way]:
    """Return ways to have ``bench/launch.py`` do something in each kind of cell."""
    ways = []
    for kind in kinds:
        # Ends with this process, whose end of the pipe is the only one.
        server = subprocess.Popen(
            [sys.executable, "-I", "-S", ROOT / "bench" / "launch.py", ROOT / "src", kind, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ways.append(Way(kind, clock=partial(_ask, server, word)))
    return ways


def _ask(server: subprocess.Popen[str], word: str) -> float:
    assert server.stdin is not None
    assert server.stdout is not None
    print(word, file=server.stdin, flush=True)
    return float(server.stdout.readline())


def _launch(folder: Path) -> list[Way]:
    file = folder / "file"
    file.write_bytes(b"x")
    return [
        *_cells("empty", file, ("kvm-in-advance", "kvm", "process")),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _advance(folder: Path) -> list[Way]:
    ours = str(folder / "ours.qcow2")

    def timed(kind: str) -> float:
        time.sleep(0.05)  # as between calls of a program that does something else, too
        isolation = instar.Isolation(kind)
        start = time.perf_counter()
        instar.create(ours, "1G", format="qcow2", isolation=isolation)
        return time.perf_counter() - start

    return [
        Way("instar.create()", clock=lambda: timed("auto")),
        Way("instar.create(), process", clock=lambda: timed("process")),
        Way("qemu-img create", (QEMU, "create", "-q", "-f", "qcow2", folder / "theirs.qcow2", "1G")),
    ]


def _bulk(folder: Path, piece: int) -> list[Way]:
    file = folder / "file"
    with file.open("wb") as out:
        for number in range(1024):
            out.write(bytes([number & 0xFF]) * (1 << 20))
    return _cells(str(piece), file, ("kvm", "outside", "process"))


CASES = (
    Case("launch", "a cell with nothing to do, from its order to its reply", 50, _launch),
    Case("bulk", "read 4 GiB in pieces of 8 MiB, in a cell and outside", 7, partial(_bulk, piece=8 << 20)),
    Case("small", "read 4 GiB in pieces of 1 MiB, in a cell and outside", 5, partial(_bulk, piece=1 << 20)),
    Case("library", "create qcow2 1 GiB: library call against a process", 41, _library),
    Case("advance", "create qcow2 1 GiB: library call every 50 ms", 41, _advance),
    Case("batch", "create qcow2 1 GiB, one of a thousand, in memory (tmpfs)", 11, _batch),
    Case("command", "create qcow2 1 GiB: command line", 41, _command),
    Case("info", "info, qcow2 of 1 TiB with 100 snapshots", 21, _info),
    Case("metadata", "create qcow2 1 TiB, preallocation=metadata", 5, _metadata),
    Case("check", "check, qcow2 of 1 TiB with all metadata", 3, _check),
)
