"""Every creation of the matrix, side by side with the real qemu-img: bytes, info, check, and use."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from tests.compat.cases import Case, ordinary_cases
from tests.compat.differences import ignored, normalised, same_descriptor, without_allocation
from tests.compat.versions import VERSIONS, real
from tests.support import needs_qemu_img, qemu_img, run, same_bytes, same_holes, settle

import instar
from instar.cli.json import dumps
from instar.cli.render import info_object, info_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

#: What qemu-img cannot open again although it made it: nothing is left to compare by ``info``.
UNREADABLE = "Unsupported image type 'monolithicSparse'"


def make_both(case: Case, folder: Path) -> tuple[Path, Path]:
    """Make the same image twice, in two folders so that names inside are the same too.

    What qemu-img refuses, instar must refuse too; both files are then missing or empty.
    """
    ours, theirs = folder / "ours", folder / "theirs"
    options = ",".join(f"{k}={v}" for k, v in case.options)
    words: list[str] = ["-o", options] if options else []
    backing: dict[str, str] = {}
    for place in (ours, theirs):
        place.mkdir()
        if case.backing:
            qemu_img("create", "-q", "-f", case.backing, place / "base", "64M")
    if case.backing:
        if case.backing == "vmdk":  # both children must name the same parent
            (ours / "base").write_bytes((theirs / "base").read_bytes())
        backing = {"backing": "base", "backing_format": case.backing}
        words += ["-b", "base", "-F", case.backing]
    done = run("qemu-img", "create", "-q", "-f", case.format, *words, theirs / "image", str(case.size))
    try:
        instar.create(str(ours / "image"), case.size, format=case.format, options=dict(case.options), **backing)
    except instar.OptionError:
        assert done.returncode == 1
        assert not (ours / "image").exists()
    else:
        assert done.returncode == 0, done.stderr
    return ours / "image", theirs / "image"


def shows_former_metadata(case: Case, image: Path, folder: Path) -> bool:
    """Tell whether a new disk does not read as zeros: qemu-img may leave there what its refcount table was."""
    if not case.preallocated or case.backing or case.size > 1 << 30:
        return False
    qemu_img("create", "-q", "-f", "raw", folder / "zeros", str(case.size))
    return run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, folder / "zeros").returncode == 1


def data_ranges(path: Path) -> tuple[tuple[int, int], ...]:
    """Return where in the file the guest's data is, as qemu-img sees it."""
    rows = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path).stdout)
    return tuple((row["offset"], row["offset"] + row["length"]) for row in rows if row["data"] and "offset" in row)


def versions(case: Case) -> list[tuple[int, int]]:
    """Return the versions that are asked: one, each in its turn; on demand (``INSTAR_ALL_CASES=1``) all of them.

    They differ in what they print, not in how they read tables: one is enough where reading takes long.
    """
    if case.preallocated:
        return VERSIONS[-1:]
    if os.environ.get("INSTAR_ALL_CASES"):
        return VERSIONS
    return [VERSIONS[crc32(case.name.encode()) % len(VERSIONS)]]


@pytest.mark.parametrize("case", ordinary_cases(), ids=lambda case: case.name)
def test_image_is_that_of_qemu_img(case: Case, tmp_path: Path) -> None:
    """Bytes, allocation, and what qemu-img and instar say of both images."""
    ours, theirs = make_both(case, tmp_path)
    if not ours.exists():
        return

    ranges = ignored(case.format, theirs)
    if case.format == "vmdk":
        ranges += same_descriptor(ours, theirs)
    if shows_former_metadata(case, theirs, tmp_path):
        assert not shows_former_metadata(case, ours, tmp_path)
        same_bytes(ours, theirs, ignore=(*ranges, *data_ranges(ours)))
    else:
        same_bytes(ours, theirs, ignore=ranges)
        same_holes(ours, theirs)

    settle(ours, theirs)
    names = {str(ours.parent): "DIR", str(theirs.parent): "DIR"}
    force = ["-f", case.format] if dict(case.options).get("subformat") == "fixed" or case.format == "raw" else []
    for version in versions(case):
        program = real(version)
        seen = {path: run(program, "info", "--output=json", *force, path) for path in (ours, theirs)}
        if UNREADABLE in seen[theirs].stderr:
            assert UNREADABLE in seen[ours].stderr
            continue
        assert seen[theirs].returncode == 0, seen[theirs].stderr
        assert seen[ours].returncode == 0, seen[ours].stderr
        left, right = (normalised(json.loads(seen[path].stdout), names) for path in (ours, theirs))
        assert without_allocation(left) == without_allocation(right)
        for path in (ours, theirs):
            image = instar.info(str(path), format=force[1] if force else None, generation=version)
            assert dumps(info_object(image, version)) + "\n" == seen[path].stdout
            assert info_text(image, version) == run(program, "info", *force, path).stdout

        judged = {path: run(program, "check", *force, path) for path in (ours, theirs)}
        assert judged[ours].returncode == judged[theirs].returncode
        assert judged[ours].stdout == judged[theirs].stdout
        assert judged[ours].returncode in (0, 63)

    if case.format != "raw" and UNREADABLE not in run("qemu-img", "info", *force, theirs).stderr:
        for path in (ours, theirs):
            found = instar.check(str(path), format=force[1] if force else None)
            assert found.clean, found.findings
