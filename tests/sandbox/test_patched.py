"""Programs that switch between threads of their own: gevent, eventlet, asyncio, subinterpreters.

Nothing waits where signals are held, so nothing switches there, and no call waits without a limit.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import SOURCE
from tests.sandbox.programs import run

if TYPE_CHECKING:
    from pathlib import Path

#: How each library is taken up. ``ORDER`` says what of instar was there before.
_TAKE_UP = {
    "gevent": """
from gevent import monkey
monkey.patch_all()
import gevent
spawn, sleep, Timeout = gevent.spawn, gevent.sleep, gevent.Timeout
value = lambda task: task.get()
""",
    "eventlet": """
import eventlet
eventlet.monkey_patch()
spawn, sleep, Timeout = eventlet.spawn, eventlet.sleep, eventlet.Timeout
value = lambda task: task.wait()
""",
}
_BEGIN = f"""
import sys
sys.path[:0] = {[str(SOURCE), str(SOURCE.parent)]!r}
HERE, KIND, ORDER = sys.argv[1:]
IMAGE = HERE + "/disk.qcow2"
if ORDER != "not imported":
    import instar
    instar.info, instar.check, instar.create
if ORDER == "used":
    instar.create(IMAGE, "4M", format="qcow2")
"""
_BETWEEN = """
import os, signal, time
import instar
from instar.sandbox.process import server

def isolation():
    return instar.Isolation("process", single_threaded=True) if KIND == "direct" else instar.Isolation(KIND)

def held():
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
ORDERS = ("not imported", "imported", "used")


def green(library: str, program: str, folder: Path, kind: str = "auto", order: str = "not imported") -> str:
    """Run a program under a library and return what it printed."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    words = [sys.executable, "-W", "ignore", "-c", _BEGIN + _TAKE_UP[library] + _BETWEEN + program]
    done = subprocess.run([*words, str(folder), kind, order], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", _TAKE_UP)
class TestGreenThreads:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("kind", [*KINDS, "direct"])
    def test_call_one_by_one_and_all_at_once(self, library: str, kind: str, order: str, tmp_path: Path) -> None:
        program = """
made = instar.create(IMAGE, "4M", format="qcow2", isolation=isolation())
tasks = [spawn(instar.info, IMAGE, isolation=isolation()) for _ in range(6)]
tasks += [spawn(instar.check, IMAGE, isolation=isolation()) for _ in range(3)]
tasks += [spawn(instar.create, f"{HERE}/{n}", "1M", format="vhdx", isolation=isolation()) for n in range(3)]
found = [value(task) for task in tasks]
open(HERE + "/bad", "wb").write(b"QFI\\xfb" + bytes(600))
try:
    instar.info(HERE + "/bad", isolation=isolation())
except instar.ImageError as error:
    print(error.kind)
sizes, clean = {one.virtual_size for one in found[:6]}, all(one.clean for one in found[6:9])
print(sizes, clean, os.listdir(HERE).count("2"), held())
"""
        said = green(library, program, tmp_path, kind, order)
        assert said == "unsupported-feature\n{4194304} True 1 []\n"

    @pytest.mark.parametrize("kind", KINDS)
    def test_run_while_a_cell_works(self, library: str, kind: str, tmp_path: Path) -> None:
        program = """
turns = 0
def others():
    global turns
    while True:
        turns += 1
        sleep(0.001)
instar.create(IMAGE, "4M", format="qcow2", isolation=isolation())
spawn(others)
sleep(0)
before = turns
for _ in range(100):  # on a busy machine others have few turns
    instar.info(IMAGE, isolation=isolation())
    if turns - before > 10:
        break
print(turns - before > 10)
"""
        assert green(library, program, tmp_path, kind) == "True\n"

    def test_can_end_a_call_and_its_cell_ends(self, library: str, tmp_path: Path) -> None:
        program = """
from instar.core.errors import SandboxError
from instar.sandbox.cell import Limits
from instar.sandbox.process.channel import converse
instar.create(IMAGE, "4M", format="qcow2")
server.get_ready()
served = server.start_cell(server.order_of([], Limits(wall_seconds=60)), [])
began = time.monotonic()
try:
    with Timeout(0.3):
        served.down = served._fds[-1]  # the other end, which can never be written to: a job that nobody takes
        converse(served, b"", Limits(wall_seconds=60), lambda request: None)
except Timeout:
    print("ended", time.monotonic() - began < 20, served._fds, held())
"""
        assert green(library, program, tmp_path, "process") == "ended True [] []\n"


def test_asyncio_calls_in_executors_and_directly(tmp_path: Path) -> None:
    program = """
import asyncio
make()
async def one():
    return await asyncio.get_running_loop().run_in_executor(None, size_of, IMAGE)
