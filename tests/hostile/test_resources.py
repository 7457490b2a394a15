"""Every hostile image and every operation: a result or an error, in bounded time, memory and output.

Ordinary runs try one case in eleven, each with one operation in turn; ``INSTAR_ALL_CASES=1`` tries all with all.
"""

from __future__ import annotations

import shutil
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from tests.hostile.corpus import MODULES, cases_of
from tests.hostile.meter import ALL, MOST_SECONDS, Worker, faults, operations, unprintable

from instar.sandbox.kvm.cell import why_unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hostile.corpus import Hostile

#: No divisor of the number of operations: every one has its turn.
STEP = 1 if ALL else 11


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def attempt(
    worker: Worker, case: Hostile, folder: Path, numbers: range | None, isolation: str = "process"
) -> list[str]:
    """Make a case and look at it; return what was wrong. ``numbers`` are those of the operations, if not all."""
    folder.mkdir()
    found = []
    try:
        case.make(folder)
        commands = operations(case)
        for words in commands if numbers is None else [commands[number % len(commands)] for number in numbers]:
            done = worker.run([f"--isolation={isolation}", *words], folder)
            (folder / "top").unlink(missing_ok=True)
            found += [f"{case}: {' '.join(words)}: {fault}" for fault in faults(words, done, case.seconds)]
    finally:
        shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_an_image_costs_no_more_than_it_may(name: str, worker: Worker, tmp_path: Path) -> None:
    found = []
    names = []
    wanted = (case for case in cases_of(name) if ALL or not case.large)
    for number, case in enumerate(wanted):
        names.append(str(case))
        assert case.seconds <= MOST_SECONDS, case
        if number % STEP == 0:
            numbers = None if ALL else range(number // STEP, number // STEP + 1)
            found += attempt(worker, case, tmp_path / str(number), numbers)
    assert names
    assert len(set(names)) == len(names), sorted(names)
    assert not found, "\n".join(found)


@pytest.mark.skipif(why_unavailable() is not None, reason=f"no kvm cell: {why_unavailable()}")
def test_a_slice_of_them_costs_no_more_in_a_machine(worker: Worker, tmp_path: Path) -> None:
    modules = MODULES if ALL else ("qcow2", "vmdk", "names", "chains")
    small = (case for case in cases_of(*modules) if not case.large)
    found = []
    for number, case in enumerate(islice(small, 0, None, 10 if ALL else 60)):
        found += attempt(worker, case, tmp_path / str(number), range(number, number + (3 if ALL else 1)), "kvm")
    assert not found, "\n".join(found)


def test_the_meter_sees_what_it_is_to_see(worker: Worker, tmp_path: Path) -> None:
    """What nothing could fail would prove nothing."""
    (tmp_path / "image").write_bytes(b"x" * 512)
    done = worker.run(["--isolation=process", "info", "image"], tmp_path)
    assert not list(faults(["info"], done))
    assert done["host_cpu"] > 0
    assert done["cell_cpu"] > 0
    assert done["host_rss"] > 4 << 20
    assert done["cell_rss"] > 4 << 20
    assert str(tmp_path / "image") in {path for _, path, _ in done["seen"]} or "image" in {
        p for _, p, _ in done["seen"]
    }
    worse = {
        **done,
        **{
            "code": 70,
            "err": "Traceback \x1b[2J" + "x" * (2 << 20),
            "host_cpu": 11.0,
            "cell_rss": 1 << 30,
            "host_rss": 1 << 30,
        },
    }
    assert len(list(faults(["info"], worse))) == 7
    assert unprintable("a\nb\u202e\udcff\x9b") == {"\u202e", "\udcff", "\x9b"}
