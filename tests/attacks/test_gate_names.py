"""Names that images give: whatever they are and wherever FILE lies, no file is opened that the gate does not let pass.

A secret is what the attacker wants to see: its bytes, its length, or that it is there. The attacker's code asks for it
by a name, and tells in its next reply whatever it was given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import attack, facts, image_of, obey
from tests.sandbox.backends import KVM
from tests.sandbox.exploited import exploited
from tests.support import instar as run_instar

import instar
from instar.core.wire import decode, encode, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = b"the bytes of a secret elsewhere "
_ROOT = Path(__file__).parent.parent.parent


def asking(name: bytes, *, role: str = "extents.0", format: str | None = "raw") -> Any:
    """Return a guest that names a file that it needs, and tells as its backing file's name what it was given then."""

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        if take(decode(job), "args", dict).get("announce"):
            ask({"do": "format", "format": "vmdk"})
        if len(files) > 1:
            data = b"GOT " + os.pread(6, 64, 0) + b" of %d" % files[1].size
            return encode({"ok": facts("vmdk", references=[["backing", data.replace(b"\0", b"0"), None, False]])})
        return encode({"ok": facts("vmdk", references=[[role, name, format, True]])})

    return guest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the attacker's folder; the secret is beside it."""
    (tmp_path / "secret").write_bytes(SECRET)
    inner = tmp_path / "images"
    inner.mkdir()
    image_of(inner)
    return inner


def _refused(done: Any) -> None:
    obey(done)
    assert done.code != 0, done
    assert "GOT" not in done.out + done.err
    assert SECRET.decode() not in done.out + done.err


_NAMES: dict[str, Callable[[Path], bytes]] = {
    "the folder above": lambda f: b"../secret",
    "in and out again": lambda f: b"x/../../secret",
    "absolute": lambda f: bytes(f.parent / "secret"),
    "absolute by way of the folder": lambda f: bytes(f) + b"/../secret",
    "two slashes": lambda f: b"//" + bytes(f.parent)[1:] + b"/secret",
    "dots and slashes": lambda f: b"./././/..//./secret",
    "file:": lambda f: b"file:../secret",
    "file://": lambda f: b"file://" + bytes(f.parent / "secret"),
    "json:": lambda f: b'json:{"driver":"file","filename":"' + bytes(f.parent / "secret") + b'"}',
    "json: without a driver": lambda f: b'json:{"file.filename":"../secret"}',
    "nbd:": lambda f: b"nbd:unix:/run/x",
    "nbd+unix:": lambda f: b"nbd+unix:///x?socket=/run/x",
    "http:": lambda f: b"http://127.0.0.1:1/x",
    "host_device:": lambda f: b"host_device:/dev/zero",
    "fat:": lambda f: b"fat:rw:/etc",
    "blkdebug:": lambda f: b"blkdebug::" + bytes(f.parent / "secret"),
    "fd:": lambda f: b"fd:3",
    "/dev/fdset": lambda f: b"/dev/fdset/1",
    "with NUL": lambda f: b"image\0/../../secret",
    "NUL at the end": lambda f: b"../secret\0",
    "empty": lambda f: b"",
    "a dot": lambda f: b".",
    "two dots": lambda f: b"..",
    "with ESC": lambda f: b"../\x1b[2Jsecret",
    "4,096 bytes": lambda f: b"../" * 1364 + b"sec",
    "4,095 slashes": lambda f: b"/" * 4095,
    "no UTF-8": lambda f: b"../\xff\xfe\x9b",
    "a component of 4,000 bytes": lambda f: b"x" * 4000,
    "/proc/self/fd/3": lambda f: b"/proc/self/fd/3",
    "/proc/self/environ": lambda f: b"/proc/self/environ",
    "/proc/self/cwd": lambda f: b"/proc/self/cwd/../secret",
    "/proc/1/root": lambda f: b"/proc/1/root" + bytes(f.parent / "secret"),
    "/dev/stdin": lambda f: b"/dev/stdin",
    "/dev/zero": lambda f: b"/dev/zero",
    "/dev/tty": lambda f: b"/dev/tty",
    "/sys": lambda f: b"/sys/kernel/notes",
    "Windows": lambda f: b"..\\secret",
    "a drive": lambda f: b"C:\\secret",
    "tilde": lambda f: b"~/secret",
    "a variable": lambda f: b"$PWD/../secret",
}


@pytest.mark.parametrize("name", _NAMES)
def test_name_out_of_a_cell(name: str, folder: Path) -> None:
    text = _NAMES[name](folder)
    for words in (["info"], ["check"], ["--dialect=qemu-img", "info"]):
        _refused(attack(asking(text), *words, folder / "image"))


@pytest.mark.parametrize("kind", [KVM])
@pytest.mark.parametrize("name", ["absolute", "with NUL", "/proc/self/environ"])
def test_name_out_of_a_machine(name: str, kind: str, folder: Path) -> None:
    _refused(attack(asking(_NAMES[name](folder)), "info", folder / "image", kind=kind))


