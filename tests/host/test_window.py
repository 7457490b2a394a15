"""An image in a window of a file is what the same bytes are in a file of their own, and nothing else is seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from tests.compat.versions import VERSIONS, real
from tests.sandbox.backends import KINDS
from tests.sandbox.exploited import exploited, replying
from tests.support import instar as command
from tests.support import needs_qemu_img, needs_qemu_io, qemu_img, run

import instar
from instar.core.image import ImageFacts
from instar.host.files import open_source
from instar.host.names import as_source
from instar.sandbox.process.policy import FD_FILES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.sandbox.cells import Ask

    from instar.sandbox.files import GrantedFile

MiB = 1 << 20
FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "parallels", "luks")


def make(path: Path, format: str, size: int = 4 * MiB) -> bytes:
    """Make an image and return its bytes."""
    luks: dict[str, Any] = {"options": {"key-secret": "s", "iter-time": 10}, "secrets": {"s": b"x"}}
    instar.create(str(path), size, format=format, **(luks if format == "luks" else {}))
    return path.read_bytes()


def up(size: int) -> int:
    return -(-size // 512) * 512


def outcome(operation: Callable[..., Any], path: object, **how: Any) -> dict[str, Any]:
    """Return what an operation finds, but for names and for what is about the file as such."""
    try:
        found = operation(path, **how)
    except instar.InstarError as error:
        return {key: value for key, value in error.facts().items() if key not in ("path", "message", "image")}
    told = {key: getattr(found, key) for key in type(found).__slots__ if key not in _ABOUT_FILES}
    told["findings"] = [(f.severity, f.detail, f.offset) for f in told.get("findings", ())]
    for extent in (told.get("format_specific") or {}).get("data", {}).get("extents", ()):
        del extent["filename"]
    return told


_ABOUT_FILES = ("filename", "children", "allocated", "identity", "references", "options")


@pytest.mark.parametrize("format", FORMATS)
def test_image_of_each_format_is_the_same_in_a_window(format: str, tmp_path: Path) -> None:
    data = make(tmp_path / "inner", format)
    for before, behind in ((512, 0), (1000, 1536), (3 * MiB, 65536)):
        outer = tmp_path / "outer"
        outer.write_bytes(b"\xee" * before + data + b"\xdd" * behind)
        window = instar.Window(str(outer), before, len(data) if behind else None)
        for operation in (instar.info, instar.check):
            for how in ({}, {"format": format}):
                assert outcome(operation, window, **how) == outcome(operation, str(tmp_path / "inner"), **how)


@needs_qemu_img
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_disk_in_an_archive_is_what_it_is_unpacked(kind: str, tmp_path: Path) -> None:
    """An OVA is a tar archive whose members follow one another, each from a multiple of 512 on."""
    make(tmp_path / "disk.qcow2", "qcow2")
    make(tmp_path / "disk.vhd", "vpc")
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", "disk.vmdk", "8M", cwd=tmp_path)
    broken = bytearray((tmp_path / "disk.qcow2").read_bytes())
    broken[2 * 65536] = 0xFF
    (tmp_path / "broken.qcow2").write_bytes(broken)
    (tmp_path / "disk.ovf").write_text("<Envelope/>")
    names = ["disk.ovf", "disk.vmdk", "disk.qcow2", "broken.qcow2", "disk.vhd"]
    with tarfile.open(tmp_path / "all.ova", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.add(tmp_path / name, name)
    isolation = instar.Isolation(kind)
    with tarfile.open(tmp_path / "all.ova") as archive:
        for member in archive.getmembers()[1:]:
            plain = tmp_path / member.name
            whole = instar.Window(str(tmp_path / "all.ova"), member.offset_data, member.size)
            for operation in (instar.info, instar.check):
                expected = outcome(operation, str(plain), isolation=isolation)
                assert outcome(operation, whole, isolation=isolation) == expected, member.name


def test_window_lies_in_a_window(tmp_path: Path) -> None:
    data = make(tmp_path / "inner", "qcow2")
    outer = tmp_path / "outer"
    outer.write_bytes(b"\xee" * 5000 + data + b"\xdd" * 512)
    window = instar.Window(instar.Window(str(outer), 1000, 4096 + len(data)), 4000, len(data))
    found = instar.info(window)
    assert (found.format, found.file_length) == ("qcow2", len(data))
    (upper,) = found.children
    (lower,) = upper.children
    (file,) = lower.children
    shown = [(node.protocol, node.filename, node.length, dict(node.options)) for node in (upper, lower, file)]
    assert shown == [
        ("raw", str(outer), up(len(data)), {"offset": 4000, "size": len(data)}),
        ("raw", str(outer), up(4096 + len(data)), {"offset": 1000, "size": 4096 + len(data)}),
        ("file", str(outer), up(5512 + len(data)), {}),
    ]
    assert found.actual_size == os.stat(outer).st_blocks * 512


@pytest.mark.parametrize(
    ("offset", "size", "code"),
    [
        (-1, None, "window-value"),
        (1 << 63, None, "window-value"),
        (True, None, "window-value"),
        (1.0, None, "window-value"),
        ("512", None, "window-value"),
        (0, -512, "window-value"),
        (0, True, "window-value"),
        (0, 1 << 63, "window-value"),
        (3073, None, "window-offset"),
        (1 << 62, None, "window-offset"),
        ((1 << 63) - 1, 512, "window-offset"),
        (0, 3584, "window-size"),
        (512, 3072, "window-size"),
        (512, (1 << 63) - 512, "window-size"),
    ],
)
def test_window_that_cannot_be_is_an_option_error(offset: Any, size: Any, code: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3000))
    with pytest.raises(instar.OptionError) as caught:
        instar.info(instar.Window(str(tmp_path / "file"), offset, size))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("offset", "size", "start", "length", "virtual_size"),
    [
        (0, None, 0, 3000, 3072),
        (0, 3072, 0, 3000, 3072),
        (1, None, 1, 2999, 3072),
        (500, None, 500, 2561, 3072),
        (2500, 512, 2500, 500, 512),
        (3000, None, 3000, 1, 512),
        (3001, None, 3000, 1, 512),
        (3072, None, 3000, 0, 0),
        (3072, 0, 3000, 0, 0),
        (512, 0, 512, 0, 0),
    ],
)
def test_grant_ends_in_the_last_sector_of_the_window(
    offset: int, size: int | None, start: int, length: int, virtual_size: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3000))
    window = instar.Window(str(path), offset, size)
    with open_source(as_source(window)) as image:
        with path.open("ab") as file:
            file.write(b"later")  # what comes later is not in the window
        grant = image.grant()
        assert (grant.offset, grant.size, image.whole) == (start, length, 3000)
    path.write_bytes(bytes(3000))
    assert instar.info(window).virtual_size == virtual_size


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(instar.HostError) as caught:
        instar.info(instar.Window(str(tmp_path / "gone"), 512))
    assert caught.value.path == str(tmp_path / "gone")


@pytest.mark.parametrize("kind", KINDS)
def test_exploited_cell_has_the_window_and_no_more(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"b" * 4096 + b"w" * 512 + b"a" * 4096)
    window = instar.Window(str(tmp_path / "file"), 4096, 512)

    def reads(offset: int, count: int) -> Callable[..., bytes]:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            assert files[0].size == 512
            if b"b" in (data := os.pread(FD_FILES, count, offset)) or b"a" in data:
                return b"out"  # no reply that the host takes
            return replying(ImageFacts("raw", 512).to_wire())(job, files, ask)

        return guest

    start = 4096 if kind == "process" else 0
    with exploited(reads(start, 512), kind) as isolation:
        assert instar.info(window, isolation=isolation).format == "raw"
    for offset, count in ((start - 1, 2), (start, 513), (start + 511, 2), (start + 512, 1), (0, 1), (8000, 1)):
        with exploited(reads(offset, count), kind) as isolation, contextlib.ExitStack() as stack:
            if kind == "process":
                stack.enter_context(pytest.raises(instar.SandboxError, match="no cell may make"))
            elif offset < 0:
                stack.enter_context(pytest.raises(instar.SandboxError, match="code"))
            instar.info(window, isolation=isolation)


def test_length_of_a_raw_window_is_no_cells_to_say(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    with exploited(replying(ImageFacts("raw", 1 << 40).to_wire())) as isolation:
        window = instar.Window(str(tmp_path / "file"), 512, 1024)
        assert instar.info(window, isolation=isolation, format="raw").virtual_size == 1024


@needs_qemu_io
def test_image_in_a_window_is_locked_as_its_whole_file(tmp_path: Path) -> None:
    from tests.host.test_locks import opened

    data = make(tmp_path / "inner", "qcow2")
    outer = tmp_path / "outer"
    outer.write_bytes(b"\xee" * 1024 + data)
    window = instar.Window(str(outer), 1024)
    with opened("-f", "raw", "outer", cwd=tmp_path):
        for operation in (instar.info, instar.check):
            with pytest.raises(instar.HostError) as caught:
                operation(window)
            assert caught.value.lock == 'shared "write"'
            operation(window, force_share=True)
        assert instar.info(window, format="raw").virtual_size == up(len(data))


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("losetup") is None or (7, 2) not in VERSIONS,
    reason="needs root and losetup, to make a block device, and qemu-img 7.2",
)
def test_window_into_a_block_device(tmp_path: Path) -> None:
    data = make(tmp_path / "inner", "qcow2")
    store = tmp_path / "store"
    store.write_bytes((b"\xee" * MiB + data).ljust(2 * MiB, b"\xdd"))
    done = subprocess.run(["losetup", "--find", "--show", store], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"there is no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        assert instar.info(instar.Window(device, MiB)).format == "qcow2"
        assert instar.check(instar.Window(device, MiB, len(data))).clean
        assert instar.info(instar.Window(device, MiB, 512), format="raw").virtual_size == 512
        with pytest.raises(instar.OptionError):
            instar.info(instar.Window(device, 2 * MiB + 512))
        for driver, file in (("host_device", device), ("file", device), ("host_device", "inner"), ("file", "inner")):
            name = f'json:{{"driver":"raw","size":512,"file":{{"driver":"{driver}","filename":"{file}"}}}}'
            ours = command("info", name, cwd=tmp_path, dialect="qemu-img", INSTAR_QEMU_VERSION="7.2")
            theirs = run(real((7, 2)), "info", name, cwd=tmp_path)
            assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@needs_qemu_img
def test_window_as_a_backing_file(tmp_path: Path) -> None:
    data = make(tmp_path / "inner", "qcow2", 7 * MiB)
    (tmp_path / "outer").write_bytes((b"\xee" * 1024 + data).ljust(MiB, b"\xdd"))
    with pytest.raises(instar.OptionError) as wrong:  # QEMU could not open it
        instar.Window(str(tmp_path / "outer"), 1024, len(data)).as_name()
    assert wrong.value.code == "window-alignment"
    window = instar.Window(str(tmp_path / "outer"), 1024, up(len(data)))
    top = tmp_path / "top"
    made = instar.create(str(top), format="qcow2", backing=window, backing_format="qcow2")
    assert made.virtual_size == 7 * MiB
    assert instar.info(str(top)).backing_filename == window.as_name()
    chain = qemu_img("info", "--backing-chain", "--output=json", str(top)).stdout
    assert '"virtual-size": 7340032' in chain.partition('"backing-filename"')[2]
    assert "outer" in chain
    # An image is no person: what it names in that way is not opened.
    with pytest.raises(instar.ImageError) as caught:
        instar.info_chain(str(top))
    assert caught.value.kind == "denied"


def test_extents_are_looked_for_in_the_folder_of_the_file(tmp_path: Path) -> None:
    instar.create(str(tmp_path / "disk.vmdk"), MiB, format="vmdk", options={"subformat": "monolithicFlat"})
    descriptor = (tmp_path / "disk.vmdk").read_bytes()
    (tmp_path / "outer").write_bytes(b"\xee" * 1024 + descriptor)
    window = instar.Window(str(tmp_path / "outer"), 1024)
    assert instar.info(window).virtual_size == MiB
    assert instar.check(window).clean
    shutil.move(tmp_path / "disk-flat.vmdk", tmp_path.parent / "disk-flat.vmdk")
    with pytest.raises(instar.ImageError) as caught:
        instar.info(window)
    assert caught.value.kind == "not-found"


def test_chain_may_begin_in_a_window(tmp_path: Path) -> None:
    make(tmp_path / "base", "raw")
    instar.create(str(tmp_path / "top"), format="qcow2", backing="base", backing_format="raw")
    (tmp_path / "outer").write_bytes(bytes(1024) + (tmp_path / "top").read_bytes())
    chain = instar.info_chain(instar.Window(str(tmp_path / "outer"), 1024))
    assert [image.format for image in chain] == ["qcow2", "raw"]
    assert chain[1].filename == str(tmp_path / "base")


class TestCommand:
    def test_probe_of_virt_v2v_succeeds(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(2048))
        name = 'json:{ "file": { "driver":"raw", "offset":512, "size":512, "file": { "filename":"file" } } }'
        assert command("info", name, cwd=tmp_path, dialect="qemu-img").returncode == 0

    def test_own_dialect_shows_where_the_image_lies(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(4096))
        done = command("info", "--image-opts", "driver=raw,offset=1k,file.filename=file", cwd=tmp_path)
        assert done.returncode == 1  # a switch of the dialect only
        name = 'json:{"driver":"raw","offset":"1k","file":{"filename":"file"}}'
        done = command("info", name, cwd=tmp_path)
        assert done.stdout.splitlines()[:3] == [
            'image: json:{"offset": "1k", "driver": "raw", "file": {"driver": "file", "filename": "file"}}',
            "file format: raw",
            "virtual size: 3 KiB (3072 bytes)",
        ]
        assert "Child node '/file':\n    filename: file\n" in done.stdout

    def test_own_dialect_says_what_is_wrong_with_a_window(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(4096))
        name = 'json:{"driver":"raw","offset":8192,"file":{"filename":"file"}}'
        done = command("check", name, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "the window begins at 8192, behind the end of what it lies in, which has 4096 bytes" in done.stderr

    def test_name_that_is_shown_opens_the_same_image(self, tmp_path: Path) -> None:
        data = make(tmp_path / "inner", "qcow2")
        (tmp_path / "outer").write_bytes(bytes(1024) + data)
        name = 'json:{"file":{"driver":"raw","offset":"1k","file":{"filename":"outer"}}}'
        first = command("info", name, cwd=tmp_path, dialect="qemu-img")
        shown = first.stdout.splitlines()[0].removeprefix("image: ")
        second = command("info", shown, cwd=tmp_path, dialect="qemu-img")
        assert (second.returncode, second.stdout) == (0, first.stdout)
