"""Passphrases that open volumes: those of qemu-img and of cryptsetup, with the limits on what a header may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.formats.luks.volumes import NOW, SECRET, make_real, qemu_io, volume
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io
from tests.support import reader as open_reader

from instar.core.errors import ImageError, OptionError
from instar.formats.luks.ciphers import Sectors
from instar.formats.luks.header import read_header
from instar.formats.luks.keys import derive, spec_of, unlock
from instar.formats.luks.ondisk import Header, KeySlot

if TYPE_CHECKING:
    from pathlib import Path


def test_derives_the_key_of_the_standard() -> None:
    """RFC 6070, the second vector, and RFC 7914, section 11."""
    assert derive("sha1", b"password", b"salt", 2, 20).hex() == "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"
    assert derive("sha256", b"passwd", b"salt", 1, 64).hex().startswith("55ac046e56e3089fec1691c22544b605")


def test_a_hash_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="'whirlpool2'"):
        derive("whirlpool2", b"", b"", 1, 16)


def test_ours_opens_with_its_passphrase_and_no_other() -> None:
    image = BytesReader(volume())
    header = read_header(image, 0, generation=NOW)
    key = unlock(image, header, SECRET)
    assert key is not None
    assert len(key) == 16
    for wrong in (b"", b"hunter", b"hunter2\n", SECRET[::-1]):
        assert unlock(image, header, wrong) is None


def test_a_slot_that_was_switched_off_opens_no_more() -> None:
    data = bytearray(volume())
    data[Header.SIZE : Header.SIZE + 4] = b"\0\0\xde\xad"
    image = BytesReader(bytes(data))
    assert unlock(image, read_header(image, 0, generation=NOW), SECRET) is None


@pytest.mark.parametrize("field", ["slot", "digest"])
def test_rejects_more_iterations_than_the_limit(field: str) -> None:
    data = bytearray(volume())
    at = Header.SIZE + KeySlot.field("iterations").offset if field == "slot" else Header.field("mk_digest_iter").offset
    data[at : at + 4] = b"\xff\xff\xff\xff"
    image = BytesReader(bytes(data))
    with pytest.raises(ImageError, match="too many iterations"):
        unlock(image, read_header(image, 0, generation=NOW), SECRET)


def test_rejects_key_material_past_end_of_file() -> None:
    image = BytesReader(volume()[:20000])
    with pytest.raises(ImageError) as caught:
        unlock(image, read_header(image, 0, generation=NOW), SECRET)
    assert caught.value.kind == "out-of-bounds"


@needs_qemu_img
@needs_qemu_io
def test_opens_what_qemu_img_made_and_reads_what_a_guest_wrote(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    make_real(path, "key-secret=s,iter-time=1,cipher-mode=xts,cipher-alg=aes-192,ivgen-alg=essiv,hash-alg=sha1")
    qemu_io(path, "luks", "write -P 7 0 64k", "write -P 9 1020k 4k")
    with open_reader(path) as image:
        header = read_header(image, 0, generation=NOW)
        assert unlock(image, header, b"wrong") is None
        key = unlock(image, header, SECRET)
        assert key is not None
        sectors = Sectors(spec_of(header), key)
        assert sectors.decrypt(image.read(header.payload_offset, 65536)) == b"\7" * 65536
        assert sectors.decrypt(image.read(header.payload_offset + (1020 << 10), 4096), 2040) == b"\x09" * 4096
