"""``python -m instar`` in a stranger's folder: what is planted there is not run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src"
COMMANDS = (
    ("create", "-f", "qcow2", "disk.qcow2", "4M"),
    ("create", "-f", "raw", "disk.raw", "4M"),
    ("create", "--object", "secret,id=s,data=abc", "-f", "luks", "-o", "key-secret=s,iter-time=10", "disk.luks", "1M"),
    ("create", "-f", "vmdk", "disk.vmdk", "4M"),
    ("info", "--output=json", "--backing-chain", "disk.qcow2"),
    ("info", 'json:{"driver": "qcow2", "file.filename": "disk.qcow2"}'),
    ("check", "disk.qcow2"),
    ("info", "nothing.here"),
    ("create", "--help"),
    ("sandbox", "--quick", "--isolation=process"),
)
#: ``sys.stdlib_module_names`` and packages that an encrypted image needs.
PLANTED = (*sorted(sys.stdlib_module_names), "cryptography", "_cffi_backend", "cffi", "sitecustomize", "usercustomize")
#: The start of the interpreter is not ours: ``python -m`` looks for these before it runs anything of the package.
_BEFORE_US = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)


def call(folder: Path, *words: str, path: str = str(SOURCE)) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "INSTAR_"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**env, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def plant(folder: Path, names: tuple[str, ...]) -> None:
    """Put a module of each name in a folder: it leaves a mark, and ends the program."""
    for name in names:
        mark = f"import posix\nposix.mkdir({str(folder / 'ran')!r} + '.' + __name__)\nposix._exit(99)\n"
        if name in ("encodings", "cryptography", "collections", "importlib", "json"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(mark)
        else:
            (folder / f"{name}.py").write_text(mark)


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("ran."))


@pytest.fixture(scope="module")
def ran_by_python() -> set[str]:
    """Return what ``python -m`` itself imports before it gets to a module, by a module that does nothing."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "__hello__"], env=env, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in _BEFORE_US.findall(done.stderr)}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    plant(tmp_path, PLANTED)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_runs_nothing_from_there_when_called_as_recommended(hostile: Path, words: tuple[str, ...]) -> None:
    if "disk.qcow2" in words[-1] and words[0] != "create":
        assert call(hostile, "-P", "-m", "instar", *COMMANDS[0]).returncode == 0
    (hostile / "instar").mkdir()
    (hostile / "instar" / "__init__.py").write_text("import posix\nposix._exit(99)\n")
    done = call(hostile, "-P", "-m", "instar", *words)
    assert done.returncode == (1 if words[-1] == "nothing.here" else 0), done.stderr
    assert marks(hostile) == []


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_runs_nothing_from_there_that_python_has_not_run_before(
    tmp_path: Path, words: tuple[str, ...], ran_by_python: set[str]
) -> None:
    plant(tmp_path, tuple(name for name in PLANTED if name not in ran_by_python))
    if "disk.qcow2" in words[-1] and words[0] != "create":
        assert call(tmp_path, "-m", "instar", *COMMANDS[0]).returncode == 0
    done = call(tmp_path, "-m", "instar", *words)
    assert done.returncode == (1 if words[-1] == "nothing.here" else 0), done.stderr
    assert marks(tmp_path) == []


@pytest.mark.parametrize("path", [f"{SOURCE}:", f":{SOURCE}", f"{SOURCE}:.", f".:{SOURCE}"])
def test_runs_nothing_from_there_if_the_path_names_it_by_accident(tmp_path: Path, path: str) -> None:
    # What Python's own start looks for comes from the first place that has it, also with -P.
    plant(tmp_path, ("fcntl", "resource", "select", "_socket", "errno", "json", "cryptography", "struct", "array"))
    for words in COMMANDS[:3]:
        done = call(tmp_path, "-P", "-m", "instar", *words, path=path)
        assert done.returncode == 0, done.stderr
    assert marks(tmp_path) == []


def test_runs_where_the_package_itself_lies_and_finds_its_own_library_first(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "instar").symlink_to(SOURCE / "instar")
    plant(folder, ("fcntl", "resource", "json", "signal"))
    done = call(folder, "-m", "instar", *COMMANDS[0], path="")
    assert (done.returncode, marks(folder)) == (0, []), done.stderr


def test_runs_in_the_folder_of_pythons_own_library() -> None:
    done = call(Path(os.__file__).parent, "-m", "instar", "info", "--output=json", "nothing.here")
    assert done.returncode == 1
    assert "nothing.here" in done.stderr + done.stdout


TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "dev", *(ROOT / "src").rglob("*.py")]


@pytest.mark.parametrize("text", [t for t in TEXTS if "-m instar" in t.read_text()], ids=lambda t: t.name)
def test_every_text_recommends_the_call_that_looks_nowhere_else(text: Path) -> None:
    calls = re.findall(r"python\S*((?: -\S+)*) -m instar\b", text.read_text())
    assert calls
    assert all("-P" in options.split() for options in calls)
