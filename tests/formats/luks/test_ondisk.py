"""The records of a header, and the sums that follow from a key's length, against what qemu-img wrote."""

from __future__ import annotations

import pytest

from instar.core.errors import ImageError
from instar.formats.luks.ondisk import (
    HEADER_SIZE,
    KEY_DISABLED,
    KEY_ENABLED,
    Header,
    KeySlot,
    essiv_key_bytes,
    header_bytes,
)

# The first 304 bytes of a volume made by qemu-img 11.1.2, `create -f luks -o cipher-alg=sm4,cipher-mode=ecb t 1000`.
QEMU_HEADER = bytes.fromhex(
    "4c554b53babe0001736d3400000000000000000000000000000000000000000000000000000000006563622d706c6169"
    "6e36340000000000000000000000000000000000000000007368613235360000000000000000000000000000000000"
    "000000000000000000000004080000001010"
    "73e002e8ad0e1b5c410d720ff9adc1c59dd4716d4bcc9d1ea5bef38bd30c92ba7d8505c05f84e720116cf5c201256dfb3eae18"
    "0000140037333930376232352d636562342d346634352d383765362d38313566353137303264323200000000"
    "00ac71f30000a5cd0981933fadc18153cb682fc4bb2bffc711642096faaf38736f6696e20597651100000008"
    "00000fa00000dead" + "00" * 36 + "0000008800000fa0"
)


def test_records_have_the_sizes_of_the_specification() -> None:
    assert (Header.SIZE, KeySlot.SIZE, HEADER_SIZE) == (208, 48, 592)


def test_reads_what_qemu_img_wrote() -> None:
    header = Header.unpack(QEMU_HEADER)
    assert (header.cipher_name.rstrip(b"\0"), header.cipher_mode.rstrip(b"\0")) == (b"sm4", b"ecb-plain64")
    assert (header.hash_spec.rstrip(b"\0"), header.version, header.key_bytes) == (b"sha256", 1, 16)
    assert (header.payload_offset * 512, header.mk_digest_iter) == (528384, 5120)
    assert header.uuid.rstrip(b"\0") == b"73907b25-ceb4-4f45-87e6-815f51702d22"
    first, second = (KeySlot.unpack(QEMU_HEADER, Header.SIZE + n * KeySlot.SIZE) for n in (0, 1))
    assert (first.active, first.iterations, first.key_material_offset, first.stripes) == (KEY_ENABLED, 42445, 8, 4000)
    assert (second.active, second.iterations, second.key_material_offset) == (KEY_DISABLED, 0, 136)
    assert header.pack() + first.pack() + second.pack() == QEMU_HEADER


def test_rejects_a_header_that_is_cut_short() -> None:
    with pytest.raises(ImageError):
        Header.unpack(QEMU_HEADER[:207])


@pytest.mark.parametrize(("key_bytes", "size"), [(64, 2068480), (48, 1544192), (32, 1052672), (16, 528384)])
def test_data_starts_where_qemu_img_lets_it_start(key_bytes: int, size: int) -> None:
    assert header_bytes(key_bytes) == size


def test_essiv_takes_a_cipher_of_the_family_whose_key_is_a_digest() -> None:
    assert essiv_key_bytes("aes", 16, 32) == 32
    assert essiv_key_bytes("aes", 32, 20) is None
    assert essiv_key_bytes("cast5", 16, 16) == 16
    assert essiv_key_bytes("cast5", 16, 32) is None
