"""Where the compared command lines run: a folder with images of all kinds, put back after each line.

Law: what a line did is told by values that are alike wherever it ran: code, both outputs and the files that it made,
without what is random or dated and without bytes of storage, which the file system counts.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.compat.differences import plain, told_of
from tests.support import BY_CHANCE

import instar
from instar.cli.main import main
from instar.cli.session import NO_WALLS

if TYPE_CHECKING:
    from collections.abc import Sequence

Version = tuple[int, int]

_MIB = 1 << 20


class World:
    """A folder, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self._spare = folder / "spare"
        _furnish(self.folder)
        shutil.copytree(self.folder, self._spare, symlinks=True)
        self._before = self._look()

    def _look(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        todo = [""]
        while todo:
            below = todo.pop()
            with os.scandir(self.folder / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(name + "/")
                        found[name] = (status.st_ino,)
                    else:
                        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        return found

    def changes(self) -> dict[str, list[Any]]:
        """Return ``[length, digest]`` of each new or changed file (``[]`` of one that is gone), and put all back."""
        now = self._look()
        told: dict[str, list[Any]] = {}
        for name in sorted({*now, *self._before}):
            if now.get(name) == self._before.get(name):
                continue
            path = self.folder / name
            told[name] = told_of(path) if name in now and path.is_file() else []
            if name in now:
                path.unlink()
            if name in self._before:
                shutil.copy2(self._spare / name, path, follow_symlinks=False)
        if told:
            self._before = self._look()
        return told

    def ours(self, arguments: Sequence[str], version: Version) -> dict[str, Any]:
        """Run a line as ``qemu-img`` of a version, in this process."""
        code, out, err = call(arguments, version, self.folder)
        return self._told(arguments, code, out, err, lambda words: call(words, version, self.folder))

    def theirs(self, arguments: Sequence[str], program: str) -> dict[str, Any]:
        """Run a line through a real qemu-img."""

        for _ in range(5):
            code, out, err = answer_of(program, arguments, self.folder)
            if BY_CHANCE not in err:
                break
            self.changes()
        return self._told(arguments, code, out, err, lambda words: answer_of(program, words, self.folder))

    def _told(self, arguments: Sequence[str], code: int, out: str, err: str, once: Any) -> dict[str, Any]:
        told: dict[str, Any] = {"code": code, "out": plain(out), "err": plain(err)}
        if code == 0 and arguments[0] == "create" and (self.folder / "t").is_file():
            # What is made is described as well, in the format that was asked for.
            given = [b for a, b in itertools.pairwise(arguments) if a == "-f"]
            format = given[-1] if given else "raw"
            _, info, complaint = once(["info", "--output=json", "-f", format, "t"])
            told["info"] = plain(info + complaint)
        files = self.changes()
        if files:
            told["files"] = files
        return told


def answer_of(program: str, arguments: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """Run a real program; return exit code, standard output, standard error."""
    data: list[str | bytes] = [program, *(word.encode("utf-8", "surrogateescape") for word in arguments)]
    how: dict[str, Any] = {"cwd": folder, "capture_output": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(data, timeout=60, check=False, **how)
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return done.returncode, out, err


def call(arguments: Sequence[str], version: Version, folder: Path) -> tuple[int, str, str]:
    """Run the program in this process; return exit code, standard output, standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="") for _ in range(2)]
    variables = {
        "INSTAR_DIALECT": "qemu-img",
        "INSTAR_QEMU_VERSION": ".".join(map(str, version)),
        "INSTAR_ISOLATION": "none",
        "INSTAR_ACCEPT_NO_ISOLATION": "1",
    }
    kept = (sys.stdout, sys.stderr, dict(os.environ), os.getcwd())
    os.environ.update(variables)
    os.chdir(folder)
    sys.stdout, sys.stderr = streams
    try:
        code = main(["qemu-img", *arguments])
    finally:
        sys.stdout, sys.stderr = kept[:2]
        os.environ.clear()
        os.environ.update(kept[2])
        os.chdir(kept[3])
    out, err = ("".join(_bytes(stream).decode("utf-8", "surrogateescape")) for stream in streams)
    return code, out, err.replace(f"{NO_WALLS}\n", "", 1)


def _bytes(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


def _furnish(folder: Path) -> None:
    """Make the images by instar itself: that they are as qemu-img's is shown elsewhere."""
    cell = instar.Isolation("none")

    def make(name: str, size: int | None = 4 * _MIB, **how: Any) -> None:
        instar.create(str(folder / name), size, isolation=cell, **how)

    (folder / "d").mkdir(parents=True)
    for format in ("raw", "qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "parallels"):
        make(f"b.{format}", format=format)
    make("b.luks", format="luks", options={"key-secret": "s", "iter-time": 10}, secrets={"s": b"letmein"})
    make("raw4")
    make("./c:d", format="qcow2")
    make("d/rel.qcow2", format="qcow2")
    for name, content in (
        ("empty", b""),
        ("text", b"hello world\n"),
        ("pass", b"letmein"),
        ("pass64", b"bGV0bWVpbg=="),
        ("bin", b"\xff\xfe"),
        ("odd", b"o" * 3000),
    ):
        (folder / name).write_bytes(content)
    # An image within a file, the last sector of which is not whole; a VMDK and a VHD in another.
    for name, inner, tail in (("win", "b.qcow2", 700), ("winvmdk", "b.vmdk", 0), ("winvpc", "b.vpc", 512)):
        (folder / name).write_bytes(b"w" * 1024 + (folder / inner).read_bytes() + b"w" * tail)
    (folder / "link").symlink_to("b.raw")
    (folder / "dangling").symlink_to("gone")
    # A relative name is seen from the image's folder, so nothing here depends on where that is.
    make("mid.qcow2", None, format="qcow2", backing="b.raw", backing_format="raw")
    make("top.qcow2", None, format="qcow2", backing="mid.qcow2", backing_format="qcow2")
    for name, behind in (("lost", "nosuch"), ("loop1", "loop2.qcow2"), ("loop2", "loop1.qcow2")):
        how = {"backing": behind, "backing_format": "raw" if behind == "nosuch" else "qcow2", "open_backing": False}
        make(f"{name}.qcow2", _MIB, format="qcow2", **how)
    for name, offset, data in (("leak", 2 * 65536 + 2 * 20, b"\0\1"), ("bad", 2 * 65536 + 2 * 3, b"\0\0")):
        make(f"{name}.qcow2", _MIB, format="qcow2")
        with (folder / f"{name}.qcow2").open("r+b") as file:
            file.truncate(21 * 65536)
            os.pwrite(file.fileno(), data, offset)
