"""``instar info`` as a person types it."""

from __future__ import annotations

import json

import pytest
from tests.support import instar


@pytest.fixture
def folder(tmp_path):
    for words in (
        ["base.raw", "4M"],
        ["-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2"],
        ["-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2"],
        ["-f", "vpc", "-o", "subformat=fixed", "fixed.vhd", "4M"],
    ):
        assert instar("create", "-q", *words, cwd=tmp_path).returncode == 0
    return tmp_path


def test_describes_an_image_for_people_and_for_programs(folder):
    text = instar("info", "top.qcow2", cwd=folder).stdout
    assert text.startswith("image: top.qcow2\nfile format: qcow2\nvirtual size: 4 MiB (4194304 bytes)\n")
    said = json.loads(instar("info", "--output=json", "top.qcow2", cwd=folder).stdout)
    assert (said["virtual-size"], said["backing-filename"], said["children"][0]["name"]) == (
        4 << 20,
        "mid.qcow2",
        "file",
    )


def test_an_older_generation_has_no_children(folder):
    for more in (["--qemu-version", "7.2"], []):
        env = {} if more else {"INSTAR_QEMU_VERSION": "7.2"}
        assert "children" not in json.loads(
            instar("info", "--output=json", *more, "top.qcow2", cwd=folder, **env).stdout
        )


def test_a_chain_is_a_list_for_programs_and_paragraphs_for_people(folder):
    said = json.loads(instar("info", "--output=json", "--backing-chain", "top.qcow2", cwd=folder).stdout)
    assert [image["filename"] for image in said] == ["top.qcow2", "mid.qcow2", "base.raw"]
    assert instar("info", "--backing-chain", "top.qcow2", cwd=folder).stdout.count("\n\nimage: ") == 2


def test_without_the_switch_no_backing_file_is_opened(folder):
    (folder / "mid.qcow2").unlink()
    assert instar("info", "top.qcow2", cwd=folder).returncode == 0
    done = instar("info", "--backing-chain", "top.qcow2", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == "instar: top.qcow2: backing: the image names 'mid.qcow2', which does not exist\n"


def test_of_a_broken_chain_all_above_the_fault_is_printed(folder):
    (folder / "base.raw").unlink()
    done = instar("info", "--backing-chain", "top.qcow2", cwd=folder)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("image: ")] == [
        "image: top.qcow2",
        "image: mid.qcow2",
    ]
    assert done.stderr == "instar: mid.qcow2: backing: the image names 'base.raw', which does not exist\n"
    done = instar("info", "--backing-chain", "--output=json", "top.qcow2", cwd=folder)
    assert done.returncode == 1
    assert [image["filename"] for image in json.loads(done.stdout)] == ["top.qcow2", "mid.qcow2"]
    error = json.loads(done.stderr)["error"]
    assert (error["kind"], error["path"], error["name"]) == ("not-found", "mid.qcow2", "base.raw")


@pytest.mark.parametrize("form", ["human", "json"])
def test_the_dialect_prints_all_of_a_chain_or_nothing(form, folder):
    (folder / "base.raw").unlink()
    done = instar("info", "--backing-chain", f"--output={form}", "top.qcow2", cwd=folder, dialect="qemu-img")
    assert (done.returncode, done.stdout) == (1, "")
    assert "base.raw" in done.stderr


def test_of_a_chain_whose_first_image_is_at_fault_nothing_is_printed(folder):
    for form in ("human", "json"):
        done = instar("info", "--backing-chain", f"--output={form}", "-f", "vmdk", "top.qcow2", cwd=folder)
        assert (done.returncode, done.stdout) == (1, "")


def test_a_backing_file_outside_is_refused_until_allowed(folder):
    (folder / "in").mkdir()
    instar("create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", "in/top", cwd=folder)
    done = instar("info", "--backing-chain", "in/top", cwd=folder)
    assert done.returncode == 1
    assert "'../base.raw', which is not inside the image's folder" in done.stderr
    assert "--allow-path" in done.stderr
    assert instar("info", "--backing-chain", "--allow-path", ".", "in/top", cwd=folder).returncode == 0
    assert (
        instar("info", "--backing-chain", "in/top", cwd=folder, INSTAR_ALLOW_PATH=f"/nowhere:{folder}").returncode == 0
    )


def test_format_raw_always_means_raw_and_a_fixed_vhd_is_found_only_when_asked_for(folder):
    assert "file format: raw\n" in instar("info", "-f", "raw", "top.qcow2", cwd=folder).stdout
    assert "file format: raw\n" in instar("info", "fixed.vhd", cwd=folder).stdout
    assert "file format: vpc\n" in instar("info", "-f", "vhd", "fixed.vhd", cwd=folder).stdout


def test_a_known_format_without_reader_is_refused_by_name(folder):
    (folder / "q").write_bytes(b"Bochs Virtual HD Image\0" + bytes(5000))
    done = instar("info", "q", cwd=folder)
    assert done.returncode == 1
    assert "bochs" in done.stderr
    assert "raw" not in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "exactly one file name, not 0"),
        (["a", "b"], "exactly one file name, not 2"),
        (["nosuch"], "nosuch: cannot open: No such file or directory"),
        (["."], "cannot open: Is a directory"),
        (["-f", "nosuch", "base.raw"], "no format 'nosuch'; instar reads "),
        (["-f", "qcow2", "base.raw"], "not a qcow2 image"),
        (["--output=xml", "base.raw"], "human or json, not 'xml'"),
        (["--qemu-version=new", "base.raw"], "no version of qemu-img"),
    ],
)
def test_refuses_in_one_clear_line(words, expected, folder):
    done = instar("info", *words, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


def test_a_name_that_is_no_utf8_goes_through(folder):
    import os
    import subprocess
    import sys

    name = b"na\xffme"
    (folder / "base.raw").rename(os.fsdecode(os.fsencode(str(folder)) + b"/" + name))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C.UTF-8"}
    words = [sys.executable, "-m", "instar", "info", name]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == 0
    assert rb"image: na\xffme" in done.stdout
