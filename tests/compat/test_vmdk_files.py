"""VMDKs of several files, side by side with every version of qemu-img: names, bytes, holes, info, check, and use."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.compat.differences import without_cid
from tests.compat.versions import VERSIONS, programs, real
from tests.support import instar, needs_qemu_img, needs_qemu_io, qemu_img, run, same_bytes, same_holes, settle

import instar as library
from instar.cli.json import dumps
from instar.cli.render import info_object, info_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

GiB = 1 << 30
SUBFORMATS = ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
#: Nothing, less than a sector, odd, exactly one file, a sector more than one, three.
SIZES = (0, 1, 1_000_001, 2 * GiB, 2 * GiB + 512, 5 * GiB)


def ours(folder: Path, size: int, subformat: str, name: str = "d.vmdk", **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    library.create(str(folder / name), size, format="vmdk", options={"subformat": subformat, **options})
    return folder / name


def theirs(folder: Path, size: int, subformat: str, name: str = "d.vmdk", *, program: str = "qemu-img") -> Path:
    folder.mkdir(exist_ok=True)
    words = ["create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", name, str(size)]
    subprocess.run([program, *words], cwd=folder, check=True)
    return folder / name


def text_of(path: Path) -> bytes:
    """Return a descriptor but for its CID, which may have fewer than 8 digits, and what 5.2 does not write."""
    return without_cid(path.read_bytes()).replace(b'ddb.toolsVersion = "2147483647"\n', b"")


def compare(left: Path, right: Path) -> None:
    """Fail unless two folders hold the same files."""
    assert sorted(os.listdir(left.parent)) == sorted(os.listdir(right.parent))
    assert text_of(left) == text_of(right)
    for name in os.listdir(left.parent):
        if name != left.name:
            same_bytes(left.parent / name, right.parent / name)
            same_holes(left.parent / name, right.parent / name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_files_are_those_of_qemu_img(subformat: str, size: int, tmp_path: Path) -> None:
    made = ours(tmp_path / "ours", size, subformat)
    for version, program in programs().items():
        compare(made, theirs(tmp_path / str(version), size, subformat, program=program))


@pytest.mark.parametrize("name", ["disk", "a.b.vmdk", ".hidden", "x.", "a b é.vmdk"])
def test_names_are_made_as_qemu_img_makes_them(name: str, tmp_path: Path) -> None:
    for subformat in SUBFORMATS:
        folders = tmp_path / f"{subformat}-ours", tmp_path / f"{subformat}-theirs"
        compare(ours(folders[0], 513, subformat, name), theirs(folders[1], 513, subformat, name))


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_info_and_check_say_what_qemu_img_says(subformat: str, size: int, tmp_path: Path) -> None:
    for path in (ours(tmp_path / "ours", size, subformat), theirs(tmp_path / "theirs", size, subformat)):
        settle(*path.parent.iterdir())
        for version in VERSIONS:
            seen = library.info(str(path), generation=version)
            assert dumps(info_object(seen, version)) + "\n" == run(real(version), "info", "--output=json", path).stdout
            assert info_text(seen, version) == run(real(version), "info", path).stdout
        assert library.check(str(path)).clean
        assert run(real(VERSIONS[-1]), "check", path).returncode == 0


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_disk_of_0_bytes_can_be_read_where_qemu_img_fails_its_own_assertion(subformat: str, tmp_path: Path) -> None:
    path = theirs(tmp_path, 0, subformat)
    for version in VERSIONS:
        done = run(real(version), "info", path)
        assert (done.returncode, "num_extents" in done.stderr) == (-6, True)
    assert library.info(str(path)).virtual_size == 0
    assert library.check(str(path)).clean
    assert run(real(VERSIONS[-1]), "check", path).returncode == 0


@needs_qemu_io
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_guest_data_goes_in_across_the_ends_of_files_and_comes_out(subformat: str, tmp_path: Path) -> None:
    path = ours(tmp_path, 2 * GiB + 65536, subformat)
    writes = ["-c", "write -P 5 2147475456 32k", "-c", "write -P 7 0 512", "-c", "write -P 9 2147549184 0"]
    reads = ["-c", "read -P 5 2147475456 32k", "-c", "read -P 7 0 512", "-c", "read -P 0 512 64k"]
    done = run("qemu-io", "-f", "vmdk", *writes[:4], *reads, path)
    assert (done.returncode, "failed" in done.stdout) == (0, False), done.stdout + done.stderr
    assert run("qemu-img", "check", path).returncode == 0
    assert library.check(str(path)).clean


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_set_of_files_is_replaced_as_a_whole(subformat: str, tmp_path: Path) -> None:
    path = ours(tmp_path, 5 * GiB, subformat)
    before = sorted(os.listdir(tmp_path))
    for name in before:
        (tmp_path / name).chmod(0o640)
    ours(tmp_path, 2 * GiB + 512, subformat)
    # As with qemu-img, files that are not part of the new image any more are left alone.
    assert sorted(os.listdir(tmp_path)) == before
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in before} == {0o640}
    assert library.info(str(path)).virtual_size == 2 * GiB + 512
    assert library.check(str(path)).clean


def test_a_split_disk_has_its_parent(tmp_path: Path) -> None:
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
    qemu_img("create", "-q", "-f", "vmdk", folders[0] / "base", "3G")
    run("cp", "--sparse=always", folders[0] / "base", folders[1] / "base")
    run("cp", "--sparse=always", folders[1] / "base", folders[0] / "base")
    library.create(
        str(folders[0] / "d.vmdk"),
        format="vmdk",
        options={"subformat": "twoGbMaxExtentSparse"},
        backing="base",
        backing_format="vmdk",
    )
    words = ["-o", "subformat=twoGbMaxExtentSparse", "-b", "base", "-F", "vmdk", "d.vmdk"]
    qemu_img("create", "-q", "-f", "vmdk", *words, cwd=folders[1])
    compare(folders[0] / "d.vmdk", folders[1] / "d.vmdk")
    assert run("qemu-img", "check", folders[0] / "d.vmdk").returncode == 0


class TestPreallocation:
    @pytest.mark.parametrize("mode", ["falloc", "full"])
    @pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentFlat"])
    def test_flat_files_have_their_space(self, subformat: str, mode: str, tmp_path: Path) -> None:
        path = ours(tmp_path, 3 << 20, subformat, preallocation=mode)
        (data,) = tmp_path.glob("*-f*")
        assert data.stat().st_blocks * 512 >= 3 << 20
        assert not data.read_bytes().strip(b"\0")
        assert run("qemu-img", "check", path).returncode == 0

    @pytest.mark.parametrize(
        "options", [{}, {"grain_size": "8k"}, {"zeroed_grain": "on"}, {"adapter_type": "lsilogic"}]
    )
    @pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse"])
    @pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
    def test_every_grain_of_a_sparse_file_has_its_place(
        self, mode: str, subformat: str, options: dict[str, str], tmp_path: Path
    ) -> None:
        size = (33 << 20) + 512
        path = ours(tmp_path, size, subformat, preallocation=mode, **options)
        (data,) = [*tmp_path.glob("*-s*"), path][:1]
        allocated = data.stat().st_blocks * 512
        assert (allocated > size) if mode != "metadata" else (allocated < 1 << 20)
        for version in VERSIONS[-1:]:
            assert run(real(version), "check", path).returncode == 0
        assert library.check(str(path)).clean
        # qemu-img tells what has a place, and what reads as zeros.
        shown = qemu_img("map", "--output=json", "-f", "vmdk", path).stdout
        assert '"offset"' in shown
        assert shown.count('"offset"') == shown.count('"start"')
        qemu_img("create", "-q", "-f", "raw", tmp_path / "zeros", str(size))
        qemu_img("compare", "-f", "vmdk", "-F", "raw", path, tmp_path / "zeros")

    @needs_qemu_io
    def test_grains_are_written_where_they_are(self, tmp_path: Path) -> None:
        path = ours(tmp_path, 70 << 20, "monolithicSparse", preallocation="metadata")
        before = path.stat().st_size
        done = run("qemu-io", "-f", "vmdk", "-c", "write -P 3 69M 1M", "-c", "write -P 4 1000k 64k", path)
        assert "failed" not in done.stdout + done.stderr
        assert path.stat().st_size == before
        assert run("qemu-img", "check", path).returncode == 0
        assert library.check(str(path)).clean

    def test_is_ignored_in_the_dialect_as_qemu_img_ignores_it(self, tmp_path: Path) -> None:
        for mode in ("falloc", "full"):
            words = ["create", "-f", "vmdk", "-o", f"subformat=monolithicFlat,preallocation={mode}", "d.vmdk", "1M"]
            done = {}
            for who in ("ours", "theirs"):
                (tmp_path / who).mkdir(exist_ok=True)
                call = run if who == "theirs" else instar
                more = {} if who == "theirs" else {"dialect": "qemu-img", "INSTAR_QEMU_VERSION": "7.2"}
                first = [real((7, 2))] if who == "theirs" else []
                done[who] = call(*first, *words, cwd=tmp_path / who, **more)  # type: ignore[operator]
            assert done["ours"].stdout == done["theirs"].stdout
            compare(tmp_path / "ours/d.vmdk", tmp_path / "theirs/d.vmdk")


@pytest.mark.parametrize("words", ["nodir/d.vmdk", "folder.vmdk", "taken.vmdk"])
@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_refusals_are_told_as_qemu_img_tells_them(words: str, subformat: str, tmp_path: Path) -> None:
    (tmp_path / "folder.vmdk").mkdir()
    for name in ("taken-flat.vmdk", "taken-s001.vmdk"):
        (tmp_path / name).mkdir()
    line = ["create", "-f", "vmdk", "-o", f"subformat={subformat}", words, "1M"]
    program = real((7, 2))
    expected = run(program, *line, cwd=tmp_path)
    (tmp_path / "taken.vmdk").unlink(missing_ok=True)  # qemu-img leaves an empty one behind
    said = instar(*line, cwd=tmp_path, dialect="qemu-img", INSTAR_QEMU_VERSION="7.2")
    assert (said.returncode, said.stdout, said.stderr) == (1, expected.stdout, expected.stderr)
    assert sorted(os.listdir(tmp_path)) == ["folder.vmdk", "taken-flat.vmdk", "taken-s001.vmdk"]


def test_a_disk_of_more_files_than_a_cell_may_have(tmp_path: Path) -> None:
    """1 TiB in 512 files: made by several cells, and read by several."""
    size = 1 << 40
    left = ours(tmp_path / "ours", size, "twoGbMaxExtentSparse")
    compare(left, theirs(tmp_path / "theirs", size, "twoGbMaxExtentSparse"))
    assert len(os.listdir(left.parent)) == 513
    settle(*left.parent.iterdir())
    for version in (VERSIONS[0], VERSIONS[-1]):
        seen = library.info(str(left), generation=version)
        assert info_text(seen, version) == run(real(version), "info", left).stdout
    assert library.check(str(left)).clean
    for number in (100, 300, 500):  # an entry of a grain directory, in each cell's share
        with (left.parent / f"d-s{number}.vmdk").open("r+b") as file:
            file.seek(21 * 512)
            file.write(b"XX")
    found = library.check(str(left))
    assert found.corruptions == 3
    assert [finding.detail.split(":")[0] for finding in found.findings] == [f"extents.{n}" for n in (99, 299, 499)]
