from __future__ import annotations

import random

import pytest
from tests.formats.vdi.images import FREE, NOW, MiB, vdi
from tests.support import BytesReader, needs_qemu_img, qemu_img, qemu_info, reader, run

from instar.cli.messages.vdi import QEMU_OPEN
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.wire import decode, encode
from instar.formats.vdi.parse import info


def facts(data: bytes) -> ImageFacts:
    return info(BytesReader(data), (), generation=NOW)


def test_describes_an_image() -> None:
    found = facts(vdi([FREE] * 4, description=b"old disk", image_type=2))
    assert (found.format, found.virtual_size, found.cluster_size) == ("vdi", 4 * MiB, MiB)
    assert (found.extra["image_type"], found.extra["description"]) == ("static", "old disk")
    assert found.extra["text"] == "<<< QEMU VM Virtual Disk Image >>>"
    assert ImageFacts.from_wire(decode(encode(found.to_wire()))).virtual_size == 4 * MiB


@needs_qemu_img
@pytest.mark.parametrize("size", [0, 1, 10 * MiB, (1 << 40) + 513])
@pytest.mark.parametrize("static", ["on", "off"])
def test_images_made_by_qemu_have_the_size_that_qemu_says(tmp_path, size: int, static: str) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vdi", "-o", f"static={static}", path, str(size))
    with reader(path) as file:
        assert info(file, (), generation=NOW).virtual_size == qemu_info(path)["virtual-size"]


#: What is changed, and the kind and field by which it is refused, in the order in which faults are found.
REFUSED: list[tuple[dict[str, int | bytes], str, str]] = [
    ({"disk_size": 0x1FFFFF8000001}, "too-large", "disk_size"),
    ({"disk_size": 0x1FFFFF8000001, "signature": 1}, "too-large", "disk_size"),
    ({"signature": 0xAB}, "invalid-format", "signature"),
    ({"signature": 1, "version": 2}, "invalid-format", "signature"),
    ({"version": 0x20003}, "unsupported-feature", "version"),
    ({"offset_bmap": 513}, "unsupported-feature", "offset_bmap"),
    ({"offset_data": 700}, "unsupported-feature", "offset_data"),
    ({"sector_size": 4096}, "unsupported-feature", "sector_size"),
    ({"block_size": 65536}, "unsupported-feature", "block_size"),
    ({"disk_size": 4 * MiB + 1}, "corrupt", "disk_size"),
    ({"uuid_link": b"a" * 16}, "unsupported-feature", "uuid_link"),
    ({"uuid_parent": b"a" * 16}, "unsupported-feature", "uuid_parent"),
    ({"blocks_in_image": 0x1FFFFF81}, "too-large", "blocks_in_image"),
]


@needs_qemu_img
@pytest.mark.parametrize(("fields", "kind", "field"), REFUSED)
def test_refuses_what_qemu_refuses_in_its_words(tmp_path, fields, kind: str, field: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(vdi([FREE] * 4, **fields))
    with pytest.raises(ImageError) as caught:
        facts(path.read_bytes())
    error = caught.value
    assert (error.kind, error.field) == (kind, field)
    value = error.value or 0
    words = QEMU_OPEN[kind, field].format(
        value=value, hex=f"{value:x}", limit=error.limit, expected=error.expected, high=value >> 16, low=value & 0xFFFF
    )
    assert run("qemu-img", "info", "-f", "vdi", path).stderr == f"qemu-img: Could not open '{path}': {words}\n"


@pytest.mark.parametrize("size", [0, 3, 64, 68, 0x17F])
def test_refuses_a_header_that_is_cut_off(size: int) -> None:
    with pytest.raises(ImageError):
        facts(vdi([FREE])[:size])


def test_reads_a_short_file_as_if_zeros_followed_as_qemu_does() -> None:
    assert facts(vdi([FREE])[:511]).virtual_size == MiB


def test_any_bytes_in_the_header_give_facts_or_an_error() -> None:
    dice = random.Random(1)
    whole = vdi([FREE] * 4)
    lines: set[str] = set()
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            data[dice.randrange(0x40, 0x1C8)] = dice.randrange(256)
        try:
            encode(facts(bytes(data)).to_wire())
        except ImageError as error:
            lines.update(str(error).splitlines()[1:])
    assert not lines
