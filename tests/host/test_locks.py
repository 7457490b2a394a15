"""Image locks keep instar and QEMU's programs apart, both ways, and cost nothing where there are none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from tests.support import QEMU_IMG, QEMU_IO, instar, needs_qemu_img, needs_qemu_io, qemu_img, run

import instar as library
from instar.core.errors import HostError, SandboxError
from instar.core.wire import WireError
from instar.host import describe, locks
from instar.host.files import open_image
from instar.host.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_qemu_img, needs_qemu_io]
QEMU_SYSTEM = shutil.which("qemu-system-x86_64")


@contextlib.contextmanager
def running(*words: str | Path | None, image: Path) -> Iterator[None]:
    """Have a program keep an image open: until it is told to quit."""
    with subprocess.Popen(
        [str(word) for word in words], cwd=image.parent, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as program:
        try:
            for _ in range(1000):
                if locked_bytes(image):
                    break
                assert program.poll() is None, "the program could not open the image"
                time.sleep(0.01)
            yield
        finally:
            program.communicate("quit\n", timeout=30)


def opened(*words: str, cwd: Path) -> contextlib.AbstractContextManager[None]:
    """Have qemu-io keep an image open."""
    return running(QEMU_IO, *words, image=cwd / words[-1])


@contextlib.contextmanager
def locked(path: Path, *, write: bool = False, share: bool = False, read: bool = False) -> Iterator[None]:
    with open_image(str(path)) as file:
        file.locked = True
        locks.hold(file.fd, str(path), write, share, read=read)
        yield


def locked_bytes(path: Path) -> set[int]:
    """Return which of the bytes are locked, as another program sees it."""
    found = set()
    with path.open("rb") as file:
        for byte in (*range(100, 110), *range(200, 210)):
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0)
            if struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                found.add(byte)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images that consist of a file, of a chain, of several files."""
    for format in ("qcow2", "raw", "vmdk"):
        qemu_img("create", "-q", "-f", format, f"b.{format}", "4M", cwd=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "top.qcow2", cwd=tmp_path)
    for subformat in ("monolithicFlat", "twoGbMaxExtentSparse"):
        qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", f"{subformat}.vmdk", "4M", cwd=tmp_path)
    return tmp_path


#: What qemu-io has open, and what is done meanwhile.
CASES = [
    (
        "-f qcow2 b.qcow2",
        "info b.qcow2; info file:b.qcow2; info -f qcow2 ./b.qcow2; info -f raw b.qcow2; info -U b.qcow2; check b.qcow2"
        "; check -U b.qcow2; info --backing-chain top.qcow2; info -U --backing-chain top.qcow2"
        "; create -f raw b.qcow2 1M; create -f qcow2 b.qcow2 1M"
        "; create -f qcow2 -b b.qcow2 -F qcow2 new; create -f qcow2 -b new -F raw b.qcow2",
    ),
    ("-r -f qcow2 b.qcow2", "info b.qcow2; check b.qcow2; create -f qcow2 b.qcow2 1M; create -f raw b.qcow2 1M"),
    ("-f raw b.raw", "info b.raw; info -f raw b.raw; check -f raw b.raw; create -f raw b.raw 1M"),
    ("-r -f raw b.raw", "info b.raw; create -f raw b.raw 2M"),
    ("-f vmdk b.vmdk", "check b.vmdk; create -f vmdk -b b.vmdk -F vmdk new; create -u -f vmdk -b b.vmdk new 1M"),
    ("-f vmdk monolithicFlat.vmdk", "info monolithicFlat.vmdk; check monolithicFlat.vmdk"),
    ("-f raw monolithicFlat-flat.vmdk", "info monolithicFlat.vmdk; check monolithicFlat.vmdk"),
    ("-f raw twoGbMaxExtentSparse-s001.vmdk", "info twoGbMaxExtentSparse.vmdk; check twoGbMaxExtentSparse.vmdk"),
]


