"""A slice of the differential fuzzing with a fixed seed; ``./dev fuzz-diff`` goes on from there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img

from fuzz import differ

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

#: How many cases, in parts so that several workers share them.
CASES = int(os.environ.get("INSTAR_DIFFER_CASES", "60"))
STEP = 15


@pytest.mark.skipif(not differ.VERSIONS, reason="no qemu-img to compare with")
@pytest.mark.parametrize("first", range(0, CASES, STEP))
def test_no_difference_is_found(first: int) -> None:
    for number in range(first, min(first + STEP, CASES)):
        case = differ.make_case(7, number)
        found = differ.difference_of(case)
        assert found is None, f"{case.lines()}\n{found}"


def test_cases_are_repeatable_and_many() -> None:
    if not differ.VERSIONS:
        pytest.skip("no qemu-img to compare with")
    cases = [differ.make_case(7, number) for number in range(300)]
    assert cases == [differ.make_case(7, number) for number in range(300)]
    assert len({case.words()[2] for case in cases}) >= 8
    assert len(set(cases)) > 290


def test_difference_is_found_and_made_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = differ.VERSIONS[-1]
    options = (("cluster_size", "4k"), ("lazy_refcounts", "on"), ("refcount_bits", "8"))
    case = differ.Case(version, "qcow2", options, "1M", uses=(("qemu-io", "-c", "write 0 512"),))

    def wrong(words: list[str], generation: tuple[int, int], folder: Path) -> tuple[int, str, str]:
        code, out, err = differ_call(words, generation, folder)
        return code, out + ("wrong" if "lazy_refcounts=on" in words else ""), err

    differ_call = differ.call
    monkeypatch.setattr(differ, "call", wrong)
    found = differ.difference_of(case)
    assert found is not None
    assert "wrong" in found
    assert differ.minimised(case) == case._replace(options=(("lazy_refcounts", "on"),), uses=())
