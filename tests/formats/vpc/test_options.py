from __future__ import annotations

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.core.plan import Backing
from instar.formats.vpc.options import CREATE, resolve

LIMIT = 0xFF000000 * 512


def given(**values: str) -> Settings:
    return read_settings(CREATE, list(values.items()), format="vpc")


def code_of(size: int, **values: str) -> str:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(**values), None)
    return caught.value.code


def test_fills_in_the_defaults() -> None:
    assert resolve(1 << 20, given(), None) == {
        "subformat": "dynamic",
        "force_size": False,
        "preallocation": "off",
        "block_size": 2 << 20,
    }


def test_a_fixed_disk_has_no_block_size() -> None:
    assert resolve(1, given(subformat="fixed", force_size="on"), None) == {
        "subformat": "fixed",
        "force_size": True,
        "preallocation": "off",
    }


@pytest.mark.parametrize("block_size", ["512k", "1M", "2M", "256M"])
def test_takes_block_sizes_within_the_bounds(block_size: str) -> None:
    assert resolve(1, given(block_size=block_size), None)["block_size"] == int(block_size[:-1]) << (
        10 if block_size.endswith("k") else 20
    )


@pytest.mark.parametrize("block_size", ["0", "1", "512", "256k", "3M", "512M", "1E"])
def test_rejects_other_block_sizes(block_size: str) -> None:
    assert code_of(1, block_size=block_size) == "vpc-block-size"


def test_rejects_a_block_size_for_a_fixed_disk() -> None:
    assert code_of(1, subformat="fixed", block_size="2M") == "vpc-block-size-fixed"


def of_size(size: int) -> bytes:
    """Return what a parent whose footer has this size hands on."""
    return bytes(16) + size.to_bytes(8, "big") + bytes(4)


def parent(*, name: str = "p.vhd", format: str = "vpc", identity: bytes | None = bytes(28)) -> Backing:
    return Backing(name, format, virtual_size=10514432, identity=identity, relative=name, absolute=f"/{name}")


@pytest.mark.parametrize("size", [10514432, 10 << 20])
def test_a_child_has_the_size_of_its_parent_or_what_that_was_made_for(size: int) -> None:
    assert resolve(size, given(), parent())["subformat"] == "dynamic"


def test_a_child_may_have_a_parent_of_the_largest_size() -> None:
    """By the footer; what the parent is taken for by its geometry is smaller."""
    assert resolve(10 << 20, given(), parent(identity=of_size(LIMIT)))["subformat"] == "dynamic"


@pytest.mark.parametrize(
    ("size", "values", "backing", "code"),
    [
        (10 << 20, {"subformat": "fixed"}, parent(), "vpc-fixed-parent"),
        (10 << 20, {"force_size": "on"}, parent(), "vpc-parent-force-size"),
        (10 << 20, {"force_size": "off"}, parent(), "vpc-parent-force-size"),
        (10 << 20, {}, parent(format="vhdx"), "vpc-parent-format"),
        (10 << 20, {}, parent(identity=None), "vpc-parent"),
        (10 << 20, {}, parent(identity=of_size(LIMIT + 1)), "vpc-parent"),
        (10 << 20, {}, parent(identity=of_size((1 << 64) - 1)), "vpc-parent"),
        (10 << 20, {}, parent(name="a\\b"), "vpc-parent-name"),
        (10 << 20, {}, parent(name="\udc80"), "vpc-parent-name"),
        (11 << 20, {}, parent(), "vpc-parent-size"),
        (512, {}, parent(), "vpc-parent-size"),
        (512, {"subformat": "fixed", "preallocation": "metadata"}, None, "vpc-fixed-metadata"),
        (512, {"preallocation": "on"}, None, "bad-choice"),
    ],
)
def test_refuses_what_a_parent_or_preallocation_excludes(
    size: int, values: dict[str, str], backing: Backing | None, code: str
) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(**values), backing)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("subformat", ["foo", "", "Fixed", "on"])
def test_rejects_other_subformats(subformat: str) -> None:
    assert code_of(1, subformat=subformat) == "bad-choice"


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 62, (1 << 63) + 1, (1 << 64) - 2])
@pytest.mark.parametrize("force", ["on", "off"])
def test_rejects_disks_above_2040_gib(size: int, force: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(force_size=force), None)
    assert caught.value.code == "image-too-large"
    assert caught.value.values == {"format": "vpc", "limit": LIMIT, "value": size}


@pytest.mark.parametrize("size", [0, LIMIT - 1, LIMIT])
def test_takes_disks_up_to_2040_gib(size: int) -> None:
    assert resolve(size, given(), None)


def test_judges_the_subformat_before_the_size_as_qemu_does() -> None:
    assert code_of(LIMIT + 1, subformat="foo") == "bad-choice"


@needs_qemu_img
def test_rows_are_those_of_qemu() -> None:
    lines = qemu_img("create", "-f", "vpc", "-o", "help").stdout.splitlines()
    theirs = [line.rstrip() for line in lines if line.startswith("  ")]
    ours = sorted(row.help_line().rstrip() for row in CREATE if not row.extension)
    assert ours == theirs


@needs_qemu_img
def test_qemu_shows_the_options_in_our_order(tmp_path) -> None:
    line = qemu_img("create", "-f", "vpc", "-o", "force_size=on,subformat=fixed,size=1M", tmp_path / "t").stdout.strip()
    assert line.endswith("fmt=vpc size=1048576 subformat=fixed force_size=on")
    assert [row.name for row in CREATE if not row.extension] == ["size", "subformat", "force_size"]
    assert not any(row.shown for row in CREATE)
