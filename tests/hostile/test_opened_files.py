"""Whatever an image names: nothing is opened but the image and its neighbours, as Python says and as the kernel says.

CVE-2024-32498 (data files), CVE-2024-4467 (``json:``), CVE-2022-47951 (VMDK extents) in one table, ``names.OUTSIDE``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from tests.hostile.corpus import Hostile
from tests.hostile.meter import ALL, Worker, faults, operations
from tests.hostile.names import OUTSIDE, cases, named, vmdk_extent
from tests.hostile.worker import watch_library
from tests.small import SmallProcess
from tests.support import run

from instar.core.errors import HostError, ImageError
from instar.host.files import open_image
from instar.host.gate import Gate

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

#: The kernel's calls by which a process reaches what it has not: files, programs, connections, other processes.
CALLS = (
    "open,openat,openat2,creat,execve,execveat,connect,bind,sendto,sendmsg,ptrace,process_vm_readv,unlinkat,renameat2"
)
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
#: Ordinary runs take each eleventh; 11 is no divisor of the number of names, so every role and every name is met.
STEP = 1 if ALL else 11


def strangers(seen: list[list[Any]], folder: Path) -> list[str]:
    """Return what Python opened that is neither in the folder nor the interpreter's own.

    A name of one component is one that the gate opened below a folder that it had opened: the trace shows where.
    """
    own = (f"{folder}/", "/proc/self/", "/dev/null", "/dev/kvm", sys.prefix, sys.base_prefix, sys.exec_prefix)
    found = []
    for event, name, flags in seen:
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + "/src/"
        harmless = name.startswith((*own, source)) or name == str(folder) or name.isdecimal()
        if event == "open" and "/" not in name and name != "..":
            harmless = harmless or bool(flags & (os.O_NOFOLLOW | os.O_CLOEXEC))
        if event in ("open", "os.listdir", "os.scandir", "os.link", "os.rename", "os.remove", "os.truncate"):
            if not harmless and "/" in name:
                found.append(f"{event} {name}")
        elif event.startswith(("socket.", "subprocess.", "os.exec", "os.system", "os.posix_spawn")):
            found.append(f"{event} {name}")
    return found


def test_the_program_opens_nothing_outside(tmp_path: Path) -> None:
    """Python tells of every file that it opens (``sys.addaudithook``)."""
    worker = Worker()
    found = []
    try:
        for number, case in enumerate(islice(cases(), 0, None, STEP)):
            folder = tmp_path / str(number)
            folder.mkdir()
            case.make(folder)
            commands = operations(case)
            turn = commands if ALL else [commands[number % len(commands)], commands[1]]
            for words in turn:
                done = worker.run(["--isolation=process", *words], folder)
                (folder / "top").unlink(missing_ok=True)
                wrong = [*faults(words, done), *strangers(done["seen"], folder)]
                found += [f"{case}: {' '.join(words)}: {fault}" for fault in wrong]
                assert [event for event, _, _ in done["seen"] if event == "open"], "the hook saw nothing"
            shutil.rmtree(folder)
    finally:
        worker.close()
    assert not found, "\n".join(found)


def test_the_library_opens_nothing_outside(tmp_path: Path) -> None:
    """Called by a program, whose cells are forked by a server."""
    found = []
    with SmallProcess() as program:
        for number, case in enumerate(islice(cases(), 0, None, STEP)):
            folder = tmp_path / str(number)
            folder.mkdir()
            case.make(folder)
            seen = program.call(watch_library, str(folder))
            assert len(seen) > 4, "the hook saw nothing"
            found += [f"{case}: {stranger}" for stranger in strangers(seen, folder)]
            shutil.rmtree(folder)
    assert not found, "\n".join(found)


@needs_strace
def test_the_kernel_is_asked_for_nothing_outside(tmp_path: Path) -> None:
    """The same, for the command and all its cells, with the names that descriptors stand for."""
    trace = tmp_path / "trace"
    worker = Worker("strace", "-f", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(trace))
    try:
        for number, case in enumerate(islice(cases(), 0, None, 1 if ALL else 2 * STEP)):
            folder = tmp_path / f"case-{number}"
            folder.mkdir()
            case.make(folder)
            commands = operations(case)
            for words in commands[1:4] if ALL else [commands[1 + number % 3]]:
                worker.run(["--isolation=process", *words], folder)
                (folder / "top").unlink(missing_ok=True)
            shutil.rmtree(folder)
    finally:
        worker.close()
    text = trace.read_text(errors="replace")
    begin = text.index("case-0")
    bad = [line for line in text[begin:].splitlines() if reaches_out(line, str(tmp_path))]
    assert not bad, "\n".join(bad[:40])


def reaches_out(line: str, folder: str) -> bool:
    """Tell whether a line of a trace shows that something outside of a folder was reached for."""
    found = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)(?:<(.*)>)?", line)
    if found is None:
        return False  # a signal, the end of a process
    call, words, result, what = found.groups()
    if not call.startswith(("open", "creat")):
        return call not in ("unlinkat", "renameat2") or (folder not in words and "/dev/shm" not in words)
    if int(result) < 0:
        return "shadow" in words or "sda" in words
    allowed = (folder, "/dev/null", "/proc/", "/tmp", sys.prefix, sys.base_prefix, "/usr/lib", "/etc/ld.so.cache")
    outside = not (what or "").startswith(allowed) and "src/instar" not in (what or "")
    return outside or "shadow" in (what or "") or (what or "").startswith(("/proc/kmsg", "/dev/kvm"))


def test_a_trace_that_reaches_out_is_seen() -> None:
    """What nothing could fail would prove nothing."""
    here = '12 openat(AT_FDCWD</x>, "/x/image", O_RDONLY) = 3</x/image>'
    assert not reaches_out(here, "/x")
    assert reaches_out(here.replace("/x/image>", "/etc/shadow>"), "/x")
    assert reaches_out('12 openat(5</x>, "shadow", O_RDONLY) = -1 EACCES (Permission denied)', "/x")
    assert reaches_out("12 connect(5<socket:[1]>, {sa_family=AF_INET}, 16) = 0", "/x")
    assert reaches_out('12 execve("/bin/sh", ["sh"], 0x1) = 0', "/x")


@needs_strace
@pytest.mark.parametrize("words", [["info"], ["info", "--backing-chain"], ["check"], ["create"]], ids=" ".join)
def test_the_whole_program_opens_nothing_outside(words: list[str], tmp_path: Path) -> None:
    """As a user starts it, from its first instruction on."""
    case = Hostile("vmdk", "an extent", named(vmdk_extent(b"/etc/shadow")))
    case.make(tmp_path)
    rest = ["-f", "qcow2", "-F", "vmdk", "-b", "image", "top"] if words == ["create"] else ["image"]
    trace = tmp_path / "trace"
    env = {"PYTHONPATH": ":".join(sys.path)}
    command = ["strace", "-f", "-o", trace, "-e", "trace=file", sys.executable, "-m", "instar", *words, *rest]
    done = run(*command, cwd=tmp_path, env=env)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "etc/shadow" not in trace.read_text(errors="replace").replace(f'"{tmp_path}', "")


def test_what_the_gate_opens_is_a_plain_file_in_the_folder(tmp_path: Path) -> None:
    """Asked directly, with every name."""
    named(b"")(tmp_path)
    opened = []
    with open_image(str(tmp_path / "image")) as image:
        gate = Gate(image)
        for written in OUTSIDE:
            name = written.removeprefix(b"!")
            with contextlib.suppress(ImageError, HostError), gate.open(name, relative_to=image.home) as file:
                opened.append(os.readlink(f"/proc/self/fd/{file.fd}"))
    assert opened
    assert all(os.path.dirname(path) == str(tmp_path) for path in opened), opened
