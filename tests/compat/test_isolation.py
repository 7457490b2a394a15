"""What a cell is made of makes no difference: same bytes, same words, same exit codes in a machine and in a process.

Every creation of the matrix, with time and chance pinned (a sample in ordinary runs, ``INSTAR_ALL_CASES=1`` for all),
then hostile images, and what the system refuses.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.compat import isolated
from tests.compat.cases import cases
from tests.compat.differences import without_storage
from tests.sandbox.backends import needs_kvm
from tests.sandbox.surroundings import CANNOT
from tests.small import SmallProcess
from tests.support import extents, needs_qemu_img, qemu_img, run, same_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compat.cases import Case

pytestmark = needs_kvm

KINDS = ("kvm", "process")
FORMATS = ("qcow2", "vmdk", "vpc", "vhdx")


def sample() -> list[Case]:
    """Return the cases of an ordinary run: each set of options once, and some of the odd sizes."""
    if os.environ.get("INSTAR_ALL_CASES"):
        return cases()
    first = {(case.format, case.options, case.backing): case for case in reversed(cases())}
    plain = [case for case in cases() if not case.options]
    return list(dict.fromkeys([*reversed(first.values()), *plain[::4]]))


@pytest.fixture(scope="module")
def small() -> Iterator[SmallProcess]:
    """Return a process whose chance and time never change."""
    with SmallProcess() as made:
        made.call(isolated.pin)
        yield made


@pytest.mark.parametrize("case", sample(), ids=lambda case: case.name)
def test_image_and_words_are_the_same(case: Case, small: SmallProcess, tmp_path: Path) -> None:
    said: dict[str, list[tuple[int, str, str]]] = {kind: [] for kind in KINDS}

    def command(kind: str, *words: str) -> None:
        code, *texts = small.call(isolated.command, [f"--isolation={kind}", *words], str(folder))
        # JSON says which kind it was.
        texts = [text.replace(f'"isolation": "{kind}"', '"isolation": "its own"') for text in texts]
        # What the host says of a file's storage changes while the system writes it to its disk.
        said[kind].append((code, *map(without_storage, texts)))

    options = ["-o", ",".join(f"{k}={v}" for k, v in case.options)] if case.options else []
    if case.backing:
        small.call(isolated.command, ["create", "-q", "-f", case.backing, "base", "64M"], str(tmp_path))
        options += ["-b", "../base", "-F", case.backing]
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        command(kind, "create", "-v", "-f", case.format, *options, "image", str(case.size))
    assert said["kvm"] == said["process"]
    if said["kvm"][0][0]:
        assert not (folder / "image").exists()
        return
    ours, theirs = (tmp_path / kind / "image" for kind in KINDS)
    same_bytes(ours, theirs)
    assert extents(ours) == extents(theirs)

    raw = ["-f", "raw"] if case.format == "raw" else []
    for kind in KINDS:
        # Of one image, which names itself.
        command(kind, "info", "-v", *raw, "image")
        command(kind, "info", "--output=json", *raw, "image")
        if case.backing:
            command(kind, "info", "--backing-chain", f"--allow-path={tmp_path}", "image")
        command(kind, "check", "-v", *raw, "image")
        command(kind, "check", "--output=json", *raw, "image")
    assert said["kvm"] == said["process"]
    assert "isolation: " not in repr(said).replace('"isolation": "its own"', ""), (
        "an operation has passed the machine over"
    )


def broken(data: bytes, format: str) -> Iterator[bytes]:
    """Make images that are cut off, or have a word of their head, or of anything else, changed."""
    dice = random.Random(7)
    words, others = (12, 8) if os.environ.get("INSTAR_ALL_CASES") else (5, 2)
    ends = [0, 104, 512, 65600, len(data) - 512]
    if os.environ.get("INSTAR_ALL_CASES"):
        ends += [1, 4, 64, 1024, 65536, 131072, len(data) - 1]
    yield from (data[:end] for end in ends if end < len(data))
    heads = {"qcow2": 112, "vmdk": 80, "vpc": 1600, "vhdx": 1 << 18}
    order = ">" if format in ("qcow2", "vpc") else "<"
    for _ in range(words):
        at = dice.randrange(0, min(heads[format], len(data)) - 8, 4)
        word = struct.pack(order + "Q", dice.choice((0, 1, 1 << 63, (1 << 64) - 1, dice.getrandbits(64))))
        yield data[:at] + word + data[at + 8 :]
    for _ in range(others):
        at = dice.randrange(len(data) - 8)
        yield data[:at] + dice.randbytes(8) + data[at + 8 :]


@needs_qemu_img
@pytest.mark.parametrize("format", FORMATS)
def test_hostile_images_have_the_same_verdict(format: str, small: SmallProcess, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    qemu_img("create", "-q", "-f", format, good, "8M")
    run("qemu-io", "-f", format, "-c", "write -P 1 0 1M", good)
    verdicts = set()
    for data in broken(good.read_bytes(), format):
        bad.write_bytes(data)
        ours, theirs = (small.call(isolated.outcomes, bad, format, kind, tmp_path / "top") for kind in KINDS)
        assert ours == theirs
        verdicts.add(tuple(ours))
    assert len(verdicts) > 4, "hardly any of them was seen as broken"


#: What the system refuses while a cell writes: where, what to make, and what is said.
_REFUSALS = {
    "disk full": (["namespaces=mount", "disk=FOLDER:256k"], "No space left on device"),
    "file too large": (["limit=FSIZE:262144"], "File too large"),
}


@pytest.mark.parametrize("refusal", _REFUSALS)
@pytest.mark.parametrize(
    "what",
    [
        ("qcow2", "preallocation=metadata,cluster_size=512", "64M"),
        ("qcow2", "preallocation=full", "64M"),
        ("vhdx", "log_size=3M", "1T"),
        ("vpc", "subformat=dynamic", "1T"),
        ("vmdk", "subformat=monolithicSparse", "1T"),
    ],
    ids=lambda what: ":".join(what),
)
def test_what_the_system_refuses_is_said_the_same(refusal: str, what: tuple[str, str, str], tmp_path: Path) -> None:
    steps, reason = _REFUSALS[refusal]
    format, options, size = what
    place = tmp_path / "disk"
    place.mkdir()
    root = Path(__file__).parent.parent.parent
    ended = []
    for kind in KINDS:
        done = subprocess.run(
            [
                *(sys.executable, "-B", str(root / "tests/sandbox/surroundings.py")),
                *(step.replace("FOLDER", str(place)) for step in steps),
                *("--", sys.executable, "-B", "-m", "instar", f"--isolation={kind}", "create", "-v"),
                *("-f", format, "-o", options, str(place / "image"), size),
            ],
            env={"PYTHONPATH": str(root / "src"), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode == CANNOT:
            pytest.skip(f"this cannot be had here: {done.stderr.strip()}")
        ended.append((done.returncode, done.stdout, done.stderr))
        assert not list(place.iterdir()), "something is left"
    assert ended[0] == ended[1]
    assert ended[0][0] == 1
    assert reason in ended[0][2]
