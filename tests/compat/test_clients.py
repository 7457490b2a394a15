"""Programs that run ``qemu-img`` find instar by that name: libguestfs, libvirt, virt-install, oslo.utils."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support import QEMU_IMG, QEMU_IO, needs_qemu_img, needs_qemu_io, qemu_img, qemu_info, run, same_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_qemu_img, needs_qemu_io]

SOURCE = Path(__file__).parent.parent.parent / "src"
#: What the Debian release has that these programs are of.
VERSION = "7.2"
PASSPHRASE = "open sesame"
SECRET = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed (Debian: {package})")


class Stand:
    """A folder that stands first on PATH and has a ``qemu-img`` that writes down its words and runs instar."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        program = folder / "qemu-img"
        program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> '{self.log}'\n"
            f"export PYTHONPATH='{SOURCE}' INSTAR_DIALECT=qemu-img INSTAR_QEMU_VERSION={VERSION}\n"
            f"exec '{sys.executable}' -m instar \"$@\"\n"
        )
        program.chmod(0o755)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
        # Administrators' programs (libvirtd) lie where the PATH of others does not lead.
        self.environment["PATH"] = f"{folder}:{os.environ['PATH']}:/usr/sbin"

    def said(self) -> list[str]:
        """Return the command lines since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def ours(tmp_path: Path) -> Stand:
    return Stand(tmp_path / "bin")


# --- libguestfs -------------------------------------------------------------------------------------------------------

#: A command of guestfish, and what it runs.
DISKS = [
    ("disk-create d qcow2 10M", "create -f qcow2 ./d 10485760"),
    (
        "disk-create d qcow2 10M preallocation:metadata compat:0.10 clustersize:4096",
        "create -f qcow2 -o preallocation=metadata,compat=0.10,cluster_size=4096 ./d 10485760",
    ),
    ("disk-create d qcow2 10M preallocation:full", "create -f qcow2 -o preallocation=falloc ./d 10485760"),
    (
        "disk-create d qcow2 10M preallocation:off compat:1.1",
        "create -f qcow2 -o preallocation=off,compat=1.1 ./d 10485760",
    ),
    (
        "disk-create d qcow2 -1 backingfile:base backingformat:qcow2",
        "create -f qcow2 -o backing_file=base,backing_fmt=qcow2 ./d",
    ),
]


@needs("guestfish", "libguestfs-tools")
@pytest.mark.parametrize(("line", "expected"), DISKS, ids=[line for line, _ in DISKS])
def test_guestfish_makes_the_same_disk(line: str, expected: str, ours: Stand, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        qemu_img("create", "-q", "-f", "qcow2", "base", "8M", cwd=tmp_path / name)
    words = ["guestfish", "--", *line.split()]
    made = run(*words, cwd=tmp_path / "ours", env=ours.environment)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert ours.said() == [expected]
    assert run(*words, cwd=tmp_path / "theirs").returncode == 0
    same_bytes(tmp_path / "ours/d", tmp_path / "theirs/d")


@needs("guestfish", "libguestfs-tools")
def test_guestfish_asks_and_understands_the_answers(ours: Stand, tmp_path: Path) -> None:
    for words in ("-f qcow2 base 8M", "-f qcow2 -b base -F qcow2 top", "-f vmdk d.vmdk 3M", "-f vdi d.vdi 1M"):
        qemu_img("create", "-q", *words.split(), cwd=tmp_path)
    script = "\n".join(
        f"disk-{what} {image}"
        for image in ("base", "top", "d.vmdk", "d.vdi")
        for what in ("format", "virtual-size", "has-backing-file")
    )
    answers = [
        subprocess.run(["guestfish"], cwd=tmp_path, env=env, input=script, capture_output=True, text=True, check=False)
        for env in (ours.environment, None)
    ]
    assert answers[0].stdout == answers[1].stdout
    assert answers[0].stdout.split()[:6] == ["qcow2", "8388608", "false", "qcow2", "8388608", "true"]
    assert any("info" in line for line in ours.said())


@needs("guestfish", "libguestfs-tools")
def test_guestfish_sees_that_an_image_in_use_can_be_looked_at(ours: Stand, tmp_path: Path) -> None:
    """It looks for -U in the help, and uses it."""
    qemu_img("create", "-q", "-f", "qcow2", "d", "8M", cwd=tmp_path)
    with subprocess.Popen([str(QEMU_IO), "-f", "qcow2", "d"], cwd=tmp_path, stdin=subprocess.PIPE, text=True) as user:
        try:
            for _ in range(1000):
                if run(str(QEMU_IMG), "info", "d", cwd=tmp_path).returncode:
                    break
            done = run("guestfish", "disk-format", "d", cwd=tmp_path, env=ours.environment)
        finally:
            user.communicate("quit\n", timeout=30)
    assert (done.returncode, done.stdout) == (0, "qcow2\n"), done.stderr
    assert ours.said() == ["--help", "info -U --output json ./d"]


# --- libvirt ----------------------------------------------------------------------------------------------------------


class Libvirt:
    """A libvirt of one's own: a daemon of the session kind, all of whose files lie in one folder."""

    def __init__(self, folder: Path, ours: Stand) -> None:
        self.ours = ours
        self.folder = folder
        self.pool = folder / "pool"
        home = folder / "home"
        for made in (self.pool, home, folder / "run"):
            made.mkdir()
        kinds = {"CONFIG": ".config", "CACHE": ".cache", "DATA": ".local/share"}
        self.environment = {
            **ours.environment,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            **{f"XDG_{kind}_HOME": str(home / name) for kind, name in kinds.items()},
        }
        # The superuser's libvirt would be the machine's: as somebody else in a user namespace root has one of its own.
        self.prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*self.prefix, *words, cwd=self.folder, env=self.environment)

    def virsh(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.run("virsh", "-q", "-c", "qemu:///session", *words)
        assert not check or done.returncode == 0, done.stderr
        return done

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        """Run the daemon."""
        if self.run("true").returncode:
            pytest.skip("root may make no user namespace here, and libvirt would be that of the machine")
        words = [*self.prefix, "libvirtd", "--timeout=60"]
        with (
            (self.folder / "daemon").open("w") as log,
            subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=log, stderr=log) as daemon,
        ):
            try:
                for _ in range(200):
                    if (self.folder / "run/libvirt/libvirt-sock").exists() or daemon.poll() is not None:
                        break
                    time.sleep(0.05)
                if daemon.poll() is not None:
                    last = ((self.folder / "daemon").read_text().splitlines() or [""])[-1]
                    pytest.skip(f"libvirtd does not run here: {last}")
                self.virsh("pool-create-as", "pool", "dir", "--target", self.pool)
                yield
            finally:
                daemon.terminate()


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirt]:
    # The name of a socket has 107 bytes at most, so the folder is not that of the test.
    with tempfile.TemporaryDirectory() as folder:
        started = Libvirt(Path(folder), Stand(Path(folder, "bin")))
        with started.serve():
            yield started


