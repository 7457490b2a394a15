"""``python -m fuzz [TARGET [SECONDS [NUMBER]]]``: one target for 60 s, or every target for 10 s.

Led by coverage where atheris is installed, else by chance.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from importlib.util import find_spec

from fuzz.runner import Broken, names, run

#: A target that needs more has a leak; a cell has less. (What libFuzzer itself needs comes on top.)
MEMORY = 1 << 30
_COVERED = re.compile(r"cov: (\d+)")
_EXECUTED = re.compile(r"number_of_executed_units: (\d+)")


def main(argv: list[str]) -> int:
    """Run the targets asked for; 1 if one of them broke."""
    known = names()
    wanted = [argv[0]] if argv and argv[0] != "all" else known
    if wanted[0] not in known:
        print(f"there is no target '{wanted[0]}'; there are {', '.join(known)}", file=sys.stderr)
        return 2
    seconds = float(argv[1]) if len(argv) > 1 else 60.0 if len(wanted) == 1 else 10.0
    number = int(argv[2]) if len(argv) > 2 else time.time_ns() % (1 << 31)
    guided = find_spec("atheris") is not None
    if not guided:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run_target = _run_guided if guided else _run_by_chance
    return 1 if sum(not run_target(name, seconds, number) for name in wanted) else 0


def _run_by_chance(name: str, seconds: float, number: int) -> bool:
    try:
        count = run(name, seconds, number)
    except Broken as error:
        print(f"{name}: BROKEN, run {number}: {error}; kept as {error.keep()}", flush=True)
        return False
    print(f"{name}: {count} inputs in {seconds:g} s, run {number}", flush=True)
    return True


def _run_guided(name: str, seconds: float, number: int) -> bool:
    """Run a target in a process of its own, which libFuzzer ends."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.guided", name, str(seconds), str(number)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        print(done.stdout or done.stderr[-2000:], end="", flush=True)
        print(f"{name}: run {number} ended with code {done.returncode}", flush=True)
        return False
    executed, covered = _EXECUTED.search(done.stderr), _COVERED.findall(done.stderr)
    print(
        f"{name}: {executed[1] if executed else '?'} inputs in {seconds:g} s, run {number},"
        f" {covered[-1] if covered else '?'} places in the code reached",
        flush=True,
    )
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
