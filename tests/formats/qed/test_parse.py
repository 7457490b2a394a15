from __future__ import annotations

import contextlib
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.qed.images import CLUSTER, NOW, MiB, empty, image, plan
from tests.support import BytesReader, needs_qemu_img, run

from instar.cli.messages import open_words
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.plan import Backing
from instar.core.wire import decode, encode
from instar.formats.qed.parse import info

if TYPE_CHECKING:
    from pathlib import Path

MAX64 = (1 << 64) - 1


def facts(data: bytes) -> ImageFacts:
    found = info(BytesReader(data), (), generation=NOW)
    return ImageFacts.from_wire(decode(encode(found.to_wire())))


def test_describes_an_image() -> None:
    found = facts(empty())
    assert (found.format, found.virtual_size, found.cluster_size) == ("qed", MiB, CLUSTER)
    assert (found.dirty, found.encrypted, found.backing) == (False, False, None)


@pytest.mark.parametrize("format", ["raw", "qcow2", None])
def test_names_the_backing_file_and_its_format_if_that_is_raw(format: str | None) -> None:
    backing = facts(image(plan(backing=Backing("a/b.img", format)))).backing
    assert backing is not None
    assert backing.name == b"a/b.img"
    assert backing.format == ("raw" if format == "raw" else None)
    assert not backing.required


def test_a_name_ends_with_its_first_zero_byte() -> None:
    data = bytearray(image(plan(backing=Backing("a/b.img", "raw"))))
    data[65] = 0
    found = facts(bytes(data)).backing
    assert found is not None
    assert found.name == b"a"
    data[64] = 0
    assert facts(bytes(data)).backing is None


def test_an_unclean_shutdown_is_a_fact_of_ours_only() -> None:
    found = facts(empty(features=2))
    assert not found.dirty
    assert found.extra["need_check"] is True


def test_opens_tables_of_one_cluster_which_qemu_makes_and_does_not_open() -> None:
    assert facts(image(plan(table_size=1))).virtual_size == MiB


def test_an_l1_table_ends_with_the_last_whole_cluster() -> None:
    data = empty()
    assert facts(data + bytes(4095)).virtual_size == MiB
    # Sectors count as a whole.
    assert facts(data[:-511]).virtual_size == MiB
    with pytest.raises(ImageError, match="L1 table"):
        facts(data[:-512])


REFUSED = [
    ({"magic": 0x00444550}, "invalid-format"),
    ({"features": 8}, "unsupported-feature"),
    ({"features": MAX64}, "unsupported-feature"),
    ({"cluster_size": 0}, "corrupt"),
    ({"cluster_size": 2048}, "corrupt"),
    ({"cluster_size": 4097}, "corrupt"),
    ({"cluster_size": 1 << 27}, "corrupt"),
    ({"table_size": 0}, "corrupt"),
    ({"table_size": 3}, "corrupt"),
    ({"table_size": 32}, "corrupt"),
    ({"image_size": 1}, "corrupt"),
    ({"image_size": (4 << 30) + 512}, "too-large"),
    ({"image_size": MAX64 - 511}, "too-large"),
    ({"l1_table_offset": 0}, "out-of-bounds"),
    ({"l1_table_offset": 4097}, "out-of-bounds"),
    ({"l1_table_offset": 2 * CLUSTER}, "out-of-bounds"),
    ({"l1_table_offset": MAX64 - 4095}, "out-of-bounds"),
    ({"l1_table_offset": 1 << 63}, "out-of-bounds"),
    ({"header_size": 2}, "out-of-bounds"),
    ({"header_size": 0xFFFFFFFF}, "out-of-bounds"),
    ({"features": 1, "backing_filename_offset": 4090, "backing_filename_size": 7}, "corrupt"),
    ({"features": 1, "backing_filename_offset": 0xFFFFFFFF, "backing_filename_size": 1}, "corrupt"),
    ({"features": 1, "backing_filename_offset": 0, "backing_filename_size": 4096}, "too-large"),
]


@pytest.mark.parametrize(("fields", "kind"), REFUSED)
def test_refuses_headers_that_cannot_be(fields: dict[str, int], kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        facts(empty(**fields))
    assert caught.value.kind == kind
    assert caught.value.format == "qed"


@needs_qemu_img
@pytest.mark.parametrize("version", VERSIONS)
def test_every_refusal_is_worded_as_by_qemu(version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "t"
    for fields, _ in REFUSED:
        path.write_bytes(empty(**fields))
        with pytest.raises(ImageError) as caught:
            facts(empty(**fields))
        done = run(real(version), "info", "-f", "qed", path)
        assert done.stderr == f"qemu-img: Could not open '{path}': {open_words(caught.value, str(path))}\n"


def test_any_word_of_the_header_and_any_cut_gives_facts_or_an_image_error() -> None:
    dice = random.Random(3)
    data = image(plan(backing=Backing("a/b.img", "raw")))
    for _ in range(3000):
        changed = bytearray(data)
        at = dice.randrange(0, 64, 4)
        changed[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, 2, 1 << 31, 1 << 63, MAX64, dice.getrandbits(64))))
        with contextlib.suppress(ImageError):
            facts(bytes(changed[: dice.choice((len(data), dice.randrange(len(data))))]))
