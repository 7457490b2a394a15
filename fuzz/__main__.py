"""``python -m fuzz [TARGET [SECONDS [NUMBER]]]``: one target for 60 s, or every target for 10 s."""

from __future__ import annotations

import resource
import sys
import time

from fuzz.runner import Broken, names, run

#: A target that needs more has a leak; a cell has less.
MEMORY = 1 << 30


def main(argv: list[str]) -> int:
    """Run the targets asked for; 1 if one of them broke."""
    known = names()
    wanted = [argv[0]] if argv and argv[0] != "all" else known
    if wanted[0] not in known:
        print(f"there is no target '{wanted[0]}'; there are {', '.join(known)}", file=sys.stderr)
        return 2
    seconds = float(argv[1]) if len(argv) > 1 else 60.0 if len(wanted) == 1 else 10.0
    number = int(argv[2]) if len(argv) > 2 else time.time_ns()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    broken = 0
    for name in wanted:
        try:
            count = run(name, seconds, number)
        except Broken as error:
            broken += 1
            print(f"{name}: BROKEN, run {number}: {error}; kept as {error.keep()}", flush=True)
            continue
        print(f"{name}: {count} inputs in {seconds:g} s, run {number}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
