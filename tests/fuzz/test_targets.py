"""Every fuzz target, over its seeds, over what once broke it, and over mutants for a second."""

from __future__ import annotations

import os

import pytest

from fuzz import runner
from instar.formats import readable

#: For how long each target mutates here; ``./dev fuzz`` goes on for longer.
SECONDS = float(os.environ.get("INSTAR_FUZZ_SECONDS", "1"))


@pytest.mark.parametrize("name", runner.names())
def test_target_keeps_its_law_over_mutants(name: str) -> None:
    assert runner.run(name, SECONDS, number=1) > 0


@pytest.mark.parametrize("name", runner.names())
def test_target_keeps_its_law_over_what_once_broke_it(name: str) -> None:
    for data in runner.regressions(name):
        runner.run_one(name, data)


def test_every_readable_format_has_its_targets() -> None:
    wanted = {f"{kind}_{row.name}" for row in readable() for kind in ("parse", "check")}
    assert wanted <= set(runner.names())


def test_runner_reports_what_a_target_lets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: bytes) -> None:
        raise IndexError("this must be seen")

    monkeypatch.setattr(runner.load("wire"), "one_input", fails)
    with pytest.raises(runner.Broken, match="IndexError"):
        runner.run("wire", 1, number=1)


def test_mutants_are_repeatable() -> None:
    import random

    corpus = [runner.Mutable(data) for data in runner.seeds("wire")]
    made = [
        [seed.mutate(chance, corpus) for seed in corpus for _ in range(50)]
        for chance in (random.Random(7), random.Random(7))
    ]
    assert made[0] == made[1]
    assert len(set(made[0])) > 100
