"""Make an initramfs that holds kernel modules, this Python and what it needs to run tests.

Everything stands in it where it stands on this machine, so that no path in it has to be changed. No program but Python
is in it, and no privilege is needed to make it: owners and device nodes exist in the archive only.
"""

from __future__ import annotations

import compileall
import lzma
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import BinaryIO

#: Parts of the standard library that no test needs, and that are large.
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "config-*", "test", "idlelib", "tkinter", "turtledemo",
    "ensurepip", "pydoc_data", "lib2to3", "distutils", "_tkinter.*", "_ssl.*", "_hashlib.*", "_test*", "xx*",
    "_xxtest*", "_curses*", "readline.*", "_sqlite3.*", "nis.*", "ossaudiodev.*", "_crypt.*", "_codecs_*",
    "*.a", "*.exe",
)  # fmt: skip


class InitramfsError(Exception):
    """Something that belongs into the initramfs is not there; the message says what."""


# --- the archive ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One member of an archive: `name` has no leading slash, `mode` says what kind of file it is."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def write_cpio(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write entries as a "newc" archive, all of them root's, as the kernel unpacks it.

    Archives can be put one after another: each ends on a multiple of 512 bytes.
    """
    written = 0
    trailer = Entry("TRAILER!!!", 0)
    for number, entry in enumerate([*entries, trailer], 1):
        name = os.fsencode(entry.name) + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        head += bytes(-len(head) % 4)
        padding = bytes(-len(entry.data) % 4)
        written += file.write(head) + file.write(entry.data) + file.write(padding)
    file.write(bytes(-written % 512))


def entries_of(tree: Path) -> Iterator[Entry]:
    """Return all that is below a folder, each folder before what it holds."""
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            yield Entry(name, stat.S_IFLNK | 0o777, os.fsencode(os.readlink(path)))
        elif path.is_dir():
            yield Entry(name, stat.S_IFDIR | 0o755)
        else:
            executable = path.stat().st_mode & 0o111
            yield Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), path.read_bytes())


# --- kernel modules -------------------------------------------------------------------------------------------------


def module_bytes(path: Path) -> bytes:
    """Return a module as the kernel loads it, unpacked."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix != ".ko":
        raise InitramfsError(f"{path.name} is compressed in a way that Python cannot undo")
    return data


def depends(module: bytes) -> tuple[str, ...]:
    """Return the modules that one says it needs, by the names the kernel gives them."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return tuple(name for name in found[1].decode().split(",") if name) if found else ()


def modules(folder: Path, wanted: str) -> dict[str, bytes]:
    """Return the module `wanted` of a kernel and all it needs, in the order in which they can be loaded."""
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        if name not in files:
            raise InitramfsError(f"the kernel has no module {name}")
        data = module_bytes(files[name])
        for other in depends(data):
            visit(other)
        ordered[name] = data

    visit(wanted)
    return ordered


# --- Python ---------------------------------------------------------------------------------------------------------


def libraries(files: Iterable[Path]) -> list[Path]:
    """Return the shared libraries that programs and libraries need, with the loader, as `ldd` finds them."""
    done = subprocess.run(
        ["ldd", *files], check=False, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
    )
    if missing := re.search(r"(\S+) => not found", done.stdout):
        raise InitramfsError(f"the library {missing[1]} is not there")
    return sorted({Path(path) for path in re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE)})


def requirements(names: Iterable[str]) -> list[str]:
    """Return distributions and what they require here without extras, sorted."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            other = re.match(r"[\w.-]+", line)
            if other and "extra ==" not in line and is_there(other[0]):
                queue.append(other[0])
    return sorted(found)


def is_there(name: str) -> bool:
    """Tell whether a distribution is installed: what another system would need is not."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def copy(path: Path, tree: Path) -> None:
    """Put a file at the same place below `tree`; what a link leads to stands there in its place."""
    target = tree / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def stage_python(tree: Path, venv: Path, packages: Iterable[str]) -> None:
    """Put this Python below `tree`, and a virtual environment with `packages` at the path `venv` in it."""
    program = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    inside = tree / library.relative_to("/")
    shutil.copytree(library, inside, ignore=LEFT_OUT, ignore_dangling_symlinks=True)
    site = tree / venv.relative_to("/") / "lib" / library.name / "site-packages"
    for name in requirements(packages):
        for file in distribution(name).files or ():
            source, target = Path(str(file.locate())), site / file
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    bin_ = tree / venv.relative_to("/") / "bin"
    bin_.mkdir()
    (bin_ / "python3").symlink_to(program)
    (bin_.parent / "pyvenv.cfg").write_text(f"home = {program.parent}\ninclude-system-site-packages = false\n")
    copy(program, tree)
    for path in libraries([program, *inside.rglob("*.so"), *site.rglob("*.so")]):
        copy(path, tree)
    if (cache := Path("/etc/ld.so.cache")).exists():  # libraries outside of the usual folders
        copy(cache, tree)


def compile_all(tree: Path) -> None:
    """Compile every module below `tree`, which is the root of the initramfs, to bytecode that nobody will doubt."""
    compileall.compile_dir(
        tree,
        maxlevels=40,
        quiet=2,
        workers=0,
        stripdir=str(tree),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
