"""Starting costs time: what the commands import, against a list of what they may."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

#: Modules of the standard library that a command may load beyond what the interpreter itself does.
#: ``array`` brings ``collections`` with it; ``_ctypes``, the C module alone, seals the cell.
ALLOWED = {
    *("__future__", "_struct", "errno", "fcntl", "resource", "select", "struct"),
    *("array", "_collections", "_operator", "collections", "collections.abc", "itertools", "keyword", "operator"),
    *("reprlib", "_bisect", "bisect", "encodings.utf_16_be", "encodings.utf_16_le"),
    *("_ctypes", "_tracemalloc", "gc"),
}
#: What the self-test tries to use inside of cells, and the name of a group that might help.
ALLOWED_IN_SELF_TEST = ALLOWED | {"_socket", "grp", "mmap"}

CREATE = [("create", "-f", format, "image", "1G") for format in ("raw", "qcow2", "vmdk", "vpc", "vhdx")]
INSPECT = [
    ("info", "image"),
    ("info", "--output=json", "--backing-chain", "image"),
    ("check", "image"),
    ("check", "--output=json", "image"),
]


def imports(python: Path, *words: str | Path, cwd: Path) -> set[str]:
    """Return the modules that a run of the interpreter loads."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "INSTAR_"))}
    done = subprocess.run(
        [str(python), "-X", "importtime", *map(str, words)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    found = set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE))
    rest = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("import time:"))
    assert done.returncode == 0, rest
    return found


@pytest.mark.parametrize("words", [*CREATE, *INSPECT], ids=" ".join)
def test_command_loads_nothing_that_is_not_on_the_list(words: tuple[str, ...], installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    if words[0] != "create":
        imports(python, installed / "instar", "create", "-f", "qcow2", "image", "1G", cwd=tmp_path)
    bare = imports(python, "-c", "pass", cwd=tmp_path)

    loaded = imports(python, installed / "instar", *words, cwd=tmp_path)

    extra = {name for name in loaded - bare if name.partition(".")[0] != "instar"}
    assert extra <= ALLOWED, f"not on the list: {sorted(extra - ALLOWED)}"


def test_self_test_loads_little_more(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    bare = imports(python, "-c", "pass", cwd=tmp_path)
    loaded = imports(python, installed / "instar", "sandbox", "--quick", "--isolation=process", cwd=tmp_path)
    assert {name for name in loaded - bare if name.partition(".")[0] != "instar"} <= ALLOWED_IN_SELF_TEST


def test_importing_the_package_loads_nothing_else(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    bare = imports(python, "-c", "pass", cwd=tmp_path)
    assert imports(python, "-c", "import instar", cwd=tmp_path) - bare == {"instar"}


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vpc", "vhdx"])
def test_creating_one_format_loads_no_other(format: str, installed: Path, tmp_path: Path) -> None:
    loaded = imports(installed / "python", installed / "instar", "create", "-f", format, "image", "1M", cwd=tmp_path)
    others = {name.split(".")[2] for name in loaded if name.startswith("instar.formats.")} - {format}
    assert not others


def test_what_is_not_on_the_list_would_be_seen(installed: Path, tmp_path: Path) -> None:
    assert {"json", "re", "enum"} <= imports(installed / "python", "-c", "import json", cwd=tmp_path)
