"""The options of a new image: what is accepted, what is refused, and in which order, as qemu-img does it."""

from __future__ import annotations

import pytest
from tests.support import QEMU_IMG, needs_qemu_img, qemu_img, run

from instar.cli.messages.qcow2 import QEMU
from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings, split_list
from instar.core.plan import Backing
from instar.formats.qcow2.options import CREATE, resolve

GiB = 1 << 30

#: Sentences that all formats share.
SHARED = {
    "bad-choice": "Parameter '{qapi}' does not accept value '{value}'",
    "secret-missing": "Parameter '{key}' is required for cipher",
    "image-too-large": "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
}

#: Options, size, code. Where two rules are broken, the code is of the one that qemu-img finds first.
REFUSED = [
    ("compat=1.0,preallocation=foo", GiB, "bad-choice"),
    ("compat=V3", GiB, "bad-choice"),
    ("compat=3", GiB, "bad-choice"),
    ("backing_fmt=foo,preallocation=foo", GiB, "bad-choice"),
    ("encrypt.format=foo,preallocation=foo", GiB, "bad-choice"),
    ("encrypt.iter-time=3,preallocation=foo", GiB, "qcow2-encrypt-format-missing"),
    ("encryption=on,encrypt.format=luks", GiB, "qcow2-encryption-twice"),
    ("encryption=on,encrypt.cipher-mode=cbc,encrypt.iter-time=1", GiB, "qcow2-encrypt-unexpected"),
    ("encrypt.format=aes,encrypt.hash-alg=foo,encrypt.ivgen-alg=foo,cluster_size=3", GiB, "qcow2-encrypt-unexpected"),
    ("encrypt.format=luks,encrypt.hash-alg=foo,encrypt.ivgen-alg=foo,preallocation=foo", GiB, "bad-choice"),
    ("encrypt.format=luks,encrypt.cipher-alg=foo,backing_fmt=foo", GiB, "bad-choice"),
    ("encrypt.format=luks,encrypt.cipher-alg=des,cluster_size=3", GiB, "qcow2-cluster-size"),
    ("encrypt.format=luks,encrypt.cipher-alg=des", GiB, "secret-missing"),
    ("encrypt.format=qcow", GiB, "secret-missing"),
    ("encryption=on", (2 << 50) + 1, "image-too-large"),
    ("preallocation=foo,compression_type=foo", GiB, "bad-choice"),
    ("preallocation=", GiB, "bad-choice"),
    ("compression_type=lz4,cluster_size=3", GiB, "bad-choice"),
    ("compat=v2,extended_l2=on,cluster_size=3", GiB, "qcow2-extended-l2-version"),
    ("cluster_size=0", GiB, "qcow2-cluster-size"),
    ("cluster_size=256", GiB, "qcow2-cluster-size"),
    ("cluster_size=3000", GiB, "qcow2-cluster-size"),
    ("cluster_size=4M", GiB, "qcow2-cluster-size"),
    ("cluster_size=18446744073709551615", GiB, "qcow2-cluster-size"),
    ("extended_l2=on,cluster_size=1000", GiB, "qcow2-cluster-size"),
    ("extended_l2=on,cluster_size=8k", GiB, "qcow2-extended-l2-cluster-size"),
    ("backing_fmt=raw,refcount_bits=3", GiB, "qcow2-backing-format-alone"),
    ("compat=v2,lazy_refcounts=on,refcount_bits=3", GiB, "qcow2-lazy-refcounts-version"),
    ("compat=v2,refcount_bits=3", GiB, "qcow2-refcount-bits"),
    ("refcount_bits=0", GiB, "qcow2-refcount-bits"),
    ("refcount_bits=128", GiB, "qcow2-refcount-bits"),
    ("refcount_bits=-1", GiB, "qcow2-refcount-bits"),
    ("compat=v2,refcount_bits=8,compression_type=zstd", GiB, "qcow2-refcount-bits-version"),
    ("data_file_raw=on,compat=v2,compression_type=zstd", GiB, "qcow2-data-file-raw-alone"),
    ("data_file=d,data_file_raw=on,compat=v2,compression_type=zstd", GiB, "qcow2-data-file-version"),
    ("data_file=d,compat=v2,refcount_bits=8", GiB, "qcow2-refcount-bits-version"),
    ("data_file=d,cluster_size=3", 1 << 62, "qcow2-cluster-size"),
    ("data_file=d", 1 << 62, "image-too-large"),
    ("compat=v2,compression_type=zstd", 1 << 63, "qcow2-compression-type-version"),
    ("", (1 << 63) - 1, "qcow2-size-negative"),
    ("", (1 << 63) - 512, "qcow2-size-offset"),
    ("cluster_size=2M", (1 << 63) - GiB + 1, "qcow2-size-offset"),
    ("cluster_size=2M", (1 << 63) - GiB, "image-too-large"),
    ("", (2 << 50) + 1, "image-too-large"),
    ("extended_l2=on", (1 << 50) + 1, "image-too-large"),
    ("cluster_size=512", (128 << 30) + 1, "image-too-large"),
]


