"""Real images, cut off anywhere and with any word of their heads changed: each gives a result or an ``ImageError``."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.hostile.meter import ALL
from tests.support import needs_qemu_img, qemu_img, run

import instar

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

FORMATS = ("qcow2", "vmdk", "vpc", "vhdx")
#: Ordinary runs take one in 23 of what is tried by ``INSTAR_ALL_CASES=1``.
STEP = 1 if ALL else 23


def judge(path: Path, format: str, folder: Path) -> list[str]:
    """Give an image to every operation that reads one; return what came of each."""
    outcomes = []
    for operation in (
        lambda: instar.info(str(path), format=format),
        lambda: instar.info(str(path)),
        lambda: instar.check(str(path), format=format),
        lambda: instar.create(str(folder / "top"), format="qcow2", backing=str(path), backing_format=format),
    ):
        try:
            outcomes.append(type(operation()).__name__)
        except (instar.ImageError, instar.OptionError) as error:
            outcomes.append(str(error))
    assert not [outcome for outcome in outcomes if "\n" in outcome]
    return outcomes


@pytest.fixture
def sample(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small image with data, made by qemu-img."""
    path = tmp_path / "sample"
    qemu_img("create", "-q", "-f", request.param, path, "8M")
    run("qemu-io", "-f", request.param, "-c", "write -P 1 0 1M", path)
    return path


@pytest.mark.parametrize(("sample", "format"), [(f, f) for f in FORMATS], indirect=["sample"])
def test_any_truncation_gives_a_result_or_an_image_error(sample: Path, format: str, tmp_path: Path) -> None:
    data = sample.read_bytes()
    bad = tmp_path / "bad"
    ends = [*range(0, 4096, 64), *range(4096, len(data), max(4096, len(data) // 48 // 64 * 64))]
    for end in ends[::STEP]:
        bad.write_bytes(data[:end])
        assert len(judge(bad, format, tmp_path)) == 4


@pytest.mark.parametrize(("sample", "format"), [(f, f) for f in FORMATS], indirect=["sample"])
def test_any_word_of_the_head_may_hold_anything(sample: Path, format: str, tmp_path: Path) -> None:
    data = sample.read_bytes()
    bad = tmp_path / "bad"
    dice = random.Random(2)
    places = {"qcow2": range(0, 112, 8), "vmdk": range(0, 80, 8), "vpc": [*range(0, 88, 8), *range(512, 584, 8)]}
    heads = places.get(format, [*range(65536, 65536 + 80, 8), *range(196608, 196608 + 80, 8)])
    words = (0, 1, (1 << 64) - 1, 1 << 63, dice.getrandbits(64))
    # A step that is no divisor of their number meets every place and every word.
    for at, word in [(at, word) for at in heads for word in words][::STEP]:
        bad.write_bytes(data[:at] + struct.pack(">Q", word) + data[at + 8 :])
        judge(bad, format, tmp_path)


def test_a_chain_that_loops_is_an_error(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", other, "-F", "qcow2", tmp_path / one, "1M")
    with pytest.raises(instar.ImageError, match="loops"):
        instar.info_chain(str(tmp_path / "a"))


def test_a_denied_name_is_said_as_written_and_how_to_allow_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base", "-F", "raw", "top", cwd=tmp_path / "in")
    with pytest.raises(instar.ImageError, match=r"'\.\./base'.*--allow-path") as caught:
        instar.info_chain(str(tmp_path / "in/top"))
    assert caught.value.kind == "denied"
    assert [i.format for i in instar.info_chain(str(tmp_path / "in/top"), allow=[str(tmp_path)])] == ["qcow2", "raw"]
