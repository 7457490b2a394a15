"""What a caller's environment and arguments hold: no cell of any command has a byte of a secret in it.

Cells are looked at in two ways: by the attacker's code, which reads all memory that the command had mapped when it
forked, and from outside, in honest cells that are at work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import children, status_of

import instar

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parent.parent.parent
#: In two halves, so that this file's own text is not found.
SECRET = "wJalr" + "XUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"

#: Be the command ``instar``, with a guest that looks for the secret in everything that the command had mapped.
_SCANNER = """
import ctypes, os, sys
sys.path[:0] = [{src!r}, {root!r}]
sys.argv = ["instar", *{words!r}]
from tests.sandbox import exploited
import instar.sandbox.cell as seam
from instar.core.wire import decode, encode, take
from instar.guest.main import preload_all
preload_all()
half, other = {half!r}, {other!r}
libc = ctypes.CDLL(None)
libc.memmem.restype = ctypes.c_void_p
libc.memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]

def areas():
    for line in open("/proc/self/maps"):
        place, rights, *_ , = line.split()
        if rights[0] == "r" and "[v" not in line:
            start, end = (int(n, 16) for n in place.split("-"))
            yield start, end, rights

def guest(job, files, ask):
    # Each mapping by itself: what the cell no longer has would end it, so it says first what it has found.
    found = 0
    from instar.sandbox.process.channel import CellChannel
    for start, end, rights in ranges:
        at = start
        while at < end:
            place = libc.memmem(at, end - at, half, len(half))
            if not place:
                break
            if ctypes.string_at(place + len(half), len(other)) == other:
                found += 1
            at = place + 1
    reason = "found %d in %d KiB" % (found, sum(end - start for start, end, _ in ranges) >> 10)
    return encode({{"error": {{"class": "limit", "detail": reason}}}})

def find(name):
    global ranges
    ranges = [area for area in areas() if area[2][3] == "p" and area[2][1] == "w"]
    if name == "kvm":
        from instar.sandbox.kvm.cell import KvmCell, why_unavailable
        return lambda **_: KvmCell(direct=True, guest=guest), why_unavailable()
    from instar.sandbox.process.cell import ProcessCell
    return lambda **_: ProcessCell(direct=True, guest=guest), None

seam.find = find
from instar.cli.main import start
start()
"""


def _scan(folder: Path, *words: str, **variables: str) -> str:
    """Run a command whose cells look for the secret, and return what they say of it."""
    script = folder / "scanner.py"
    half, other = SECRET[:9].encode(), SECRET[9:].encode()
    script.write_text(
        _SCANNER.format(src=str(_ROOT / "src"), root=str(_ROOT), words=list(words), half=half, other=other)
    )
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}, **variables}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (1, 70), done
    return done.stdout + done.stderr


def _image(folder: Path) -> str:
    (folder / "image").write_bytes(bytes(4096))
    return "image"


def _jobs(folder: Path) -> str:
    (folder / "jobs").write_text(json.dumps({"filename": "new", "size": "1M", "format": "qcow2"}) + "\n")
    return "jobs"


_COMMANDS = {
    "info": lambda folder: ("info", _image(folder)),
    "check": lambda folder: ("check", _image(folder)),
    "info of a chain": lambda folder: ("info", "--backing-chain", _image(folder)),
    "create": lambda folder: ("create", "-f", "qcow2", "new", "1M"),
    "create with a backing file": lambda folder: ("create", "-f", "qcow2", "-b", _image(folder), "-F", "raw", "new"),
    "create --batch": lambda folder: ("create", "--batch", _jobs(folder)),
    "qemu-img info": lambda folder: ("--dialect=qemu-img", "info", _image(folder)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", _COMMANDS)
def test_environment_is_in_no_cell(command: str, kind: str, tmp_path: Path) -> None:
    words = _COMMANDS[command](tmp_path)
    said = _scan(tmp_path, f"--isolation={kind}", *words, AWS_SECRET_ACCESS_KEY=SECRET, ANOTHER=f"{SECRET}:{SECRET}")
    assert "found 0 in " in said, said


@pytest.mark.parametrize("kind", KINDS)
def test_scanner_finds_what_is_there(kind: str, tmp_path: Path) -> None:
    """Without this the tests above would prove nothing: a name of the caller's that the command works with is found."""
    name = f"{SECRET}-name"
    (tmp_path / name).write_bytes(bytes(4096))
    said = _scan(tmp_path, f"--isolation={kind}", "info", name)
    assert "found" in said
    if "found 0 in" in said:
        pytest.fail("the scanner is blind")


