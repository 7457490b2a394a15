from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, qemu_info
from tests.support import reader as open_reader

from instar.core.image import ImageFacts
from instar.core.wire import decode, encode
from instar.formats.raw.parse import info

if TYPE_CHECKING:
    from pathlib import Path

GENERATIONS = [(7, 2), (10, 0), (11, 1)]


class Unreadable:
    """A file that must not be read."""

    number = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("a byte of a raw image was read")


@pytest.mark.parametrize(
    ("length", "virtual_size"),
    [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024), ((1 << 40) + 1, (1 << 40) + 512)],
)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_virtual_size_is_the_length_rounded_up_and_no_byte_is_read(
    length: int, virtual_size: int, generation: tuple[int, int]
) -> None:
    facts = info(Unreadable(length), (), generation=generation)
    assert (facts.format, facts.virtual_size) == ("raw", virtual_size)


def test_nothing_else_is_said_of_a_raw_image() -> None:
    facts = ImageFacts.from_wire(decode(encode(info(Unreadable(1), (), generation=(11, 1)).to_wire())))
    assert (facts.cluster_size, facts.format_specific, facts.references, facts.snapshots) == (None, None, [], [])
    assert (facts.encrypted, facts.dirty, facts.corrupt, facts.has_dirty_flag) == (False, False, False, True)


@needs_qemu_img
@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 10_000_000])
def test_agrees_with_qemu(tmp_path: Path, length: int) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.truncate(length)
    theirs = qemu_info(path, "-f", "raw")
    with open_reader(path) as file:
        ours = info(file, (), generation=(7, 2))
    assert ours.virtual_size == theirs["virtual-size"]
    assert theirs["dirty-flag"] is False
    assert "cluster-size" not in theirs
    assert "format-specific" not in theirs
