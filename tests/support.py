"""What tests share: the real programs, applying a plan, and looking at files."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from instar.core.plan import Allocate, Plan
from instar.sandbox.files import GrantedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU_IMG = shutil.which("qemu-img")
QEMU_IO = shutil.which("qemu-io")

needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed (Debian: qemu-utils)")
needs_qemu_io = pytest.mark.skipif(QEMU_IO is None, reason="qemu-io is not installed (Debian: qemu-utils)")

#: What qemu-img 7.2 says now and then, when it cannot measure how fast it derives keys.
BY_CHANCE = "accurate CPU usage"


def run(
    *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and keep what it printed; again if that is what qemu-img says by chance."""
    for _ in range(20):
        done = subprocess.run(
            [str(a) for a in args],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
        if BY_CHANCE not in done.stderr:
            break
    return done


def qemu_img(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real qemu-img; fail the test if it fails."""
    assert QEMU_IMG is not None
    done = run(QEMU_IMG, *args, cwd=cwd)
    assert done.returncode == 0, f"qemu-img {args}: {done.stderr}"
    return done


def qemu_info(path: Path, *args: str) -> dict[str, Any]:
    """Return ``qemu-img info --output=json`` of a file, as the real program sees it."""
    return json.loads(qemu_img("info", "--output=json", *args, path).stdout)  # type: ignore[no-any-return]


def apply_plan(plan: Plan, *paths: Path) -> None:
    """Carry out a plan on plain files, as the cell and host together do, without isolation."""
    plan.check()
    fds = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644) for path in paths]
    try:
        for item in plan.items:
            if isinstance(item, Allocate):
                os.posix_fallocate(fds[item.file], item.offset, item.length)
                continue
            for offset, data in item.pieces():
                assert os.pwrite(fds[item.file], data, offset) == len(data)
        for fd, size in zip(fds, plan.sizes, strict=True):
            os.ftruncate(fd, size)
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def reader(path: Path, number: int = 0) -> Iterator[GrantedFile]:
    """Open a file as a parser sees it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield GrantedFile(number, fd, "r", os.fstat(fd).st_size)
    finally:
        os.close(fd)


class BytesReader:
    """A reader over bytes in memory, with holes allowed: ``parts`` maps offsets to bytes."""

    def __init__(self, data: bytes = b"", *, size: int | None = None, parts: dict[int, bytes] | None = None) -> None:
        self.number = 0
        self.parts = {0: data, **(parts or {})}
        self.size = size if size is not None else max(o + len(d) for o, d in self.parts.items())

    def read(self, offset: int, length: int) -> bytes:
        """Return what is there; holes are zeros; short at the end."""
        length = max(0, min(length, self.size - offset))
        out = bytearray(length)
        for start, data in self.parts.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                out[low - offset : high - offset] = data[low - start : high - start]
        return bytes(out)


def extents(path: Path) -> list[tuple[int, int]]:
    """Return the data extents of a file as ``(start, end)``."""
    spans = []
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            spans.append((start, position))
    return spans


def settle(*paths: Path) -> None:
    """Have the file system place what it was given, so that it counts the storage of a file as it will for good.

    What it keeps to find the pieces (ext4: of more than four) counts as the file's storage, from when they are written.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def same_storage(left: Path, right: Path) -> None:
    """Fail unless two files have about as much storage: all but what the file system needs to find the pieces."""
    settle(left, right)
    slack = 64 + len(extents(left))
    assert abs(left.stat().st_blocks - right.stat().st_blocks) <= slack


def same_holes(left: Path, right: Path) -> None:
    """Fail unless the same ranges of two files have data, and they have about as much storage."""
    assert extents(left) == extents(right)
    same_storage(left, right)


def same_bytes(left: Path, right: Path, *, ignore: tuple[tuple[int, int], ...] = ()) -> None:
    """Fail unless two files have the same length and the same bytes outside the ``ignore`` ranges ``(start, end)``."""
    assert left.stat().st_size == right.stat().st_size, "the files differ in length"
    holes = sorted(ignore)
    ends = [end for _, end in holes]
    with left.open("rb") as a, right.open("rb") as b:
        for start, end in sorted(set(extents(left) + extents(right))):
            for at in range(start, end, 1 << 20):
                size = min(1 << 20, end - at)
                x, y = bytearray(os.pread(a.fileno(), size, at)), bytearray(os.pread(b.fileno(), size, at))
                if x == y:
                    continue
                for low, high in holes[bisect.bisect_right(ends, at) :]:
                    if low >= at + size:
                        break
                    cut = slice(max(low, at) - at, min(high, at + size) - at)
                    x[cut] = y[cut] = bytes(cut.stop - cut.start)
                if x != y:
                    first = next(i for i in range(size) if x[i] != y[i])
                    ours, theirs = x[first : first + 16].hex(), y[first : first + 16].hex()
                    raise AssertionError(f"first difference at {at + first:#x}: {ours} here, {theirs} there")


def instar(
    *args: str | Path, cwd: Path | None = None, dialect: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m instar`` from this checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
    env.update(variables)
    if dialect:
        env["INSTAR_DIALECT"] = dialect
    return run(sys.executable, "-m", "instar", *args, cwd=cwd, env=env)
