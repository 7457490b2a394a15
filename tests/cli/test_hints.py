"""Notes that help people on: what was taken for raw, what Azure refuses, what is not there yet."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import zipfile

import pytest
from tests.support import instar

from instar.cli.hints import of_image
from instar.cli.messages import LATER_COMMANDS
from instar.core.image import ImageFacts
from instar.core.looks import ARCHIVES, FORMATS, advice
from instar.formats import TABLE
from instar.host.describe import Described
from instar.host.files import open_image
from instar.host.info import ImageInfo

FAST = {"INSTAR_ISOLATION": "process"}


def create(folder, *words):
    done = instar("create", "-q", *words, cwd=folder, **FAST)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def folder(tmp_path):
    create(tmp_path, "-f", "vpc", "-o", "subformat=fixed,force_size=on", "fixed.vhd", "4M")
    create(tmp_path, "-f", "qcow2", "base.qcow2", "1M")
    create(tmp_path, "base.raw", "1M")
    return tmp_path


def notes(done):
    return [line.removeprefix("instar: note: ") for line in done.stderr.splitlines()]


class TestVhdFooter:
    SAYS = "fixed.vhd is read as raw, but it ends with a VHD footer; if it is a fixed VHD, give -f vpc"

    @pytest.mark.parametrize("form", ["human", "json"])
    def test_info_says_so_on_standard_error(self, form, folder):
        done = instar("info", f"--output={form}", "fixed.vhd", cwd=folder, **FAST)
        assert (done.returncode, notes(done)) == (0, [self.SAYS])
        assert "note" not in done.stdout

    def test_a_footer_that_was_cut_by_a_byte_counts_too(self, folder):
        with (folder / "fixed.vhd").open("r+b") as file:
            file.truncate((4 << 20) + 511)
        assert notes(instar("info", "fixed.vhd", cwd=folder, **FAST)) == [self.SAYS]

    def test_check_says_so(self, folder):
        done = instar("check", "fixed.vhd", cwd=folder, **FAST)
        assert done.returncode == 63
        assert done.stderr.endswith("; it ends with a VHD footer; if it is a fixed VHD, give -f vpc\n")

    def test_who_says_the_format_is_told_nothing(self, folder):
        for format in ("raw", "vpc"):
            assert notes(instar("info", "-f", format, "fixed.vhd", cwd=folder, **FAST)) == []

    def test_a_footer_of_another_type_is_none(self, folder):
        data = bytearray((folder / "fixed.vhd").read_bytes())
        data[-512 + 63] = 3
        (folder / "fixed.vhd").write_bytes(data)
        assert notes(instar("info", "fixed.vhd", cwd=folder, **FAST)) == []


def _packed(kind, data, path):
    if kind == "gzip":
        path.write_bytes(gzip.compress(data))
    elif kind == "xz":
        path.write_bytes(lzma.compress(data))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("disk.vmdk", data)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, content in (("x.ovf", b"<Envelope/>"), ("disk.vmdk", data)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        path.write_bytes(b"7z\xbc\xaf'\x1c\0\4" + bytes(1000))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_is_taken_for_a_raw_disk_is_told(kind, folder):
    _packed(kind, (folder / "base.qcow2").read_bytes(), folder / "packed")
    done = instar("info", "packed", cwd=folder, **FAST)
    assert done.returncode == 0
    assert notes(done) == [f"packed is read as raw, but {ARCHIVES[kind]}"]
    assert ARCHIVES[kind] in instar("check", "packed", cwd=folder, **FAST).stderr


@pytest.mark.parametrize("program", ["gzip", "xz", "zip", "7z"])
def test_archives_of_the_usual_programs_are_known(program, folder):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    words = {"gzip": ["-k"], "xz": ["-k"], "zip": ["-q", "base.raw.zip"]}.get(program, ["a", "base.raw.7z"])
    subprocess.run([program, *words, "base.raw"], cwd=folder, check=True, capture_output=True)
    (packed,) = folder.glob("base.raw.*")
    assert len(notes(instar("info", packed.name, cwd=folder, **FAST))) == 1


class TestBackingFile:
    def test_that_looks_like_another_format_is_told_once_the_image_is_made(self, folder):
        words = ("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "top")
        says = "backing file base.qcow2: it looks like qcow2; if that is what it should be, give -F qcow2"
        done = instar(*words, cwd=folder, **FAST)
        assert (done.returncode, notes(done)) == (0, [says])
        assert done.stdout.startswith("Created: top ")
        assert instar("create", "-q", *words[1:], cwd=folder, **FAST).stderr == ""
        done = instar("create", "--output=json", *words[1:], cwd=folder, **FAST)
        assert (done.stderr, json.loads(done.stdout)["notes"]) == ("", [says])

    def test_that_is_what_it_is_said_to_be_is_told_nothing_of(self, folder):
        for name, format in (("base.qcow2", "qcow2"), ("base.raw", "raw")):
            done = instar("create", "--output=json", "-f", "qcow2", "-b", name, "-F", format, "top", cwd=folder, **FAST)
            assert (done.returncode, done.stderr) == (0, "")
            assert "notes" not in json.loads(done.stdout)

    def test_that_cannot_be_read_so_is_told_with_the_error(self, folder):
        done = instar("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qed", "top", cwd=folder, **FAST)
        assert done.returncode == 1
        assert "this is not a QED image; it looks like qcow2; if that is what it should be, give -F" in done.stderr
        assert not (folder / "top").exists()

    def test_in_an_archive_or_with_a_footer_is_told(self, folder):
        _packed("tar", b"x", folder / "x.ova")
        for name, says in (("x.ova", ARCHIVES["tar"]), ("fixed.vhd", "give -F vpc")):
            done = instar("create", "-f", "qcow2", "-b", name, "-F", "raw", "top", cwd=folder, **FAST)
            assert (done.returncode, len(notes(done))) == (0, 1)
            assert notes(done)[0].endswith(says)

    def test_that_is_a_text_of_vmware_is_told(self, folder):
        create(folder, "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M")
        done = instar("create", "-f", "qcow2", "-b", "flat.vmdk", "-F", "raw", "top", cwd=folder, **FAST)
        assert notes(done) == [f"backing file flat.vmdk: {advice('vmdk', '-F')}"]


class TestAzure:
    def test_a_vhd_that_is_no_whole_mib_is_told_with_what_helps(self, folder):
        (said,) = notes(instar("create", "-f", "vpc", "new.vhd", "30M", cwd=folder, **FAST))
        assert said == (
            "Azure takes only fixed VHDs of whole MiB, and this one has 31473664 bytes;"
            " -o force_size=on keeps the size that was asked for"
        )
        options = "subformat=fixed,force_size=on"
        assert notes(instar("create", "-f", "vpc", "-o", options, "new.vhd", "30M", cwd=folder, **FAST)) == []
        (said,) = notes(instar("create", "-f", "vpc", "-o", options, "new.vhd", "31457792", cwd=folder, **FAST))
        assert said.endswith("this one has 31457792 bytes; give a size in MiB")

    def test_info_tells_it_of_fixed_ones_alone(self, folder):
        for subformat, count in (("fixed", 1), ("dynamic", 0)):
            create(folder, "-f", "vpc", "-o", f"subformat={subformat}", "new.vhd", "30M")
            assert len(notes(instar("info", "-f", "vpc", "new.vhd", cwd=folder, **FAST))) == count


@pytest.mark.parametrize("command", LATER_COMMANDS)
def test_a_command_that_comes_later_is_not_there_yet(command, folder):
    done = instar(command, "a", "b")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{command}' is not there yet; this version has create, info, check" in done.stderr
    done = instar(command, "a", "b", dialect="qemu-img")
    assert f"qemu-img: Command not found: {command}\n" in done.stderr


@pytest.mark.parametrize("words", [("-r", "all"), ("-rleaks",), ("--repair=all",), ("--repair", "leaks")])
def test_repair_is_not_there_yet(words, folder):
    done = instar("check", *words, "base.qcow2", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("is not there yet: this version finds damage and does not repair it\n")
    assert "there is no option" in instar("info", *words, "base.qcow2", cwd=folder).stderr


def test_the_dialect_of_qemu_img_has_no_notes(folder):
    _packed("gzip", b"x" * 1000, folder / "packed")
    how = {"cwd": folder, "dialect": "qemu-img", **FAST}
    for words in (
        ("info", "fixed.vhd"),
        ("info", "packed"),
        ("info", "-f", "vpc", "fixed.vhd"),
        ("create", "-f", "vpc", "new.vhd", "30M"),
        ("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "top"),
    ):
        done = instar(*words, **how)
        assert (done.returncode, done.stderr) == (0, "")
    assert instar("check", "fixed.vhd", **how).stderr == "qemu-img: This image format does not support checks\n"


@pytest.mark.parametrize("word", ["\x1b[2J", "raw\n", "x" * 100000, 5, ["gzip"], b"gzip", None, "unknown", ""])
def test_a_word_that_is_not_on_the_list_says_nothing(word, tmp_path):
    (tmp_path / "t").write_bytes(bytes(512))
    with open_image(str(tmp_path / "t")) as image:
        found = ImageInfo("t", Described(image, ImageFacts("raw", 512, extra={"looks_like": word}), None))
    assert of_image(found) == []


def test_every_format_that_can_be_told_has_an_advice():
    assert set(FORMATS) == {row.name for row in TABLE} - {"raw"}
    for name in FORMATS:
        assert advice(name) == f"it looks like {name}; if that is what it should be, give -f {name}"
