"""``instar.create`` as a program calls it."""

from __future__ import annotations

import os
import threading

import pytest

import instar


def test_returns_what_was_made(tmp_path):
    made = instar.create(
        str(tmp_path / "d"), "1G", format="qcow2", options={"cluster_size": 131072, "lazy_refcounts": True}
    )
    assert (made.format, made.virtual_size, made.unit_name, made.unit) == ("qcow2", 1 << 30, "cluster", 131072)
    assert made.file_size == (tmp_path / "d").stat().st_size
    assert made.options["lazy_refcounts"] is True
    assert made.backing_filename is None
    assert made.in_place is None


def test_takes_sizes_as_numbers_and_as_text(tmp_path):
    for size in (1 << 20, "1M", "0x100000"):
        assert instar.create(str(tmp_path / "d"), size).virtual_size == 1 << 20


def test_the_size_comes_from_the_backing_file(tmp_path):
    instar.create(str(tmp_path / "base"), "5M", format="vhdx")
    made = instar.create(str(tmp_path / "top"), format="qcow2", backing="base", backing_format="vhdx")
    assert (made.virtual_size, made.backing_filename) == (5 << 20, "base")
    seen = instar.info(str(tmp_path / "top"))
    assert (seen.backing_filename, seen.backing_format, seen.full_backing_filename) == (
        "base",
        "vhdx",
        str(tmp_path / "base"),
    )


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ({"format": "nosuch"}, instar.OptionError, "unknown-format"),
        ({"size": None}, instar.OptionError, "size-missing"),
        ({"size": -1}, instar.OptionError, "image-size-out-of-range"),
        ({"size": "1Q"}, instar.OptionError, "bad-image-size"),
        ({"options": {"nosuch": 1}}, instar.OptionError, "unknown-option"),
        ({"backing": "nosuch", "backing_format": "raw"}, instar.HostError, None),
        ({"backing": "d", "backing_format": "raw"}, instar.OptionError, "backing-same-file"),
    ],
)
def test_raises_by_whose_fault_it_is_and_leaves_the_target(call, error, code, tmp_path):
    (tmp_path / "d").write_bytes(b"precious")
    with pytest.raises(error) as caught:
        instar.create(str(tmp_path / "d"), **{"size": "1M", "format": "qcow2", **call})
    assert getattr(caught.value, "code", None) == code
    assert (tmp_path / "d").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["d"]


def test_an_image_of_several_files_is_told_whole(tmp_path):
    made = instar.create(str(tmp_path / "d.vmdk"), "3G", format="vmdk", options={"subformat": "twoGbMaxExtentFlat"})
    assert [(os.path.basename(name), size) for name, size in made.files] == [
        ("d.vmdk", made.file_size),
        ("d-f001.vmdk", 2 << 30),
        ("d-f002.vmdk", 1 << 30),
    ]
    assert all(os.stat(name).st_size == size for name, size in made.files)
    assert made.virtual_size == 3 << 30


def test_a_companion_that_is_the_backing_file_is_refused(tmp_path):
    base = tmp_path / "d-s001.vmdk"
    instar.create(str(base), "1M", format="vmdk")
    before = base.read_bytes()
    with pytest.raises(instar.OptionError) as caught:
        instar.create(
            str(tmp_path / "d.vmdk"),
            format="vmdk",
            options={"subformat": "twoGbMaxExtentSparse"},
            backing="d-s001.vmdk",
            backing_format="vmdk",
        )
    assert caught.value.code == "backing-same-file"
    assert base.read_bytes() == before
    assert os.listdir(tmp_path) == ["d-s001.vmdk"]


def test_a_secret_that_was_not_given_is_asked_for_before_anything_is_touched(tmp_path):
    with pytest.raises(instar.OptionError) as caught:
        instar.create(
            str(tmp_path / "d"),
            "1M",
            format="qcow2",
            options={"encrypt.format": "luks", "encrypt.key-secret": "mine"},
            secrets={"yours": b"correct horse"},
        )
    assert caught.value.code == "no-secret"
    assert "horse" not in repr(caught.value) + str(caught.value.facts())
    assert os.listdir(tmp_path) == []


def test_many_threads_may_create_and_describe_at_once(tmp_path):
    errors = []

    def work(number):
        try:
            for turn in range(6):
                path = str(tmp_path / f"{number}.{turn}")
                format = ("qcow2", "vmdk", "vpc", "vhdx")[turn % 4]
                instar.create(path, "64M", format=format)
                assert instar.info(path).format == format
                assert instar.check(path).clean
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(os.listdir(tmp_path)) == 36


def test_random_fields_differ_between_two_images(tmp_path):
    for name in ("a", "b"):
        instar.create(str(tmp_path / name), "1M", format="vhdx")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_importing_the_package_imports_nothing_of_it():
    import subprocess
    import sys

    code = "import sys, instar; print([m for m in sys.modules if m.startswith('instar.')])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_a_backing_format_is_recorded_by_the_name_qemu_img_knows(tmp_path):
    instar.create(str(tmp_path / "base"), "5M", format="vhd")
    instar.create(str(tmp_path / "top"), format="qcow2", backing="base", backing_format="vhd")
    assert instar.info(str(tmp_path / "top")).backing_format == "vpc"
