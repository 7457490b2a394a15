"""Mutation testing of ``core`` and ``formats``: break them in one place at a time, and see a test fail.

``./dev mutate [MODULE…] [--sample N] [--seed S]``. mutmut makes the mutants. They run here, not in mutmut: its own
runner leaves out what stands outside of functions (records, limits, rows of options), and that is where this code says
what a format is. All happens in a copy of the tree.

Each test runs once with coverage, so that it is known which lines it reaches. Then, per mutant, the file is changed in
the copy, and a fork runs the tests that reach the changed statement, until the first fails. The sample is drawn by
``--seed``, uniformly over all mutants that compile.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.mutants import compiles, mutants_of
from tools.reach import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.mutants import Mutant


def interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    >>> [round(x, 3) for x in interval(90, 100)]
    [0.826, 0.945]
    """
    if not count:
        return 0.0, 1.0
    z, p = 1.96, hits / count
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def report(verdicts: list[dict[str, Any]]) -> str:
    """Return the survivors, the table of the packages and the total."""
    lines = []
    for verdict in sorted(verdicts, key=lambda v: str(v["mutant"])):
        if verdict["result"] in ("survived", "no tests"):
            lines += [f"{verdict['mutant']} line {verdict['line']}: {verdict['result']}", *verdict["change"], ""]
    table: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        path = str(verdict["mutant"]).partition("#")[0]
        for key in (path, "total"):
            table.setdefault(key, Counter())[str(verdict["result"])] += 1
    columns = ("killed", "timeout", "survived", "no tests")
    lines.append(f"{'module':40}" + "".join(f"{c:>10}" for c in columns) + f"{'share':>8}")
    for key in sorted(table, key=lambda k: (k == "total", k)):
        row = table[key]
        share = (row["killed"] + row["timeout"]) / row.total()
        lines.append(f"{key:40}" + "".join(f"{row[c]:>10}" for c in columns) + f"{share:>8.1%}")
    total = table.get("total", Counter())
    low, high = interval(total["killed"] + total["timeout"], total.total())
    lines.append(f"of {total.total()} mutants {low:.1%} to {high:.1%} are killed or end in a timeout (95 %)")
    return "\n".join(lines)


def drawn(tree: Tree, wanted: list[str], sample: int, seed: int) -> Iterator[tuple[Mutant, str]]:
    """Yield mutants with the text of their module: those named, or a sample of those in the modules named."""
    exact = [w for w in wanted if "#" in w]
    prefixes = [w.removeprefix("src/instar/").removesuffix(".py") for w in wanted if "#" not in w]
    everything = []
    for path in tree.modules:
        short = path.removeprefix("src/instar/")
        named = any(e.startswith(f"{short}#") for e in exact)
        whole = not wanted or any(short == f"{p}.py" or short.startswith(f"{p.rstrip('/')}/") for p in prefixes)
        if named or whole:
            everything += [m for m in mutants_of(tree.folder, path) if whole or m.name in exact]
    print(f"mutate: {len(everything)} mutants to choose from", file=sys.stderr)
    random.Random(seed).shuffle(everything)
    count = 0
    for mutant in everything:
        if sample and count == sample:
            return
        text = compiles(mutant, (tree.folder / mutant.path).read_text(encoding="utf-8"))
        if text is not None:
            count += 1
            yield mutant, text


def spread(jobs: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)``, ``work(1)`` … in a process each, and wait for all."""
    children = []
    for number in range(jobs):
        child = os.fork()
        if not child:
            code = 1
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    try:
        while children:
            if os.waitpid(children[-1], 0)[1]:
                raise SystemExit("mutate: failed, see above")
            children.pop()
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)


def main() -> int:
    """Draw, try, report; 1 if fewer are killed than ``--at-least`` asks for."""
    parser = argparse.ArgumentParser(prog="./dev mutate", description="Mutation testing of core and formats.")
    parser.add_argument("module", nargs="*", help="formats/qcow2, core/plan.py, or one mutant: core/plan.py#17")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="how many mutants (200; 0: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="how many at a time (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep one line of JSON per mutant")
    parser.add_argument("--at-least", type=float, default=0, metavar="PERCENT", help="fail below that share")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutate: ended"))  # so that the copies are removed
    out = words.out.resolve() if words.out else None
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "instar" / "mutate"
    cache.mkdir(parents=True, exist_ok=True)
    # Loaded once, for all forks. Never instar: each fork loads it with its mutant.
    for name in ("pytest", "hypothesis", "hypothesis.strategies", "_pytest.doctest", "_pytest.assertion.rewrite"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="instar-mutate-") as name:
        trees = [Tree(Path(name) / str(number)) for number in range(words.jobs)]
        spread(words.jobs, lambda number: trees[number].learn(cache, number, words.jobs))
        mutants = list(drawn(trees[0], words.module, words.sample, words.seed))
        gc.freeze()

        def judge(number: int) -> None:
            trees[number].recall(cache)
            for index in range(number, len(mutants), words.jobs):
                verdict = trees[number].judge(*mutants[index])
                print(
                    f"{index:5} {verdict['result']:9} {verdict['mutant']} {verdict['by']}", file=sys.stderr, flush=True
                )
                for file in (trees[number].verdicts, *([out] if out else [])):
                    with file.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(verdict) + "\n")

        spread(words.jobs, judge)
        lines = [line for tree in trees if tree.verdicts.exists() for line in tree.verdicts.open(encoding="utf-8")]
    verdicts = [json.loads(line) for line in lines]
    print(report(verdicts))
    killed = sum(v["result"] in ("killed", "timeout") for v in verdicts)
    return int(100 * killed < words.at_least * len(verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
