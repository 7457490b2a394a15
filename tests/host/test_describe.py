"""Images of many files are described and checked with as many descriptors as they need, for as long as that takes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import instar

if TYPE_CHECKING:
    from pathlib import Path

GiB = 1 << 30


@pytest.mark.parametrize("operation", [instar.info, instar.check])
def test_a_program_with_few_descriptors_reads_an_image_of_many_files(operation, tmp_path: Path) -> None:
    path = str(tmp_path / "t.vmdk")
    instar.create(path, 300 * GiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    assert len(os.listdir(tmp_path)) == 151
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        operation(path)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    before = len(os.listdir("/proc/self/fd"))
    operation(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_hard_limit_that_is_too_low_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "t.vmdk")
    instar.create(path, 300 * GiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    words = ["sh", "-c", 'ulimit -n 100; exec "$0" -m instar info "$1"', sys.executable, path]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "src"})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Too many open files" in done.stderr
