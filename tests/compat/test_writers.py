"""Images that other programs made: VirtualBox, VMware's open-vmdk, Bochs, cryptsetup. Each is described and checked.

Law: a check of an image that its writer finished says nothing. ``./dev writers`` fetches the programs; what is not
there is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.cli.dialect.world import answer_of, call
from tests.compat.versions import generations

import instar

_BASE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instar" / "writers" / "bin"
MiB = 1 << 20
SIZE = 8 * MiB
#: Room and data that no disk tool would call empty, in few bytes.
CONTENT = bytes(range(256)) * 1200 + bytes(3 * MiB) + b"\xaa" * 70000


class Recipe(NamedTuple):
    """What makes an image: ``program`` with ``words``, which may hold the names ``{out}``, ``{raw}`` and ``{key}``."""

    name: str
    program: str
    words: str
    out: str
    format: str
    size: int = SIZE
    give_format: bool = False


def _virtualbox() -> list[Recipe]:
    """Return VirtualBox's formats and variants, new and with data."""
    found = []
    for format, ours, variants in (
        ("VDI", "vdi", ("Standard", "Fixed")),
        ("VMDK", "vmdk", ("Standard", "Fixed", "Split2G", "Stream", "Fixed,ESX", "Split2G,Fixed")),
        ("VHD", "vpc", ("Standard", "Fixed")),
        ("Parallels", "parallels", ("Standard",)),
        ("QCOW", "qcow", ("Standard",)),
        ("QED", "qed", ("Standard",)),
    ):
        for variant in variants:
            how = f"--variant {variant}"
            fixed = ours == "vpc" and variant == "Fixed"
            new = f"createbase --filename {{out}} --size {SIZE} --format {format} {how}"
            copy = f"convert --srcfilename {{raw}} --srcformat RAW --dstfilename {{out}} --dstformat {format} {how}"
            for kind, words in (("new", new), ("copy", copy)):
                name = f"{format}-{variant}-{kind}"
                found.append(Recipe(name, "vbox-img", words, f"t.{format.lower()}", ours, SIZE, fixed))
    words = f"createbase --filename {{out}} --size {5 << 30} --format VMDK --variant Split2G"
    found.append(Recipe("VMDK-Split2G-5G", "vbox-img", words, "t.vmdk", "vmdk", 5 << 30))
    return found


def _others() -> list[Recipe]:
    found = [Recipe("stream", "vmdk-convert", "{raw} {out}", "t.vmdk", "vmdk")]
    bochs = 10321920
    for mode, ours in (("vmware4", "vmdk"), ("vpc", "vpc")):
        words = f"-func=create -hd=10M -imgmode={mode} -sectsize=512 -q {{out}}"
        found.append(Recipe(mode, "bximage", words, "t", ours, bochs))
    for cipher, bits, start in (
        ("aes-xts-plain64", 256, 2),
        ("aes-xts-plain64", 512, 2),
        ("aes-cbc-essiv:sha256", 256, 2),
        ("aes-cbc-plain64", 128, 1),
    ):
        words = f"-q luksFormat --type luks1 --iter-time 10 -c {cipher} -s {bits} {{out}} {{key}}"
        name = f"luks1-{cipher}-{bits}"
        found.append(Recipe(name, "cryptsetup", words, "t", "luks", (4 - start) * MiB))
    return found


RECIPES = [*_virtualbox(), *_others()]


@cache
def _runs(program: str) -> bool:
    return (_BASE / program).exists()


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Recipe, Path]:
    """An image, made by its recipe."""
    recipe: Recipe = request.param
    if not _runs(recipe.program):
        pytest.skip(f"{recipe.program} was not fetched (./dev writers)")
    names = {key: tmp_path / name for key, name in (("out", recipe.out), ("raw", "raw"), ("key", "key"))}
    names["raw"].write_bytes(CONTENT.ljust(SIZE, b"\0"))
    names["key"].write_bytes(b"letmein")
    if recipe.program == "cryptsetup":
        names["out"].write_bytes(bytes(4 * MiB))
    words = [word.format(**names) for word in recipe.words.split()]
    done = subprocess.run(
        [_BASE / recipe.program, *words], cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if recipe.program == "cryptsetup" and b"device-mapper" in done.stderr and not names["out"].read_bytes()[:4].strip():
        pytest.skip("cryptsetup needs the kernel's device mapper for this cipher")
    assert names["out"].exists(), done.stderr
    return recipe, names["out"]


EACH = pytest.mark.parametrize("made", RECIPES, ids=lambda recipe: recipe.name, indirect=True)


@EACH
def test_an_image_is_described_and_nothing_is_wrong_with_it(made: tuple[Recipe, Path]) -> None:
    recipe, path = made
    format = recipe.format if recipe.give_format else None
    isolation = instar.Isolation("none")
    described = instar.info(str(path), format=format, isolation=isolation)
    assert (described.format, described.virtual_size) == (recipe.format, recipe.size)
    checked = instar.check(str(path), format=format, isolation=isolation)
    assert [(f.severity, f.structure, f.detail) for f in checked.findings if f.severity != "warning"] == []
    assert checked.exit_code == 0


@EACH
def test_qemu_img_says_the_same(made: tuple[Recipe, Path]) -> None:
    recipe, path = made
    given = ["-f", recipe.format] if recipe.give_format else []
    for version, program in generations().items():
        for words in (["info", "--output=json", *given, path.name], ["check", *given, path.name]):
            if recipe.format == "luks" and words[0] == "check":
                continue  # qemu-img wants the passphrase for that (quirks.md)
            code, out, err = answer_of(program, words, path.parent)
            own_code, own, complaint = call(words, version, path.parent)
            assert (own_code, complaint) == (code, err), (version, words)
            if words[0] == "info":
                assert json.loads(own)["virtual-size"] == json.loads(out)["virtual-size"]
            else:
                assert own == out
