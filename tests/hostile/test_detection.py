"""Files of two formats: instar takes them for what qemu-img takes them for, and refuses what it refuses."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.hostile.meter import ALL, Worker
from tests.hostile.polyglots import MAGICS, intact, write
from tests.support import QEMU_IMG, needs_qemu_img, run

from instar.formats import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_qemu_img
STEP = 1 if ALL else 13
PAIRS = [(base, magic) for base in (name for name, _, _ in intact()) for magic in MAGICS]
#: Formats that QEMU has and the machine's qemu-img may find.
FORMATS = [row.name for row in TABLE]
#: Where the two do not agree on whether the file can be described, and why.
_SIGHT = "instar refuses what it knows by sight and cannot read; QEMU looks closer (bochs) or at the file's name (dmg)"
DIFFERENT: dict[tuple[str, str], str] = {
    **{(base, "bochs"): _SIGHT for base, _, _ in intact() if base != "vdi"},
    ("vmdk", "vmdk of ESX"): "QEMU opens an extent of ESX whose grains have no size; instar does not",
    **{(base, "dmg"): _SIGHT for base in ("raw", "empty", "vpc fixed")},
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_of_two_formats_the_same_one_counts(worker: Worker, tmp_path: Path) -> None:
    images = {name: (parts, size) for name, parts, size in intact()}
    found = []
    for number, (base, magic) in list(enumerate(PAIRS))[::STEP]:
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, *images[base], (magic,))
        wrong = disagreement(worker, folder)
        if bool(wrong) != ((base, magic) in DIFFERENT):
            found.append(f"{base} with the magic of {magic}: {wrong or 'no difference any more'}")
        shutil.rmtree(folder)
    assert not found, "\n".join(found)


def test_of_three_formats_the_same_one_counts(worker: Worker, tmp_path: Path) -> None:
    images = {name: (parts, size) for name, parts, size in intact()}
    found = []
    for number, base in enumerate(images):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, *images[base], ("vdi", "partition table", "vhd footer"))
        if wrong := disagreement(worker, folder):
            found.append(f"{base}: {wrong}")
        shutil.rmtree(folder)
    assert not found, "\n".join(found)


def disagreement(worker: Worker, folder: Path) -> str:
    """Say how instar and qemu-img differ on what a file is; empty if they do not."""
    theirs = run(str(QEMU_IMG), "info", "--output=json", "image", cwd=folder, timeout=20)
    ours = worker.run(
        ["--isolation=process", "--dialect=qemu-img", "--qemu-version=7.2", "info", "--output=json", "image"], folder
    )
    if theirs.returncode == 0 and ours["code"] == 0:
        left, right = json.loads(ours["out"]), json.loads(theirs.stdout)
        same = all(left[key] == right[key] for key in ("format", "virtual-size"))
        return (
            ""
            if same
            else f"{left['format']} of {left['virtual-size']} bytes, not {right['format']} of {right['virtual-size']}"
        )
    if theirs.returncode == 0:
        return f"refused ({ours['err'].strip()}), but {json.loads(theirs.stdout)['format']} for qemu-img"
    names = [name for name in FORMATS if same_complaint(folder, name, theirs.stderr)]
    if ours["code"] == 0:
        return f"taken for {json.loads(ours['out'])['format']}, but qemu-img: {theirs.stderr.strip()}"
    own = worker.run(["--isolation=process", "--qemu-version=7.2", "info", "image"], folder)
    said = [name for name in FORMATS if f": {name} " in own["err"]]
    return "" if not names or not said or set(said) & set(names) else f"{said} ({own['err'].strip()}), not {names}"


def same_complaint(folder: Path, format: str, complaint: str) -> bool:
    """Tell whether qemu-img says the same if it is told the format."""
    return run(str(QEMU_IMG), "info", "-f", format, "image", cwd=folder, timeout=20).stderr == complaint
