"""The wheel: its programs start, speak the right dialect, and carry what belongs to a package."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

import instar

ROOT = Path(__file__).parent.parent.parent


def call(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an installed program outside of any development environment."""
    env = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C"}
    return subprocess.run([str(program), *map(str, words)], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", ["instar", "instar-qemu-img"])
def test_installer_rewrites_the_first_line(program: str, installed: Path) -> None:
    first = (installed / program).read_text().splitlines()[0]
    assert first == f"#!{installed / 'python'}"


def test_instar_makes_and_describes_an_image(installed: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    made = call(installed / "instar", "create", "-f", "qcow2", image, "1G")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith(f"Created: {image} (format=qcow2, virtual_size=1073741824, cluster_size=65536")
    seen = json.loads(call(installed / "instar", "info", "--output=json", image).stdout)
    assert (seen["format"], seen["virtual-size"]) == ("qcow2", 1 << 30)


def test_instar_qemu_img_speaks_as_qemu_img(installed: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    made = call(installed / "instar-qemu-img", "create", image, "1M")
    assert made.stdout == f"Formatting '{image}', fmt=raw size=1048576\n"


def test_link_called_qemu_img_speaks_as_qemu_img(installed: Path, tmp_path: Path) -> None:
    link = tmp_path / "qemu-img"
    link.symlink_to(installed / "instar")
    assert call(link, "--version").stdout.startswith("qemu-img version ")
    failed = call(link, "create", "-f", "nosuch", tmp_path / "x", "1M")
    assert (failed.returncode, failed.stderr) == (1, f"qemu-img: {tmp_path / 'x'}: Unknown file format 'nosuch'\n")


def test_wheel_holds_the_typing_mark_and_the_licence_and_needs_nothing(installed: Path) -> None:
    (site,) = (installed.parent / "lib").glob("python3*/site-packages")
    (info,) = site.glob("instar-*.dist-info")
    assert (site / "instar" / "py.typed").is_file()
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    found = PathDistribution(info)
    assert all("extra ==" in need for need in found.requires or ())
    assert found.version == instar.__version__
