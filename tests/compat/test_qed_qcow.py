"""QED and qcow version 1, end to end: word for word as qemu-img, used by qemu-io, damaged, and over one another."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.differences import without_storage
from tests.compat.versions import VERSIONS, real
from tests.support import instar, needs_qemu_img, needs_qemu_io, qemu_img, run, settle

import instar as library
from instar.cli.json import dumps
from instar.cli.render import check_object, info_object, info_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img

SIZE = 48 << 20
WRITES = ((0, 65536, 1), (2 << 20, 512, 2), ((4 << 20) - 4096, 8192, 3), (33 << 20, 1 << 20, 4), (SIZE - 512, 512, 5))
KINDS = [
    ("qed", {}),
    ("qed", {"cluster_size": "4k", "table_size": "2"}),
    ("qed", {"cluster_size": "1M", "table_size": "16"}),
    ("qcow", {}),
]

LINES = """
create -f qed t 1G
create -f qed -o cluster_size=8k,table_size=2 t 1M
create -f qed -o cluster_size=3k t 1M
create -f qed -o cluster_size=x t 1M
create -f qed -o table_size=3 t 1M
create -f qed -o table_size=-1 t 1M
create -f qed t 65T
create -f qed -o backing_fmt=foo t 1M
create -f qed -b b.raw -F raw t
create -f qed -b b.raw t
create -f qed -u -b nosuch -F qcow2 t 1M
create -f qed -o preallocation=full t 1M
create -f qed -o preallocation=metadata t 1M
create -f qed -o help
create -f qed -o help t
create -f qcow t 1G
create -f qcow t 0
create -f qcow -b b.qed -F qed t
create -f qcow -u -b nosuch -F foo t 1M
create -f qcow -o encryption=on t 1M
create -f qcow -o encrypt.format=luks t 1M
create -f qcow -o encrypt.key-secret=s0 t 1M
create -f qcow -o encrypt.cipher-alg=aes-256 t 1M
create -f qcow -o preallocation=falloc t 1M
create -f qcow -o help
create -f qcow -o help t
create -f qcow2 -b b.qed t
create -f qcow2 -b b.qcow -F qcow t
create -f qcow2 -b b.raw -F qed t
create -f qcow2 -b b.raw -F qcow t
info b.qed
info --output=json b.qed
info b.qcow
info --output=json b.qcow
info aes.qcow
info -f qed b.qcow
info -f qcow b.qed
info -f qcow b.qcow2
info -f qed empty
info --backing-chain top.qed
info --backing-chain --output=json top.qcow
check b.qed
check --output=json b.qed
check b.qcow
check -f qcow b.qed
check bad.qed
check -q bad.qed
check --output=json bad.qed
check leak.qed
"""


def qemu_io(path: Path, format: str, *commands: str) -> None:
    """Run the real qemu-io and fail the test if any of its commands fails."""
    done = run("qemu-io", "-f", format, *[word for c in commands for word in ("-c", c)], path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of both formats, copied for each version."""
    folder = tmp_path_factory.mktemp("qed")
    for format in ("qed", "qcow", "qcow2", "raw"):
        qemu_img("create", "-q", "-f", format, f"b.{format}", "4M", cwd=folder)
    secret = ("--object", "secret,id=s0,data=hunter2", "-o", "encrypt.format=aes,encrypt.key-secret=s0")
    qemu_img("create", "-q", "-f", "qcow", *secret, "aes.qcow", "1M", cwd=folder)
    for format in ("qed", "qcow"):
        qemu_img("create", "-q", "-f", format, "-b", "b.raw", "-F", "raw", f"top.{format}", cwd=folder)
    (folder / "empty").touch()
    for name, entry in (("bad", 12345), ("leak", 0)):
        shutil.copy(folder / "b.qed", folder / f"{name}.qed")
        with (folder / f"{name}.qed").open("r+b") as file:
            os.pwrite(file.fileno(), struct.pack("<Q", entry), 65536)
            file.truncate(7 * 65536)
    return folder


@pytest.mark.parametrize("line", LINES.strip().splitlines())
def test_line_gives_what_qemu_img_gives(line: str, surroundings: Path, tmp_path: Path) -> None:
    """With the newest version only: what these formats say has not changed since 7.2 (see their own tests)."""
    words, version = line.split(" "), VERSIONS[-1]
    for name in ("ours", "theirs"):
        shutil.copytree(surroundings, tmp_path / name)
    theirs = run(real(version), *words, cwd=tmp_path / "theirs")
    ours = instar(*words, cwd=tmp_path / "ours", dialect="qemu-img", INSTAR_QEMU_VERSION=".".join(map(str, version)))
    # Two copies of an image may lie in more or in fewer pieces; agree() compares what is said of one.
    answers = [(done.returncode, without_storage(done.stdout), done.stderr.rstrip("\n")) for done in (ours, theirs)]
    assert answers[0] == answers[1]
    if theirs.returncode == 0 and words[0] == "create" and "help" not in words:
        assert (tmp_path / "ours" / "t").read_bytes() == (tmp_path / "theirs" / "t").read_bytes()


