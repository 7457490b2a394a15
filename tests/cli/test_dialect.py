"""Word for word as qemu-img: the same command lines through both, output, errors and exit codes compared."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.compat.versions import VERSIONS, real
from tests.support import instar, needs_qemu_img, qemu_img, run

pytestmark = needs_qemu_img

LINES = """
create
create t
create -f qcow2 t
create -f qcow2 t 1G
create -q -f qcow2 t 1G
create -f qcow2 t 1G 2M
create t 1G -f qcow2 -q
create -fqcow2 t 1.5k
create -f raw t 1M
create -f raw t foo
create -f raw t 1kB
create -f raw t 8E
create -f raw t -- -1
create -f raw t -1
create -f raw -o size=1M t
create -f raw -o size=1M,size=2M t
create -f raw -o size=1M t 1M
create -f raw -o preallocation=falloc t 1M
create -f raw -o preallocation=foo t 1M
create -f raw -o preallocation=metadata t 1M
create -f raw -o extent_size_hint=5G t 1M
create -f raw -b b.qcow2 t 1M
create -f raw -F raw t 1M
create -f foo t 1M
create -f bochs t 1M
create -f vhd t 1M
create foo:t 1M
create -Z t 1M
create -f
create --nosuch t 1M
create -o , t 1M
create -o foo=1 -f qcow2 t 1M
create -f qcow2 -o foo t 1M
create -f qcow2 -o nocow t 1M
create -f qcow2 -o lazy_refcounts t 1M
create -f qcow2 -o nolazy_refcounts t 1M
create -f qcow2 -o id=x t 1M
create -f qcow2 -o compat=0.10 t 1M
create -f qcow2 -o compat=1.0 t 1M
create -f qcow2 -o cluster_size=4k,refcount_bits=8,preallocation=metadata t 1M
create -f qcow2 -o cluster_size=3 t 1M
create -f qcow2 -o cluster_size=4M t 1M
create -f qcow2 -o cluster_size=x t 1M
create -f qcow2 -o cluster_size=-1 t 1M
create -f qcow2 -o refcount_bits=3 t 1M
create -f qcow2 -o refcount_bits=x t 1M
create -f qcow2 -o refcount_bits=99999999999999999999999 t 1M
create -f qcow2 -o lazy_refcounts=x t 1M
create -f qcow2 -o lazy_refcounts=on,compat=0.10 t 1M
create -f qcow2 -o extended_l2=on,compat=0.10 t 1M
create -f qcow2 -o extended_l2=on,cluster_size=4k t 1M
create -f qcow2 -o compression_type=zstd t 1M
create -f qcow2 -o compression_type=lzma t 1M
create -f qcow2 -o compression_type=zstd,compat=0.10 t 1M
create -f qcow2 -o refcount_bits=8,compat=0.10 t 1M
create -f qcow2 -o preallocation=foo t 1M
create -f qcow2 -o backing_fmt=raw t 1M
create -f qcow2 -o cluster_size=512 t 1T
create -f qcow2 t 4E
create -f qcow2 t 9223372036854775807
create -f qcow2 t 9223372036854775296
create -f qcow2 -b b.qcow2 t
create -f qcow2 -b b.qcow2 -F qcow2 t
create -f qcow2 -b b.qcow2 -F qcow2 t 5M
create -f qcow2 -o backing_file=b.qcow2,backing_fmt=qcow2 t
create -f qcow2 -b b.raw -F raw t
create -f qcow2 -b b.raw t
create -u -f qcow2 -b nosuch -F qcow2 t 1M
create -u -f qcow2 -b nosuch -F nosuch t 1M
create -u -f qcow2 -b nosuch t 1M
create -u -f qcow2 -b nosuch -F qcow2 t
create -f qcow2 -b nosuch -F qcow2 t
create -f qcow2 -b . -F raw t
create -f qcow2 -b b.qcow2 -F nosuch t
create -f qcow2 -b b.raw -F qcow2 t
create -f qcow2 -b b.raw -F vmdk t
create -f qcow2 -b b.raw -F vpc t
create -f qcow2 -b b.raw -F vhdx t
create -f qcow2 -b t -F raw t
create -f qcow2 -b b.qcow2 -F qcow2 -o preallocation=metadata t
create -f qcow2 -b b.qcow2 -F qcow2 -o preallocation=metadata,extended_l2=on t
create -f qcow2 nosuch/t 1M
create -f raw nosuch/t 1M
create -f qcow2 . 1M
create -f qcow2 a,b 1M
create -f vmdk t 1M
create -f vmdk -o subformat=streamOptimized,adapter_type=lsilogic t 1M
create -f vmdk -o adapter_type=foo t 1M
create -f vmdk -o subformat=foo t 1M
create -f vmdk -o compat6=on,hwversion=4 t 1M
create -f vmdk -o preallocation=full t 1M
create -f vmdk -o preallocation=metadata t 1M
create -f vmdk -b b.qcow2 -F qcow2 t 1M
create -f vmdk -b b.vmdk -F vmdk t
create -f vpc t 1M
create -f vpc -o subformat=fixed t 1M
create -f vpc -o subformat=foo t 1M
create -f vpc -o force_size t 1M
create -f vpc t 3T
create -f vpc -b b.raw t 1M
create -f vhdx t 1M
create -f vhdx -o block_size=2M,log_size=2M,subformat=fixed t 1M
create -f vhdx -o block_size=3M t 1M
create -f vhdx -o log_size=0 t 1M
create -f vhdx -o log_size=4G t 1M
create -f vhdx -o subformat=foo t 1M
create -f vhdx t 65T
create -f qcow2 -o help
create -f qcow2 -o help t
create -f raw -o help
create -f raw -o ? t
create -f vmdk -o help
create -f vmdk -o help t
create -f vpc -o help
create -f vpc -o help t
create -f vhdx -o help
create -f vhdx -o help t
create -f qcow2 -o foo=1,help
create -f nosuch -o help
create -f bochs -o help
info
info b.qcow2
info --output=json b.qcow2
info --outp=human b.raw
info --output=bad b.raw
info -f raw b.qcow2
info -f nosuch b.qcow2
info -f qcow2 b.raw
info -f vmdk b.raw
info -f vpc b.raw
info -f vhdx b.raw
info -f qcow2 empty
info -f vmdk empty
info -f vpc empty
info -f vhdx empty
info empty
info text
info nosuch
info nosuch/x
info .
info -Z b.raw
info -f
info --nosuch b.raw
info b.raw b.raw
info -U b.qcow2
info --force-share b.qcow2
info top.qcow2
info --backing-chain top.qcow2
info --backing-chain --output=json top.qcow2
info --backing-chain b.raw
info --backing-chain --output=json b.raw
info --backing-chain lost.qcow2
info lost.qcow2
info --backing-chain loop1.qcow2
info b.vmdk
info b.vhdx
info b.vpc
check
check b.qcow2
check -q b.qcow2
check --output=json b.qcow2
check b.raw
check b.vpc
check -f vpc b.vpc
check b.vmdk
check b.vhdx
check --output=json b.vhdx
check -f raw b.qcow2
check -f qcow2 b.raw
check nosuch
check text
check leak.qcow2
check --output=json leak.qcow2
check bad.qcow2
check --output=json bad.qcow2
nosuch
--nosuch
"""


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory) -> Path:
    """A folder with images of all kinds, copied for each command."""
    folder = tmp_path_factory.mktemp("dialect")
    for format in ("qcow2", "raw", "vmdk", "vhdx", "vpc"):
        qemu_img("create", "-q", "-f", format, f"b.{format}", "4M", cwd=folder)
    (folder / "empty").touch()
    (folder / "text").write_text("hello world\n")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "b.raw", "-F", "raw", "mid.qcow2", cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "nosuch", "-F", "raw", "lost.qcow2", "1M", cwd=folder)
    for one, other in (("loop1", "loop2"), ("loop2", "loop1")):
        qemu_img(
            "create", "-q", "-f", "qcow2", "-u", "-b", f"{other}.qcow2", "-F", "qcow2", f"{one}.qcow2", "1M", cwd=folder
        )
    for name, offset, data in (("leak", 2 * 65536 + 2 * 20, b"\0\1"), ("bad", 2 * 65536 + 2 * 3, b"\0\0")):
        qemu_img("create", "-q", "-f", "qcow2", f"{name}.qcow2", "1M", cwd=folder)
        with (folder / f"{name}.qcow2").open("r+b") as file:
            file.truncate(21 * 65536)
            os.pwrite(file.fileno(), data, offset)
    return folder


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: ".".join(map(str, v)))
@pytest.mark.parametrize("line", [line for line in LINES.splitlines() if line])
def test_line_gives_what_qemu_img_gives(line, version, surroundings, tmp_path):
    words = line.split(" ")
    for name in ("ours", "theirs"):
        shutil.copytree(surroundings, tmp_path / name)
    theirs = run(real(version), *words, cwd=tmp_path / "theirs")
    ours = instar(*words, cwd=tmp_path / "ours", dialect="qemu-img", INSTAR_QEMU_VERSION=".".join(map(str, version)))
    # Debian's 7.2 prints no newline after its last line in one place.
    answers = [(done.returncode, done.stdout, done.stderr.rstrip("\n")) for done in (ours, theirs)]
    assert answers[0] == answers[1]
    if theirs.returncode == 0:
        made = {name: (tmp_path / name / "t").exists() for name in ("ours", "theirs")}
        assert made["ours"] == made["theirs"]


def test_a_link_of_that_name_speaks_as_qemu_img(tmp_path):
    script = tmp_path / "qemu-img"
    script.write_text("import sys\nfrom instar.cli.main import main\nsys.exit(main())\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = run(sys.executable, script, "create", "-f", "raw", "t", "1M", cwd=tmp_path, env=env)
    assert done.stdout == "Formatting 't', fmt=raw size=1048576\n"


def test_dialect_can_be_asked_for_before_the_command(tmp_path):
    done = instar("--dialect", "qemu-img", "create", "-f", "raw", "t", "1M", cwd=tmp_path)
    assert done.stdout == "Formatting 't', fmt=raw size=1048576\n"


def test_version_reads_as_that_of_qemu_img():
    assert instar("--version", dialect="qemu-img", INSTAR_QEMU_VERSION="7.2").stdout.startswith(
        "qemu-img version 7.2.22 ("
    )
