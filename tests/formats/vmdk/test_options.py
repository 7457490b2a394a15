from __future__ import annotations

import pytest
from tests.formats.vmdk.images import judge, theirs
from tests.support import QEMU_IMG, needs_qemu_img, run

from instar.cli.messages.vmdk import QEMU
from instar.core.errors import OptionError
from instar.core.plan import Backing
from instar.formats.vmdk.options import CREATE, companions

LARGEST = ((1 << 32) - 512) * 65536
PARENT = Backing("p.vmdk", "vmdk", virtual_size=1 << 20, content_id=7)


def refused(size: int, text: str, backing: Backing | None = None) -> OptionError:
    with pytest.raises(OptionError) as caught:
        judge(size, text, backing)
    assert str(caught.value)
    return caught.value


def test_fills_in_what_qemu_fills_in() -> None:
    assert judge(0) == {
        "adapter_type": "ide",
        "hwversion": "4",
        "toolsversion": "2147483647",
        "subformat": "monolithicSparse",
        "zeroed_grain": False,
        "grain_size": 65536,
        "preallocation": "off",
    }


def test_keys_stand_in_the_order_of_the_formatting_line() -> None:
    names = "size adapter_type backing_file backing_fmt compat6 hwversion toolsversion subformat zeroed_grain"
    assert [row.name for row in CREATE if not row.extension] == names.split()
    shown = {row.name: row.shown for row in CREATE if row.shown is not None}
    assert shown == {"compat6": "off", "hwversion": "undefined"}


@needs_qemu_img
def test_help_is_word_for_word_qemus() -> None:
    done = run(QEMU_IMG, "create", "-f", "vmdk", "-o", "help")  # type: ignore[arg-type]
    theirs = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(row.help_line() for row in CREATE if not row.extension) == theirs


@pytest.mark.parametrize(
    ("text", "hwversion"),
    [("", "4"), ("compat6", "6"), ("compat6=off", "4"), ("hwversion=undefined", "4"), ("hwversion=19", "19")],
)
def test_compat6_is_hardware_version_6(text: str, hwversion: str) -> None:
    assert judge(0, text)["hwversion"] == hwversion


def test_undefined_hwversion_goes_with_compat6() -> None:
    assert judge(0, "compat6,hwversion=undefined")["hwversion"] == "6"


def test_empty_versions_are_kept_empty() -> None:
    chosen = judge(0, "hwversion=,toolsversion=")
    assert (chosen["hwversion"], chosen["toolsversion"]) == ("", "")


@pytest.mark.parametrize(
    ("text", "backing", "code"),
    [
        ("backing_fmt=qcow2,adapter_type=foo", PARENT, "vmdk-backing-fmt"),
        ("adapter_type=foo,subformat=bar", None, "vmdk-choice"),
        ("subformat=bar,compat6,hwversion=3", None, "vmdk-choice"),
        ("compat6,hwversion=3,subformat=monolithicFlat,zeroed_grain", None, "vmdk-compat6-hwversion"),
        ("subformat=monolithicFlat,zeroed_grain", PARENT, "vmdk-flat-backing"),
        ("subformat=twoGbMaxExtentFlat,zeroed_grain", None, "vmdk-flat-zeroed-grain"),
        ("subformat=monolithicFlat,grain_size=8k", None, "vmdk-flat-grain-size"),
        ("subformat=twoGbMaxExtentFlat,preallocation=metadata", None, "vmdk-preallocation"),
        ("subformat=streamOptimized,preallocation=metadata", None, "vmdk-preallocation"),
        ("subformat=streamOptimized,preallocation=full", None, "vmdk-preallocation"),
        ("preallocation=metadata", PARENT, "vmdk-preallocation"),
        ("preallocation=falloc", PARENT, "vmdk-preallocation"),
        ("preallocation=some", None, "bad-choice"),
        ("", Backing("p", "qcow2", content_id=1), "vmdk-backing-format"),
        ("", Backing("p", "vmdk"), "vmdk-parent-cid"),
        ("grain_size=4k", None, "vmdk-grain-size"),
        ("grain_size=128M", None, "vmdk-grain-size"),
        ("grain_size=96k", None, "vmdk-grain-size"),
    ],
)
def test_first_broken_rule_is_reported_in_qemus_order(text: str, backing: Backing | None, code: str) -> None:
    assert refused(1 << 20, text, backing).code == code


@needs_qemu_img
@pytest.mark.parametrize(
    "text",
    [
        "backing_fmt=qcow2,adapter_type=foo",
        "adapter_type=foo,subformat=bar",
        "subformat=bar",
        "compat6,hwversion=3,subformat=monolithicFlat,zeroed_grain",
        "subformat=twoGbMaxExtentFlat,zeroed_grain",
    ],
)
def test_sentences_are_qemus(tmp_path, text: str) -> None:
    error = refused(1 << 20, text)
    target = tmp_path / "t.vmdk"
    done = run(QEMU_IMG, "create", "-q", "-f", "vmdk", "-o", text, target, "1M")  # type: ignore[arg-type]
    assert done.stderr == f"qemu-img: {target}: {QEMU[error.code].format(**error.values)}\n"


