"""A caller's limit of processor time is said to be the caller's, and ends the program as it would end qemu-img."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox.backends import KVM

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
from tests.sandbox.exploited import exploited
from instar.cli.main import main

def never(job, files, ask):
    while True:
        pass

with exploited(never, sys.argv[1]):
    code = main(["instar", sys.argv[2], f"--isolation={sys.argv[1]}", "info", "image"])
sys.exit(code)
"""


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
@pytest.mark.parametrize("kind", ["process", KVM])
@pytest.mark.parametrize(
    ("dialect", "limit", "code"),
    [("instar", "2", 70), ("qemu-img", "2", -signal.SIGKILL), ("qemu-img", "2:30", -signal.SIGXCPU)],
)
def test_ends_the_program(kind: str, dialect: str, limit: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    words = ["prlimit", f"--cpu={limit}", "--core=0", sys.executable, "-c", PROGRAM, kind, f"--dialect={dialect}"]
    env = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "the cell used as much processor time as this program may, 2 s (ulimit -t)" in done.stderr
