"""``python -m bench [CASE...] [--folder=DIR]``: run the comparisons; all of them write docs/performance.md."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.cases import CASES, QEMU
from bench.measure import ROOT, Way, alternate

PAGE = ROOT / "docs" / "performance.md"
HEAD = """\
# Performance

Printed by `./dev bench`, which runs instar and `qemu-img` alternately on the same machine and in the same run, and
takes medians. A ratio is instar's time (or memory) divided by the other's: below 1.00 instar needs less. Absolute
times say little beyond the machine they were taken on; ratios hold better.

{machine}

"""
TAIL = """
How to read it:

- Where nothing else is said, instar took the strongest cell, which is a virtual machine where there is KVM.
- `kvm-in-advance` is a cell of a program that has a moment between two calls: the fork server has made its machine, and
  run it up to its first system call. `kvm` is one that nobody could foresee, as on the command line.
- What a bulk read loses is the machine's exits, one for each piece; the launch of the cell is in its time.
- `instar.create()` is a call in a Python program that has made an image before, so that the fork server runs. Every
  call still gets a cell of its own; calls here follow each other without a pause, so none finds one made in advance.
- `instar create` is the whole command: interpreter, instar, a sealed process, the image. `python -c pass` is the same
  interpreter with the same flags doing nothing: the part of the time that no Python program can save.
- Memory is the peak resident size of the largest process of a command (`ru_maxrss`). A cell is a fork of the command,
  so most of its pages are shared with it.
"""


def _machine() -> str:
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    system = f"CPython {platform.python_version()}, Linux {platform.release().split('-')[0]}"
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    return f"Taken with qemu-img {version}, {system} on {os.cpu_count()} CPUs\n({model or platform.machine()}), {load}."


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _rows(title: str, ways: list[Way]) -> list[str]:
    ours = ways[0]
    peaks = {way.name: way.peak() for way in ways if way.command}
    rows = [
        f"## {title[0].upper()}{title[1:]}",
        "",
        "| | median | ratio | peak memory | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for way in ways:
        ratio = "" if way is ours else f"{ours.median / way.median:.2f}"
        peak = f"{peaks[way.name] / 2**20:.0f} MiB" if way.name in peaks else "–"
        memory = "" if way is ours or ours.name not in peaks else f"{peaks[ours.name] / peaks[way.name]:.2f}"
        rows.append(f"| `{way.name}` | {_time(way.median)} | {ratio} | {peak} | {memory} |")
    return [*rows, ""]


def main(argv: list[str]) -> int:
    """Run the cases asked for and print their tables."""
    folder = next((word.partition("=")[2] for word in argv if word.startswith("--folder=")), None)
    wanted = [word for word in argv if not word.startswith("--")]
    if shutil.which(QEMU) is None:
        print(
            "bench: qemu-img is not installed (Debian: qemu-utils), so there is nothing to compare with",
            file=sys.stderr,
        )
        return 1
    if unknown := set(wanted) - {case.name for case in CASES}:
        known = ", ".join(case.name for case in CASES)
        print(f"bench: there is no case {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    lines = HEAD.format(machine=_machine()).splitlines()
    print("\n".join(lines))
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix="instar-bench-") as place:
            ways = case.make(Path(place))
            alternate(ways, turns=case.turns)
            rows = _rows(f"{case.title} ({case.turns} turns)", ways)
        print("\n".join(rows), flush=True)
        lines += rows
    if not wanted:
        PAGE.write_text("\n".join(lines) + TAIL)
        print(f"written to {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
