"""``instar create`` as a person types it: what it says, what it leaves alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
from tests.support import instar, needs_qemu_img, qemu_info

#: What stands in the target before each failing command, and must stand there after it.
PRECIOUS = b"an image that somebody needs\n" * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "disk").write_bytes(PRECIOUS)
    done = instar("create", "-q", "-f", "qcow2", "base.qcow2", "64M", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return tmp_path


def refuse(folder, *words, dialect=None):
    """Run a command that must fail; return its one line. The target must be as it was and nothing new be there."""
    before = sorted(os.listdir(folder))
    done = instar(*words, cwd=folder, dialect=dialect)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert (folder / "disk").read_bytes() == PRECIOUS
    assert sorted(os.listdir(folder)) == before
    return done.stderr


def test_says_what_was_made(tmp_path):
    done = instar("create", "-f", "qcow2", "disk.qcow2", "1G", cwd=tmp_path)
    assert (
        done.stdout
        == "Created: disk.qcow2 (format=qcow2, virtual_size=1073741824, cluster_size=65536, file_size=196624)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vpc", "vhd", "vhdx"])
def test_makes_every_format_and_tells_scripts(format, tmp_path):
    done = instar("create", "--output=json", "-f", format, "disk", "10M", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said["filename"] == "disk"
    assert said["format"] == {"vhd": "vpc"}.get(format, format)
    assert said["virtual-size"] >= 10 << 20
    assert said["file-size"] == (tmp_path / "disk").stat().st_size
    assert said["backing-filename"] is None
    assert isinstance(said["options"], dict)
    assert {"qcow2": "cluster-size", "vmdk": "grain-size", "vpc": "block-size", "vhdx": "block-size"}.get(
        said["format"]
    ) in (None, *said)
    assert (said["metadata-bytes-written"] == 0) == (format == "raw")


def test_quiet_says_nothing_but_errors(tmp_path):
    assert instar("create", "-q", "disk", "1M", cwd=tmp_path).stdout == ""
    assert instar("create", "-q", "disk", cwd=tmp_path).stderr != ""


def test_default_format_is_raw(tmp_path):
    assert "format=raw" in instar("create", "disk", "1000", cwd=tmp_path).stdout
    assert (tmp_path / "disk").stat().st_size == 1024


def test_size_comes_from_the_backing_file(folder):
    done = instar("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", cwd=folder)
    assert "virtual_size=67108864" in done.stdout
    assert "backing_file=base.qcow2" in done.stdout


def test_backing_name_is_seen_from_the_new_images_folder_and_kept_as_typed(folder):
    (folder / "sub").mkdir()
    done = instar(
        "create", "-f", "qcow2", "-o", "backing_file=./../base.qcow2,backing_fmt=qcow2", "sub/top", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert b"./../base.qcow2" in (folder / "sub/top").read_bytes()


def test_a_chain_is_not_followed(folder):
    instar("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid", cwd=folder)
    (folder / "base.qcow2").unlink()
    assert instar("create", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top", cwd=folder).returncode == 0


def test_unsafe_opens_no_backing_file_and_needs_a_size(folder):
    assert instar("create", "-u", "-f", "qcow2", "-b", "nosuch", "-F", "raw", "top", "1G", cwd=folder).returncode == 0
    assert "size is missing" in refuse(folder, "create", "-u", "-f", "qcow2", "-b", "nosuch", "-F", "raw", "disk")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-f", "qcow3", "disk", "1G"], r"no format 'qcow3'.*qcow2.*vhdx"),
        (["-f", "bochs", "disk", "1G"], r"'bochs' cannot be created"),
        (["-f", "qcow2", "-o", "clustersize=4k", "disk", "1G"], r"no option 'clustersize'.*cluster_size"),
        (["-f", "qcow2", "-o", "cluster_size=3000", "disk", "1G"], r"[Cc]luster.*power of two"),
        (["-f", "qcow2", "-o", "cluster_size=big", "disk", "1G"], r"'big' is not a size"),
        (["-f", "qcow2", "-o", "compat=2.0", "disk", "1G"], r"'compat' does not accept '2.0'.*0.10"),
        (["-f", "qcow2", "-o", "lazy_refcounts=maybe", "disk", "1G"], r"on or off, not 'maybe'"),
        (["-f", "qcow2", "-o", "refcount_bits=x", "disk", "1G"], r"not a whole number"),
        (["-f", "qcow2", "-o", "refcount_bits=3", "disk", "1G"], r"1, 2, 4, 8, 16, 32 or 64, not 3"),
        (["-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "disk", "1G"], r"lazy_refcounts"),
        (["-f", "qcow2", "-o", "compat=0.10,refcount_bits=8", "disk", "1G"], r"refcount"),
        (["-f", "qcow2", "-o", "compat=0.10,compression_type=zstd", "disk", "1G"], r"zstd|compression"),
        (["-f", "qcow2", "-o", "extended_l2=on,cluster_size=4k", "disk", "1G"], r"16"),
        (["-f", "qcow2", "-o", "extended_l2=on,compat=0.10", "disk", "1G"], r"extended_l2"),
        (
            ["-f", "qcow2", "-o", "preallocation=lots", "disk", "1G"],
            r"'preallocation' does not accept 'lots'.*metadata",
        ),
        (["-f", "qcow2", "-o", "backing_fmt=raw", "disk", "1G"], r"backing"),
        (["-f", "qcow2", "-o", ",", "disk", "1G"], r"not a list"),
        (["-f", "qcow2", "disk"], r"size is missing"),
        (["-f", "qcow2", "disk", "-1G"], r"'-1G' is not a size"),
        (["-f", "qcow2", "disk", "lots"], r"'lots' is not a size"),
        (["-f", "qcow2", "disk", "8E"], r"out of range"),
        (["-f", "qcow2", "disk", "7E"], r"(?i)large"),
        (["-f", "qcow2", "-o", "cluster_size=512", "disk", "1T"], r"(?i)large"),
        (["-f", "qcow2", "-o", "size=1G", "disk", "1G"], r"given twice"),
        (["-f", "vpc", "disk", "3T"], r"(?i)large|most|limit"),
        (["-f", "vhdx", "disk", "65T"], r"(?i)large|most|limit"),
        (["-f", "vhdx", "-o", "block_size=3M", "disk", "1G"], r"power of two"),
        (["-f", "vhdx", "-o", "log_size=0", "disk", "1G"], r"log_size"),
        (["-f", "vpc", "-o", "subformat=sparse", "disk", "1G"], r"does not accept 'sparse'.*dynamic"),
        (["-f", "vmdk", "-o", "adapter_type=scsi", "disk", "1G"], r"does not accept 'scsi'.*lsilogic"),
        (["-f", "vmdk", "-o", "compat6=on,hwversion=4", "disk", "1G"], r"hwversion"),
        (["-f", "qcow2", "-b", "nosuch", "-F", "qcow2", "disk"], r"nosuch: cannot open the backing file: No such file"),
        (["-f", "qcow2", "-b", ".", "-F", "qcow2", "disk"], r"directory"),
        (["-f", "qcow2", "-b", "", "-F", "qcow2", "disk"], r"empty"),
        (["-f", "qcow2", "-b", "base.qcow2", "disk"], r"looks like qcow2.*-F qcow2"),
        (["-f", "qcow2", "-b", "base.qcow2", "-F", "nosuch", "disk"], r"no format 'nosuch'"),
        (["-f", "qcow2", "-b", "base.qcow2", "-F", "vmdk", "disk"], r"base.qcow2: vmdk"),
        (["-f", "qcow2", "-b", "nbd://host/x", "-F", "raw", "disk"], r"'nbd'.*plain files only"),
        (["-f", "qcow2", "-b", "disk", "-F", "raw", "disk"], r"same file"),
        (["-f", "qcow2", "-b", "./disk", "-F", "raw", "disk"], r"same file"),
        (["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o", "preallocation=full", "disk"], r"extended_l2"),
        (["-f", "raw", "-b", "base.qcow2", "disk", "1G"], r"raw has no backing files"),
        (["-f", "vdi", "-b", "base.qcow2", "disk", "1G"], r"vdi has no backing files"),
        (["-f", "vmdk", "-b", "base.qcow2", "-F", "qcow2", "disk"], r"vmdk"),
        (["-f", "vdi", "-F", "raw", "disk", "1G"], r"vdi records no backing format"),
        (["-f", "qed", "-o", "preallocation=full", "disk", "1G"], r"no effect"),
        (["-f", "qcow2", "nosuch/disk", "1G"], r"No such file or directory; create the folder first"),
        (["-f", "raw", "nosuch/disk", "1G"], r"create the folder first"),
        (["-f", "qcow2", ".", "1G"], r"[Dd]irectory"),
        (["-f", "raw", ".", "1G"], r"[Dd]irectory"),
        (["-f", "qcow2", "nbd:disk", "1G"], r"write './nbd:disk'"),
        (["-f", "qcow2", "disk", "1G", "2G"], r"'2G' is one word too many"),
        ([], r"file name is missing"),
        (["-Z", "disk", "1G"], r"no option '-Z'"),
        (["disk", "1G", "-f"], r"'-f' needs a value"),
        (["--output=xml", "disk", "1G"], r"human or json"),
        (["--isolation=jail", "disk", "1G"], r"no isolation 'jail'"),
    ],
)
def test_refuses_in_one_clear_line_and_leaves_the_target(words, expected, folder):
    line = refuse(folder, "create", *words)
    assert line.startswith("instar: ")
    assert re.search(expected, line), line


def test_refuses_a_backing_file_that_is_a_hard_link_of_the_target(folder):
    os.link(folder / "disk", folder / "other")
    assert "same file" in refuse(folder, "create", "-f", "qcow2", "-b", "other", "-F", "raw", "disk")


def test_refuses_a_backing_file_that_is_a_link_to_the_target(folder):
    (folder / "other").symlink_to("disk")
    assert "same file" in refuse(folder, "create", "-f", "qcow2", "-b", "other", "-F", "raw", "disk")


def test_refuses_a_backing_file_larger_than_the_format_can_address(folder):
    with (folder / "huge").open("wb") as file:
        file.truncate(8 << 40)
    line = refuse(folder, "create", "-f", "qcow2", "-o", "cluster_size=512", "-b", "huge", "-F", "raw", "disk")
    assert re.search("(?i)large", line), line


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads everything, and setpriv is missing"
)
def test_refuses_a_backing_file_that_may_not_be_read(folder):
    (folder / "base.qcow2").chmod(0)
    words = ["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk"]
    if os.geteuid() != 0:
        assert "Permission denied" in refuse(folder, *words)
        return
    import sys

    # Without its capabilities root is an ordinary user as far as files go.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-m", "instar", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Permission denied" in done.stderr
    assert (folder / "disk").read_bytes() == PRECIOUS


def test_errors_for_scripts_are_objects(folder):
    said = json.loads(
        instar("create", "--output=json", "-f", "qcow2", "-o", "nosuch=1", "disk", "1G", cwd=folder).stderr
    )
    assert said["error"]["code"] == "unknown-option"
    assert said["error"]["key"] == "nosuch"


def test_replaces_an_existing_file_by_the_new_image(folder):
    (folder / "disk").chmod(0o640)
    assert instar("create", "-f", "qcow2", "disk", "1G", cwd=folder).returncode == 0
    assert (folder / "disk").read_bytes()[:4] == b"QFI\xfb"
    assert (folder / "disk").stat().st_mode & 0o777 == 0o640


def test_instar_has_options_that_qemu_img_has_not(folder):
    assert instar("create", "-f", "vmdk", "-o", "grain_size=128k", "v", "1G", cwd=folder).returncode == 0
    assert "Invalid parameter 'grain_size'" in refuse(
        folder, "create", "-f", "vmdk", "-o", "grain_size=128k", "disk", "1G", dialect="qemu-img"
    )


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vpc", "vhdx"])
def test_lists_the_options_of_a_format(format, folder):
    done = instar("create", "-f", format, "-o", "help", cwd=folder)
    assert done.returncode == 0
    assert "  size=<size>" in done.stdout


def test_help_tells_switches_formats_and_examples():
    done = instar("create", "--help")
    for word in ("--backing-format", "-o", "vhdx", "Examples:", "--isolation"):
        assert word in done.stdout


@needs_qemu_img
def test_option_extension_makes_images_qemu_img_reads(folder):
    instar("create", "-f", "vmdk", "-o", "grain_size=128k", "v", "1G", cwd=folder)
    assert qemu_info(folder / "v")["virtual-size"] == 1 << 30
    instar("create", "-f", "vhd", "-o", "block_size=4M", "w", "1G", cwd=folder)
    assert qemu_info(folder / "w")["cluster-size"] == 4 << 20
