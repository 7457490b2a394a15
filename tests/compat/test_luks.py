"""Encrypted images made by instar, in cells, opened by the real programs: qemu-io and cryptsetup; and the reverse."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import call
from tests.compat.versions import VERSIONS, real
from tests.formats.luks.volumes import NOW, SECRET, cryptsetup, make_real, qemu_io
from tests.support import extents, needs_qemu_img, needs_qemu_io, run, settle
from tests.support import reader as open_reader

import instar
from instar.cli.json import dumps
from instar.cli.render import info_object, info_text
from instar.formats.luks.ciphers import Sectors
from instar.formats.luks.header import read_header
from instar.formats.luks.keys import spec_of, unlock
from instar.sandbox.cell import Isolation

if TYPE_CHECKING:
    from pathlib import Path

needs_cryptsetup = pytest.mark.skipif(
    shutil.which("cryptsetup") is None, reason="cryptsetup is not installed (Debian: cryptsetup-bin)"
)
SIZE = 1 << 20
FAST = {"key-secret": "s", "iter-time": "1"}

#: Every cipher in every mode that the library and qemu-img have, each IV generator and each hash.
KINDS = [
    {},
    {"cipher-alg": "aes-128", "hash-alg": "sha1", "ivgen-alg": "plain"},
    {"cipher-alg": "aes-192", "hash-alg": "sha512"},
    {"cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "ripemd160"},
    {"cipher-mode": "ctr", "hash-alg": "sha384", "cipher-alg": "aes-128"},
    {"cipher-mode": "ecb", "hash-alg": "md5"},
    {"cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha224"},
    {"cipher-alg": "cast5-128", "cipher-mode": "cbc"},
    {"cipher-alg": "cast5-128", "cipher-mode": "ctr", "ivgen-alg": "essiv", "ivgen-hash-alg": "md5"},
    {"cipher-alg": "cast5-128", "cipher-mode": "ecb"},
]
#: What cryptsetup opens without root's device mapper: those that it has no need of the kernel for.
BY_CRYPTSETUP = KINDS[:2] + KINDS[3:5]

pytestmark = [needs_qemu_img, needs_qemu_io]


def name(kind: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in kind.items()) or "plain"


def create(path: Path, format: str, options: dict[str, str], kind: str = "auto") -> None:
    cell = Isolation(kind, single_threaded=True)
    instar.create(str(path), SIZE, format=format, options=options, secrets={"s": SECRET}, isolation=cell)


def agree(path: Path) -> None:
    """Require that instar and every real qemu-img say the same of an image."""
    settle(path)
    for version in {VERSIONS[0], VERSIONS[-1]}:
        image = instar.info(str(path), generation=version)
        assert dumps(info_object(image, version)) + "\n" == run(real(version), "info", "--output=json", path).stdout
        assert info_text(image, version) == run(real(version), "info", path).stdout


def use(path: Path) -> None:
    """Let qemu-io write to an image; open it with its passphrase; decrypt what was written."""
    qemu_io(path, "luks", "write -P 7 0 64k", f"write -P 9 {SIZE - 512} 512", "read -P 7 0 64k")
    with open_reader(path) as image:
        header = read_header(image, 0, generation=NOW)
        assert unlock(image, header, b"wrong") is None
        key = unlock(image, header, SECRET)
        assert key is not None
        sectors = Sectors(spec_of(header), key)
        assert sectors.decrypt(image.read(header.payload_offset, 65536)) == b"\7" * 65536
        last = image.read(header.payload_offset + SIZE - 512, 512)
        assert sectors.decrypt(last, SIZE // 512 - 1) == b"\x09" * 512


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_qemu_opens_ours(kind: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "ours"
    create(path, "luks", FAST | kind)
    use(path)
    agree(path)
    assert instar.check(str(path)).clean


# qemu-img measures its speed for seconds, whatever the time that it is given.
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3], KINDS[8]], ids=name)
def test_ours_opens_qemus(kind: dict[str, str], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    create(ours, "luks", FAST | kind)
    make_real(theirs, name(FAST | kind), SIZE)
    assert ours.stat().st_size == theirs.stat().st_size
    assert extents(ours) == extents(theirs)
    use(theirs)
    agree(theirs)
    assert instar.check(str(theirs)).clean


@needs_cryptsetup
@pytest.mark.parametrize("kind", BY_CRYPTSETUP, ids=name)
def test_cryptsetup_opens_ours(kind: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "ours"
    create(path, "luks", FAST | kind)
    dump = cryptsetup("luksDump", path).stdout.decode()
    assert "Version:       \t1" in dump
    assert "Key Slot 0: ENABLED" in dump
    assert cryptsetup("open", "--test-passphrase", "--key-file=-", path).returncode == 0
    assert cryptsetup("open", "--test-passphrase", "--key-file=-", path, secret=b"wrong").returncode == 2


@needs_cryptsetup
def test_ours_opens_what_cryptsetup_made(tmp_path: Path) -> None:
    """Its slots, also the second one, its way to align the data, and its 192-bit keys, on which QEMU crashes."""
    for words in (["-c", "aes-cbc-essiv:sha256", "-s", "192", "-h", "sha1"], ["-c", "aes-xts-plain64", "-s", "512"]):
        path = tmp_path / "theirs"
        path.write_bytes(bytes(4 << 20))
        quick = ["--type=luks1", "--pbkdf-force-iterations=1000", "--batch-mode"]
        assert cryptsetup("luksFormat", *quick, *words, path, "-").returncode == 0
        (tmp_path / "new").write_bytes(b"second")
        done = cryptsetup("luksAddKey", *quick[1:], "--key-file=-", path, tmp_path / "new")
        assert done.returncode == 0, done.stderr
        with open_reader(path) as image:
            header = read_header(image, 0, generation=NOW)
            key = unlock(image, header, SECRET)
            assert key is not None
            assert unlock(image, header, b"second") == key
            assert unlock(image, header, b"third") is None
        agree(path)


@pytest.mark.parametrize("cell", ["kvm", "process", "none"])
@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_every_kind_of_cell_can_encrypt(format: str, cell: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    options = FAST if format == "luks" else {f"encrypt.{k}": v for k, v in FAST.items()} | {"encrypt.format": "luks"}
    try:
        create(path, format, options, cell)
    except instar.SandboxError as error:
        if error.kind != "unavailable":
            raise
        pytest.skip(f"no such cell here: {error}")
    qemu_io(path, format, "write -P 7 0 64k", "read -P 7 0 64k")
    agree(path)
    assert json.loads(run("qemu-img", "info", "--output=json", path).stdout)["encrypted"] is True


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    create(path, "luks", FAST)
    image = f"driver=luks,key-secret=s,file.filename={path}"
    done = run("qemu-io", "-c", "read 0 512", "--object", "secret,id=s,data=wrong", "--image-opts", image)
    assert "Invalid password, cannot unlock any keyslot" in done.stdout + done.stderr


@pytest.mark.parametrize("missing", [{"secrets": {}}, {"secrets": {"t": SECRET}}])
def test_a_missing_passphrase_leaves_the_target_alone(missing: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"precious")
    with pytest.raises(instar.OptionError) as caught:
        instar.create(str(path), SIZE, format="luks", options=FAST, **missing)
    assert caught.value.code == "no-secret"
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_options_that_open_an_encrypted_image_are_taken(format: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    prefix = "" if format == "luks" else "encrypt."
    create(path, format, {**{prefix + k: v for k, v in FAST.items()}, **({"encrypt.format": "luks"} if prefix else {})})
    options = f"driver={format},{prefix}key-secret=s,file.filename={path}"
    secret = ("--object", f"secret,id=s,data={SECRET.decode()}")
    settle(path)
    for version in {VERSIONS[0], VERSIONS[-1]}:
        for words in (["info"], ["info", "--output=json"], ["check"]):
            words += [*secret, "--image-opts", options]
            ours, theirs = call(words, version, tmp_path), run(real(version), *words)
            assert ours[:2] == (theirs.returncode, theirs.stdout)
