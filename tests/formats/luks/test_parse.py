"""What a volume says of itself, against the real ones; what is no volume is refused in qemu-img's words."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.luks.volumes import NOW, SMALL, volume
from tests.support import BytesReader, needs_qemu_img, run

from instar.cli.messages import open_words
from instar.core.errors import ImageError
from instar.core.wire import encode
from instar.formats.luks.ondisk import Header, KeySlot
from instar.formats.luks.parse import info

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = volume(SMALL, 0)
HEADER = Header.unpack(PLAIN)


def header(**fields: int | bytes) -> bytes:
    return HEADER.replace(**fields).pack() + PLAIN[Header.SIZE :]


def slot(index: int, **fields: int) -> bytes:
    at = Header.SIZE + index * KeySlot.SIZE
    return PLAIN[:at] + KeySlot.unpack(PLAIN, at).replace(**fields).pack() + PLAIN[at + KeySlot.SIZE :]


BROKEN = [
    lambda: header(magic=b"LUKSxx"),
    lambda: header(version=3),
    lambda: header(cipher_name=b"a" * 32),
    lambda: header(cipher_mode=b"a" * 32),
    lambda: header(hash_spec=b"b" * 32),
    lambda: header(payload_offset=7),
    lambda: header(payload_offset=100),
    lambda: header(mk_digest_iter=0),
    lambda: header(payload_offset=1 << 30),
    lambda: slot(3, stripes=7),
    lambda: slot(2, active=5),
    lambda: slot(0, iterations=0),
    lambda: slot(0, key_material_offset=2),
    lambda: slot(4, key_material_offset=1 << 30),
    lambda: slot(4, key_material_offset=9),
    lambda: slot(7, key_material_offset=200),
    lambda: header(cipher_mode=b"xts"),
    lambda: header(cipher_mode=b"foo-plain64"),
    lambda: header(cipher_mode=b"cbc-foo"),
    lambda: header(cipher_mode=b"cbc-essiv"),
    lambda: header(cipher_mode=b"cbc-essiv:foo"),
    lambda: header(cipher_mode=b"cbc-essiv:sha1"),
    lambda: header(cipher_name=b"foo"),
    lambda: header(key_bytes=20),
    lambda: header(hash_spec=b"sha3"),
    lambda: header(cipher_mode=b"cbc-plain64:foo"),
    lambda: header(cipher_name=b"serpent", cipher_mode=b"cbc-essiv:sha1"),
    lambda: header(cipher_name=b"twofish", cipher_mode=b"cbc-essiv:sha1"),
    lambda: header(cipher_name=b"cast5", cipher_mode=b"cbc-essiv:sha1"),
    lambda: PLAIN[:300],
    lambda: PLAIN[:-600],
]


def refusal(data: bytes, generation: tuple[int, int] = NOW) -> ImageError:
    with pytest.raises(ImageError) as caught:
        info(BytesReader(data), [], generation=generation)
    caught.value.format = "luks"
    return caught.value


def test_disk_is_what_the_file_has_behind_the_header() -> None:
    for size, shown in ((0, 0), (1, 512), (1000, 1024), (4096, 4096)):
        facts = info(BytesReader(volume(SMALL, size)), [], generation=NOW)
        assert (facts.virtual_size, facts.encrypted, facts.cluster_size) == (shown, True, None)


@pytest.mark.parametrize("index", range(len(BROKEN)))
def test_rejects_what_qemu_rejects_in_its_words(index: int, tmp_path: Path) -> None:
    data = BROKEN[index]()
    error = refusal(data)
    assert error.sentence().isprintable()
    path = tmp_path / "image"
    path.write_bytes(data)
    for version in VERSIONS[-1:]:
        said = run(real(version), "info", "-f", "luks", path)
        assert said.returncode == 1
        assert said.stderr.removeprefix(f"qemu-img: Could not open '{path}': ") == open_words(error, str(path)) + "\n"


@needs_qemu_img
def test_accepts_a_hash_for_an_iv_generator_that_needs_none() -> None:
    assert info(BytesReader(header(cipher_mode=b"cbc-plain64:sha1")), [], generation=NOW).encrypted


def test_knows_what_its_generation_knows() -> None:
    for data, old in ((header(hash_spec=b"sm3"), (9, 1)), (header(cipher_name=b"sm4"), (8, 2))):
        assert info(BytesReader(data), [], generation=NOW).encrypted
        assert refusal(data, old).kind == "unsupported-feature"


def test_a_detached_header_is_no_volume() -> None:
    assert refusal(volume(f"{SMALL},detached-header=on")).field == "payload_offset"


def test_any_bytes_give_facts_or_an_image_error() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        data = bytearray(PLAIN[:4096])
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(592)] = chance.choice((0, 1, 7, 0x3A, 0x2D, 0x7F, 0xFF, chance.randrange(256)))
        try:
            encode(info(BytesReader(bytes(data), size=len(PLAIN)), [], generation=NOW).to_wire())
            said = ""
        except ImageError as error:
            error.format = "luks"
            said = str(error) + open_words(error, "x")
        assert said.isprintable()
