"""Run the examples of a page: ``console`` blocks as commands, ``python`` blocks as doctests, in one folder."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: What depends on the file system, and on whether the host has KVM.
LOOSE = (
    (re.compile(r"^( *disk size: ).*$", re.MULTILINE), r"\1…"),
    (re.compile(r'("actual-size": )\d+'), r"\1…"),
    (re.compile(r'("isolation": )"(kvm|process)"'), r"\1…"),
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return ``(kind, text)`` of each example, in order."""
    return [(found[1], found[2]) for found in BLOCK.finditer(page.read_text())]


def programs(folder: Path) -> Path:
    """Put ``instar`` and ``instar-qemu-img`` of this checkout into a folder for PATH."""
    folder.mkdir()
    for name in ("instar", "instar-qemu-img"):
        text = (ROOT / "scripts" / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join([f"#!{sys.executable}\n", *text[1:]]))
        (folder / name).chmod(0o755)
    return folder


def loosened(text: str) -> str:
    """Return output without what depends on the host."""
    for pattern, instead in LOOSE:
        text = pattern.sub(instead, text)
    return text


def steps(text: str) -> list[tuple[str, str]]:
    """Split a console block into ``(command, expected output)``."""
    found = []
    for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = command[:-1] + more
        found.append((command, output))
    return found


def run_console(text: str, folder: Path, path: Path) -> None:
    """Run the commands of a block and compare what they print."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
    env |= {"PATH": f"{path}:{env['PATH']}", "PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    for command, expected in steps(text):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert loosened(done.stdout) == loosened(expected), command


def run_python(text: str, page: Path, names: dict[str, object]) -> None:
    """Run a doctest in the current folder; names live on from block to block."""
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    said: list[str] = []
    test = parser.get_doctest(text, names, page.name, str(page), 0)
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(said)
