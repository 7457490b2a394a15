"""Where the compared command lines run: a folder with images of all kinds, put back after each line.

Law: what a line did is told by values that are alike wherever it ran: code, both outputs and the files that it made,
without what is random or dated and without bytes of storage, which the file system counts.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.compat.differences import ignored

import instar
from instar.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Sequence

Version = tuple[int, int]

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_MIB = 1 << 20
#: VirtualBox's two random identifiers in a VDI header.
_VDI_IDENTITY = (0x188, 0x1A8)

_RANDOM = (
    (re.compile(r'"(actual-size|iters|master-key-iters|cid)": \d+'), r'"\1": 0'),
    (re.compile(r"^( *)(iters|master key iters|cid): \d+$", re.M), r"\1\2: 0"),
    (re.compile(r'("parent-cid"|parent cid): (?!4294967295\b)\d+'), r"\1: 0"),
    (re.compile(r"disk size: .*"), "disk size: 0"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID"),
)


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

        def once(words: Sequence[str]) -> tuple[int, str, str]:
            data: list[str | bytes] = [program, *(word.encode("utf-8", "surrogateescape") for word in words)]
            how: dict[str, Any] = {"cwd": self.folder, "capture_output": True, "stdin": subprocess.DEVNULL}
            done = subprocess.run(data, timeout=60, check=False, **how)
            out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
            return done.returncode, out, err

        for _ in range(5):
            code, out, err = once(arguments)
            # 7.2 now and then cannot measure how fast it derives keys.
            if "accurate CPU usage" not in err:
                break
            self.changes()
        return self._told(arguments, code, out, err, once)

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


def plain(text: str) -> str:
    """Return an output without what is random or dated."""
    for pattern, instead in _RANDOM:
        text = pattern.sub(instead, text)
    return text


def call(arguments: Sequence[str], version: Version, folder: Path) -> tuple[int, str, str]:
    """Run the program in this process; return exit code, standard output, standard error."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="") for _ in range(2)]
    variables = {
        "INSTAR_DIALECT": "qemu-img",
        "INSTAR_QEMU_VERSION": ".".join(map(str, version)),
        "INSTAR_ISOLATION": "none",
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
    return code, out, err


def _bytes(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


def told_of(path: Path) -> list[Any]:
    """Return length and digest of a file."""
    size = path.stat().st_size
    if size < 64 << 10 and path.read_bytes().startswith(b"# Disk Desc"):
        size = len(_without_cid(path.read_bytes()))
    return [size, digest(path)]


def _without_cid(data: bytes) -> bytes:
    return re.sub(rb"CID=(?!ffffffff)[0-9a-f]{1,8}\n", b"CID=\n", data)


def digest(path: Path) -> str:
    """Return a digest of what is not zero in a file, ``random`` where too much of it is."""
    with path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        head, tail = os.pread(fd, 4096, 0), os.pread(fd, 512, max(0, size - 512))
        if head.startswith(b"LUKS\xba\xbe") or (head.startswith(b"QFI\xfb") and head[35:36] == b"\2"):
            return "random"
        if head.startswith(b"KDMV") or head.startswith(b"# Disk Desc"):
            data = _without_cid(os.pread(fd, 64 << 10, 0))
            # The CID has no fixed width, so the zeros behind the descriptor vary.
            return hashlib.sha1(re.sub(rb"\0+", b"\0", data)).hexdigest()[:12]
        holes: tuple[tuple[int, int], ...] = ()
        if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
            holes = (_VDI_IDENTITY,)
        elif head.startswith(b"vhdxfile"):
            holes = ignored("vhdx", path)
        elif tail.startswith(b"conectix"):
            holes = ignored("vpc", path)
        sums = hashlib.sha1()
        position = 0
        while position < size:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError:
                break
            block = bytearray(os.pread(fd, _BLOCK, position))
            for low, high in holes:
                if low < position + _BLOCK and high > position:
                    block[max(0, low - position) : high - position] = bytes(high - max(low, position))
            if block != _ZEROS[: len(block)]:
                sums.update(position.to_bytes(8, "big") + block.rstrip(b"\0"))
            position += _BLOCK
        return sums.hexdigest()[:12]


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
    make("d/rel.qcow2", format="qcow2")
    for name, content in (
        ("empty", b""),
        ("text", b"hello world\n"),
        ("pass", b"letmein"),
        ("pass64", b"bGV0bWVpbg=="),
        ("bin", b"\xff\xfe"),
    ):
        (folder / name).write_bytes(content)
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