#: Words of ``vol-create-as``, what libvirt runs, and part of what the image says of itself.
VOLUMES = [
    ("a.qcow2 10M --format qcow2", "create -f qcow2 -o compat=0.10 {} 10240K", {"format": "qcow2"}),
    (
        "b.qcow2 12M --format qcow2 --backing-vol a.qcow2 --backing-vol-format qcow2",
        "create -f qcow2 -b {pool}/a.qcow2 -o backing_fmt=qcow2,compat=0.10 {} 12288K",
        {"backing-filename-format": "qcow2"},
    ),
    (
        "c.qcow2 10M --format qcow2 --prealloc-metadata",
        "create -f qcow2 -o preallocation=falloc,compat=0.10 {} 10240K",
        {"virtual-size": 10 << 20},
    ),
    ("d.vmdk 10M --format vmdk", "create -f vmdk {} 10240K", {"format": "vmdk"}),
    ("e.vpc 10M --format vpc", "create -f vpc {} 10240K", {"format": "vpc"}),
    ("f.vdi 10M --format vdi", "create -f vdi {} 10240K", {"format": "vdi"}),
    ("g.qed 10M --format qed", "create -f qed {} 10240K", {"format": "qed"}),
]


@needs("virsh", "libvirt-clients")
@needs("libvirtd", "libvirt-daemon")
def test_virsh_makes_volumes(libvirt: Libvirt) -> None:
    for words, expected, facts in VOLUMES:
        name = words.partition(" ")[0]
        libvirt.virsh("vol-create-as", "pool", *words.split())
        assert libvirt.ours.said() == [expected.format(libvirt.pool / name, pool=libvirt.pool)]
        assert facts.items() <= qemu_info(libvirt.pool / name).items()
    listed = libvirt.virsh("vol-list", "pool", "--details").stdout
    assert listed.count("10.00 MiB") == len(VOLUMES) - 2  # one is larger, and a VHD is rounded up
    backing = libvirt.virsh("vol-dumpxml", "b.qcow2", "pool").stdout
    assert f"<path>{libvirt.pool / 'a.qcow2'}</path>" in backing


