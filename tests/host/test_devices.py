"""Images on block devices: written in place, as long as the disk they are on, with what was there before cleared where
a new file would have zeros."""

import os
import shutil
import subprocess

import pytest
from tests.cli.dialect.world import call
from tests.support import run

import instar
from instar.core.errors import OptionError

MiB = 1 << 20
OLD = b"\xe5"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("losetup") is None, reason="needs root and losetup, to make a block device"
)


@pytest.fixture
def device(tmp_path):
    """Return a device of 16 MiB that is full of something."""
    store = tmp_path / "store"
    store.write_bytes(OLD * (16 * MiB))
    done = subprocess.run(["losetup", "--find", "--show", store], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"there is no loop device: {done.stderr.strip()}")
    name = done.stdout.strip()
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


def read(device, length=MiB):
    with open(device, "rb") as file:
        return file.read(length)


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_luks_is_made_on_a_device_and_opens(format, device):
    pytest.importorskip("cryptography")
    key = {"key-secret": "a"} if format == "luks" else {"encrypt.format": "luks", "encrypt.key-secret": "a"}
    prefix = "" if format == "luks" else "encrypt."
    options = {**key, f"{prefix}iter-time": 10}
    instar.create(device, 2 * MiB, format=format, options=options, secrets={"a": b"x"})
    found = subprocess.run(
        [
            *("qemu-io", "--object", "secret,id=a,data=x", "--image-opts"),
            *("-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k"),
            f"driver={format},{prefix}key-secret=a,file.driver=host_device,file.filename={device}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "verification failed" not in found.stdout


def test_raw_clears_the_sector_that_tells_a_format_and_no_more(device):
    """As qemu-img does it."""
    instar.create(device, 8 * MiB)
    assert read(device, 1024) == bytes(512) + OLD * 512


def test_full_preallocation_clears_the_disk_and_no_more(device):
    instar.create(device, MiB, options={"preallocation": "full"})
    assert read(device, MiB + 1) == bytes(MiB) + OLD


@pytest.mark.parametrize("format", ["raw", "qcow2", "luks"])
def test_space_cannot_be_reserved_on_a_device(format, device, tmp_path):
    """Both programs refuse, and the device is not touched."""
    secret = ["--object", "secret,id=a,data=x"] if format == "luks" else []
    options = "preallocation=falloc" + (",key-secret=a,iter-time=10" if format == "luks" else "")
    words = ["create", "-q", *secret, "-f", format, "-o", options, device, "1M"]
    ours = call(words, (7, 2), tmp_path)
    assert read(device, MiB) == OLD * MiB
    theirs = run("qemu-img", *words)
    assert ours == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours[0] == 1
    with pytest.raises(OptionError, match="preallocation=full fills it"):
        instar.create(device, MiB, options={"preallocation": "falloc"})


@pytest.mark.parametrize("format", ["qcow2", "vdi", "vhdx", "vmdk", "qed", "parallels"])
def test_what_was_on_a_device_is_not_on_the_disk(format, device):
    instar.create(device, 8 * MiB, format=format)
    found = subprocess.run(
        ["qemu-io", "-f", format, "-c", f"read -P 0 0 {8 * MiB}", device], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "verification failed" not in found.stdout


@pytest.mark.parametrize("size", ["0", "16M", "17M"])
def test_a_raw_image_is_no_longer_than_its_device(size, device, tmp_path):
    for target in (device, "/dev/null"):
        theirs = run("qemu-img", "create", "-f", "raw", target, size)
        ours = call(["create", "-f", "raw", target, size], (7, 2), tmp_path)
        assert ours == (theirs.returncode, theirs.stdout, theirs.stderr)
