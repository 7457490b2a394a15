"""Programs that use the fork server, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.sandbox.cells import SOURCE

if TYPE_CHECKING:
    from pathlib import Path

#: What each program begins with. ``KIND`` is the kind of its cells.
_BEGIN = f"""
import os, signal, sys, threading, time
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
import instar
from instar.core.errors import SandboxError
from instar.core.wire import encode
from instar.sandbox.cell import Grant, Isolation, Limits
from instar.sandbox.kvm.cell import KvmCell
from instar.sandbox.process import server
from instar.sandbox.process.cell import ProcessCell
from instar.sandbox.process.channel import ServerGone, converse
from tests.sandbox.cells import children, has_children, is_alive, libc, living, open_fds, wait_until

HERE, KIND = sys.argv[1:]
IMAGE = os.path.join(HERE, "disk.qcow2")

def read(path):
    with open(path, "rb") as file:
        return file.read()

def create(path, size):
    instar.create(path, size, format="qcow2", isolation=Isolation(KIND))

def make():
    create(IMAGE, "64M")

def size_of(path):
    return instar.info(path, isolation=Isolation(KIND)).virtual_size

def start(files=(), limits=None, device="/dev/kvm"):
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC) if KIND == "kvm" else None
    try:
        order = server.order_of(list(files), limits or Limits(), kvm)
        for _ in range(3):
            try:
                server.get_ready()
                return server.start_cell(order, list(files), kvm)
            except ServerGone:
                continue
    finally:
        if kvm is not None:
            os.close(kvm)

def server_pid():
    # A detached process becomes a child of whoever says that it adopts them.
    for pid in living(children()):
        if b"instar.sandbox.process.serve" in read(f"/proc/{{pid}}/cmdline"):
            return pid
    return 0

def the_server():
    # For who wants to kill it: number 0 would be everybody here.
    assert wait_until(server_pid), "there is no server"
    return server_pid()

def one_cell():
    # An order is carried out some moments after it was given.
    wait_until(lambda: children(server_pid()))
    (pid,) = children(server_pid())
    return pid

def count_cells():
    # One kvm cell may wait for the next order; it has not been sealed.
    return sum(status["Seccomp"] != "0" for status in living(children(server_pid())).values())

def adopt():
    assert libc.prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
"""


def run(program: str, folder: Path, kind: str, *, python: str = sys.executable, **options: object) -> str:
    """Run a program to its end and return what it printed; its standard error must stay empty."""
    adopt = "adopt()\n" if any(word in program for word in ("the_server", "server_pid", "one_cell")) else ""
    done = subprocess.run(  # type: ignore[call-overload]
        [python, "-W", "error", "-c", _BEGIN + adopt + program, str(folder), kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return str(done.stdout)