@needs("virsh", "libvirt-clients")
@needs("libvirtd", "libvirt-daemon")
@pytest.mark.parametrize(
    ("format", "options", "opened"),
    [
        ("raw", "-o key-secret={id}", "driver=luks,key-secret=s,file.filename={path}"),
        (
            "qcow2",
            "-o encrypt.format=luks,encrypt.key-secret={id},compat=0.10",
            "driver=qcow2,encrypt.key-secret=s,file.filename={path}",
        ),
    ],
)
def test_virsh_makes_encrypted_volumes(format: str, options: str, opened: str, libvirt: Libvirt) -> None:
    """The passphrase comes to qemu-img in a file; with it the volume can be written to."""
    secret, volume = libvirt.folder / "secret.xml", libvirt.folder / "volume.xml"
    secret.write_text(
        f"<secret ephemeral='no' private='yes'><uuid>{SECRET}</uuid>"
        "<usage type='volume'><volume>any</volume></usage></secret>"
    )
    libvirt.virsh("secret-define", secret)
    libvirt.virsh("secret-set-value", SECRET, "--plain", "--file", _file(libvirt.folder / "passphrase", PASSPHRASE))
    volume.write_text(
        f"<volume><name>luks.{format}</name><capacity unit='MiB'>10</capacity><target><format type='{format}'/>"
        f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption></target></volume>"
    )
    libvirt.virsh("vol-create", "pool", volume)
    (line,) = libvirt.ours.said()
    assert options.format(id=f"luks.{format}_encrypt0") in line
    assert f"--object secret,id=luks.{format}_encrypt0,file=" in line
    words = ["--object", f"secret,id=s,data={PASSPHRASE}", "--image-opts", "-c", "write -P 7 0 64k"]
    done = run(str(QEMU_IO), *words, opened.format(path=libvirt.pool / f"luks.{format}"))
    assert done.returncode == 0, done.stderr


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@needs("virt-install", "virtinst")
@needs("virsh", "libvirt-clients")
@needs("libvirtd", "libvirt-daemon")
@needs("qemu-system-x86_64", "qemu-system-x86")
def test_virt_install_makes_a_disk_and_a_machine_that_holds_it(libvirt: Libvirt) -> None:
    """The running machine has the image locked: it is refused to others, and free again afterwards."""
    libvirt.ours.said()
    disk = libvirt.pool / "machine.qcow2"
    words = "--virt-type qemu --name machine --memory 64 --import --osinfo detect=off,require=off --network none"
    words += " --graphics none --noautoconsole"
    done = libvirt.run("virt-install", "--connect", "qemu:///session", *words.split(), "--disk", f"path={disk},size=1")
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        created = libvirt.ours.said()
        refused = libvirt.run("qemu-img", "info", disk)
        shared = libvirt.run("qemu-img", "info", "-U", disk)
        replaced = libvirt.run("qemu-img", "create", "-f", "qcow2", disk, "1M")
    finally:
        libvirt.virsh("destroy", "machine", check=False)
        libvirt.virsh("undefine", "machine", check=False)
    assert created == [f"create -f qcow2 -o preallocation=metadata,compat=1.1,lazy_refcounts {disk} 1048576K"]
    assert refused.stderr == (
        f"qemu-img: Could not open '{disk}': Failed to get shared \"write\" lock\n"
        f"Is another process using the image [{disk}]?\n"
    )
    assert shared.returncode == 0
    assert replaced.returncode == 1
    assert qemu_info(disk)["virtual-size"] == 1 << 30


