"""Errors about a file that an image names: the image first, the file second, each once, in both dialects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import answer_of, call
from tests.compat.versions import generations
from tests.support import needs_qemu_img

import instar

if TYPE_CHECKING:
    from pathlib import Path

NONE = instar.Isolation("none")
#: Extent lines of which something is wrong, and what instar says of the file.
EXTENTS = {
    'FLAT "nope" 0': "extents.0: the image names 'nope', which does not exist",
    'FLAT "a b/nope" 0': "extents.0: the image names 'a b/nope', which does not exist",
    'FLAT "flat/x" 0': "extents.0: the image names 'flat/x', which does not exist",
    'FLAT "dangling" 0': "extents.0: the image names 'dangling', which does not exist",
    'FLAT "loop" 0': "extents.0: the image names 'loop', which is a loop of links",
    'FLAT "folder" 0': "extents.0: the image names 'folder', which is not a regular file",
    f'FLAT "{300 * "x"}" 0': f"cannot open '{{folder}}{300 * 'x'}', which it names: File name too long",
    'SPARSE "flat"': "vmdk extent of 'flat': the file does not start as a sparse extent does",
    'SPARSE "empty"': "vmdk extent of 'empty': the file is too small",
    'SESPARSE "flat"': "vmdk extent of 'flat': the file does not start as a seSparse extent does",
}


@pytest.fixture(params=["", "d/"], ids=["here", "below"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a folder with files that images name, as seen from ``tmp_path``."""
    folder = tmp_path / request.param
    (folder / "folder").mkdir(parents=True)
    (folder / "flat").write_bytes(bytes(65536))
    (folder / "empty").write_bytes(b"")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("gone")
    return str(request.param)


def extent(path: Path, line: str) -> None:
    head = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    path.write_text(f"{head}RW 128 {line}\n")


def same_words(folder: Path, *words: str) -> None:
    for version, program in generations().items():
        assert call(words, version, folder)[::2] == answer_of(program, words, folder)[::2], (version, words)


@needs_qemu_img
@pytest.mark.parametrize("line", EXTENTS, ids=range(len(EXTENTS)))
def test_of_an_extent_the_dialect_says_what_qemu_img_says(line: str, place: str, tmp_path: Path) -> None:
    extent(tmp_path / place / "t", line)
    same_words(tmp_path, "info", f"{place}t")
    same_words(tmp_path, "check", f"{place}t")


@pytest.mark.parametrize("line", EXTENTS, ids=range(len(EXTENTS)))
def test_of_an_extent_instar_names_the_image_then_the_file(
    line: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extent(tmp_path / place / "t", line)
    for operation in (instar.info, instar.check):
        with pytest.raises(instar.InstarError) as caught:
            operation(f"{place}t", isolation=NONE)
        assert str(caught.value).startswith(f"{place}t: {EXTENTS[line].format(folder=place)}")


@needs_qemu_img
@pytest.mark.parametrize(
    ("base", "format", "words"),
    [
        ("nope", "raw", "{0}t: backing: the image names 'nope', which does not exist"),
        ("folder", "raw", "{0}t: backing: the image names 'folder', which is not a regular file"),
        ("flat/x", "raw", "{0}t: backing: the image names 'flat/x', which does not exist"),
        ("loop", "raw", "{0}t: backing: the image names 'loop', which is a loop of links"),
        (300 * "x", "raw", "{0}t: cannot open '{0}" + 300 * "x" + "', which it names: File name too long"),
        ("flat", "qcow2", "{0}flat: qcow2 Header: this is not a qcow2 image"),
        ("t.vmdk", "vmdk", "{0}t.vmdk: extents.0: the image names 'nope', which does not exist"),
    ],
)
def test_of_a_backing_file(
    base: str, format: str, words: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extent(tmp_path / place / "t.vmdk", 'FLAT "nope" 0')
    how = {"backing": base, "backing_format": format, "open_backing": False}
    instar.create(f"{place}t", 1 << 20, format="qcow2", isolation=NONE, **how)  # type: ignore[arg-type]
    for version, program in generations().items():
        line = ("info", "--backing-chain", f"{place}t")
        assert call(line, version, tmp_path)[2] == answer_of(program, line, tmp_path)[2], version
    with pytest.raises(instar.InstarError) as caught:
        instar.info_chain(f"{place}t", isolation=NONE)
    said = str(caught.value)
    assert said.startswith(words.format(place))
    # An image that was opened for itself says whose backing file it is.
    assert said.endswith(f"; it is the backing file of {place}t") == (not said.startswith(f"{place}t: "))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read all files")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    extent(tmp_path / "t", 'FLAT "secret" 0')
    (tmp_path / "secret").write_bytes(bytes(65536))
    (tmp_path / "secret").chmod(0)
    same_words(tmp_path, "info", "t")