@pytest.mark.parametrize("role", ["backing", "extents.0", "data-file", "", "file", "x" * 5000, "../x", "__class__"])
def test_role_does_not_change_what_may_be_opened(role: str, folder: Path) -> None:
    _refused(attack(asking(b"../secret", role=role), "info", folder / "image"))


@pytest.mark.parametrize("name", ["the folder above", "absolute", "json:", "/proc/self/environ", "with NUL"])
def test_name_of_a_backing_file_of_a_chain(name: str, folder: Path) -> None:
    text = _NAMES[name](folder)

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        if take(decode(job), "args", dict).get("announce"):
            ask({"do": "format", "format": "qcow2"})
        if files[0].size == len(SECRET):
            return encode({"ok": facts(references=[["backing", b"GOT it", None, False]])})
        return encode({"ok": facts(references=[["backing", text, "raw", False]])})

    done = obey(attack(guest, "info", "--backing-chain", folder / "image"))
    assert done.code != 0
    assert "GOT" not in done.out + done.err


def test_neighbour_is_told_so_that_refusals_mean_something(folder: Path) -> None:
    (folder / "part").write_bytes(b"harmless")
    assert "GOT harmless" in attack(asking(b"part"), "info", folder / "image").out


def test_answer_is_the_same_whether_a_file_outside_is_there_or_not(folder: Path) -> None:
    said = []
    for name in (b"../secret", b"../absent"):
        done = attack(asking(name), "info", folder / "image")
        said.append((done.code, done.err.replace(os.fsdecode(name), "NAME")))
    assert said[0] == said[1]


# --- what lies in the folder ---


def _link(folder: Path, target: str) -> bytes:
    (folder / "link").symlink_to(target)
    return b"link"


_PLACED: dict[str, Callable[[Path], bytes]] = {
    "link to the secret": lambda f: _link(f, "../secret"),
    "absolute link": lambda f: _link(f, str(f.parent / "secret")),
    "link to a link": lambda f: (os.symlink("../secret", f / "second"), _link(f, "second"))[1],
    "link to the folder above": lambda f: _link(f, "..") + b"/secret",
    "link to the root": lambda f: _link(f, "/") + bytes(f.parent / "secret"),
    "link to itself": lambda f: _link(f, "link"),
    "link of 4,000 bytes": lambda f: _link(f, "./" * 1990 + "../secret"),
    "link to /dev/stdin": lambda f: _link(f, "/dev/stdin"),
    "link to /dev/zero": lambda f: _link(f, "/dev/zero"),
    "link to /proc/self/fd": lambda f: _link(f, "/proc/self/fd") + b"/0",
    "link to /proc/self/root": lambda f: _link(f, "/proc/self/root") + bytes(f.parent / "secret"),
    "link to /proc/self/cwd": lambda f: _link(f, "/proc/self/cwd"),
    "folder": lambda f: ((f / "folder").mkdir(), b"folder")[1],
    "socket": lambda f: (_socket(f / "socket"), b"socket")[1],
    "character device": lambda f: (os.mknod(f / "null", 0o020666, os.makedev(1, 3)), b"null")[1],
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)


@pytest.mark.parametrize("what", _PLACED)
def test_what_lies_in_the_folder(what: str, folder: Path) -> None:
    if what == "character device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    name = _PLACED[what](folder)
    _refused(attack(asking(name), "info", folder / "image"))


@contextlib.contextmanager
def _writer_waiting(path: Path) -> Iterator[Any]:
    """Have a FIFO at ``path`` whose writer waits for a reader; gives what tells whether it still waits."""
    os.mkfifo(path)
    code = "import os, sys; os.open(sys.argv[1], os.O_WRONLY)"
    with subprocess.Popen([sys.executable, "-S", "-c", code, str(path)], stderr=subprocess.DEVNULL) as writer:
        wchan = Path(f"/proc/{writer.pid}/syscall")
        end = time.monotonic() + 20
        while time.monotonic() < end and "257 " not in wchan.read_text():  # openat
            time.sleep(0.02)
        time.sleep(0.1)
        try:
            yield lambda: writer.poll() is None
        finally:
            writer.kill()


@pytest.mark.parametrize(
    "place", ["image", "backing", "data-file", "extent", "link", "base of create", "target of create"]
)
def test_fifo_is_never_opened(place: str, folder: Path) -> None:
    fifo = folder / "fifo"
    with _writer_waiting(fifo) as waits:
        if place == "image":
            done = run_instar("info", fifo)
            assert run_instar("check", fifo).returncode != 0
        elif place == "link":
            (folder / "link").symlink_to("fifo")
            done = run_instar("info", folder / "link")
        elif place == "base of create":
            done = run_instar("create", "-f", "qcow2", "-b", fifo, "-F", "raw", folder / "new")
        elif place == "target of create":
            done = run_instar("create", "-f", "qcow2", fifo, "1M")
        else:
            role = {"extent": "extents.0"}.get(place, place)
            done = attack(asking(b"fifo", role=role), "info", folder / "image")
        time.sleep(0.1)
        assert waits(), "the writer was let go: the pipe was opened"
    assert getattr(done, "code", getattr(done, "returncode", 0)) in (1, 70)


