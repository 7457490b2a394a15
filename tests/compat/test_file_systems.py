"""``nocow`` and ``extent_size_hint`` on the file systems that know them, each made in a file and mounted to try it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.support import instar, needs_qemu_img, run

from instar import create
from instar.formats import creatable
from instar.host.files import extent_size_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

_FS_IOC_GETFLAGS = 0x80086601
_FS_NOCOW_FL = 0x00800000
MiB = 1 << 20

FORMATS = sorted(row.name for row in creatable())


def mounted(kind: str, size: int, folder: Path) -> Iterator[Path]:
    """Make a file system of a kind and mount it, or skip."""
    if os.geteuid() or shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs root and mkfs.{kind}")
    image, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    done = run(f"mkfs.{kind}", "-q", image)
    done = done if done.returncode else run("mount", "-o", "loop", image, place)
    if done.returncode:
        pytest.skip(f"no {kind} here: {done.stderr.strip()[-80:]}")
    yield place
    run("umount", place)
    image.unlink()


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from mounted("btrfs", 256 * MiB, tmp_path_factory.mktemp("btrfs"))


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from mounted("xfs", 512 * MiB, tmp_path_factory.mktemp("xfs"))


def is_nocow(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(struct.unpack("i", fcntl.ioctl(file.fileno(), _FS_IOC_GETFLAGS, bytes(4)))[0] & _FS_NOCOW_FL)


def hint_of(path: Path) -> int:
    with path.open("rb") as file:
        return extent_size_hint(file.fileno())


@pytest.mark.parametrize("format", FORMATS)
def test_nocow_is_set_on_btrfs_and_only_if_asked_for(btrfs, format):
    if format == "luks":
        pytest.skip("needs a passphrase")
    create(str(btrfs / "on"), 8 * MiB, format=format, options={"nocow": True})
    create(str(btrfs / "off"), 8 * MiB, format=format)
    assert is_nocow(btrfs / "on")
    assert not is_nocow(btrfs / "off")
    for name in ("on", "off"):
        (btrfs / name).unlink()


def test_nocow_is_set_for_a_data_file_too_and_for_what_is_replaced(btrfs):
    (btrfs / "i").write_bytes(b"old")
    create(str(btrfs / "i"), MiB, format="qcow2", options={"nocow": True, "data_file": str(btrfs / "d")})
    assert is_nocow(btrfs / "i")
    assert is_nocow(btrfs / "d")


@pytest.mark.parametrize("format", FORMATS)
def test_hint_is_a_mebibyte_on_xfs_unless_told_otherwise(xfs, format):
    if format == "luks":
        pytest.skip("needs a passphrase")
    for given, found in ((None, MiB), (0, 0), (65536, 65536)):
        options = {} if given is None else {"extent_size_hint": given}
        create(str(xfs / "t"), 8 * MiB, format=format, options=options)
        assert hint_of(xfs / "t") == found
        (xfs / "t").unlink()


@needs_qemu_img
@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: ".".join(map(str, v)))
@pytest.mark.parametrize("options", ["extent_size_hint=2M", "extent_size_hint=0", "nocow=on", "preallocation=falloc"])
def test_storage_and_info_on_xfs_are_those_of_qemu_img(xfs, version, options):
    shown = ".".join(map(str, version))
    # How much an XFS rounds up depends on the order of writes, which is qemu-img's only where there is but one.
    for format in ("raw",) if "falloc" in options else ("raw", "qcow2"):
        storage = set()
        for maker in ("ours", "theirs"):
            words = ["create", "-q", "-f", format, "-o", options, "t", "8M"]
            if maker == "ours":
                done = instar(*words, cwd=xfs, dialect="qemu-img", INSTAR_QEMU_VERSION=shown)
            else:
                done = run(real(version), *words, cwd=xfs)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            storage.add(((xfs / "t").stat().st_blocks, hint_of(xfs / "t")))
            if maker == "ours":
                for words in ("-f", format), ("-f", "file"), ("-f", "file", "--output=json"):
                    ours = instar("info", *words, "t", cwd=xfs, dialect="qemu-img", INSTAR_QEMU_VERSION=shown)
                    assert ours.stdout == run(real(version), "info", *words, "t", cwd=xfs).stdout
            (xfs / "t").unlink()
        assert len(storage) == 1
