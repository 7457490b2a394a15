"""Files that the tests of cells grant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from instar.sandbox.cell import Grant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Grant]]:
    """File 0 for reading, 1 for writing, 2 for both; each with 8 KiB. All are opened for both."""
    fds = []
    for name in ("r", "w", "rw"):
        (tmp_path / name).write_bytes(b"x" * 8192)
        fds.append(os.open(tmp_path / name, os.O_RDWR))
    yield [Grant(fd, mode, 8192) for fd, mode in zip(fds, ("r", "w", "rw"), strict=True)]
    for fd in fds:
        os.close(fd)
