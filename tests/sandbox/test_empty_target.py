"""What an exploited cell leaves of an empty target that it was given to write: an empty file."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KVM
from tests.sandbox.exploited import by_operation, exploited, replying, replying_bytes

import instar

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def scribbling(then: Any) -> Any:
    """Return a guest that writes to the target, and goes on as ``then``."""

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        for number in range(100):
            files[0].write(number << 16, b"a lie")
        result: bytes = then(job, files, ask)
        return result

    return guest


def dying(job: bytes, files: list[Any], ask: Any) -> bytes:
    os.kill(0, 9)
    return b""


def asking_nonsense(job: bytes, files: list[Any], ask: Any) -> bytes:
    ask({"do": "mischief"})
    return b""


def writing_on(job: bytes, files: list[Any], ask: Any) -> bytes:
    """Answer too much, so that the host gives up, and write on for as long as there is life."""
    try:
        ask({"do": "mischief"})
    finally:
        while True:
            files[0].write(0, b"a lie")


@pytest.mark.parametrize("kind", ["process", KVM])
@pytest.mark.parametrize(
    "then",
    [dying, asking_nonsense, writing_on, replying_bytes(b"x"), replying({"sizes": [1 << 62]})],
    ids=["dies", "asks", "writes on", "answers nonsense", "lies"],
)
def test_is_empty_again(then: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.touch()
    inode = path.stat().st_ino
    with exploited(by_operation({"create": scribbling(then)}), kind) as isolation, pytest.raises(instar.SandboxError):
        instar.create(str(path), "1M", format="qcow2", isolation=isolation)
    time.sleep(0.05)
    assert (path.stat().st_size, path.stat().st_ino) == (0, inode)
    assert os.listdir(tmp_path) == ["target"]