@pytest.mark.parametrize("variable", ["INSTAR_ALLOW_PATH", "PYTHONSTARTUP", "LS_COLORS", "http_proxy", "NAME_ONLY"])
def test_variables_that_programs_read_are_in_no_cell(variable: str, tmp_path: Path) -> None:
    if variable == "NAME_ONLY":
        said = _scan(tmp_path, "--isolation=process", "info", _image(tmp_path), **{SECRET.replace("-", "_") + "X": "1"})
    else:
        said = _scan(tmp_path, "--isolation=process", "info", _image(tmp_path), **{variable: f"/{SECRET}"})
    if variable == "INSTAR_ALLOW_PATH":
        return  # what instar reads is its own
    assert "found 0 in " in said, said


def test_long_environment_is_in_no_cell(tmp_path: Path) -> None:
    many = {f"VARIABLE_{n}": f"{SECRET}{n}" for n in range(2000)}
    assert "found 0 in " in _scan(tmp_path, "--isolation=process", "info", _image(tmp_path), **many)


def test_variable_of_100_kib_is_in_no_cell(tmp_path: Path) -> None:
    variables = {"LARGE": "x" * 50_000 + SECRET + "x" * 50_000}
    assert "found 0 in " in _scan(tmp_path, "--isolation=process", "info", _image(tmp_path), **variables)


# --- from outside: the real program, honest cells ---


def _slow_image(folder: Path) -> Path:
    """Make an image that takes a while to check."""
    path = folder / "slow.qcow2"
    instar.create(str(path), "8T", format="qcow2", options={"preallocation": "metadata", "cluster_size": "2M"})
    return path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return _slow_image(tmp_path_factory.mktemp("slow"))


def _all_memory(pid: int) -> bytes:
    found = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            if rights[0] != "r" or "[v" in line or "w" not in rights:
                continue
            start, end = (int(n, 16) for n in place.split("-"))
            try:
                memory.seek(start)
                found.append(memory.read(end - start) or b"")
            except (OSError, OverflowError):
                continue
    return b"".join(found)


def _look_into_cells(words: list[str], *, whole: bool = True, **variables: str) -> None:
    """Run a command, and fail if a cell of it has the secret in its memory, environment or arguments."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
    env.update(PYTHONPATH=str(_ROOT / "src"), **variables)
    own = [sys.executable, "-P", "-m", "instar", *words]
    looked, others = 0, _servers()
    with subprocess.Popen(own, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        try:
            while command.poll() is None and looked < 2:
                time.sleep(0.05)
                servers = _servers() - others
                for pid in (cell for parent in (command.pid, *servers) for cell in _children(parent)):
                    try:
                        if status_of(pid)["Seccomp"] != "2":
                            continue  # it is not sealed yet
                        os.kill(pid, signal.SIGSTOP)
                        memory = _all_memory(pid) if whole else b""
                        block = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
                        os.kill(pid, signal.SIGCONT)
                    except OSError:
                        continue  # it has just ended
                    looked += 1
                    assert not whole or len(memory) > 1 << 20
                    assert SECRET.encode() not in memory
                    assert SECRET.encode() not in block
        finally:
            command.kill()
    assert looked, "all cells had ended before they were looked at"


def _servers() -> set[int]:
    """Return all fork servers that run from this checkout; they are nobody's children."""
    found = set()
    for name in os.listdir("/proc"):
        try:
            if (
                name.isdigit()
                and f"{_ROOT / 'src'}'); from instar".encode() in Path(f"/proc/{name}/cmdline").read_bytes()
            ):
                found.add(int(name))
        except OSError:
            continue
    return found


def _children(pid: int) -> list[int]:
    try:
        return children(pid)
    except OSError:
        return []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a sealed cell")
@pytest.mark.parametrize("kind", KINDS)
class TestFromOutside:
    def test_honest_cell_has_no_secret_of_the_environment(self, kind: str, slow: Path) -> None:
        _look_into_cells([f"--isolation={kind}", "check", str(slow)], AWS_SECRET_ACCESS_KEY=SECRET)

    def test_honest_cell_and_fork_server_have_no_passphrase_of_an_argument(self, kind: str, slow: Path) -> None:
        words = ["--object", f"secret,id=s,data={SECRET}", str(slow)]
        _look_into_cells(["--dialect=qemu-img", f"--isolation={kind}", "check", *words])

    def test_kernel_s_copy_of_the_arguments_is_gone(self, kind: str, slow: Path) -> None:
        """Words that the command itself works with are in the memory of what it forks; nobody is to list them."""
        words = [f"--isolation={kind}", f"--allow-path={slow.parent / SECRET}", "check", str(slow)]
        _look_into_cells(words, whole=False)
