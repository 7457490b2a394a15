"""instar as its users have it: a wheel, built and installed into an empty virtual environment."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def _run(*args: str | Path) -> None:
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the installed programs; nothing is fetched."""
    try:
        import hatchling  # noqa: F401
        import pip  # noqa: F401
    except ImportError as error:
        pytest.skip(f"{error.name} is not here, which ./dev setup installs")
    folder = tmp_path_factory.mktemp("installed")
    pip_here = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    _run(*pip_here, "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    _run(*pip_here, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    return folder / "env" / "bin"
