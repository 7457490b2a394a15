"""``instar check`` as a person types it."""

from __future__ import annotations

import json
import os

import pytest
from tests.support import instar


@pytest.fixture
def folder(tmp_path):
    """Images made by instar; in qcow2 of 64 KiB clusters the refcount block is the third cluster."""
    for format in ("qcow2", "vmdk", "vpc", "vhdx", "raw"):
        assert instar("create", "-q", "-f", format, f"good.{format}", "4M", cwd=tmp_path).returncode == 0
    for name, cluster, refcount in (("leak", 20, 1), ("bad", 3, 0)):
        data = bytearray((tmp_path / "good.qcow2").read_bytes()).ljust(21 << 16, b"\0")
        data[(2 << 16) + 2 * cluster : (2 << 16) + 2 * cluster + 2] = refcount.to_bytes(2, "big")
        (tmp_path / f"{name}.qcow2").write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vpc", "vhdx"])
def test_a_fresh_image_is_clean(format, folder):
    done = instar("check", f"good.{format}", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No errors were found on the image.\n")


@pytest.mark.parametrize(("name", "code", "word"), [("leak", 3, "leak: "), ("bad", 2, "corruption: ")])
def test_damage_is_said_where_it_is_and_gives_its_exit_code(name, code, word, folder):
    done = instar("check", f"{name}.qcow2", cwd=folder)
    assert done.returncode == code
    assert done.stderr.startswith(word)
    assert "at byte" in done.stderr
    said = json.loads(instar("check", "--output=json", f"{name}.qcow2", cwd=folder).stdout)
    assert said["findings"][0]["severity"] == word.rstrip(": ")


def test_raw_has_nothing_to_check(folder):
    done = instar("check", "-f", "raw", "good.raw", cwd=folder)
    assert (done.returncode, done.stdout) == (63, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("format", ["vpc", "vhdx"])
def test_a_wrong_checksum_is_found(format, folder):
    path = folder / f"good.{format}"
    at = {"vpc": 512 + 40, "vhdx": (192 << 10) + 20}[format]
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\x5a", at)
    done = instar("check", path.name, cwd=folder)
    assert done.returncode in (1, 2)
    assert "checksum" in done.stderr.lower()


def test_two_grain_directories_that_disagree_are_found(folder):
    path = folder / "good.vmdk"
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), (999).to_bytes(4, "little"), 21 * 512)
    done = instar("check", path.name, cwd=folder)
    assert done.returncode == 2
    assert "redundant grain" in done.stderr


def test_quiet_says_only_what_is_wrong(folder):
    assert instar("check", "-q", "good.qcow2", cwd=folder).stdout == ""
    assert instar("check", "-q", "leak.qcow2", cwd=folder).stderr != ""
