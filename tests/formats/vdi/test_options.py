from __future__ import annotations

import pytest
from tests.support import needs_qemu_img, qemu_img, run

from instar.cli.messages.vdi import QEMU
from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.formats.vdi.ondisk import MAX_SIZE
from instar.formats.vdi.options import CREATE, resolve


def given(**values: str) -> Settings:
    return read_settings(CREATE, list(values.items()), format="vdi")


def refusal(size: int, **values: str) -> OptionError:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(**values), None)
    return caught.value


def test_fills_in_the_defaults() -> None:
    assert resolve(1, given(), None) == {"static": False, "preallocation": "off"}


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_a_static_image_takes_every_preallocation(mode: str) -> None:
    assert resolve(1, given(static="on", preallocation=mode), None) == {"static": True, "preallocation": mode}


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_rejects_preallocation_of_a_dynamic_image_and_says_what_to_add(mode: str) -> None:
    error = refusal(1, preallocation=mode)
    assert error.code == "vdi-preallocation"
    assert "static=on" in error.detail


def test_rejects_other_preallocations() -> None:
    assert refusal(1, static="on", preallocation="metadata").code == "bad-choice"


@pytest.mark.parametrize("size", [MAX_SIZE, MAX_SIZE - 511, 0])
def test_takes_disks_up_to_the_limit(size: int) -> None:
    assert resolve(size, given(), None)


@needs_qemu_img
@pytest.mark.parametrize("size", [MAX_SIZE + 1, MAX_SIZE + 512, 1 << 60, (1 << 63) - 1024])
def test_rejects_larger_disks_in_the_words_of_qemu(size: int, tmp_path) -> None:
    error = refusal(size)
    done = run("qemu-img", "create", "-f", "vdi", tmp_path / "t", str(size))
    assert done.stderr == f"qemu-img: {tmp_path / 't'}: {QEMU[error.code].format(**error.values)}\n"


@needs_qemu_img
def test_rows_are_those_of_qemu() -> None:
    theirs = [r for r in qemu_img("create", "-f", "vdi", "-o", "help").stdout.splitlines() if r.startswith("  ")]
    ours = {row.help_line() for row in CREATE if not row.extension}
    assert ours <= {line.rstrip() for line in theirs}
    assert not any("preallocation" in line and "static image" in line for line in theirs)
