"""The folder that a command is run in belongs to somebody else: nothing in it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.attacks.laws import image_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCE = str(Path(__file__).parent.parent.parent / "src")
_PLANTED = "import os\nopen({mark!r}, 'a').write(__name__ + '\\n')\n"


def _before(folder: Path) -> frozenset[str]:
    """Return what the interpreter loads before a module that was asked for by ``-m``: no program can defend that."""
    (folder / "nothing.py").write_text("import sys\nprint(*sys.modules)\n")
    done = subprocess.run(
        [sys.executable, "-m", "nothing"], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    (folder / "nothing.py").unlink()
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    return frozenset((*loaded, "sitecustomize", "usercustomize", "pkgutil"))


def _plant(folder: Path, names: Sequence[str]) -> Path:
    mark = folder.parent / "mark"
    for name in names:
        (folder / f"{name}.py").write_text(_PLANTED.format(mark=str(mark)))
    return mark


def _run(
    folder: Path, python: Sequence[str], words: Sequence[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("INSTAR_", "PYTHON"))}
    env.update({"PYTHONPATH": _SOURCE, **variables})
    return subprocess.run(
        [sys.executable, *python, *words], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60
    )


_COMMANDS = {
    "info": ["info", "image"],
    "check": ["check", "image"],
    "create": ["create", "-f", "qcow2", "new", "1G"],
    "create with a passphrase": [
        "create", "--object", "secret,id=s,data=x", "-f", "luks", "-o", "key-secret=s,iter-time=10", "new", "1M",
    ],
    "batch": ["create", "--batch", "jobs"],
    "sandbox": ["sandbox"],
    "help": ["--help"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "images"
    inner.mkdir()
    image_of(inner)
    (inner / "jobs").write_text('{"filename": "new", "size": "1M", "format": "qcow2"}\n')
    return inner


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("command", _COMMANDS)
def test_modules_of_every_name_of_the_standard_library(command: str, safe: bool, folder: Path) -> None:
    before = frozenset() if safe else _before(folder)
    names = [n for n in sys.stdlib_module_names if n not in before]
    mark = _plant(folder, names)
    done = _run(folder, ["-P", "-m", "instar"] if safe else ["-m", "instar"], _COMMANDS[command])
    assert not mark.exists(), f"ran: {mark.read_text().split()[:20]}"
    assert done.returncode in (0, 1, 63), done


@pytest.mark.parametrize(
    "name", ["instar", "cryptography", "_cffi_backend", "tomllib", "sitecustomize", "usercustomize"]
)
def test_package_planted(name: str, folder: Path) -> None:
    package = folder / name
    package.mkdir()
    mark = folder.parent / "mark"
    for part in ("__init__", "__main__"):
        (package / f"{part}.py").write_text(_PLANTED.format(mark=str(mark)))
    for command in ("info", "create with a passphrase"):
        _run(folder, ["-P", "-m", "instar"], _COMMANDS[command])
    assert not mark.exists(), mark.read_text()


def test_files_that_python_reads_by_themselves(folder: Path) -> None:
    mark = folder.parent / "mark"
    code = f"import os; open({str(mark)!r}, 'a').write('x')\n"
    for name in ("x.pth", "distutils-precedence.pth", "pyvenv.cfg", "python._pth", "python311._pth", ".pythonrc"):
        (folder / name).write_text(code)
    (folder / "encodings").mkdir()
    (folder / "encodings" / "__init__.py").write_text(code)
    (folder / "__pycache__").mkdir()
    for safe in (["-P", "-m", "instar"], ["-m", "instar"]):
        _run(folder, safe, ["info", "image"])
    assert not mark.exists()


@pytest.mark.parametrize("ending", [".py", ".pyc", ".so", ".abi3.so", ".cpython-311-x86_64-linux-gnu.so"])
def test_module_of_each_kind(ending: str, folder: Path) -> None:
    for name in ("fcntl", "ctypes", "_ctypes", "array", "select", "resource", "zlib", "json", "tomllib"):
        (folder / f"{name}{ending}").write_bytes(b"this is no module")
    done = _run(folder, ["-m", "instar"], ["info", "image"])
    assert done.returncode == 0, done


@pytest.mark.parametrize("path", ["", ".", ":", "{source}:", "{source}:.", ".:{source}", "{folder}:{source}"])
def test_path_of_the_caller_that_names_the_folder_by_accident(path: str, folder: Path) -> None:
    mark = _plant(folder, sorted(sys.stdlib_module_names - _before(folder)))
    value = path.format(source=_SOURCE, folder=folder)
    if _SOURCE not in value:
        value = f"{_SOURCE}:{value}" if value else _SOURCE
    done = _run(folder, ["-m", "instar"], ["info", "image"], PYTHONPATH=value)
    if path.startswith("{folder}"):
        return  # the caller named it in so many words
    assert not mark.exists(), f"ran: {mark.read_text().split()[:20]}"
    assert done.returncode in (0, 1)


def test_fork_server_started_by_a_library_in_the_folder(folder: Path) -> None:
    mark = _plant(folder, sorted(sys.stdlib_module_names - _before(folder)))
    code = "import instar; print(instar.info('image').format)"
    done = _run(folder, ["-P", "-c", code], [])
    assert done.stdout == "raw\n", done
    assert not mark.exists()


def test_programs_in_the_folder_are_not_found_by_an_empty_path(folder: Path) -> None:
    mark = folder.parent / "mark"
    for name in ("python3", "python", "qemu-img", "ldconfig", "gcc", "cc", "ld", "objdump", "uname", "sh", "getconf"):
        (folder / name).write_text(f"#!/bin/sh\necho $0 >> {mark}\n")
        (folder / name).chmod(0o755)
    for value in ("", ".", f".:{os.environ['PATH']}"):
        for command in ("info", "create"):
            _run(folder, ["-P", "-m", "instar"], _COMMANDS[command], PATH=value)
    assert not mark.exists(), mark.read_text()


def test_libraries_in_the_folder_are_not_loaded(folder: Path) -> None:
    for name in ("libc.so.6", "libseccomp.so.2", "libcrypto.so.3", "libpython3.so", "None"):
        (folder / name).write_bytes(b"\x7fELF this is no library")
    done = _run(folder, ["-P", "-m", "instar"], ["info", "image"], LD_LIBRARY_PATH="")
    assert done.returncode == 0, done