@needs_qemu_img
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_sentence_about_a_backing_file_of_another_format_is_qemus(tmp_path, fmt: str) -> None:
    theirs_done = run(QEMU_IMG, "create", "-q", "-f", fmt, tmp_path / "p", "1M")  # type: ignore[arg-type]
    assert theirs_done.returncode == 0
    arguments = ("create", "-q", "-f", "vmdk", "-u", "-b", "p", "-F", "vmdk", tmp_path / "t", "1M")
    done = run(QEMU_IMG, *arguments)  # type: ignore[arg-type]
    error = refused(0, "", Backing("p", fmt, content_id=None))
    assert QEMU[error.code].format(**error.values) in done.stderr


@pytest.mark.parametrize(
    "value",
    ['4"', "4\nCID=0", "4\r", "4\0", "4\x7f", 'x"\nparentFileNameHint="/etc/passwd', "parentFileNameHint=/etc/passwd"],
)
@pytest.mark.parametrize("key", ["hwversion", "toolsversion"])
def test_refuses_text_that_would_mean_something_else_in_the_descriptor(key: str, value: str) -> None:
    error = refused(0, f"{key}={value}")
    assert error.code == "vmdk-text"
    assert "\n" not in str(error)


def test_refuses_text_that_cannot_be_encoded() -> None:
    assert refused(0, "hwversion=\ud800").code == "vmdk-text"


def test_accepts_bytes_that_are_not_utf_8() -> None:
    assert judge(0, "hwversion=\udcff")["hwversion"] == "\udcff"


@needs_qemu_img
def test_qemu_reads_a_parent_out_of_the_tools_version(tmp_path) -> None:
    """The reason for the rule: remove it when this fails for every generation."""
    theirs(tmp_path / "t", 1 << 20, "toolsversion=parentFileNameHint=X/etc/passwd")
    done = run(QEMU_IMG, "info", tmp_path / "t")  # type: ignore[arg-type]
    assert "etc/passwd" in done.stdout + done.stderr


def test_largest_size_is_the_last_that_qemu_does_not_wrap() -> None:
    judge(LARGEST)
    error = refused(LARGEST + 1, "")
    assert (error.code, error.values["format"], error.values["limit"]) == ("image-too-large", "vmdk", LARGEST)
    assert refused((1 << 64) - 1, "").code == "image-too-large"


@needs_qemu_img
def test_qemu_wraps_above_the_largest_size(tmp_path) -> None:
    assert theirs(tmp_path / "t", LARGEST + 512).stat().st_size == 65536
    theirs(tmp_path / "t", LARGEST)
    assert (tmp_path / "t").stat().st_size > 1 << 35


def test_grain_size_scales_the_largest_size() -> None:
    judge(LARGEST // 8, "grain_size=8k")
    assert refused(LARGEST // 8 + 1, "grain_size=8k").code == "image-too-large"
    judge(LARGEST + 1, "grain_size=128k")


@pytest.mark.parametrize(
    ("subformat", "names"),
    [
        ("monolithicSparse", []),
        ("streamOptimized", []),
        ("monolithicFlat", ["d-flat.vmdk"]),
        ("twoGbMaxExtentFlat", ["d-f001.vmdk", "d-f002.vmdk"]),
        ("twoGbMaxExtentSparse", ["d-s001.vmdk", "d-s002.vmdk"]),
    ],
)
def test_companions_are_the_extents(subformat: str, names: list[str]) -> None:
    size = (2 << 30) + 1
    chosen = judge(size, f"subformat={subformat}")
    assert [(c.name, c.keep, c.from_cwd) for c in companions(size, chosen, "d.vmdk")] == [
        (name, False, False) for name in names
    ]


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
def test_a_split_disk_has_as_many_files_as_are_read(subformat: str) -> None:
    largest = 1023 << 31
    assert len(companions(largest, judge(largest, f"subformat={subformat}"), "d")) == 1023
    error = refused(largest + 1, f"subformat={subformat}")
    assert error.code == "vmdk-extents"
    assert "1024 files" in str(error)


def test_a_flat_disk_in_one_file_may_be_as_large_as_any() -> None:
    assert judge((1 << 63) - 512, "subformat=monolithicFlat")["grain_size"] == 0


@pytest.mark.parametrize(("size", "good"), [((2 << 40) - (1 << 30), True), (2 << 40, False)])
def test_a_preallocated_grain_has_a_sector_number_of_32_bits(size: int, good: bool) -> None:
    if good:
        judge(size, "preallocation=metadata")
    else:
        assert refused(size, "preallocation=metadata").code == "image-too-large"
    judge(size // 2, "subformat=twoGbMaxExtentSparse,preallocation=metadata")