def test_image_that_becomes_a_link_while_it_is_looked_at(folder: Path) -> None:
    """Swap a neighbour for a link to the secret, as fast as can be."""
    (folder / "part").write_bytes(b"harmless" + bytes(504))
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import os, sys\nos.chdir(sys.argv[1])\nwhile 1:\n"
         " os.symlink('../secret', 'new'); os.rename('new', 'part')\n"
         " open('new', 'wb').write(b'harmless' + bytes(504)); os.rename('new', 'part')\n", str(folder)],
    )  # fmt: skip
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            done = obey(attack(asking(b"part"), "info", folder / "image"))
            assert SECRET.decode() not in done.out + done.err
    finally:
        child.kill()
        child.wait()


# --- FILE where no image's folder is ---

_DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicFlat"
RW 1 FLAT "{}" 0
"""


@pytest.fixture
def in_shm() -> Iterator[str]:
    """Make a secret in /dev/shm, and give its name from /dev."""
    name = f"attacked-{os.getpid()}"
    path = Path("/dev/shm", name)
    path.write_bytes(bytes(512))
    yield f"shm/{name}"
    path.unlink()


def _described(words: list[str], **files: Any) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
    env["PYTHONPATH"] = str(_ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "instar", *words], env=env, capture_output=True, text=True, check=False, **files
    )
    assert done.returncode in (0, 1, 2, 3, 63, 70), done
    return done


@pytest.mark.parametrize("command", ["info", "check"])
@pytest.mark.parametrize(
    "file",
    [
        "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/proc/thread-self/fd/0", "/dev/../dev/stdin", "//dev/stdin",
        "/proc/{pid}/fd/{fd}", "/proc/self/root/dev/stdin", "/proc/self/root{image}", "/proc/{pid}/root{image}",
        "/proc/{pid}/cwd/x.vmdk",
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", ["{shm}", "/dev/{shm}", "../../../../../../../../dev/{shm}", "../root/dev/{shm}"])
def test_descriptor_by_way_of_devices_and_processes(
    named: str, file: str, command: str, in_shm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "x.vmdk"
    image.write_text(_DESCRIPTOR.format(named.format(shm=in_shm)))
    monkeypatch.chdir(tmp_path)
    with image.open("rb") as stream:
        words = [command, file.format(pid=os.getpid(), fd=stream.fileno(), image=image)]
        done = _described(words, stdin=stream)
    assert done.returncode == 1, done
    assert "512" not in done.stdout


@pytest.mark.parametrize("link", ["to /dev/stdin", "in /dev", "to a loop device"])
def test_link_to_a_device_opens_no_folder(link: str, in_shm: str, tmp_path: Path) -> None:
    image = tmp_path / "x.vmdk"
    image.write_text(_DESCRIPTOR.format(in_shm) + "\n" * 8192)
    place = tmp_path / "link"
    device = None
    if link == "to a loop device":
        if os.geteuid() != 0 or not shutil.which("losetup"):
            pytest.skip("only root makes loop devices")
        made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no loop device can be made here: {made.stderr}")
        device = made.stdout.strip()
    try:
        if device:
            place.symlink_to(device)
            assert _described(["info", device]).returncode == 1
            assert _described(["info", str(place)]).returncode == 1
        elif link == "to /dev/stdin":
            place.symlink_to("/dev/stdin")
            with image.open("rb") as stream:
                assert _described(["info", str(place)], stdin=stream).returncode == 1
        else:
            made_in = Path(f"/dev/attacked-{os.getpid()}")
            try:
                made_in.symlink_to(image)
            except OSError as error:
                pytest.skip(f"nothing can be placed in /dev: {error}")
            try:
                assert _described(["info", str(made_in)]).returncode == 1
            finally:
                made_in.unlink()
    finally:
        if device:
            subprocess.run(["losetup", "-d", device], check=False)


def test_image_in_the_root_opens_neighbours_only(in_shm: str) -> None:
    image = Path(f"/attacked-{os.getpid()}.vmdk")
    try:
        image.write_text(_DESCRIPTOR.format(f"dev/{in_shm}"))
    except OSError as error:
        pytest.skip(f"nothing can be placed in /: {error}")
    try:
        assert _described(["info", str(image)]).returncode == 1
    finally:
        image.unlink()


def test_image_that_was_removed_opens_no_folder_by_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "secret (deleted)").write_bytes(SECRET * 16)
    image = tmp_path / "x.vmdk"
    image.write_text(_DESCRIPTOR.format("secret (deleted)"))
    with image.open("rb") as stream:
        image.unlink()
        done = _described(["info", f"/proc/self/fd/{stream.fileno()}"], pass_fds=[stream.fileno()])
    assert done.returncode == 1


def test_batch_of_a_library_call_opens_nothing_that_a_base_names(folder: Path) -> None:
    with exploited(asking(b"../secret")) as isolation:
        results = list(
            instar.create_many(
                [
                    {"filename": str(folder / f"new{n}"), "format": "qcow2", "backing": str(folder / "image")}
                    for n in (1, 2)
                ],
                isolation=isolation,
            )
        )
    assert all(isinstance(result, instar.InstarError) for result in results)
    assert not (folder / "new1").exists()
