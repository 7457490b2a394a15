"""Encrypted images: where the LUKS header goes, what the legacy format leaves, and that passphrases open both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.formats.luks.volumes import NOW, SECRET, make_real, qemu_io
from tests.support import apply_plan, needs_qemu_img, needs_qemu_io
from tests.support import reader as open_reader

from instar.core.errors import OptionError
from instar.core.options import read_settings, split_list
from instar.core.plan import Plan, Seed
from instar.formats.luks.ciphers import Sectors
from instar.formats.luks.header import read_header
from instar.formats.luks.keys import spec_of, unlock
from instar.formats.luks.ondisk import Header, KeySlot
from instar.formats.luks.options import cipher_rows
from instar.formats.qcow2.check import check
from instar.formats.qcow2.encryption import PREFIX, legacy_sectors
from instar.formats.qcow2.header import open_image
from instar.formats.qcow2.options import CREATE, resolve
from instar.formats.qcow2.parse import info
from instar.formats.qcow2.plan import create

if TYPE_CHECKING:
    from pathlib import Path

    from instar.formats.qcow2.header import Image

MiB = 1 << 20
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
#: What changes with every key: digest, salt and iterations, identifier; of the first slot iterations and salt.
RANDOM = [(112, 208), (Header.SIZE + 4, Header.SIZE + 40)]


def planned(text: str, size: int = MiB, secret: bytes | None = SECRET) -> Plan:
    settings = read_settings(CREATE, split_list(text), format="qcow2")
    return create(size, resolve(size, settings, None), Seed(entropy=bytes(range(64)), secret=secret))


def crypto(image: Image) -> int:
    assert image.crypto is not None
    return image.crypto.offset


def without_keys(path: Path) -> bytes:
    """Return the bytes of an image with what is random, or measured, blanked."""
    with open_reader(path) as image:
        base = crypto(open_image(image))
        header = read_header(image, base, generation=NOW)
    data = bytearray(path.read_bytes())
    spans = [*RANDOM, (4096, 4096 + 4000 * header.header.key_bytes)]
    for start, end in spans:
        data[base + start : base + end] = bytes(end - start)
    return bytes(data)


@needs_qemu_img
@pytest.mark.parametrize(
    ("more", "size"),
    [
        ("compat=0.10,encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha512", 10 * MiB + 513),
        ("cluster_size=2M,encrypt.ivgen-alg=essiv", MiB),
        ("refcount_bits=64,cluster_size=512", MiB),
        ("preallocation=falloc,cluster_size=4k", MiB),
        ("extended_l2=on,preallocation=metadata", MiB + 512),
        ("refcount_bits=1,cluster_size=4k", 3 << 30),
    ],
)
def test_image_is_that_of_qemu_img_but_for_the_keys(more: str, size: int, tmp_path: Path) -> None:
    options = f"{LUKS},{more}" if more else LUKS
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_real(theirs, options, size, format="qcow2")
    apply_plan(planned(options, size), ours)
    assert without_keys(ours) == without_keys(theirs)
    with open_reader(ours) as image:
        assert check(image, [], generation=NOW).findings == []
        assert info(image, [], generation=NOW).encrypted


@needs_qemu_io
def test_qemu_opens_ours_and_our_key_decrypts_what_its_guest_wrote(tmp_path: Path) -> None:
    path = tmp_path / "image"
    apply_plan(planned(LUKS), path)
    qemu_io(path, "qcow2", "write -P 7 64k 64k", "read -P 7 64k 64k", "read -P 0 128k 64k")
    with open_reader(path) as image:
        header = read_header(image, crypto(open_image(image)), generation=NOW)
        key = unlock(image, header, SECRET)
        assert key is not None
        # Sectors count in the file, here.
        at = image.size - 65536
        assert Sectors(spec_of(header), key).decrypt(image.read(at, 65536), at // 512) == b"\7" * 65536


@needs_qemu_img
@needs_qemu_io
@pytest.mark.parametrize("option", ["encryption=on", "encrypt.format=aes", "encrypt.format=qcow"])
def test_legacy_encryption_is_a_number_in_the_header(option: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = f"{option},encrypt.key-secret=s,preallocation=metadata"
    make_real(theirs, options, format="qcow2")
    apply_plan(planned(options), ours)
    assert ours.read_bytes() == theirs.read_bytes()
    qemu_io(ours, "qcow2", "write -P 5 64k 64k")
    with open_reader(ours) as image:
        assert info(image, [], generation=NOW).format_specific["data"]["encrypt"] == {"format": "aes"}
        # Sectors count in the guest's disk, here.
        assert legacy_sectors(SECRET).decrypt(image.read(6 * 65536, 65536), 128) == b"\5" * 65536


@pytest.mark.parametrize("format", ["aes", "luks"])
def test_a_passphrase_must_be_there_and_be_text(format: str) -> None:
    options = f"encrypt.format={format},encrypt.key-secret=s"
    for secret, code in ((None, "no-secret"), (b"\xff", "secret-not-utf8"), (b"a\0", "secret-not-utf8")):
        with pytest.raises(OptionError) as caught:
            planned(options, secret=secret)
        assert caught.value.code == code
        assert "xff" not in repr(caught.value.facts())


def test_luks_has_the_options_of_format_luks() -> None:
    names = {row.name: row.type for row in CREATE if row.name.startswith(PREFIX)}
    for row in cipher_rows(PREFIX):
        assert (names[row.name] == "num") == (row.type == "num")
    assert set(names) == {row.name for row in cipher_rows(PREFIX)} | {"encrypt.format", "encrypt.key-secret"}


def test_nothing_of_encryption_is_loaded_for_plain_images() -> None:
    plan = planned("cluster_size=64k", secret=None)
    assert {item.label for item in plan.items} == {"header", "refcount table", "refcount block 0", "L1 table"}


def test_slot_records_are_those_of_luks() -> None:
    items = {item.label: item for item in planned(LUKS).items}
    assert items["LUKS header"].length == Header.SIZE + 8 * KeySlot.SIZE
    assert items["key material of slot 0"].length == 256000
