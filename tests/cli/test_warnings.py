"""What is wrong with an image that can be read is told on standard error, in the dialect in qemu-img's words."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import call
from tests.compat.versions import VERSIONS, real
from tests.support import needs_qemu_img, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img


@pytest.fixture(params=["1.1", "0.10"])
def stale(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image with bitmaps that a program which does not know them has changed."""
    path = tmp_path / "t"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    run("qemu-img", "bitmap", "--add", path, "b")
    if request.param == "0.10":
        run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", path)
    else:
        with path.open("r+b") as file:
            file.seek(88)  # autoclear_features
            file.write(bytes(8))
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", ["info", "check"])
def test_stale_bitmaps_are_told_as_qemu_img_tells_them(command: str, version: tuple[int, int], stale: Path) -> None:
    ours = call([command, "t"], version, stale.parent)
    theirs = subprocess.run(
        [real(version), command, "t"], cwd=stale.parent, capture_output=True, text=True, check=False
    )
    assert "bitmap" in theirs.stderr
    # The real one forgets the end of the line.
    said = theirs.stderr.replace("to fix.Leaked", "to fix.\nLeaked")
    assert (ours[0], ours[1], ours[2].rstrip("\n")) == (theirs.returncode, theirs.stdout, said.rstrip("\n"))
