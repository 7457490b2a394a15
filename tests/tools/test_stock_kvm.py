"""The archive, the closures and the report that emulated machines are made of. Nothing is booted here."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tools.initramfs import (
    Entry,
    InitramfsError,
    compile_all,
    depends,
    entries_of,
    libraries,
    modules,
    requirements,
    write_cpio,
)
from tools.machine import Command, Ran, boot, complaints, parse_end
from tools.machine_init import END
from tools.stock_kvm import COMMANDS

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
needs_ldd = pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd here")


def archive(*entries: Entry) -> bytes:
    file = io.BytesIO()
    write_cpio(file, entries)
    return file.getvalue()


# --- the archive ----------------------------------------------------------------------------------------------------


def test_archive_begins_as_the_kernel_wants_it_and_ends_on_a_block() -> None:
    data = archive(Entry("a", stat.S_IFREG | 0o644, b"hello"))
    assert data[:6] == b"070701"
    assert data[6 + 6 * 8 : 6 + 7 * 8] == b"00000005"  # file size
    assert data[110:112] == b"a\0"
    assert data[112:117] == b"hello"
    assert b"TRAILER!!!\0" in data
    assert len(data) % 512 == 0


@needs_cpio
def test_cpio_unpacks_what_was_written(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder/odd").write_bytes(b"123")
    (tree / "empty").touch()
    (tree / "run").write_text("#!")
    (tree / "run").chmod(0o700)
    (tree / "link").symlink_to("folder/odd")
    out.mkdir()
    data = archive(*entries_of(tree))
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=data, capture_output=True, check=True).stdout.decode()
    assert listed.split() == ["empty", "folder", "folder/odd", "link", "run"]
    subprocess.run(["cpio", "-i", "--quiet"], input=data, cwd=out, check=True)
    assert (out / "folder/odd").read_bytes() == b"123"
    assert (out / "empty").read_bytes() == b""
    assert os.readlink(out / "link") == "folder/odd"
    assert stat.S_IMODE((out / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "empty").stat().st_mode) == 0o644


@needs_cpio
def test_device_nodes_stand_in_the_archive_without_privilege() -> None:
    data = archive(Entry("console", stat.S_IFCHR | 0o600, device=(5, 1)))
    listed = subprocess.run(["cpio", "-tv", "--quiet"], input=data, capture_output=True, check=True).stdout.decode()
    assert listed.startswith("crw-------")
    assert "5,   1" in listed


# --- kernel modules -------------------------------------------------------------------------------------------------


def module(*needs: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0"


def test_a_module_says_what_it_needs() -> None:
    assert depends(module("kvm", "ccp")) == ("kvm", "ccp")
    assert depends(module()) == ()
    assert depends(b"no module") == ()


def test_modules_come_in_the_order_in_which_they_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/kvm-amd.ko").write_bytes(module("kvm", "ccp"))
    (tmp_path / "kvm.ko").write_bytes(module("irqbypass"))
    (tmp_path / "irqbypass.ko").write_bytes(module())
    (tmp_path / "ccp.ko").write_bytes(module())
    (tmp_path / "other.ko").write_bytes(module("nothing"))
    assert list(modules(tmp_path, "kvm_amd")) == ["irqbypass", "kvm", "ccp", "kvm_amd"]


def test_a_module_whose_needs_are_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvm-amd.ko").write_bytes(module("ccp"))
    with pytest.raises(InitramfsError, match="no module ccp"):
        modules(tmp_path, "kvm_amd")


def test_a_compressed_module_is_unpacked(tmp_path: Path) -> None:
    lzma = pytest.importorskip("lzma")
    (tmp_path / "kvm.ko.xz").write_bytes(lzma.compress(module()))
    assert modules(tmp_path, "kvm") == {"kvm": module()}


def test_a_module_that_python_cannot_unpack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvm.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(InitramfsError, match="compressed"):
        modules(tmp_path, "kvm")


# --- Python ---------------------------------------------------------------------------------------------------------


@needs_ldd
def test_libraries_of_python_hold_the_c_library_and_the_loader() -> None:
    found = libraries([Path(sys.executable).resolve()])
    assert all(path.is_file() for path in found)
    names = " ".join(path.name for path in found)
    assert "libc" in names or "musl" in names
    assert "ld-" in names


@needs_ldd
def test_libraries_of_several_files_are_those_of_each() -> None:
    lzma = pytest.importorskip("_lzma")
    program, extension = Path(sys.executable).resolve(), Path(lzma.__file__)
    assert set(libraries([program, extension])) == {*libraries([program]), *libraries([extension])}


def test_requirements_are_closed_and_without_extras() -> None:
    found = requirements(["pytest"])
    assert {"pytest", "pluggy", "iniconfig"} <= set(found)
    assert "attrs" not in found  # pytest[dev]
    assert requirements(found) == found


def test_bytecode_is_taken_without_a_look_at_the_source(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    source = tmp_path / "project/a.py"
    source.write_text("def f(): pass\n")
    compile_all(tmp_path)
    (compiled,) = (tmp_path / "project/__pycache__").iterdir()
    data = compiled.read_bytes()
    assert int.from_bytes(data[4:8], "little") == 1  # PEP 552: made from a hash, which is not to be checked
    assert b"/project/a.py" in data
    assert os.fsencode(tmp_path) not in data


# --- the report -----------------------------------------------------------------------------------------------------

ONE, TWO = Command(("one",)), Command(("two", "words"), expect=63)


def test_the_last_whole_line_counts() -> None:
    text = f'noise\r\n{END}{{"codes": [0, 63]}}\r\n'
    assert parse_end(text) == {"codes": [0, 63]}


@pytest.mark.parametrize(
    "text",
    ["", "noise\n", f'{END}{{"codes": [0]}}', f"{END}{{\n", f"{END}[]\n", f"{END}{{}}\n", f'{END}{{"codes": 0}}\n'],
)
def test_no_end_line_or_a_torn_one_is_no_report(text: str) -> None:
    assert parse_end(text) is None


def test_expected_exit_codes_are_no_complaint() -> None:
    assert complaints(Ran(second=f'{END}{{"codes": [0, 63]}}\n'), [ONE, TWO], 1) == []


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("", "without its last line"),
        (f'{END}{{"codes": [0, 0]}}\n', "exit status 0 instead of 63: two words"),
        (f'{END}{{"codes": [-9, 63]}}\n', "exit status -9 instead of 0: one"),
        (f'{END}{{"codes": [0]}}\n', "1 of 2 commands ran"),
        (f'{END}{{"codes": [0, 63], "error": "loading kvm"}}\n', "the machine failed: loading kvm"),
    ],
)
def test_what_went_wrong_is_said(second: str, words: str) -> None:
    (said,) = complaints(Ran(second=second), [ONE, TWO], 1)
    assert words in said


def test_commands_are_rows_of_words() -> None:
    assert all(isinstance(word, str) for command in COMMANDS for word in command.argv)
    assert {0, 1000} == {command.user for command in COMMANDS}


# --- the machine, in whose place an ordinary program stands ---------------------------------------------------------


def test_a_machine_that_does_not_end_is_killed(tmp_path: Path) -> None:
    ran = boot([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "none", 0.3)
    assert ran.timed_out
    assert complaints(ran, [ONE], 0.3) == ["the machine was killed after 0 s"]


def test_first_line_is_shown_and_the_second_kept(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    second = tmp_path / "second"
    program = f"print('machine: ready now\\r'); open({str(second)!r}, 'w').write('end')"
    ran = boot([sys.executable, "-c", program], second, 60)
    assert ran.second == "end"
    assert ran.ready is not None
    assert not ran.timed_out
    assert capfdbinary.readouterr().out == b"machine: ready now\n"
