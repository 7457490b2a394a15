"""Images made by instar are used for real: written by qemu-io, converted and compared by qemu-img."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.support import needs_qemu_img, needs_qemu_io, qemu_img, run, settle

import instar
from instar.cli.json import dumps
from instar.cli.render import check_object, info_object

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_qemu_img, needs_qemu_io]

SIZE = 48 << 20
#: ``(offset, length, pattern)`` of what a guest writes: the start, the end, and across block boundaries.
WRITES = ((0, 65536, 1), (2 << 20, 512, 2), ((4 << 20) - 4096, 8192, 3), (33 << 20, 1 << 20, 4), (SIZE - 512, 512, 5))

KINDS = [
    ("raw", {}),
    ("qcow2", {}),
    ("qcow2", {"compat": "0.10", "cluster_size": "512"}),
    ("qcow2", {"cluster_size": "2M", "refcount_bits": "1"}),
    ("qcow2", {"refcount_bits": "64", "lazy_refcounts": "on"}),
    ("qcow2", {"extended_l2": "on", "compression_type": "zstd"}),
    ("qcow2", {"preallocation": "metadata"}),
    ("qcow2", {"preallocation": "falloc", "cluster_size": "4k"}),
    ("qcow2", {"preallocation": "full", "refcount_bits": "8"}),
    ("vmdk", {}),
    ("vmdk", {"zeroed_grain": "on", "grain_size": "8k"}),
    ("vpc", {"force_size": "on"}),
    ("vpc", {"subformat": "fixed", "force_size": "on"}),
    ("vpc", {"force_size": "on", "block_size": "512k"}),
    ("vhdx", {}),
    ("vhdx", {"subformat": "fixed", "block_size": "1M"}),
    ("vhdx", {"block_state_zero": "off", "block_size": "256M"}),
    ("vdi", {}),
    ("vdi", {"static": "on", "preallocation": "falloc"}),
    ("parallels", {"cluster_size": "64k"}),
    ("parallels", {"preallocation": "full"}),
]


def qemu_io(path: Path, format: str, *commands: str) -> None:
    """Run the real qemu-io and fail the test if any of its commands fails."""
    done = run("qemu-io", "-f", format, *[word for c in commands for word in ("-c", c)], path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("format", "options"),
    KINDS,
    ids=lambda v: v if isinstance(v, str) else ",".join(map("=".join, v.items())) or "plain",
)
def test_guest_data_goes_in_and_comes_out(format: str, options: dict[str, str], tmp_path: Path) -> None:
    """Write a pattern, read it back, convert it, and compare with the same writes on a raw file."""
    image, model = tmp_path / "image", tmp_path / "model"
    instar.create(str(image), SIZE, format=format, options=options)
    qemu_img("create", "-q", "-f", "raw", model, str(SIZE))

    for path, kind in ((image, format), (model, "raw")):
        qemu_io(path, kind, *(f"write -P {pattern} {offset} {length}" for offset, length, pattern in WRITES))

    qemu_io(image, format, *(f"read -P {pattern} {offset} {length}" for offset, length, pattern in WRITES))
    assert qemu_img("compare", "-f", format, "-F", "raw", image, model).stdout == "Images are identical.\n"
    qemu_img("convert", "-f", format, "-O", "raw", image, tmp_path / "out")
    assert qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "out", model).stdout == "Images are identical.\n"
    agree(image, format)


def agree(image: Path, format: str) -> None:
    """Require that instar and every real qemu-img say the same of an image with data."""
    settle(image)
    for version in VERSIONS:
        theirs = run(real(version), "info", "--output=json", "-f", format, image)
        assert (
            dumps(info_object(instar.info(str(image), format=format, generation=version), version)) + "\n"
            == theirs.stdout
        )
    judged = run("qemu-img", "check", "--output=json", "-f", format, image)
    if judged.returncode == 63:
        return
    ours = instar.check(str(image), format=format, generation=VERSIONS[0])
    assert ours.exit_code == judged.returncode
    assert check_object(ours, details=False) == json.loads(judged.stdout)


def test_a_stream_optimised_disk_takes_compressed_data(tmp_path: Path) -> None:
    """A stream is written once, from the start; that is how qemu-img converts into it."""
    image = tmp_path / "image"
    instar.create(str(image), SIZE, format="vmdk", options={"subformat": "streamOptimized"})
    qemu_img("create", "-q", "-f", "raw", tmp_path / "model", str(SIZE))
    qemu_io(tmp_path / "model", "raw", *(f"write -P {p} {o} {n}" for o, n, p in WRITES))
    qemu_img("convert", "-n", "-f", "raw", "-O", "vmdk", tmp_path / "model", image)
    assert qemu_img("compare", "-f", "vmdk", "-F", "raw", image, tmp_path / "model").stdout == "Images are identical.\n"
    agree(image, "vmdk")


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_an_overlay_shows_what_is_behind_it_and_keeps_its_own(format: str, tmp_path: Path) -> None:
    """A backing file of the same format with data, an overlay of ours over it."""
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", format, base, str(SIZE))
    qemu_io(base, format, "write -P 7 0 1M")
    instar.create(str(top), format=format, backing="base", backing_format=format)
    qemu_io(top, format, "write -P 9 512k 64k", "read -P 7 0 512k", "read -P 9 512k 64k", "read -P 7 576k 448k")
    qemu_io(base, format, "read -P 7 0 1M")
    agree(top, format)


def test_snapshots_bitmaps_and_compressed_clusters_are_described_and_checked(tmp_path: Path) -> None:
    """What qemu-img adds later to an image that we made."""
    image = tmp_path / "image"
    instar.create(str(image), SIZE, format="qcow2")
    qemu_io(image, "qcow2", "write -P 1 0 1M", "write -c -P 2 8M 64k", "write -z 16M 1M")
    for command in (["snapshot", "-c", "first"], ["snapshot", "-c", "a second one"], ["bitmap", "--add"]):
        qemu_img(*command, image, *(["dirty"] if command[0] == "bitmap" else []))
    qemu_io(image, "qcow2", "write -P 3 0 2M")
    agree(image, "qcow2")