@pytest.mark.parametrize(("held", "lines"), CASES, ids=[held for held, _ in CASES])
def test_refuses_what_qemu_img_refuses_and_in_its_words(held: str, lines: str, folder: Path) -> None:
    version = run(str(QEMU_IMG), "--version").stdout.split()[2]
    with opened(*held.split(), cwd=folder):
        for line in lines.split("; "):
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            theirs = run(str(QEMU_IMG), *line.split(), cwd=folder)
            if line.startswith("create"):
                for name, data in before.items():
                    (folder / name).write_bytes(data)
            ours = instar(*line.split(), cwd=folder, dialect="qemu-img", INSTAR_QEMU_VERSION=version)
            assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr), (
                line
            )
            if ours.returncode:
                assert {name: (folder / name).read_bytes() for name in before} == before, line


@pytest.mark.skipif(QEMU_SYSTEM is None, reason="qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
def test_image_of_a_machine_is_not_replaced_and_can_be_described(folder: Path) -> None:
    machine = ["-S", "-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-monitor", "stdio"]
    drive = ["-drive", "file=b.raw,format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d"]
    with running(QEMU_SYSTEM, *machine, *drive, image=folder / "b.raw"):
        described = instar("info", "b.raw", cwd=folder, dialect="qemu-img")
        made = instar("create", "-f", "raw", "b.raw", "1M", cwd=folder, dialect="qemu-img")
    assert described.returncode == 0
    assert made.stderr == 'qemu-img: b.raw: Failed to get "write" lock\nIs another process using the image [b.raw]?\n'
    assert (folder / "b.raw").stat().st_size == 4 << 20


def test_error_says_what_to_do(folder: Path) -> None:
    with opened("-f", "qcow2", "b.qcow2", cwd=folder):
        done = instar("info", "b.qcow2", cwd=folder)
        made = instar("create", "-f", "qcow2", "b.qcow2", "1M", cwd=folder)
    assert done.returncode == made.returncode == 1
    assert done.stderr == (
        'instar: b.qcow2: cannot lock it (shared "write"): another program uses this image;'
        " if it does not matter that it may change meanwhile, use -U\n"
    )
    assert made.stderr == 'instar: b.qcow2: cannot lock it ("write"): another program uses this image\n'


def test_library_raises_with_the_name_of_the_lock_and_shares_when_told(folder: Path) -> None:
    path = str(folder / "b.qcow2")
    with opened("-f", "qcow2", "b.qcow2", cwd=folder):
        for function in (library.info, library.info_chain, library.check):
            with pytest.raises(HostError) as caught:
                function(path)
            assert caught.value.lock == 'shared "write"'
            assert caught.value.facts()["lock"] == 'shared "write"'
            function(path, force_share=True)


@pytest.mark.parametrize(("command", "refused"), [("info", {"write"}), ("check", {"write"})])
def test_nobody_writes_to_an_image_while_a_cell_looks_at_it(
    command: str, refused: set[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is run meanwhile is run when the cell has said what the format is, and waits."""
    path = folder / "b.qcow2"
    said: dict[str, str] = {}
    serve = describe._Lock.serve

    def look_round(self: describe._Lock, asked: object) -> object:
        answer = serve(self, asked)  # type: ignore[arg-type]
        for words in ("read 0 512", "write 0 512"):
            options = ["-r"] if words.startswith("read") else []
            done = run(str(QEMU_IO), *options, "-f", "qcow2", "-c", words, path)
            said[words.split()[0]] = done.stderr + done.stdout
        return answer

    monkeypatch.setattr(describe._Lock, "serve", look_round)
    getattr(library, command)(str(path))
    assert {word for word, text in said.items() if "Failed to get" in text} == refused
    assert locked_bytes(path) == set()
    assert run(str(QEMU_IO), "-f", "qcow2", "-c", "write 0 512", path).returncode == 0


def test_nobody_reads_an_image_that_is_being_made_anew(folder: Path) -> None:
    with locked(folder / "b.qcow2", write=True):
        done = run(str(QEMU_IO), "-r", "-f", "qcow2", "-c", "read 0 512", "b.qcow2", cwd=folder)
        assert 'Failed to get shared "write" lock' in done.stderr
        for words in (["info", "b.qcow2"], ["create", "-f", "qcow2", "b.qcow2", "1M"]):
            assert run(str(QEMU_IMG), *words, cwd=folder).returncode == 1


def test_the_old_image_is_locked_until_the_new_one_has_its_name(folder: Path) -> None:
    words = [str(QEMU_IO), "-r", "-f", "qcow2", "-c", "read 0 512", "b.qcow2"]
    with Output(str(folder / "b.qcow2")) as output:
        output.begin()
        assert 'Failed to get shared "write" lock' in run(*words, cwd=folder).stderr
        output.commit()
    assert locked_bytes(folder / "b.qcow2") == set()
    assert (folder / "b.qcow2").stat().st_size == 0


@pytest.mark.parametrize("format", ["vpc", "vhdx"])
def test_the_parent_that_a_check_looks_at_is_locked_as_well(format: str, folder: Path) -> None:
    above, path = folder / "above", str(folder / "child")
    qemu_img("create", "-q", "-f", format, above, "4M")
    library.create(path, format=format, backing="above")
    with opened("-f", format, "above", cwd=folder):
        with pytest.raises(HostError) as caught:
            library.check(path)
        assert (os.path.normpath(caught.value.path), caught.value.lock) == (str(above), 'shared "write"')
        assert library.check(path, force_share=True).clean
    assert library.check(path).clean
    assert locked_bytes(above) == set()


@pytest.mark.parametrize(
    ("wanted", "bytes_"),
    [
        ({"write": True}, {101, 103, 203}),
        ({"read": True}, {100, 201, 203}),
        ({}, {201, 203}),
        ({"read": True, "share": True}, {100}),
        ({"share": True}, set()),
    ],
)
def test_locks_the_bytes_that_qemu_img_locks(wanted: dict[str, bool], bytes_: set[int], folder: Path) -> None:
    """Seen with strace on qemu-img 7.2 and 11.1: create, check, info, check -U, info -U."""
    with locked(folder / "b.raw", **wanted):
        assert locked_bytes(folder / "b.raw") == bytes_
    assert locked_bytes(folder / "b.raw") == set()


def test_lock_ends_with_the_file_though_a_copy_of_the_descriptor_lives_on(folder: Path) -> None:
    with locked(folder / "b.raw", read=True), open_image(str(folder / "b.raw")) as file:
        file.locked = True
        locks.hold(file.fd, "b.raw", False, False)
        copy = os.dup(file.fd)
    try:
        assert locked_bytes(folder / "b.raw") == set()
    finally:
        os.close(copy)


def test_refused_lock_leaves_nothing_locked(folder: Path) -> None:
    with locked(folder / "b.raw", write=True), open_image(str(folder / "b.raw")) as file:
        with pytest.raises(HostError):
            locks.hold(file.fd, "b.raw", False, False, read=True)
        assert locked_bytes(folder / "b.raw") == {101, 103, 203}


def test_a_lock_on_a_byte_for_one_program_alone_is_named(folder: Path) -> None:
    with (folder / "b.qcow2").open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 201, 1, 0))
        theirs = run(str(QEMU_IMG), "info", "b.qcow2", cwd=folder)
        ours = instar("info", "b.qcow2", cwd=folder, dialect="qemu-img")
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOLCK])
def test_file_system_without_locks_is_passed_over(answer: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(answer, "")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with locked(folder / "b.raw", read=True):
        pass


def test_a_cell_announces_once_and_stays_with_it(folder: Path) -> None:
    with open_image(str(folder / "b.qcow2")) as file:
        lock = describe._Lock(file, None, share=False, read=False)
        assert lock.waits
        lock.serve({"do": "format", "format": "qcow2"})
        assert locked_bytes(folder / "b.qcow2") == {201, 203}
        with pytest.raises(WireError):
            lock.serve({"do": "format", "format": "raw"})
        lock.confirm("qcow2")
        with pytest.raises(SandboxError, match="two formats"):
            lock.confirm("vmdk")
    with open_image(str(folder / "b.qcow2")) as file:
        with pytest.raises(SandboxError, match="did not announce"):
            describe._Lock(file, None, share=False, read=False).confirm("qcow2")
        with pytest.raises(WireError):
            describe._Lock(file, "qcow2", share=False, read=False).serve({"do": "format", "format": "qcow2"})


def test_other_failures_of_locking_are_errors(folder: Path) -> None:
    with pytest.raises(HostError, match="cannot lock it"):
        locks.hold(9999, "b.raw", False, False)
