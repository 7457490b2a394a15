"""The real qemu-img programs to compare with: the machine's own, and others that ``tools/fetch_qemu.py`` keeps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path


@cache
def programs() -> dict[tuple[int, int], str]:
    """Return every qemu-img that can be had here, by version."""
    root = os.environ.get("INSTAR_QEMU_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instar" / "qemu"
    candidates = [str(path) for path in sorted(base.glob("*/bin/qemu-img"))]
    own = shutil.which("qemu-img")
    found: dict[tuple[int, int], str] = {}
    for program in [*candidates, *([own] if own else [])]:
        try:
            text = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=30, check=False
            ).stdout
        except OSError:
            continue
        if match := re.match(r"qemu-img version (\d+)\.(\d+)", text):
            found[int(match[1]), int(match[2])] = program
    return found


#: Versions whose output is compared: from 7.2 on.
VERSIONS = sorted(version for version in programs() if version >= (7, 2))


def real(version: tuple[int, int]) -> str:
    """Return the program of a version."""
    return programs()[version]


def generations() -> dict[tuple[int, int], str]:
    """Return the programs whose output is compared, by version."""
    return {version: real(version) for version in VERSIONS}
