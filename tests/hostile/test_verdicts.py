"""What qemu-img describes of the hostile images instar describes as the same disk; else ``DIFFERENT`` says why."""

from __future__ import annotations

import json
import shutil
import subprocess
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from tests.hostile.corpus import GiB, cases_of
from tests.hostile.meter import ALL, Worker
from tests.support import QEMU_IMG, needs_qemu_img

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds and bytes of address space that the real qemu-img is given; it would take more.
PATIENCE, SPACE = 10, 2 * GiB
STEP = 1 if ALL else 97
MODULES = ("qcow2", "qcow_qed", "vmdk", "hyperv", "others", "names", "chains")

#: Patterns of cases to why only one of the two describes them, or not as the same disk. "wider": instar describes more.
DIFFERENT = {
    "qcow*: version = 0x0": "QEMU takes it for raw; what starts as qcow2 is never raw here",
    "qcow2: 200,000 empty extensions": "wider: QEMU reads extension by extension for more than ten seconds",
    "vmdk: a disk of 0x2000000000000000 bytes": "QEMU cuts the number of grain tables to 32 bits",
    "vmdk: capacity = 0x0": "wider: a disk of size 0",
    "vmdk: an extent of 0 sectors": "wider: QEMU fails an assertion of its own",
    "vmdk: an extent of 18014398509481983 sectors": "wider: QEMU asks the system for the length",
    "vmdk: descriptorOffset = *": "QEMU reads the second sector, whatever the header says",
    "vmdk: 1024 extents *": "instar opens at most 1,023 files",
    "vmdk: 100,000 comments": "instar reads a bounded number of lines",
    "vmdk: a million *": "instar reads lines of a bounded length",
    "vmdk: 20,000 lines of *": "a word is there twice, so that readers may differ",
    "vmdk: a CID of 2 characters, '0x'": "no number; QEMU's C library reads one",
    "vmdk: an extent at sector 9*": "QEMU does not look where an extent starts",
    "vmdk: extent *shadow*": "the gate: not in the image's folder",
    "vmdk: extent b'link-out'*": "the gate: not in the image's folder",
    "vmdk: parent b'a\\r\\n*": "a value must end on its line, or readers differ",
    "vhdx: a disk of 0x0 bytes": "wider: the specification allows it",
    "vhdx: logical sectors of 0x1000 bytes": "wider: docs/quirks.md",
    "vhdx: item 1 of *at 0xffffffff": "wider: the item's place is not looked at, its region's is",
    "vhdx: a log at *": "wider: where no log can be, there is none to replay",
    "vhdx: 256 entries*": "wider: QEMU searches a log for longer than ten seconds, or wants it replayed first",
    "vhdx: 30,000 runs of zeros over the table": "wider: described as it will be after the log is replayed",
    "vhdx: 240 sectors for 16 places": "wider: described as it will be after the log is replayed",
    "vdi: blocks_in_image = 0x1fffff80": "wider: QEMU reads the whole map into memory",
    "parallels: bat_entries = 0x1fffffff*": "wider: QEMU reads the whole table into memory",
    "parallels: 2^29 - 1 clusters in a hole": "wider: QEMU reads the whole table into memory",
    "luks: key_material_offset = 0xffffffff": "QEMU's sum wraps at 32 bits",
}


@needs_qemu_img
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_what_can_be_described_is_described(tmp_path: Path) -> None:
    worker = Worker()
    found = []
    try:
        judged = (case for case in cases_of(*MODULES) if case.judged and not case.large)
        for number, case in enumerate(islice(judged, 0, None, STEP)):
            if case.format == "file":
                continue
            folder = tmp_path / str(number)
            folder.mkdir()
            case.make(folder)
            wrong = disagreement(worker, folder)
            if wrong and not any(fnmatchcase(str(case), pattern) for pattern in DIFFERENT):
                found.append(f"{case}: {wrong}")
            shutil.rmtree(folder)
    finally:
        worker.close()
    assert not found, "\n".join(found)


def disagreement(worker: Worker, folder: Path) -> str:
    """Say how the two differ on an image; empty if they do not."""
    words = ["prlimit", f"--as={SPACE}", "timeout", str(PATIENCE), str(QEMU_IMG), "info", "--output=json", "image"]
    theirs = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    own = ["--isolation=process", "--dialect=qemu-img", "--qemu-version=7.2", "info", "--output=json", "image"]
    ours = worker.run(own, folder)
    if (theirs.returncode == 0) != (ours["code"] == 0):
        return f"{ours['code']} {ours['err'].strip()!r} here, {theirs.returncode} {theirs.stderr.strip()!r} there"
    if ours["code"]:
        return ""
    left, right = json.loads(ours["out"]), json.loads(theirs.stdout)
    keys = ("format", "virtual-size")
    return "".join(f"{key}: {left[key]} here, {right[key]} there; " for key in keys if left[key] != right[key])
