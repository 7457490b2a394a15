"""A file is judged before it is opened: what is no disk does not notice that anybody looked at it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.dialect.world import call
from tests.compat.versions import generations
from tests.support import instar as program
from tests.support import run

import instar
from instar.core.errors import HostError
from instar.host import files
from instar.host.files import Pinned, open_image, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path(__file__).parent.parent.parent / "src"
#: Every way by which a name of the caller's gets opened, with the name last.
WAYS = {
    "info": ["info"],
    "check": ["check"],
    "backing": ["create", "-f", "qcow2", "-F", "raw", "new", "-b"],
    "target": ["create", "-f", "qcow2", "-o", "size=1M"],
    "data file": ["create", "-f", "qcow2", "new", "1M", "-o"],
}


def words_of(way: str, path: Path | str) -> list[str]:
    return [*WAYS[way], f"data_file={path}" if way == "data file" else str(path)]


@contextlib.contextmanager
def waiting_writer(path: Path) -> Iterator[threading.Thread]:
    """Have a writer wait for somebody to open a pipe; it goes on when somebody does."""
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)), daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    yield thread
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    thread.join(10)


@pytest.mark.parametrize("way", WAYS)
def test_the_writer_of_a_pipe_goes_on_waiting(way: str, tmp_path: Path) -> None:
    with waiting_writer(tmp_path / "pipe") as writer:
        done = program("--isolation=process", *words_of(way, tmp_path / "pipe"), cwd=tmp_path)
        assert done.returncode == 1
        assert "it is neither a regular file nor a block device" in done.stderr
        writer.join(0.2)
        assert writer.is_alive()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("way", WAYS)
def test_a_device_that_is_no_disk_is_looked_up_and_no_more(way: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "link").symlink_to("/dev/ptmx")
    command = ["strace", "-f", "-y", "-e", "trace=open,openat,openat2", "-o", str(trace)]
    command += [sys.executable, "-m", "instar"]
    done = run(*command, "--isolation=process", *words_of(way, "link"), cwd=tmp_path, env={"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 1
    assert "it is neither a regular file nor a block device" in done.stderr
    opened = [line for line in trace.read_text().splitlines() if "ptmx>" in line.partition(" = ")[2]]
    assert opened or way in ("target", "data file"), "the trace shows nothing"
    assert all("O_PATH" in line for line in opened), opened


class TestStreams:
    """Secrets and jobs come from files, pipes and terminals; no other device is touched."""

    @pytest.mark.parametrize("device", ["/dev/ptmx", "/dev/kmsg", "/dev/mem", "/dev/loop-control"])
    def test_other_devices_are_not_opened(self, device: str, tmp_path: Path) -> None:
        if not os.path.exists(device):
            pytest.skip(f"there is no {device} here")
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            open_stream(device)
        assert os.listdir("/proc/self/fd") == before
        done = program("create", "--batch", device, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert os.strerror(errno.ENXIO) in done.stderr
        done = program("info", "--object", f"secret,id=a,file={device}", "x", cwd=tmp_path)
        assert done.returncode == 1
        assert os.strerror(errno.ENXIO) in done.stderr

    def test_pipes_are_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text('{"filename": "a", "size": "1M"}\n'))
        writer.start()
        done = program("create", "--batch", "pipe", cwd=tmp_path)
        writer.join()
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "a").stat().st_size == 1 << 20


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda path: path.mkdir(), errno.EISDIR),
        (os.mkfifo, errno.EINVAL),
        (lambda path: path.symlink_to("/dev/tty"), errno.EINVAL),
        (lambda path: path.symlink_to(path.name), errno.ELOOP),
        (lambda path: path.symlink_to("nowhere"), errno.ENOENT),
    ],
    ids=["folder", "pipe", "terminal", "loop", "nowhere"],
)
def test_what_is_no_file_is_refused_by_name(make: Callable[[Path], None], number: int, tmp_path: Path) -> None:
    make(tmp_path / "a")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError) as caught:
        open_image(str(tmp_path / "a"))
    assert caught.value.errno == number
    assert os.listdir("/proc/self/fd") == before


def test_a_socket_is_refused_as_the_system_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("a")
        with pytest.raises(OSError, match="No such device") as real:
            os.open("a", os.O_RDONLY)
        with pytest.raises(HostError) as caught:
            open_image("a")
    assert caught.value.errno == real.value.errno


def test_what_was_judged_is_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("judged")
    with Pinned(str(tmp_path / "a")) as pinned:
        (tmp_path / "a").unlink()
        os.mkfifo(tmp_path / "a")
        fd = pinned.open(os.O_RDONLY)
        assert os.read(fd, 10) == b"judged"
        os.close(fd)


class TestWithoutProc:
    """Only the name is left then, and what it gives is compared."""

    @pytest.fixture(autouse=True)
    def _no_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.open

        def fake(path: str, *rest: object, **more: object) -> int:
            if path.startswith("/proc/"):
                raise FileNotFoundError(errno.ENOENT, path)
            return real(path, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(files.os, "open", fake)
        monkeypatch.setattr(files.os, "access", lambda *_: False)

    def test_a_file_is_opened(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        with open_image(str(tmp_path / "a")) as image:
            assert image.size == 1

    def test_another_file_of_that_name_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        with Pinned(str(tmp_path / "a")) as pinned:
            (tmp_path / "a").rename(tmp_path / "b")
            (tmp_path / "a").write_text("y")
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                pinned.open(os.O_RDONLY)


class TestEmptyDevices:
    """/dev/null and its like are empty raw images to qemu-img."""

    @pytest.mark.parametrize("version", generations(), ids=lambda v: f"{v[0]}.{v[1]}")
    @pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"])
    def test_are_described_as_qemu_img_does(self, device: str, version: tuple[int, int], tmp_path: Path) -> None:
        for words in (["info"], ["info", "-f", "raw"], ["info", "--output=json"], ["info", "-f", "qcow2"], ["check"]):
            theirs = run(generations()[version], *words, device)
            assert call([*words, device], version, tmp_path) == (theirs.returncode, theirs.stdout, theirs.stderr)

    def test_are_images_of_no_bytes(self) -> None:
        found = instar.info("/dev/null")
        assert (found.format, found.virtual_size, found.children[0].protocol) == ("raw", 0, "host_device")

    def test_can_be_below_an_image(self, tmp_path: Path) -> None:
        made = instar.create(str(tmp_path / "a"), format="qcow2", backing="/dev/null", backing_format="raw")
        assert made.virtual_size == 0

    def test_by_another_number_are_no_images(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to make device nodes")
        os.mknod(tmp_path / "memory", 0o20600, os.makedev(1, 1))
        with pytest.raises(HostError, match="neither"):
            open_image(str(tmp_path / "memory"))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("losetup") is None, reason="needs root and losetup")
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_device_is_described_as_qemu_img_does(size: int, tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(bytes(size))
    words = ["losetup", "--find", "--show", str(tmp_path / "store")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"there is no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        for version, real in generations().items():
            for more in ([], ["--output=json"]):
                theirs = run(real, "info", *more, device)
                ours = call(["info", *more, device], version, tmp_path)
                assert ours == (theirs.returncode, theirs.stdout, theirs.stderr)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