def settings(text):
    return read_settings(CREATE, split_list(text) if text else [], format="qcow2")


def error(size, text, backing=None):
    with pytest.raises(OptionError) as caught:
        resolve(size, settings(text), backing)
    return caught.value


def said(fault):
    """Word a fault as the command line does for qemu-img's sake."""
    return (SHARED | QEMU)[fault.code].format(**fault.values)


def test_defaults_are_version_3_with_clusters_of_64_kib():
    assert resolve(GiB, Settings(), None) == {
        "version": 3,
        "cluster_size": 65536,
        "refcount_bits": 16,
        "extended_l2": False,
        "lazy_refcounts": False,
        "compression_type": "zlib",
        "preallocation": "off",
    }


@pytest.mark.parametrize(("typed", "version"), [("0.10", 2), ("v2", 2), ("1.1", 3), ("v3", 3)])
def test_both_spellings_of_a_version_are_accepted(typed, version):
    assert resolve(GiB, settings(f"compat={typed}"), None)["version"] == version


@pytest.mark.parametrize(("text", "size", "code"), REFUSED)
def test_refuses_with_the_rule_that_qemu_img_finds_first(text, size, code):
    fault = error(size, text)
    assert fault.code == code
    assert fault.detail


@needs_qemu_img
@pytest.mark.parametrize(("text", "size", "code"), REFUSED)
def test_words_a_refusal_as_qemu_img_does(tmp_path, text, size, code):
    options = ["-o", text] if text else []
    # A size above 2^63-1 is refused as an argument; as an option it reaches the driver.
    sized = [f"{size}"] if size < 1 << 63 else ["-o", f"size={size}"]
    done = run(str(QEMU_IMG), "create", "-q", "-f", "qcow2", *options, tmp_path / "x", *sized, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"qemu-img: {tmp_path}/x: {said(error(size, text))}\n"


def test_every_code_of_ours_has_qemu_imgs_words():
    ours = {code for _, _, code in REFUSED if code.startswith("qcow2-")}
    rest = {
        "qcow2-backing-name-length",
        "qcow2-backing-name-space",
        "qcow2-backing-preallocation",
        "qcow2-keep-data-file-alone",
        "qcow2-keep-data-file-overwritten",
        "qcow2-keep-data-file-unmapped",
        "qcow2-data-file-raw-backing",
        "qcow2-data-file-space",
    }
    assert ours | rest == {code for code in QEMU if code.startswith("qcow2-")}


@pytest.mark.parametrize("text", ["encryption=off", "data_file_raw=off,keep_data_file=off", "encryption=no"])
def test_accepts_what_is_not_implemented_when_it_is_off(text):
    assert resolve(GiB, settings(text), None) == resolve(GiB, Settings(), None)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocates_over_a_backing_file_with_extended_l2_only(mode):
    backing = Backing("base", "raw")
    fault = error(GiB, f"preallocation={mode},backing_file=base,backing_fmt=raw", backing)
    assert fault.code == "qcow2-backing-preallocation"
    assert said(fault) == "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    assert resolve(GiB, settings(f"preallocation={mode},extended_l2=on"), backing)["preallocation"] == mode


@pytest.mark.parametrize(
    ("cluster_size", "length", "code"),
    [
        ("64k", 1023, None),
        ("64k", 1024, "qcow2-backing-name-length"),
        ("512", 376, None),
        ("512", 377, "qcow2-backing-name-space"),
    ],
)
def test_backing_name_has_to_fit(cluster_size, length, code):
    backing = Backing("n" * length, "raw")
    if code is None:
        resolve(GiB, settings(f"cluster_size={cluster_size}"), backing)
    else:
        assert error(GiB, f"cluster_size={cluster_size}", backing).code == code


@needs_qemu_img
@pytest.mark.parametrize(("cluster_size", "length"), [("64k", 1024), ("512", 377), ("512", 1024)])
def test_words_a_long_backing_name_as_qemu_img_does(tmp_path, cluster_size, length):
    name = "n" * length
    done = run(
        *(str(QEMU_IMG), "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw"),
        *("-o", f"cluster_size={cluster_size}", tmp_path / "x", "1G"),
    )
    fault = error(GiB, f"cluster_size={cluster_size}", Backing(name, "raw"))
    assert done.stderr == f"qemu-img: {tmp_path}/x: {said(fault)}\n"


def test_largest_disks_are_accepted():
    for text, size in (("", 2 << 50), ("cluster_size=2M", 2 << 60), ("cluster_size=512", 128 << 30)):
        assert resolve(size, settings(text), None)


def test_sizes_near_2_to_the_64_do_not_wrap_to_small_disks():
    for size in range((1 << 64) - 514, 1 << 64):
        assert error(size, "").code == "qcow2-size-negative"


def test_refuses_more_refcounts_than_qemu_opens():
    fault = error(120 << 30, "cluster_size=512,refcount_bits=64,preallocation=falloc")
    assert fault.code == "image-too-large"
    assert "refcount table" in fault.detail


@needs_qemu_img
def test_help_lines_are_qemu_imgs():
    """Version 7.2 lacks a row that 11.1 has; versions add rows, they do not change them."""
    theirs = [line for line in qemu_img("create", "-f", "qcow2", "-o", "help").stdout.splitlines() if "=<" in line]
    ours = {row.name: row.help_line() for row in CREATE}
    assert theirs == sorted(line for name, line in ours.items() if any(line == other for other in theirs))
    assert {name for name, line in ours.items() if line not in theirs} <= {"keep_data_file"}


@needs_qemu_img
def test_rows_stand_in_the_order_of_the_formatting_line(tmp_path):
    text = (
        "refcount_bits=16,lazy_refcounts=off,compat=v3,backing_fmt=raw,backing_file=b,preallocation=metadata,"
        "compression_type=zlib,extended_l2=on,cluster_size=64k,encryption=off"
    )
    line = qemu_img("create", "-u", "-f", "qcow2", "-o", text, tmp_path / "x", "1M").stdout
    shown = [word.partition("=")[0] for word in line.split("fmt=qcow2 ")[1].split()]
    assert shown == [row.name for row in CREATE if row.name in shown]
    assert len(shown) == 11


@needs_qemu_img
def test_defaults_are_shown_as_in_the_formatting_line(tmp_path):
    line = qemu_img("create", "-f", "qcow2", tmp_path / "x", "1M").stdout
    shown = " ".join(
        f"{row.name}={row.shown or 1 << 20}" for row in CREATE if row.shown is not None or row.name == "size"
    )
    assert line.strip().endswith(f"fmt=qcow2 {shown}")
