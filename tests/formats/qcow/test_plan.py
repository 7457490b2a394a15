from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.formats.qcow.images import MiB, image, plan
from tests.support import apply_plan, extents, needs_qemu_img, qemu_img, qemu_info, same_bytes

from instar.core.errors import OptionError
from instar.core.plan import Backing
from instar.formats.qcow.options import MAX_SIZE

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [1, 512, 513, MiB, 2 * MiB, 2 * MiB + 1, 128 * MiB, 128 * MiB + 1, 1 << 30, 1 << 40]


@needs_qemu_img
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_makes_the_bytes_that_qemu_makes(tmp_path: Path, size: int, backed: bool) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(size, backing=Backing("base.img", "raw") if backed else None), ours)
    words = ["-u", "-b", "base.img", "-F", "raw"] if backed else []
    qemu_img("create", "-q", "-f", "qcow", *words, theirs, str(size))
    same_bytes(ours, theirs)
    assert extents(ours) == extents(theirs)


@needs_qemu_img
@pytest.mark.parametrize("name", ["x", "12345678", "ü/ö.img", "n" * 1023, "fat:", "fat:/tmp", "json:{}"])
def test_records_a_backing_file_as_qemu_does(tmp_path: Path, name: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(5 * MiB, backing=Backing(name, "raw")), ours)
    qemu_img("create", "-q", "-u", "-f", "qcow", "-b", name, "-F", "raw", theirs, "5M")
    same_bytes(ours, theirs)
    found = qemu_info(ours)
    assert found.get("backing-filename") == (None if name == "fat:" else name)
    assert found["cluster-size"] == 512


@needs_qemu_img
@pytest.mark.parametrize("option", ["encryption=on", "encrypt.format=aes"])
def test_encryption_is_a_number_in_the_header(tmp_path: Path, option: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    apply_plan(plan(MiB, secret=b"hunter2"), ours)
    words = ["--object", "secret,id=s0,data=hunter2", "-o", f"{option},encrypt.key-secret=s0"]
    qemu_img("create", "-q", "-f", "qcow", *words, theirs, "1M")
    same_bytes(ours, theirs)
    assert qemu_info(ours)["encrypted"] is True


def test_nothing_of_a_passphrase_is_written_and_any_text_will_do() -> None:
    assert image(plan(secret=b"hunter2")) == image(plan(secret=b"")) == image(plan(secret="ü".encode() * 99))


@pytest.mark.parametrize("secret", [b"\xff", b"hunter2\xe9", b"\xed\xa0\x80"])
def test_a_passphrase_that_is_no_text_is_refused_without_a_word_of_it(secret: bytes) -> None:
    with pytest.raises(OptionError, match="secret 's0' is not valid UTF-8") as caught:
        plan(secret=secret)
    assert "hunter2" not in repr(caught.value.facts())
    assert caught.value.__context__ is None


def test_an_image_for_nobody_is_refused() -> None:
    from instar.core.plan import Seed
    from instar.formats.qcow.plan import create

    with pytest.raises(OptionError, match="no secret 's1'"):
        create(MiB, {"encrypted": True, "key_secret": "s1"}, Seed())


@pytest.mark.parametrize("size", [*SIZES, MAX_SIZE])
def test_invariants_hold_and_plans_stay_small(size: int) -> None:
    made = plan(size, backing=Backing("base", None))
    made.check()
    assert len(list(made.items)) == 3
    assert made.virtual_size % 512 == 0


def test_golden() -> None:
    assert plan(3 * MiB, backing=Backing("base", "raw")).text() == GOLDEN


GOLDEN = """\
virtual_size 3145728  cluster 512  files 568
0 0x000000000000 0x00000030 header: write  \
514649fb00000001000000000000003000000004000000000000000000300000090c0000000000000000000000000038
0 0x000000000030 0x00000004 backing file name: write  62617365
0 0x000000000038 0x00000200 L1 table: fill   00 × 512"""