# --- OpenStack --------------------------------------------------------------------------------------------------------

#: Read by the class that Nova, Cinder and Glance read ``qemu-img info`` with.
READ_INFO = """
import subprocess, sys
from oslo_utils.imageutils import QemuImgInfo
for words in sys.stdin.read().splitlines():
    command = [sys.argv[1], "info", "--output=json", *words.split()]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    info = QemuImgInfo(said, format="json")
    names = ("image", "file_format", "virtual_size", "cluster_size", "backing_file", "backing_file_format", "encrypted")
    print([getattr(info, name) for name in names], info.snapshots, info.format_specific)
"""
#: What Glance and Nova look at before they let an image in.
INSPECT = """
import sys
from oslo_utils.imageutils import format_inspector
for path in sys.argv[1:]:
    found = format_inspector.detect_file_format(path)
    try:
        found.safety_check()
        verdict = "safe"
    except Exception as error:
        verdict = sorted(getattr(error, "failures", {"": 0}))
    print(str(found), found.virtual_size, verdict)
"""


def python_with(module: str) -> str:
    """Return a Python that has a module, or skip."""
    for python in (sys.executable, "/usr/bin/python3"):
        if shutil.which(python) and run(python, "-W", "ignore", "-c", f"import {module}").returncode == 0:
            return python
    pytest.skip(f"no Python here has {module} (Debian: python3-oslo.utils, or pip install oslo.utils)")


def test_oslo_reads_what_info_says(ours: Stand, tmp_path: Path) -> None:
    python = python_with("oslo_utils.imageutils")
    for line in ("-f qcow2 base 8M", "-f qcow2 -b base -F qcow2 top", "-f raw d.raw 3M", "-f vmdk d.vmdk 3M"):
        qemu_img("create", "-q", *line.split(), cwd=tmp_path)
    qemu_img("snapshot", "-c", "first", "base", cwd=tmp_path)
    asked = "base\ntop --force-share\nd.raw\nd.vmdk -f vmdk\n"
    answers = [
        subprocess.run(
            [python, "-c", READ_INFO, program],
            cwd=tmp_path,
            env=ours.environment,
            input=asked,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for program in (str(tmp_path / "bin/qemu-img"), str(QEMU_IMG))
    ]
    assert answers[0] == answers[1]
    assert "'top', 'qcow2', 8388608" in answers[0]


def test_oslo_inspects_our_images_as_it_does_those_of_qemu_img(ours: Stand, tmp_path: Path) -> None:
    python = python_with("oslo_utils.imageutils.format_inspector")
    formats = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed")
    images = {"qcow2 -b base -F raw": "based", "vmdk -o subformat=streamOptimized": "stream"}
    images |= {"qcow2 -o data_file=data": "apart"} | {format: format for format in formats}
    answers = []
    for name, program in (("ours", str(tmp_path / "bin/qemu-img")), ("theirs", str(QEMU_IMG))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "base").write_bytes(bytes(4 << 20))
        for words, image in images.items():
            made = run(program, "create", "-q", "-f", *words.split(), image, "4M", cwd=folder, env=ours.environment)
            assert made.returncode == 0, made.stderr
        answers.append(run(python, "-c", INSPECT, *images.values(), cwd=folder, env=ours.environment).stdout)
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == len(images)
