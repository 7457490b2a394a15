"""What the tests of cells share: guests, raw system calls, and what became of a cell."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sandbox.numbers import number_of

from instar.sandbox.cell import Grant, Limits
from instar.sandbox.inline import InlineCell
from instar.sandbox.process.cell import ProcessCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from instar.core.errors import SandboxError
    from instar.core.wire import Wire
    from instar.sandbox.cell import Cell
    from instar.sandbox.files import GrantedFile

    Ask = Callable[[Wire], Wire]
    Guest = Callable[[bytes, list[GrantedFile], Ask], bytes]

SOURCE = Path(__file__).parent.parent.parent / "src"

#: Loaded before any fork: inside a cell nothing can be. Raw calls prove the kernel's filter, not Python's manners.
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int) -> int:
    """Make a system call by its number on x86-64, every argument as a full word."""
    return own_syscall(number_of(number), *arguments)


def own_syscall(number: int, *arguments: int) -> int:
    """Make a system call by its number on this machine; see ``syscall``."""
    return int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)))


def raw(number: int, *arguments: int) -> int:
    """Make a system call and return what the kernel gave: 0 or more, or the negative ``errno``."""
    result = syscall(number, *arguments)
    return -ctypes.get_errno() if result == -1 else result


def serve_nothing(request: Wire) -> Wire:
    raise AssertionError(f"the cell asked for {request!r}")


_LIMITS = {"wall_seconds": 20, "file_bytes": 1 << 20, "requests": 1 << 20}


def make_cell(kind: str, guest: Guest) -> Cell:
    """Return a cell of a kind, forked from here, for a guest."""
    if kind == "none":
        return InlineCell(accept_no_isolation=True, guest=guest)
    if kind == "kvm":
        from instar.sandbox.kvm.cell import KvmCell

        return KvmCell(direct=True, guest=guest)
    return ProcessCell(direct=True, guest=guest)


def run_guest(
    guest: Guest,
    files: Sequence[Grant] = (),
    *,
    kind: str = "process",
    job: bytes = b"job",
    serve: Callable[[Wire], Wire] = serve_nothing,
    rules: tuple[object, ...] | None = None,
    **limits: float,
) -> bytes:
    """Run a guest in a cell forked from here. ``rules`` are for process cells."""
    cell = make_cell(kind, guest) if rules is None else ProcessCell(direct=True, guest=guest, rules=rules)  # type: ignore[arg-type]
    return cell.run(job, list(files), Limits(**{**_LIMITS, **limits}), serve)  # type: ignore[arg-type]


def sentence(error: SandboxError, kind: str) -> str:
    """Return what is said of a death by every kind of cell, which for a process names a signal as well.

    A machine's guest dies of no signal. If one is named, its monitor did.
    """
    return error.detail.partition(" (SIG")[0] if kind == "process" else error.detail


def has_children() -> bool:
    """Tell whether this process has any child, living or zombie."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def open_fds() -> list[str]:
    """Return what descriptors this process has open, and on what."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the one that lists
    return sorted(found)


def children(pid: int | None = None) -> list[int]:
    """Return the processes whose parent is ``pid`` (default: this one)."""
    task = f"/proc/{pid or os.getpid()}/task"
    found: list[int] = []
    for thread in os.listdir(task):
        try:
            found += map(int, Path(task, thread, "children").read_text().split())
        except OSError:
            continue  # a thread that has just ended
    return found


def status_of(pid: int) -> dict[str, str]:
    """Return ``/proc/PID/status`` as a dict."""
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def living(pids: Iterable[int]) -> dict[int, dict[str, str]]:
    """Return ``status_of`` those processes that run (a zombie does not). Any may end while they are looked at."""
    found = {}
    for pid in pids:
        try:
            status = status_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if status["State"][0] not in "ZX":
            found[pid] = status
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs."""
    return bool(living([pid]))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
