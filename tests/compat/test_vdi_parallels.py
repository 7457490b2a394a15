"""VDI and Parallels beyond the matrix: what qemu-img's check finds in its own new images, and the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.parallels.images import bitmap, extended, parallels
from tests.formats.vdi.images import FREE, vdi
from tests.support import needs_qemu_img, qemu_img, run, same_bytes, settle

import instar
from instar.cli.render import check_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

MiB, TiB = 1 << 20, 1 << 40


@pytest.mark.parametrize(("size", "cluster_size"), [(TiB, "1M"), (MiB, "3000"), (10 * MiB, "512")])
def test_new_images_that_qemu_itself_finds_fault_with_are_kept_as_they_are(
    size: int, cluster_size: str, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    instar.create(str(ours), size, format="parallels", options={"cluster_size": cluster_size})
    qemu_img("create", "-q", "-f", "parallels", "-o", f"cluster_size={cluster_size}", theirs, str(size))
    same_bytes(ours, theirs)
    for version in VERSIONS:
        done = run(real(version), "check", "-f", "parallels", theirs)
        found = instar.check(str(ours), generation=version)
        assert (found.exit_code, check_text(found)) == (done.returncode, done.stdout)


IMAGES: dict[str, tuple[str, bytes]] = {
    "vdi": ("vdi", vdi([FREE] * 4)),
    "vdi used twice": ("vdi", vdi([0, 0, 5, FREE], size=1024 + 4 * MiB)),
    "vdi wrong count": ("vdi", vdi([0, 1, FREE, FREE], size=1024 + 2 * MiB, blocks_allocated=9)),
    "vdi version": ("vdi", vdi([FREE], version=0x20003)),
    "vdi signature": ("vdi", vdi([FREE], signature=0xAB)),
    "vdi offset": ("vdi", vdi([FREE], offset_data=700)),
    "parallels": ("parallels", parallels([1, 2, 0])),
    "parallels older": ("parallels", parallels([8, 16, 0], old=True)),
    "parallels in use": ("parallels", parallels([1, 2, 0], inuse=0x746F6E59)),
    "parallels used twice": ("parallels", parallels([1, 1, 2])),
    "parallels data_off": ("parallels", parallels([1, 2], data_off=3)),
    "parallels leak": ("parallels", parallels([1, 2], size=9 * 4096)),
    "parallels bitmaps": ("parallels", extended(bitmap([1]))),
    "parallels checksum": ("parallels", extended(b"", spoil=True)),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    "words", [["check"], ["check", "--output=json"], ["info"], ["info", "--output=json"]], ids=" ".join
)
def test_the_command_says_what_qemu_img_says(name: str, words: list[str], tmp_path: Path) -> None:
    format, data = IMAGES[name]
    (tmp_path / "image").write_bytes(data)
    settle(tmp_path / "image")
    version = VERSIONS[-1]
    theirs = run(real(version), *words, "-f", format, "image", cwd=tmp_path)
    env = {
        "PYTHONPATH": ":".join(sys.path),
        "INSTAR_QEMU_VERSION": ".".join(map(str, version)),
        "INSTAR_DIALECT": "qemu-img",
    }
    ours = run(sys.executable, "-m", "instar", *words, "-f", format, "image", cwd=tmp_path, env=env)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