async def main():
    child = await asyncio.create_subprocess_exec("true")
    sizes = {size_of(IMAGE), *await asyncio.gather(*[one() for _ in range(6)], asyncio.to_thread(size_of, IMAGE))}
    return sizes, await child.wait()
print(asyncio.run(main()))
"""
    assert run(program, tmp_path, "process") == "({67108864}, 0)\n"


_MODULE = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
_INSIDE = """
import sys
sys.path[:0] = {path!r}
import instar
try:
    instar.create({image!r}, "1M", format="qcow2")
    print(instar.info({image!r}).virtual_size, flush=True)
    try:
        instar.info({image!r}, isolation=instar.Isolation("process", single_threaded=True))
    except instar.SandboxError as error:
        print(error.kind, "fork" in str(error), flush=True)
except instar.SandboxError as error:
    print(error.kind, "does not support loading in subinterpreters" in str(error), flush=True)
"""


def test_a_subinterpreter_has_cells_or_is_told_why_not(tmp_path: Path) -> None:
    inside = _INSIDE.format(path=[str(SOURCE)], image=str(tmp_path / "disk"))
    program = f"""
import {_MODULE} as interpreters
made = interpreters.create()
problem = interpreters.run_string(made, {inside!r})
if problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    # The C module by which system calls are made is none for isolated ones in 3.12.
    wanted = "unavailable True\n" if sys.version_info[:2] == (3, 12) else "1048576\nunavailable True\n"
    assert (done.stdout, done.returncode) == (wanted, 0), done.stderr


#: A server that takes no more orders.
_DEAF = """
make()
adopt()
server.ensure_server()
os.kill(the_server(), signal.SIGSTOP)
orders = 0
while server._control.send(b"", []):
    orders += 1
"""


class TestServerThatTakesNoOrders:
    def test_is_not_waited_for_where_signals_are_held(self, tmp_path: Path) -> None:
        program = """
print(server.start_cell(server.order_of([], Limits()), []))
began = time.monotonic()
try:
    server.get_ready(0.2)
except SandboxError as error:
    print(error.kind, error.detail, time.monotonic() - began < 10)
"""
        said = run(_DEAF + program, tmp_path, "process")
        assert said == "None\nunavailable the fork server takes no orders True\n"

    def test_is_not_waited_for_without_limit(self, tmp_path: Path) -> None:
        program = """
from instar.sandbox.process import cell
cell._MOST_SECONDS_TO_ORDER = 0.3
try:
    size_of(IMAGE)
except SandboxError as error:
    print(error.kind, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""
        assert run(_DEAF + program, tmp_path, "process") == "unavailable []\n"

    def test_lets_an_interrupt_through(self, tmp_path: Path) -> None:
        program = """
began = time.monotonic()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    size_of(IMAGE)
except KeyboardInterrupt:
    print(time.monotonic() - began < 20, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""
        assert run(_DEAF + program, tmp_path, "process") == "True []\n"

    def test_goes_on_when_it_is_let(self, tmp_path: Path) -> None:
        program = """
threading.Timer(0.3, os.kill, (the_server(), signal.SIGCONT)).start()
print(size_of(IMAGE))
"""
        assert run(_DEAF + program, tmp_path, "process") == f"{64 << 20}\n"


def test_a_server_that_never_says_that_it_is_ready_is_given_up(tmp_path: Path) -> None:
    program = """
server._START_SECONDS = 0.3
real, sys.executable = sys.executable, HERE + "/python"
with open(sys.executable, "w") as file:
    file.write("#!/bin/sh\\nexec sleep 60\\n")
os.chmod(sys.executable, 0o755)
try:
    server.ensure_server()
except SandboxError as error:
    print(error.kind, error.detail, has_children())
"""
    said = run(program, tmp_path, "process")
    assert said == "unavailable the fork server did not start within 0.3 s False\n"


class TestWaiting:
    def test_sees_the_same_as_poll_where_that_was_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import os
        import select

        from instar.sandbox.process.waiting import READ, WRITE, wait_for

        reader, writer = os.pipe()
        wanted = [(reader, READ), (writer, WRITE)]
        states = [lambda: None, lambda: os.write(writer, b"x"), lambda: os.close(reader)]
        for change in states:
            change()
            seen = []
            for poll in (select.poll, object()):
                with monkeypatch.context() as patch:
                    patch.setattr(select, "poll", poll)
                    seen.append(wait_for(wanted, 0))
            assert seen[0] == seen[1]
        os.close(writer)

    @pytest.mark.parametrize("replaced", [False, True])
    def test_ends_when_the_time_is_over(self, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        import os
        import select
        import time

        from instar.sandbox.process.waiting import READ, wait_for

        if replaced:
            monkeypatch.delattr(select, "poll")
        reader, writer = os.pipe()
        began = time.monotonic()
        assert wait_for([(reader, READ)], 0.1) == []
        assert 0.09 < time.monotonic() - began < 10
        os.close(reader)
        os.close(writer)
