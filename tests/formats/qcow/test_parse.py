from __future__ import annotations

import contextlib
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.qcow.images import CLUSTER, NOW, MiB, empty, image, plan
from tests.support import BytesReader, needs_qemu_img, run

from instar.cli.messages import open_words
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.plan import Backing
from instar.core.wire import decode, encode
from instar.formats.qcow.parse import info

if TYPE_CHECKING:
    from pathlib import Path

MAX64 = (1 << 64) - 1
#: QEMU reads nothing from there on.
FAR = (1 << 63) - (1 << 30)


def facts(data: bytes) -> ImageFacts:
    found = info(BytesReader(data), (), generation=NOW)
    return ImageFacts.from_wire(decode(encode(found.to_wire())))


def test_describes_an_image() -> None:
    found = facts(empty())
    assert (found.format, found.virtual_size, found.cluster_size) == ("qcow", 3 * MiB, CLUSTER)
    assert (found.dirty, found.encrypted, found.backing) == (False, False, None)


def test_tells_that_an_image_is_encrypted() -> None:
    assert facts(image(plan(secret=b"x"))).encrypted
    assert facts(empty(crypt_method=1)).encrypted


def test_names_the_backing_file_without_a_format() -> None:
    found = facts(image(plan(backing=Backing("a/b.img", "raw")))).backing
    assert found is not None
    assert (found.name, found.format, found.required) == (b"a/b.img", None, False)


@pytest.mark.parametrize(
    "fields", [{"backing_file_offset": 0, "backing_file_size": 5}, {"backing_file_offset": 1 << 40}]
)
def test_a_name_that_is_not_there_is_none(fields: dict[str, int]) -> None:
    assert facts(empty(**fields)).backing is None


def test_the_size_is_rounded_down_as_qemu_reads_it() -> None:
    assert facts(empty(size=1023)).virtual_size == 512
    assert facts(empty(size=2)).virtual_size == 0


@pytest.mark.parametrize("offset", [0, 1, 1 << 40, FAR - 16])
def test_opens_an_l1_table_wherever_it_is(offset: int) -> None:
    assert facts(empty(l1_table_offset=offset)).virtual_size == 3 * MiB


REFUSED = [
    ({"magic": 0x514649FA}, "invalid-format"),
    ({"version": 0}, "unsupported-feature"),
    ({"version": 2}, "unsupported-feature"),
    ({"version": 3}, "unsupported-feature"),
    ({"version": 0x7FFFFFFF}, "unsupported-feature"),
    ({"size": 0}, "corrupt"),
    ({"size": 1}, "corrupt"),
    ({"cluster_bits": 8}, "corrupt"),
    ({"cluster_bits": 17}, "corrupt"),
    ({"l2_bits": 5}, "corrupt"),
    ({"l2_bits": 14}, "corrupt"),
    ({"crypt_method": 2}, "unsupported-feature"),
    ({"size": (512 << 40) - (2 << 20) + 1}, "too-large"),
    ({"size": MAX64}, "too-large"),
    ({"l1_table_offset": FAR - 15}, "out-of-bounds"),
    ({"l1_table_offset": MAX64}, "out-of-bounds"),
    ({"backing_file_offset": 48, "backing_file_size": 1024}, "too-large"),
    ({"backing_file_offset": 48, "backing_file_size": 0xFFFFFFFF}, "too-large"),
    ({"backing_file_offset": FAR, "backing_file_size": 1}, "out-of-bounds"),
    ({"backing_file_offset": MAX64, "backing_file_size": 1}, "out-of-bounds"),
]


@pytest.mark.parametrize(("fields", "kind"), REFUSED)
def test_refuses_headers_that_cannot_be(fields: dict[str, int], kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        facts(empty(**fields))
    assert caught.value.kind == kind
    assert caught.value.format == "qcow"


@needs_qemu_img
@pytest.mark.parametrize("version", VERSIONS)
def test_every_refusal_is_worded_as_by_qemu(version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "t"
    for fields, _ in REFUSED:
        path.write_bytes(empty(**fields))
        with pytest.raises(ImageError) as caught:
            facts(empty(**fields))
        done = run(real(version), "info", "-f", "qcow", path)
        assert done.stderr == f"qemu-img: Could not open '{path}': {open_words(caught.value, str(path))}\n"


def test_any_word_of_the_header_and_any_cut_gives_facts_or_an_image_error() -> None:
    dice = random.Random(3)
    data = image(plan(backing=Backing("a/b.img", "raw")))
    for _ in range(3000):
        changed = bytearray(data)
        at = dice.randrange(0, 48, 4)
        changed[at : at + 8] = struct.pack(">Q", dice.choice((0, 1, 2, 1 << 31, 1 << 63, MAX64, dice.getrandbits(64))))
        with contextlib.suppress(ImageError):
            facts(bytes(changed[: dice.choice((len(data), dice.randrange(len(data))))]))
