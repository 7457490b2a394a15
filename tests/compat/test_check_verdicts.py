"""``check`` in the dialect ends with qemu-img's exit code: for damaged images of each format, and for what is none.

Law: what differs on purpose is in docs/quirks.md, and in ``KNOWN`` with the words that tell it.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import answer_of, call
from tests.compat.versions import generations
from tests.support import needs_qemu_img, qemu_img, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

#: Format and options of what is cut.
MADE = [
    ("qcow2", ""),
    ("qcow2", "compat=v2"),
    ("qcow", ""),
    ("qed", ""),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("parallels", ""),
    ("vmdk", ""),
    ("vmdk", "subformat=streamOptimized"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
]
#: What either program says where they part on purpose.
KNOWN = (
    *("Check failed: Device or resource busy", "parallels.c"),  # Parallels: qemu-img gives up, or an assertion fails
    "an extent line",  # VMDK: qemu-img leaves out the extent
    "Parameter 'key-secret' is required",  # LUKS: a check needs no key here
)


def differences(folder: Path, *words: str) -> list[object]:
    found: list[object] = []
    for version, program in generations().items():
        theirs, ours = answer_of(program, ["check", *words], folder), call(["check", *words], version, folder)
        if theirs[0] != ours[0] and not any(known in theirs[2] + ours[2] for known in KNOWN):
            found.append((version, words, theirs, ours))
    return found


@pytest.mark.parametrize(("format", "options"), MADE, ids=lambda word: word or "plain")
def test_of_an_image_that_is_cut_off(format: str, options: str, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", format, *(["-o", options] if options else []), "t", "4M", cwd=tmp_path)
    if options != "subformat=streamOptimized":
        run("qemu-io", "-f", format, "-c", "write -P 1 0 1M", "-c", "write -P 2 3M 64k", "t", cwd=tmp_path)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        size = len(data)
        ends = {size * n // 12 for n in range(12)} | {1, 511, 513, size - 1, size - 512, size - 65536}
        for end in sorted(ends):
            path.write_bytes(data[: max(0, end)])
            for given in (("-f", format), ()):
                assert differences(tmp_path, *given, "t") == [], (path.name, end)
        path.write_bytes(data)


FORMATS = ("qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "parallels")


@pytest.mark.parametrize("given", [None, "raw", "luks", *FORMATS])
def test_of_what_cannot_be_opened(given: str | None, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"hello\n")
    (tmp_path / "folder").mkdir()
    for format in FORMATS:
        qemu_img("create", "-q", "-f", format, f"whole.{format}", "1M", cwd=tmp_path)
        data = bytearray((tmp_path / f"whole.{format}").read_bytes())
        (tmp_path / f"head.{format}").write_bytes(data[:700])
        data[8:64] = b"\xff" * 56
        (tmp_path / f"field.{format}").write_bytes(data)
    fixed = "fixed"
    qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", fixed, "1M", cwd=tmp_path)
    with (tmp_path / fixed).open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff", os.fstat(file.fileno()).st_size - 100)
    for name in [*sorted(path.name for path in tmp_path.iterdir()), "missing"]:
        assert differences(tmp_path, *(["-f", given] if given else []), name) == []


def test_of_a_disk_in_several_files_names_the_sector_that_qemu_img_names(tmp_path: Path) -> None:
    """The first grain that starts past the end, counted as qemu-img counts: extents need not end with a grain."""
    for number in range(3):
        qemu_img("create", "-q", "-f", "vmdk", f"s{number}", "1000k", cwd=tmp_path)
        run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1000k", f"s{number}", cwd=tmp_path)
    (tmp_path / "flat").write_bytes(bytes(512 * 77))
    lines = ['RW 77 FLAT "flat" 0', *(f'RW 2000 SPARSE "s{n}"' for n in range(3)), 'RW 5 FLAT "flat" 76']
    head = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\n'
    (tmp_path / "t").write_text(head + "\n".join(lines) + "\n")
    for cut in (("s2", 900 << 10), ("s1", 300 << 10), ("s0", 64 << 10), ("flat", 512 * 70)):
        for version, program in generations().items():
            assert call(["check", "t"], version, tmp_path) == answer_of(program, ["check", "t"], tmp_path)
        os.truncate(tmp_path / cut[0], cut[1])
    subprocess.run(["truncate", "-s", "0", "flat"], cwd=tmp_path, check=True)
    for version, program in generations().items():
        assert call(["check", "t"], version, tmp_path) == answer_of(program, ["check", "t"], tmp_path)
