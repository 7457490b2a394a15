"""Results and errors go from process to process: pools of every kind give back what a call gave."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest

import instar

if TYPE_CHECKING:
    from pathlib import Path

#: Processes that are started anew, on a busy machine.
SECONDS = 120
COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "copy": copy.copy, "deepcopy": copy.deepcopy}
HOWS = ("fork", "spawn", "forkserver")


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "disk.qcow2")
    instar.create(path, "1M", format="qcow2")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.qcow2"
    path.write_bytes(b"QFI\xfb" + bytes(600))
    return str(path)


def seen(value: object) -> object:
    """Return an object as plain values."""
    if isinstance(value, (list, tuple)):
        return [seen(item) for item in value]
    if isinstance(value, dict):
        return {key: seen(item) for key, item in value.items()}
    slots = [name for base in type(value).__mro__ for name in vars(base).get("__slots__", ())]
    if not slots and not hasattr(value, "__dict__"):
        return value
    fields = {
        **getattr(value, "__dict__", {}),
        **{name: getattr(value, name) for name in slots if hasattr(value, name)},
    }
    return type(value), seen(fields)


@pytest.mark.parametrize("how", HOWS)
def test_a_pool_gives_back_results_and_errors(image: str, broken: str, how: str) -> None:
    with multiprocessing.get_context(how).Pool(1) as pool:
        found = pool.apply_async(instar.info, (image,))
        failed = pool.apply_async(instar.info, (broken,))
        assert seen(found.get(SECONDS)) == seen(instar.info(image))
        with pytest.raises(instar.ImageError) as error:
            failed.get(SECONDS)
    assert (error.value.kind, error.value.path, error.value.field) == ("unsupported-feature", broken, "version")


@pytest.mark.parametrize("how", HOWS)
def test_an_executor_gives_back_results_and_errors(image: str, how: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(how)) as pool:
        assert pool.submit(instar.check, image).result(SECONDS).clean
        missing = pool.submit(instar.create, f"{image}/x/y", 512)
        with pytest.raises(instar.HostError) as error:
            missing.result(SECONDS)
        assert error.value.path == f"{image}/x/y"
        assert not pool.submit(instar.create, image, 512).result(SECONDS).warnings


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_every_public_result_can_be_copied(image: str, copied) -> None:
    results = [
        instar.create(image, "1M", format="qcow2"),
        instar.info(image),
        instar.info_chain(image),
        instar.check(image),
        instar.Isolation("process"),
        *instar.create_many([{"filename": image, "size": 1}, {"filename": image, "size": "x"}]),
    ]
    for result in results:
        assert seen(copied(result)) == seen(result)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_the_result_of_a_self_test_can_be_copied(copied) -> None:
    from instar.host.sandbox import SelfTestResult

    trial = {"name": "cannot x", "reason": "y", "passed": True, "microseconds": 5, "said": "ok", "story": None}
    rows = [{"kind": "process", "reason": None, "launch": 4000, "trials": [trial]}]
    result = SelfTestResult("auto", rows)
    assert seen(copied(result)) == seen(result)
    assert copied(result).passed
