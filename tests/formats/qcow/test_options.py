from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, run

from instar.cli.messages import option_words
from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.core.plan import Backing
from instar.formats.qcow.options import CREATE, MAX_SIZE, resolve

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = {"encrypted": False}
AES = {"encrypted": True, "key_secret": "s0"}


def given(text: str = "") -> Settings:
    pairs = [(k, v) for k, _, v in (member.partition("=") for member in text.split(",") if member)]
    return read_settings(CREATE, pairs, format="qcow")


def code_of(size: int, text: str = "", backing: Backing | None = None) -> str:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(text), backing)
    return caught.value.code


@pytest.mark.parametrize("text", ["", "encryption=off", "backing_fmt=raw", "backing_fmt=nbd"])
def test_without_encryption_nothing_is_left_to_choose(text: str) -> None:
    assert resolve(1, given(text), None) == PLAIN


@pytest.mark.parametrize("text", ["encryption=on", "encrypt.format=aes", "encrypt.format=qcow"])
def test_encryption_names_its_secret(text: str) -> None:
    assert resolve(1, given(f"{text},encrypt.key-secret=s0"), None) == AES
    assert code_of(1, text) == "qcow-key-secret-missing"


@pytest.mark.parametrize("size", [1, 512, MAX_SIZE - 511, MAX_SIZE])
def test_takes_disks_that_can_be_opened_again(size: int) -> None:
    assert resolve(size, given(), None) == PLAIN


@pytest.mark.parametrize("size", [MAX_SIZE + 1, 1 << 52, 1 << 63, (1 << 64) - 513])
def test_rejects_disks_that_qemu_makes_and_cannot_open(size: int) -> None:
    assert code_of(size) == "image-too-large"


@pytest.mark.parametrize("size", [0, (1 << 64) - 511, (1 << 64) - 2])
def test_rejects_an_empty_disk(size: int) -> None:
    assert code_of(size) == "qcow-size-zero"


def test_rejects_names_that_qemu_cannot_read_back() -> None:
    assert resolve(1, given(), Backing("é" * 511 + "a", "raw")) == PLAIN
    assert code_of(1, "", Backing("é" * 512, "raw")) == "qcow-backing-name-length"


@pytest.mark.parametrize("format", ["foo", "http", "RAW", ""])
def test_rejects_backing_formats_that_a_plain_qemu_does_not_know(format: str) -> None:
    assert code_of(1, "", Backing("x", format)) == "qcow-backing-format"


LINES = """
size=0
encryption=on
encryption=yes
encryption=no
encryption=true,encrypt.key-secret=s0
encrypt.format=aes
encrypt.format=qcow
encrypt.format=luks
encrypt.format=foo
encrypt.key-secret=s0
encryption=off,encrypt.key-secret=s0
encryption=on,encrypt.format=aes,encrypt.key-secret=s0
encryption=yes,encrypt.format=foo
encrypt.format=luks,encrypt.key-secret=s0
encrypt.format=luks,size=0
encrypt.format=foo,size=0
encrypt.format=aes,size=0
encrypt.key-secret=s0,size=0
backing_fmt=foo
backing_fmt=foo,encryption=yes,size=0
backing_fmt=foo,encryption=on,encrypt.format=aes
size=18446744073709551614
"""


@needs_qemu_img
@pytest.mark.parametrize("line", LINES.split())
def test_refuses_what_qemu_refuses_in_its_words(line: str, tmp_path: Path) -> None:
    size = [] if "size=" in line.replace("cluster_size", "") else ["1M"]
    theirs = run("qemu-img", "create", "-q", "-f", "qcow", "-o", line, "t", *size, cwd=tmp_path)
    settings = given(line)
    with pytest.raises(OptionError) as caught:
        resolve(int(settings.values.get("size", 1 << 20)), settings, None)
    words = option_words(caught.value, format="qcow", generation=(7, 2), has_cluster_size=False)
    assert f"qemu-img: t: {words}\n" == theirs.stderr