def agree(image: Path, format: str) -> None:
    """Require that instar and every real qemu-img say the same of an image."""
    settle(image)
    for version in VERSIONS:
        found = library.info(str(image), format=format, generation=version)
        theirs = run(real(version), "info", "--output=json", "-f", format, image)
        assert dumps(info_object(found, version)) + "\n" == theirs.stdout
        assert info_text(found, version) == run(real(version), "info", image).stdout
    ours = library.check(str(image), format=format)
    judged = run(real(VERSIONS[-1]), "check", "--output=json", "-f", format, image)
    if format == "qcow":
        assert judged.returncode == 63
        assert ours.clean, ours.findings
    else:
        assert (ours.exit_code, check_object(ours, details=False)) == (judged.returncode, json.loads(judged.stdout))


@needs_qemu_io
@pytest.mark.parametrize(("format", "options"), KINDS, ids=[f"{f}-{len(o)}-{n}" for n, (f, o) in enumerate(KINDS)])
def test_guest_data_goes_in_and_comes_out(format: str, options: dict[str, str], tmp_path: Path) -> None:
    image, model = tmp_path / "image", tmp_path / "model"
    library.create(str(image), SIZE, format=format, options=options)
    qemu_img("create", "-q", "-f", "raw", model, str(SIZE))
    for path, kind in ((image, format), (model, "raw")):
        qemu_io(path, kind, *(f"write -P {pattern} {offset} {length}" for offset, length, pattern in WRITES))
    assert qemu_img("compare", "-f", format, "-F", "raw", image, model).stdout == "Images are identical.\n"
    agree(image, format)


@needs_qemu_io
@pytest.mark.parametrize(("format", "below"), [("qed", "qed"), ("qed", "raw"), ("qcow", "qcow"), ("qcow", "qed")])
def test_an_overlay_shows_what_is_behind_it_and_keeps_its_own(format: str, below: str, tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    library.create(str(base), SIZE, format=below)
    qemu_io(base, below, "write -P 7 0 1M")
    library.create(str(top), format=format, backing="base", backing_format=below)
    qemu_io(top, format, "write -P 9 512k 64k", "read -P 7 0 512k", "read -P 9 512k 64k", "read -P 7 576k 448k")
    qemu_io(base, below, "read -P 7 0 1M")
    agree(top, format)
    chain = library.info_chain(str(top))
    assert [image.format for image in chain] == [format, below]


@needs_qemu_io
def test_compressed_clusters_of_qcow_are_described_and_checked(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "raw", tmp_path / "model", str(SIZE))
    qemu_io(tmp_path / "model", "raw", *(f"write -P {p} {o} {n}" for o, n, p in WRITES))
    library.create(str(image), SIZE, format="qcow")
    # It ends with 1 and without a word, but all data is there.
    run("qemu-img", "convert", "-n", "-c", "-f", "raw", "-O", "qcow", tmp_path / "model", image)
    assert qemu_img("compare", image, tmp_path / "model").stdout == "Images are identical.\n"
    agree(image, "qcow")
    found = library.check(str(image))
    assert found.compressed_clusters == 276


def test_tables_of_one_cluster_are_made_as_qemu_makes_them_and_opened(tmp_path: Path) -> None:
    """No qemu-img opens what it makes here; instar goes by the specification."""
    library.create(str(tmp_path / "ours"), "1M", format="qed", options={"table_size": 1})
    qemu_img("create", "-q", "-f", "qed", "-o", "table_size=1", tmp_path / "theirs", "1M")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert "QED table offset is invalid" in run("qemu-img", "info", tmp_path / "theirs").stderr
    assert library.info(str(tmp_path / "theirs")).virtual_size == 1 << 20
    assert library.check(str(tmp_path / "theirs")).clean


@pytest.mark.parametrize("format", ["qed", "qcow"])
def test_preallocation_is_refused_and_the_target_stays(format: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"mine")
    for mode in ("full", "falloc", "metadata"):
        with pytest.raises(library.OptionError, match="preallocation"):
            library.create(str(tmp_path / "t"), "1M", format=format, options={"preallocation": mode})
    assert (tmp_path / "t").read_bytes() == b"mine"


def test_what_is_wrong_with_a_qcow_is_said_by_instar_only(surroundings: Path, tmp_path: Path) -> None:
    data = bytearray((surroundings / "b.qcow").read_bytes())
    struct.pack_into(">Q", data, 48, 1 << 40)
    (tmp_path / "t").write_bytes(data)
    ours = instar("check", "t", cwd=tmp_path)
    assert ours.returncode == 2
    assert "corruption: L1 table: the L2 table at byte 1099511627776 reaches past the end of the file" in ours.stderr
    theirs = instar("check", "t", cwd=tmp_path, dialect="qemu-img")
    assert (theirs.returncode, theirs.stdout) == (63, "")
    assert theirs.stderr == "qemu-img: This image format does not support checks\n"


@pytest.mark.parametrize("format", ["qed", "qcow"])
def test_hostile_images_give_a_result_or_an_image_error(format: str, surroundings: Path, tmp_path: Path) -> None:
    """In cells, as the tests of other formats do; the planners' own tests go further without."""
    dice = random.Random(1)
    good = (surroundings / f"top.{format}").read_bytes()
    bad = tmp_path / "bad"
    for _ in range(25):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at = dice.choice((dice.randrange(0, 64, 4), 65536, 65544, 56))
            if at + 8 <= len(data):
                data[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, (1 << 64) - 1, 1 << 63, dice.getrandbits(64))))
        bad.write_bytes(data[: dice.choice((len(data), dice.randrange(len(data))))])
        for operation in (library.info, library.check):
            try:
                operation(str(bad), format=format)
            except library.ImageError as error:
                text = str(error)
            else:
                continue
            assert "\n" not in text
