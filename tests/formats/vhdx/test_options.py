from __future__ import annotations

import pytest
from tests.formats.vhdx.images import GiB, MiB, TiB, settings
from tests.support import needs_qemu_img, qemu_img, run

from instar.cli.messages.vhdx import QEMU
from instar.core.errors import OptionError
from instar.core.plan import Backing
from instar.formats.vhdx import options


def resolve(size: int, **given: str) -> dict[str, int | bool | str]:
    return options.resolve(size, settings(**given), None)


def test_defaults_are_those_of_qemu() -> None:
    assert resolve(64 * MiB) == {
        "subformat": "dynamic",
        "log_size": MiB,
        "block_size": 8 * MiB,
        "block_state_zero": True,
        "preallocation": "off",
    }


@pytest.mark.parametrize(
    ("size", "block_size"),
    [
        (0, 8),
        (GiB, 8),
        (GiB + 1, 16),
        (100 * GiB, 16),
        (100 * GiB + 1, 32),
        (32 * TiB, 32),
        (32 * TiB + 1, 64),
        (64 * TiB, 64),
    ],
)
def test_block_size_grows_with_the_disk(size: int, block_size: int) -> None:
    assert resolve(size)["block_size"] == block_size * MiB


@pytest.mark.parametrize(
    ("text", "block_size"), [("1", 1), ("1M", 1), ("1048577", 2), ("256M", 256), ("257M", 256), ("8E", 256)]
)
def test_block_size_is_rounded_up_to_a_mebibyte_and_cut(text: str, block_size: int) -> None:
    assert resolve(GiB, block_size=text)["block_size"] == block_size * MiB


@pytest.mark.parametrize(("text", "log_size"), [("1", 1), ("1M", 1), ("1048577", 2), ("4095M", 4095)])
def test_log_size_is_rounded_up_to_a_mebibyte(text: str, log_size: int) -> None:
    assert resolve(GiB, log_size=text)["log_size"] == log_size * MiB


BAD = [
    (64 * TiB + 1, {}, "vhdx-size"),
    ((1 << 63) - 1, {}, "vhdx-size"),
    (64 * TiB + 1, {"log_size": "0"}, "vhdx-size"),
    (MiB, {"log_size": "0"}, "vhdx-log-size"),
    (MiB, {"log_size": "0", "block_size": "3M"}, "vhdx-log-size"),
    (MiB, {"log_size": "4G"}, "vhdx-log-size-max"),
    (MiB, {"log_size": "4294967295"}, "vhdx-log-size-max"),
    (MiB, {"block_size": "3M"}, "vhdx-block-size"),
    (MiB, {"block_size": "2097153"}, "vhdx-block-size"),
    (0, {"block_size": "256M"}, "vhdx-empty-disk"),
    (0, {"block_size": "256M", "subformat": "fixed", "block_state_zero": "off"}, "vhdx-empty-disk"),
]


@pytest.mark.parametrize(("size", "given", "code"), BAD)
def test_refuses_what_qemu_refuses_for_the_same_reason(size: int, given: dict[str, str], code: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(size, **given)
    assert caught.value.code == code
    assert code in QEMU


@needs_qemu_img
@pytest.mark.parametrize(("size", "given", "code"), BAD)
def test_words_it_as_qemu_does(tmp_path, size: int, given: dict[str, str], code: str) -> None:
    extra = ["-o", ",".join(f"{key}={value}" for key, value in given.items())] if given else []
    done = run("qemu-img", "create", "-q", "-f", "vhdx", *extra, "t", str(size), cwd=tmp_path)
    assert done.returncode == 1
    with pytest.raises(OptionError) as caught:
        resolve(size, **given)
    assert done.stderr.strip() == "qemu-img: t: " + QEMU[code].format(**caught.value.values)


def test_a_bad_subformat_is_found_before_anything_else() -> None:
    with pytest.raises(OptionError) as caught:
        resolve(65 * TiB, subformat="sparse", log_size="0")
    assert caught.value.code == "bad-choice"
    assert caught.value.values["qapi"] == "subformat"
    assert "dynamic, fixed" in str(caught.value)


def parent(*, name: str = "p.vhdx", format: str = "vhdx", identity: bytes | None = b"?" * 44) -> Backing:
    return Backing(name, format, virtual_size=MiB, identity=identity, relative=name, absolute=f"/{name}")


def test_a_child_has_no_zero_blocks_which_would_hide_its_parent() -> None:
    assert options.resolve(MiB, settings(), parent())["block_state_zero"] is False


@pytest.mark.parametrize(
    ("size", "given", "backing", "code"),
    [
        (MiB, {"subformat": "fixed"}, parent(), "vhdx-fixed-parent"),
        (MiB, {"block_state_zero": "on"}, parent(), "vhdx-zero-parent"),
        (MiB, {}, parent(format="vpc"), "vhdx-parent-format"),
        (MiB, {}, parent(identity=None), "vhdx-parent"),
        (MiB, {}, parent(name="a\\b"), "vhdx-parent-name"),
        (MiB, {}, parent(name="\udcff"), "vhdx-parent-name"),
        (MiB, {}, parent(name="a" * 4095), "vhdx-parent-name"),
        (MiB + 512, {}, parent(), "vhdx-parent-size"),
        (MiB - 512, {}, parent(), "vhdx-parent-size"),
        (MiB, {"block_state_zero": "on", "preallocation": "falloc"}, None, "vhdx-zero-preallocation"),
        (MiB, {"preallocation": "on"}, None, "bad-choice"),
    ],
)
def test_refuses_what_a_parent_or_preallocation_excludes(
    size: int, given: dict[str, str], backing: Backing | None, code: str
) -> None:
    with pytest.raises(OptionError) as caught:
        options.resolve(size, settings(**given), backing)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("subformat", options.SUBFORMAT.choices)
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocated_blocks_are_in_the_file_from_the_start(subformat: str, mode: str) -> None:
    chosen = resolve(MiB, subformat=subformat, preallocation=mode)
    assert (chosen["preallocation"], chosen["block_state_zero"]) == (mode, False)


@needs_qemu_img
def test_options_are_listed_as_qemu_lists_them() -> None:
    shown = qemu_img("create", "-f", "vhdx", "-o", "help").stdout.splitlines()[1:]
    theirs = [line for line in shown if line.startswith("  ")]
    assert theirs == sorted(row.help_line() for row in options.CREATE if not row.extension)
