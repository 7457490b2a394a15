"""The kvm cell that the fork server makes in advance: used once, by the right order, and gone with everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import needs_kvm
from tests.sandbox.programs import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_kvm

_WAIT = """
def links(pid):
    try:
        return [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []  # it has just ended, or opened or closed something
def spare():
    found = []
    def look():
        # It has a processor already, but neither the machine nor the device any more.
        kvm = ["anon_inode:kvm-vcpu:0"]
        unsealed = [pid for pid, status in living(children(server_pid())).items() if status["Seccomp"] == "0"]
        found[:] = [pid for pid in unsealed if [link for link in links(pid) if "kvm" in link] == kvm]
        return bool(found)
    assert wait_until(look), "no spare was made"
    return found[0]
def pid_of_next(limits=None):
    running = start((), limits)
    seen = []
    def look():
        seen[:] = [pid for pid, status in living(children(server_pid())).items() if status["Seccomp"] == "2"]
        return bool(seen)
    assert wait_until(look), "no cell was made"
    running.end()
    return seen[0]
adopt()
"""


def run_kvm(program: str, folder: Path) -> str:
    return run(_WAIT + program, folder, "kvm")


def test_is_used_by_the_next_order_and_by_no_other(tmp_path: Path) -> None:
    program = """
make()
used = []
for _ in range(5):
    made = spare()
    used.append(made)
    if pid_of_next() != made:
        print("another cell was used")
print(len(set(used)))
"""
    assert run_kvm(program, tmp_path) == "5\n"


def test_is_not_used_where_the_guest_may_have_other_memory(tmp_path: Path) -> None:
    program = """
make()
first = spare()
print(pid_of_next(Limits(memory=128 << 20)) not in (0, first), wait_until(lambda: not is_alive(first)))
second = spare()
print(pid_of_next(Limits(memory=128 << 20)) == second)
"""
    assert run_kvm(program, tmp_path) == "True True\nTrue\n"


def test_has_nothing_open_but_what_it_needs(tmp_path: Path) -> None:
    """Above all no pipe, no file and no socket of another cell, nor the server's own."""
    program = """
make()
made = spare()
print(sorted(link.partition("[")[0] for link in links(made)))
print(len(children(server_pid())))
"""
    assert run_kvm(program, tmp_path) == "['anon_inode:kvm-vcpu:0', 'socket:']\n1\n"


def test_that_is_killed_is_not_missed(tmp_path: Path) -> None:
    program = """
make()
for _ in range(10):
    made = spare()
    os.kill(made, signal.SIGKILL)
    wait_until(lambda: not is_alive(made))
    if size_of(IMAGE) != 64 << 20:
        print("wrong")
print("done", wait_until(lambda: not count_cells()))
"""
    assert run_kvm(program, tmp_path) == "done True\n"


def test_that_stands_still_costs_one_order_its_time_and_the_next_nothing(tmp_path: Path) -> None:
    program = """
make()
stopped = spare()
os.kill(stopped, signal.SIGSTOP)
running = start((), Limits(wall_seconds=0.5))
try:
    converse(running, b"", Limits(wall_seconds=0.5), None)
except SandboxError as error:
    print(error.kind, is_alive(stopped))
print(size_of(IMAGE))
"""
    assert run_kvm(program, tmp_path) == f"limit False\n{64 << 20}\n"


def test_that_could_not_be_made_fails_no_order_that_could_have_been_met(tmp_path: Path) -> None:
    program = """
server.ensure_server()
running = start(device="/dev/null")
try:
    converse(running, b"", Limits(), None)
except SandboxError as error:
    print(error.kind)
time.sleep(0.5)
make()
print(size_of(IMAGE))
"""
    assert run_kvm(program, tmp_path) == f"unavailable\n{64 << 20}\n"


@pytest.mark.parametrize("who", ["the server", "the caller"])
def test_goes_when_somebody_goes(who: str, tmp_path: Path) -> None:
    program = f"""
who = {who!r}
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    (made,) = read(HERE + "/pid").split()
    print(wait_until(lambda: not is_alive(int(made))))
    sys.exit(0)
adopt()
make()
with open(HERE + "/pid", "w") as file:
    print(spare(), file=file)
os.kill(the_server() if who == "the server" else os.getpid(), signal.SIGKILL)
os._exit(0)
"""
    assert run_kvm(program, tmp_path) == "True\n"


def test_is_not_made_for_programs_that_use_processes(tmp_path: Path) -> None:
    program = """
server.ensure_server()
make()
print(wait_until(lambda: bool(children(server_pid())), 1))
"""
    assert run(_WAIT + program, tmp_path, "process") == "False\n"


def test_is_one_even_where_many_threads_order(tmp_path: Path) -> None:
    program = """
make()
def work():
    for _ in range(4):
        size_of(IMAGE)
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(spare() != 0, len(children(server_pid())))
"""
    assert run_kvm(program, tmp_path) == "True 1\n"
