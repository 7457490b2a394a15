"""``python -m fuzz.guided TARGET SECONDS [NUMBER]``: the same targets, led by the code that an input reaches (atheris).

Law: mutants are made by our own mutator, which knows the structures, or by libFuzzer's, which knows the coverage; what
reaches new code is kept as a seed of this run in a folder that is thrown away. What breaks a law is kept for good.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

#: Loops over bytes with nothing to find in them.
_SLOW = ["instar.formats.vhdx.crc32c"]

with atheris.instrument_imports(include=["instar"], exclude=_SLOW):
    import fuzz.runner
    import fuzz.targets
    from fuzz.runner import MAX_INPUT, REGRESSIONS, Broken, Mutable, load, mutables, run_one

_OWN_MUTATIONS = 0.6
#: Instrumented code takes so many times as long.
_SLOWER = 4


def main(argv: list[str]) -> None:
    """Fuzz one target; does not return: libFuzzer ends the process, with its statistics on standard error."""
    fuzz.runner.PATIENCE *= _SLOWER
    name, seconds = argv[0], int(float(argv[1]))
    number = int(argv[2]) if len(argv) > 2 else time.time_ns() % (1 << 31)
    with atheris.instrument_imports(include=["instar"], exclude=_SLOW):
        target = load(name)
        corpus = mutables(name, real=True)
    repair = getattr(target, "repair", None)
    known = {seed.data: seed for seed in corpus}

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < _OWN_MUTATIONS:
            out = (known.get(data) or Mutable(data)).mutate(chance, corpus)
        else:
            out = atheris.Mutate(data, most)
        if repair is not None and chance.random() < 0.8:
            out = repair(out)
        return out[:most]

    def one(data: bytes) -> None:
        try:
            run_one(name, data)
        except Broken as error:
            print(f"{name}: BROKEN, run {number}: {error}; kept as {error.keep()}", flush=True)
            raise

    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(corpus):
            Path(folder, f"seed{index}").write_bytes(seed.data)
        words = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-seed={number}",
            f"-max_len={min(MAX_INPUT, 2 * max(len(seed.data) for seed in corpus) + 4096)}",
            "-print_final_stats=1",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={folder}/",
            folder,
        ]
        REGRESSIONS.mkdir(exist_ok=True)
        atheris.Setup(words, one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
