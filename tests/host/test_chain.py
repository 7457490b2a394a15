"""A new image replaces nothing that its backing file stands on, at whatever depth and under whatever name."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import call
from tests.compat.versions import generations
from tests.support import run

import instar
import instar.host.gate
from instar.core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MiB = 1 << 20


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def qemu(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def overlay(name: str, base: str, format: str = "qcow2", **more: str) -> None:
    qemu("create", "-f", "qcow2", "-u", "-b", base, "-F", format, name, "1M", **more)


def refused(target: str, backing: str, format: str = "qcow2", options: tuple[tuple[str, str], ...] = ()) -> None:
    """Fail unless an image is refused, and everything is as it was."""
    before = {name: os.stat(name) for name in os.listdir(".") if os.path.isfile(name)}
    with pytest.raises(OptionError) as caught:
        instar.create(target, MiB, format="qcow2", backing=backing, backing_format=format, options=options)
    assert caught.value.code == "backing-same-file"
    after = {name: os.stat(name) for name in os.listdir(".") if os.path.isfile(name)}
    assert {n: (s.st_ino, s.st_size, s.st_mtime_ns) for n, s in after.items()} == {
        n: (s.st_ino, s.st_size, s.st_mtime_ns) for n, s in before.items()
    }


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("name", ["base", "./base", "hard", "soft", "{here}/base"])
def test_its_base(name: str, depth: int, tmp_path: Path) -> None:
    qemu("create", "-f", "qcow2", "base", "1M")
    os.link("base", "hard")
    os.symlink("base", "soft")
    below = "base"
    for number in range(depth):
        overlay(f"mid{number}", below)
        below = f"mid{number}"
    refused(name.format(here=tmp_path), below)


@pytest.mark.parametrize("version", generations(), ids=lambda v: f"{v[0]}.{v[1]}")
def test_which_qemu_img_destroys(version: tuple[int, int], tmp_path: Path) -> None:
    words = ["create", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "base"]
    for make in (lambda: run(generations()[version], *words, "1M"), lambda: call([*words, "1M"], version, tmp_path)):
        qemu("create", "-f", "qcow2", "base", "2M")
        overlay("mid", "base")
        made = make()
        lost = instar.info("base").virtual_size == MiB
        assert lost == hasattr(made, "returncode"), made
    code, _, said = made
    assert (code, said) == (
        1,
        "qemu-img: base: Error: Trying to create an image with the same filename as the backing file\n",
    )


def test_its_empty_base() -> None:
    open("base", "x").close()
    overlay("mid", "base", "raw")
    refused("base", "mid")


def test_its_data_file() -> None:
    qemu("create", "-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "mid", "1M")
    refused("data", "mid")
    overlay("upper", "mid")
    refused("data", "upper")


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_its_extents(subformat: str) -> None:
    qemu("create", "-f", "vmdk", "-o", f"subformat={subformat}", "mid.vmdk", "1M")
    (extent,) = [name for name in os.listdir(".") if name != "mid.vmdk"]
    refused(extent, "mid.vmdk", "vmdk")
    overlay("upper", "mid.vmdk", "vmdk")
    refused(extent, "upper")


def test_by_a_companion_of_its_own() -> None:
    qemu("create", "-f", "raw", "base", "1M")
    overlay("mid", "base", "raw")
    refused("new", "mid", options=(("data_file", "base"),))
    assert not os.path.exists("new")


class TestOutsideTheGate:
    """The base lies where the backing file may not open it: its name alone is compared."""

    @pytest.fixture(autouse=True)
    def _folders(self) -> None:
        os.mkdir("images")
        os.mkdir("bases")
        qemu("create", "-f", "qcow2", "bases/base", "2M")

    @pytest.mark.parametrize(
        "written", ["../bases/base", "{here}/bases/base", "file:{here}/bases/base", "/{here}/x/../bases/base"]
    )
    def test_a_base_is_known_by_its_name(self, written: str, tmp_path: Path) -> None:
        overlay("images/mid", written.format(here=tmp_path))
        refused("bases/base", f"{tmp_path}/images/mid")
        assert instar.info("bases/base").virtual_size == 2 * MiB

    def test_nothing_is_asked_about_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So an image cannot learn what there is: a link to the target is another name, and not looked at."""
        os.symlink("bases/base", "alias")
        overlay("images/mid", "../alias")
        (tmp_path / "images/top").write_text("old")
        asked = []
        for name in ("stat", "lstat", "open", "readlink"):
            real = getattr(os, name)

            def watch(path: object, *rest: object, real: Callable[..., object] = real, **more: object) -> object:
                asked.append(str(path))
                return real(path, *rest, **more)

            monkeypatch.setattr(os, name, watch)
        instar.create("images/top", MiB, format="qcow2", backing="mid", backing_format="qcow2")
        assert asked
        assert not [name for name in asked if "alias" in name]


def test_a_chain_is_not_looked_at_where_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu("create", "-f", "qcow2", "base", "1M")
    overlay("mid", "base")
    opened = []
    real = instar.host.gate.Gate.open

    def watch(*words: object, **more: object) -> object:
        opened.append(words[1])
        return real(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("instar.host.gate.Gate.open", watch)
    instar.create("new", MiB, format="qcow2", backing="mid", backing_format="qcow2")
    assert opened == []
    instar.create("new", MiB, format="qcow2", backing="mid", backing_format="qcow2")
    assert opened == [b"base"]


@pytest.mark.parametrize("broken", ["missing", "damaged", "loop"])
def test_a_chain_that_cannot_be_followed_hinders_nobody(broken: str) -> None:
    overlay("mid", "mid2")
    if broken != "missing":
        overlay("mid2", "mid")
    if broken == "damaged":
        open("mid2", "wb").close()
    with open("top", "w") as file:
        file.write("old")
    instar.create("top", MiB, format="qcow2", backing="mid", backing_format="qcow2")
    assert instar.info("top").backing_filename == "mid"
