"""A machine starts wherever in a program it is ordered: at every depth of the interpreter's own stack, and of C's.

The interpreter keeps its frames in pieces of 16 KiB, each mapped when the one before is full and unmapped when it is
left. So what is wrong at the end of a piece is wrong at a few depths in each hundred, and always at the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import needs_kvm
from tests.sandbox.test_environments_programs import in_turn, installed, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_kvm

#: More depths than small frames fill a piece with, of which every other is enough; under ``INSTAR_ALL_CASES=1`` all,
#: and as deep as programs go.
DEPTHS = range(1501) if os.environ.get("INSTAR_ALL_CASES") else range(0, 150, 2)

_TRY = """
sys.setrecursionlimit(10_000)
instar.create("disk", "1M", format="qcow2", isolation=instar.Isolation("process", single_threaded=True))
def attempt():
    isolation = instar.Isolation("kvm", single_threaded=True)
    assert instar.info("disk", isolation=isolation).virtual_size == 1 << 20
wrong = []
for depth in DEPTHS:
    try:
        go(depth)
    except SandboxError as error:
        wrong.append((depth, str(error)))
print(wrong)
"""


def _try(go: str, depths: range, python: str, folder: Path) -> None:
    for first in range(0, len(depths), 300):
        assert run(f"DEPTHS = {depths[first : first + 300]}\n" + go + _TRY, folder, python=python) == "[]\n"


@pytest.mark.parametrize("python", installed(), ids=lambda path: path.rpartition("/")[2])
def test_of_plain_calls(python: str, tmp_path: Path) -> None:
    program = """
def go(depth):
    go(depth - 1) if depth else attempt()
"""
    _try(program, DEPTHS, python, tmp_path)


#: How else a stack can grow: code that defines ``go``, and depths of which ordinary runs try every other.
WAYS = {
    "large frames": (
        """
names = ", ".join(f"v{n}" for n in range(300))
exec(f"def go(depth):\\n {names} = range(300)\\n go(depth - 1) if depth else attempt()\\n return {names}")
""",
        range(40),
    ),
    "frames of all sizes": (
        """
calls = [attempt_last := lambda: attempt()]
for size in range(1, 200):
    names = ", ".join(f"v{n}" for n in range(size))
    space = {"below": calls[-1], "size": size}
    exec(f"def call():\\n {names}, = range(size)\\n below()\\n return {names}", space)
    calls.append(space["call"])
def go(depth): calls[depth]()
""",
        range(200),
    ),
    "generators": (
        """
def walk(depth):
    if depth:
        yield from walk(depth - 1)
    else:
        attempt()
        yield
def go(depth): list(walk(depth))
""",
        range(0, 600, 3),
    ),
    "coroutines": (
        """
async def wait(depth):
    await wait(depth - 1) if depth else attempt()
def go(depth):
    try:
        wait(depth).send(None)
    except StopIteration:
        pass
""",
        range(0, 600, 3),
    ),
    "calls through C": (
        """
def go(depth):
    if depth:
        sorted([depth - 1], key=go)
    else:
        attempt()
    return 0
""",
        range(0, 400, 2),
    ),
    "finalisers": (
        """
class Last:
    def __init__(self, depth): self.depth = depth
    def __del__(self):
        try:
            go(self.depth - 1)
        except SandboxError as error:
            wrong.append((self.depth, str(error)))
def go(depth):
    if depth:
        Last(depth)
    else:
        attempt()
""",
        range(0, 40),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_of_another_kind(way: str, tmp_path: Path) -> None:
    program, depths = WAYS[way]
    for python in in_turn(WAYS, way):
        _try(program, depths if os.environ.get("INSTAR_ALL_CASES") else depths[::2], python, tmp_path)


@pytest.mark.parametrize("kind", ["kvm", "process"])
def test_near_the_limit_of_recursion_a_guest_has_room_of_its_own(kind: str, tmp_path: Path) -> None:
    """Either the caller's side runs out of depth, which is the caller's own error, or all is well."""
    program = f"""
instar.create("disk", "1M", format="qcow2", isolation=instar.Isolation("process", single_threaded=True))
isolation = instar.Isolation({kind!r}, single_threaded=True)
instar.info("disk", isolation=isolation)  # imports what there is to be imported
def go(depth):
    return go(depth - 1) if depth else attempt()
def attempt():
    try:
        return instar.info("disk", isolation=isolation).format
    except instar.InstarError:
        raise
    except Exception as error:
        if "RecursionError" not in repr(error):  # ctypes makes an error of its own of it
            raise
        return "too deep"
here, limit, answers = os.getpid(), sys.getrecursionlimit(), []
for depth in range(limit - 60, limit - 10):
    answers.append(go(depth))
    if os.getpid() != here:
        os._exit(9)  # a cell that came out of its place
print(sorted(set(answers)), answers == sorted(answers), len(answers))
"""
    assert run(program, tmp_path) == "['qcow2', 'too deep'] True 50\n"
