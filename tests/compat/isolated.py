"""What the comparison of cells does in a small process (``tests.small``): a command, and everything with an image."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import instar
from instar.cli.main import main
from instar.cli.render import check_text, info_text
from instar.core import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def pin() -> None:
    """Take chance and time out of images, for good."""
    os.urandom = lambda length: bytes(range(length % 256)) + bytes(length - length % 256)  # type: ignore[assignment]
    time.time = lambda: 1.7e9


def command(words: Sequence[str], folder: str) -> tuple[int, str, str]:
    """Run a command in a folder; return its exit code and what it wrote to both outputs."""
    os.chdir(folder)
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = main(["instar", *words])
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, fd in enumerate(kept, 1):
                os.dup2(fd, number)
                os.close(fd)
        texts = [os.pread(file.fileno(), 1 << 26, 0).decode("utf-8", "surrogateescape") for file in (out, err)]
    return code, texts[0], texts[1]


def outcomes(path: Path, format: str, kind: str, top: Path) -> list[str]:
    """Give an image to every operation that reads one; return all that came of each."""
    isolation = instar.Isolation(kind, single_threaded=True)

    def describe(forced: str | None) -> str:
        return info_text(instar.info(str(path), format=forced, isolation=isolation), NEWEST)

    def judge() -> str:
        result = instar.check(str(path), format=format, isolation=isolation)
        rows = [(f.severity, f.structure, f.detail, f.offset) for f in result.findings]
        return f"{result.exit_code} {rows} {check_text(result)}"

    def build_on() -> str:
        result = instar.create(str(top), format="qcow2", backing=str(path), backing_format=format, isolation=isolation)
        return f"{result.virtual_size} {top.read_bytes().hex()}"

    found = []
    operations: tuple[Callable[[], str], ...] = (lambda: describe(format), lambda: describe(None), judge, build_on)
    for operation in operations:
        try:
            found.append(operation())
        except instar.InstarError as error:
            found.append(f"{type(error).__name__}: {error} {sorted(vars(error).items(), key=str)}")
    assert not [said for said in found if said.startswith(("SandboxError", "InternalError"))]
    assert isolation.said == []
    return found
