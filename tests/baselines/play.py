"""A case played in a folder: its image made by real programs, its questions asked of one, or of instar.

Law: both are asked in the same way, and of their answers the same is kept.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tests.baselines.store import Answer, Version, read_image
from tests.cli.dialect.world import answer_of, call
from tests.compat.differences import plain, told_of
from tests.support import BY_CHANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.baselines.cases import Case


def real_program(path: str) -> Callable[[Sequence[str], Path], tuple[int, str, str]]:
    """Return a real program to ask."""

    def ask(words: Sequence[str], folder: Path) -> tuple[int, str, str]:
        for _ in range(20):
            before = set(os.listdir(folder))
            answer = answer_of(path, words, folder)
            if BY_CHANCE not in answer[2]:
                break
            for name in set(os.listdir(folder)) - before:
                (folder / name).unlink()
        return answer

    return ask


def ours(version: Version) -> Callable[[Sequence[str], Path], tuple[int, str, str]]:
    """Return instar as it is with ``--qemu-version``, in this process."""
    return lambda words, folder: call(words, version, folder)


def answers(
    case: Case, folder: Path, program: Callable[[Sequence[str], Path], tuple[int, str, str]]
) -> dict[str, Answer]:
    """Ask a program what a case asks, in the folder where its image is; nothing more once a creation has failed."""
    found: dict[str, Answer] = {}
    seen = set(os.listdir(folder))
    for line in case.asked:
        code, out, err = program(shlex.split(line), folder)
        answer: Answer = {"code": code, "out": plain(out), "err": plain(err)}
        if line.startswith("create"):
            now = set(os.listdir(folder))
            if not code:
                answer["files"] = {name: told_of(folder / name) for name in sorted(now - seen)}
            seen |= now
        found[line] = answer
        if code and line.startswith("create"):
            break
    return found


def make(case: Case, folder: Path, programs: Path | None = None) -> dict[str, int]:
    """Make the image of a case by the machine's programs, or those of another folder; return the files' lengths.

    Raises:
        OSError: a step failed.
    """
    if case.maker and programs is None:
        (folder / "t").write_bytes(read_image(case))
    else:
        for line in case.made:
            _step(shlex.split(line), folder, programs)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _step(words: list[str], folder: Path, programs: Path | None) -> None:
    if words[0] == "damage":
        with (folder / "t").open("r+b") as file:
            os.pwrite(file.fileno(), bytes.fromhex(words[2]), int(words[1]))
    elif words[0] == "grow":
        os.truncate(folder / "t", int(words[1]))
    else:
        program = str(programs / words[0]) if programs else words[0]
        code, _, err = real_program(program)(words[1:], folder)
        if code:
            raise OSError(f"{shlex.join(words)}: {err}")
