"""A chain of images is described within bounds that its images cannot raise together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, qemu_img

import instar
from instar.host import info

if TYPE_CHECKING:
    from pathlib import Path


@needs_qemu_img
def test_a_chain_has_only_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three and two snapshots, and a file each; the bound itself takes images of megabytes (``tests.hostile``)."""
    qemu_img("create", "-q", "-f", "qcow2", "base", "1M", cwd=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", cwd=tmp_path)
    for name in ("base", "base", "base", "top", "top"):
        qemu_img("snapshot", "-c", "now", name, cwd=tmp_path)
    top = str(tmp_path / "top")

    monkeypatch.setattr(info, "MAX_CHAIN_ROWS", 7)
    assert [image.count_rows() for image in instar.info_chain(top)] == [3, 4]
    monkeypatch.setattr(info, "MAX_CHAIN_ROWS", 6)
    with pytest.raises(instar.ImageError, match="too many snapshots") as caught:
        instar.info_chain(top)
    assert (caught.value.kind, caught.value.value, caught.value.limit) == ("too-large", 7, 6)
    assert instar.info(top).snapshots  # one image of it is none


@needs_qemu_img
def test_a_chain_has_only_so_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_img("create", "-q", "-f", "raw", "0", "1M", cwd=tmp_path)
    for number, format in ((1, "raw"), (2, "qcow2")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(number - 1), "-F", format, str(number), cwd=tmp_path)
    monkeypatch.setattr(info, "MAX_CHAIN", 3)
    assert len(instar.info_chain(str(tmp_path / "2"))) == 3
    monkeypatch.setattr(info, "MAX_CHAIN", 2)
    with pytest.raises(instar.ImageError, match="longer than 2 images"):
        instar.info_chain(str(tmp_path / "2"))


@needs_qemu_img
def test_an_error_carries_what_was_described_of_the_chain(tmp_path: Path) -> None:
    """Whatever ends the walk: a file that is gone, one that is no image, a loop, a refusal."""
    qemu_img("create", "-q", "-f", "qcow2", "base", "1M", cwd=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "mid", cwd=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top", cwd=tmp_path)
    top = str(tmp_path / "top")

    def described() -> tuple[str, list[str]]:
        with pytest.raises(instar.ImageError) as caught:
            instar.info_chain(top)
        return caught.value.kind, [image.filename.rpartition("/")[2] for image in caught.value.described]

    (tmp_path / "base").write_bytes(bytes(4096))
    assert described() == ("invalid-format", ["top", "mid"])
    (tmp_path / "base").unlink()
    assert described() == ("not-found", ["top", "mid"])
    (tmp_path / "base").symlink_to("/etc/passwd")
    assert described() == ("denied", ["top", "mid"])
    (tmp_path / "mid").unlink()
    (tmp_path / "mid").hardlink_to(tmp_path / "top")
    assert described() == ("corrupt", ["top"])
    (tmp_path / "top").write_bytes(b"QFI\xfb" + bytes(4096))
    assert described()[1] == []
