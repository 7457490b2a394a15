"""Cells for programs with threads: made by a fork server that knows nothing of the program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import SOURCE
from tests.sandbox.programs import run

PYTHONS = [f"3.{minor}" for minor in (11, 12, 13, 14)]


def find_python(version: str) -> str:
    """Return an interpreter of a version, also one that pyenv holds but does not show."""
    folders = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin"))
    for place in (None, *map(str, folders)):
        found = shutil.which(f"python{version}", path=place)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip(f"Python {version} is not installed")


_THREADS = """
make()
before = None
wrong = []
def work(n):
    for k in range(20 if KIND == "process" else 6):
        path = f"{HERE}/{n}.qcow2"
        if k % 5 == 0:
            create(path, f"{n + 1}M")
        if size_of(path) != (n + 1) << 20:
            wrong.append((n, k))
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(wrong, has_children())
"""


@pytest.mark.parametrize("kind", KINDS)
class TestThreads:
    @pytest.mark.parametrize("version", PYTHONS)
    def test_eight_of_them_make_twenty_calls_each(self, version: str, kind: str, tmp_path: Path) -> None:
        assert run(_THREADS, tmp_path, kind, python=find_python(version)) == "[] False\n"

    def test_of_which_many_come_first(self, kind: str, tmp_path: Path) -> None:
        program = """
found = []
gate = threading.Barrier(8)
def work():
    gate.wait()
    found.append(create(f"{HERE}/{threading.get_ident()}", "1M"))
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(found), children() == [server_pid()])
"""
        assert run(program, tmp_path, kind) == "8 True\n"


@pytest.mark.parametrize("kind", KINDS)
class TestLimits:
    def test_works_within_a_gibibyte_and_thirty_seconds(self, kind: str, tmp_path: Path) -> None:
        program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
make()
print(size_of(IMAGE), instar.check(IMAGE, isolation=Isolation(KIND)).clean)
"""
        assert run(program, tmp_path, kind) == f"{64 << 20} True\n"

    def test_a_cell_that_takes_too_long_is_dead_when_the_caller_is_told(self, kind: str, tmp_path: Path) -> None:
        program = """
server.ensure_server()
before = open_fds()
limits = Limits(wall_seconds=0.3)
running = start((), limits)
cell = one_cell()
os.kill(cell, signal.SIGSTOP)
try:
    converse(running, b"", limits, None)
except SandboxError as error:
    print(error.kind, is_alive(cell), cell in children(server_pid()), open_fds() == before)
"""
        assert run(program, tmp_path, kind) == "limit False False True\n"

    def test_a_cell_that_is_killed_is_named(self, kind: str, tmp_path: Path) -> None:
        program = """
server.ensure_server()
running = start()
cell = one_cell()
os.kill(cell, signal.SIGSEGV); os.kill(cell, signal.SIGKILL)
try:
    converse(running, b"", Limits(), None)
except SandboxError as error:
    print(error)
"""
        assert "killed from outside" in run(program, tmp_path, kind)


@pytest.mark.parametrize("kind", KINDS)
class TestDescriptors:
    def test_none_leaks_in_fifty_calls_and_as_many_failures(self, kind: str, tmp_path: Path) -> None:
        program = """
make()
with open(HERE + "/bad", "wb") as file:
    file.write(b"QFI\\xfb" + b"\\xff" * 500)
before = open_fds()
for _ in range(50):
    size_of(IMAGE)
    try:
        size_of(HERE + "/bad")
        print("no error")
    except instar.ImageError:
        pass
print(open_fds() == before, len(os.listdir(f"/proc/{server_pid()}/fd")) < 10)
"""
        assert run(program, tmp_path, kind) == "True True\n"

    @pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
    def test_the_standard_ones_may_be_closed(self, which: tuple[int, ...], kind: str, tmp_path: Path) -> None:
        program = f"""
for fd in {which!r}:
    os.close(fd)
make()
size = size_of(IMAGE)
with open(HERE + "/said", "w") as file:
    file.write(repr(size))
os._exit(0)
"""
        run(program, tmp_path, kind)
        assert (tmp_path / "said").read_text() == str(64 << 20)

    def test_the_standard_ones_may_be_redirected_between_calls(self, kind: str, tmp_path: Path) -> None:
        program = """
make()
for fd in (0, 1, 2):
    os.dup2(os.open(HERE + f"/{fd}", os.O_RDWR | os.O_CREAT), fd)
size = size_of(IMAGE)
print(size, flush=True)
"""
        run(program, tmp_path, kind)
        assert (tmp_path / "1").read_text() == f"{64 << 20}\n"

    def test_those_that_others_inherit_do_not_reach_the_server(self, kind: str, tmp_path: Path) -> None:
        program = """
read, write = os.pipe()
os.set_inheritable(write, True)
server.ensure_server()
os.close(write)
print(os.read(read, 1))
"""
        assert run(program, tmp_path, kind) == "b''\n"

    def test_two_hundred_files_can_be_granted(self, kind: str, tmp_path: Path) -> None:
        program = """
fds = [os.open(HERE, os.O_RDONLY) for _ in range(200)]
files = [Grant(fd, "r", 0) for fd in fds]
running = start(files)
job = encode({"op": "info", "args": {"format": "no such", "major": 7, "minor": 2, "parts": []}})
print(b"no format" in converse(running, job, Limits(), None, files))
"""
        assert run(program, tmp_path, kind) == "True\n"


@pytest.mark.parametrize("kind", KINDS)
class TestForks:
    def test_a_child_of_the_caller_can_go_on(self, kind: str, tmp_path: Path) -> None:
        program = """
make()
pids = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        ok = all(size_of(IMAGE) == 64 << 20 for _ in range(10))
        os._exit(0 if ok else 1)
    pids.append(pid)
ok = all(size_of(IMAGE) == 64 << 20 for _ in range(10))
print(ok, [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""
        assert run(program, tmp_path, kind) == "True [0, 0, 0, 0]\n"

    def test_a_child_that_was_forked_while_another_thread_held_the_lock_can_go_on(
        self, kind: str, tmp_path: Path
    ) -> None:
        program = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
make()
server._lock.acquire()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    os._exit(0 if size_of(IMAGE) == 64 << 20 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
        assert run(program, tmp_path, kind) == "0\n"

    def test_a_child_does_not_keep_a_cell_of_its_parent_alive(self, kind: str, tmp_path: Path) -> None:
        program = """
server.ensure_server()
running = start()
cell = one_cell()
before = len(open_fds())
pid = os.fork()
if pid == 0:
    os._exit(0 if len(open_fds()) == before - 4 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), is_alive(cell))
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(write)
    os.read(read, 1)
    os._exit(0)
running.end()
print(is_alive(cell))
os.close(write)
os.waitpid(pid, 0)
"""
        assert run(program, tmp_path, kind) == "0 True\nFalse\n"

    def test_children_of_the_caller_are_not_disturbed(self, kind: str, tmp_path: Path) -> None:
        program = """
seen = []
server.ensure_server()
signal.signal(signal.SIGCHLD, lambda *_: seen.append("SIGCHLD"))
make()
for _ in range(20):
    size_of(IMAGE)
print(seen, has_children())
"""
        assert run(program, tmp_path, kind) == "[] False\n"

    @pytest.mark.parametrize("handling", ["SIG_IGN", "SIG_DFL"])
    def test_works_however_the_caller_treats_its_children(self, handling: str, kind: str, tmp_path: Path) -> None:
        program = f"""
signal.signal(signal.SIGCHLD, signal.{handling})
make()
print(size_of(IMAGE))
"""
        assert run(program, tmp_path, kind) == f"{64 << 20}\n"

    def test_works_where_every_signal_is_blocked(self, kind: str, tmp_path: Path) -> None:
        program = """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
make()
print(size_of(IMAGE))
"""
        assert run(program, tmp_path, kind) == f"{64 << 20}\n"


@pytest.mark.parametrize("kind", KINDS)
class TestEnds:
    def test_a_server_that_was_killed_is_replaced(self, kind: str, tmp_path: Path) -> None:
        program = """
make()
first = server_pid()
os.kill(first, signal.SIGKILL)
wait_until(lambda: not is_alive(first))
print(size_of(IMAGE), server_pid() not in (0, first))
"""
        assert run(program, tmp_path, kind) == f"{64 << 20} True\n"

    def test_a_server_that_dies_with_an_order_unread_is_replaced(self, kind: str, tmp_path: Path) -> None:
        program = """
make()
first = server_pid()
os.kill(first, signal.SIGSTOP)
seen = []
order = threading.Thread(target=lambda: seen.append(size_of(IMAGE)))
order.start()
time.sleep(0.3)
os.kill(first, signal.SIGKILL)
order.join()
print(*seen, server_pid() not in (0, first))
"""
        assert run(program, tmp_path, kind) == f"{64 << 20} True\n"

    def test_a_server_that_is_killed_takes_its_cells_along_and_the_caller_is_told(
        self, kind: str, tmp_path: Path
    ) -> None:
        program = """
server.ensure_server()
running = start()
cell = one_cell()
__import__("select").select([running.up], [], [], 20)  # it says that it is sealed, and so bound to its server
os.kill(cell, signal.SIGSTOP)
os.kill(the_server(), signal.SIGKILL)
try:
    converse(running, b"", Limits(wall_seconds=20), None)
except SandboxError as error:
    print(error.kind, wait_until(lambda: not is_alive(cell)))
"""
        assert run(program, tmp_path, kind) in ("died True\n", "unavailable True\n")

    @pytest.mark.parametrize(
        "how",
        [
            "os._exit(0)",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "__import__('warnings').simplefilter('ignore'); sys.exit(0)",
        ],
    )
    def test_server_and_cells_go_when_the_caller_goes(self, how: str, kind: str, tmp_path: Path) -> None:
        program = f"""
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    words = read(HERE + "/pids").split()
    print(len(words), wait_until(lambda: not any(is_alive(int(p)) for p in words)))
    sys.exit(0)
adopt()
server.ensure_server()
running = start()
with open(HERE + "/pids", "w") as file:
    print(server_pid(), one_cell(), file=file)
{how}
"""
        assert run(program, tmp_path, kind) == "2 True\n"

    def test_a_server_that_cannot_start_says_why(self, kind: str, tmp_path: Path) -> None:
        program = """
sys.executable = "/bin/false"
try:
    make()
except SandboxError as error:
    print(error.kind, error)
sys.executable = ""
try:
    make()
except SandboxError as error:
    print(error.kind, error)
sys.executable = "/no/such/python"
try:
    make()
except SandboxError as error:
    print(error.kind, error)
"""
        first, second, third = run(program, tmp_path, kind).splitlines()
        assert first.startswith("unavailable")
        assert "did not start" in first
        assert "single_threaded" in second
        assert "No such file" in third

    def test_a_program_that_was_frozen_into_one_file_is_not_started_again(self, kind: str, tmp_path: Path) -> None:
        program = """
sys.frozen = True
try:
    make()
except SandboxError as error:
    print(error.kind)
"""
        assert run(program, tmp_path, kind) == "unavailable\n"

    def test_an_interrupt_leaves_no_cell_and_no_descriptor(self, kind: str, tmp_path: Path) -> None:
        program = """
import random, sys
sys.unraisablehook = lambda report: None  # an interrupt that strikes in a finaliser is only reported there
make()
before = open_fds()
cell = KvmCell(direct=False) if KIND == "kvm" else ProcessCell(direct=False)
hits = turns = 0
while turns < 150 or (hits <= 5 and turns < 2000):
    turns += 1
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, random.random() * (0.006 if KIND == "process" else 0.04))
        cell.run(encode({"op": "no", "args": {}}), [], Limits(), None)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    except KeyboardInterrupt:
        hits += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(hits > 5, len(open_fds()) - len(before) < 4, wait_until(lambda: not count_cells()))
"""
        assert run(program, tmp_path, kind) == "True True True\n"


@pytest.mark.parametrize("kind", KINDS)
class TestSecrets:
    def test_nothing_of_the_caller_is_in_a_cell(self, kind: str, tmp_path: Path) -> None:
        """Environment, command line, working folder, descriptors and memory: a secret is looked for in each."""
        program = """
secret = "".join(map(chr, (104, 117, 115, 104, 45, 112, 117, 112, 112, 121)))
os.environ["TOKEN"] = secret
kept = [secret * 3 for _ in range(1000)]
os.chdir(HERE)
running = start()
cell = one_cell()
for pid in (cell, server_pid()):
    data = bytearray(read(f"/proc/{pid}/environ") + read(f"/proc/{pid}/cmdline"))
    data += os.readlink(f"/proc/{pid}/cwd").encode()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if line.split()[1][0] == "r" and "[v" not in line:
                try:
                    memory.seek(start)
                    data += memory.read(end - start)
                except OSError:
                    continue
    print(len(data) > 1 << 20, secret.encode() in data, HERE.encode() in data)
running.end()
"""
        assert run(program, tmp_path, kind) == "True False False\n" * 2

    def test_the_environment_of_the_server_holds_only_what_it_needs(self, kind: str, tmp_path: Path) -> None:
        program = """
server.ensure_server()
print(sorted(read(f"/proc/{server_pid()}/environ").decode().split("\\0")))
"""
        env = {**os.environ, "LD_LIBRARY_PATH": "/nowhere", "SECRET": "x"}
        assert run(program, tmp_path, kind, env=env) == "['', 'LC_ALL=C.UTF-8', 'LD_LIBRARY_PATH=/nowhere']\n"


class TestLibraries:
    """Where a cell's server looks for what an encrypted image needs."""

    def test_are_not_looked_for_in_the_working_folder(self, tmp_path: Path) -> None:
        (tmp_path / "cryptography").mkdir()
        (tmp_path / "cryptography" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        program = """
os.chdir(HERE)
sys.path[:0] = ["", ".", HERE, HERE + "/.", "relative"]
sys.path.append(HERE)
folders = server._library_folders()
print(all(os.path.isabs(f) and not os.path.samefile(f, HERE) for f in folders), len(folders) > 1)
instar.create("x", "1M", format="luks", options={"key-secret": "s", "iter-time": 10}, secrets={"s": b"x"},
              isolation=Isolation(KIND))
print(os.path.exists("ran"))
"""
        assert run(program, tmp_path, "process") == "True True\nFalse\n"

    def test_are_looked_for_there_if_the_package_itself_lies_there(self, tmp_path: Path) -> None:
        program = f"""
os.chdir({str(SOURCE)!r})
print(any(os.path.samefile(f, ".") for f in server._library_folders()))
"""
        assert run(program, tmp_path, "process") == "True\n"

    def test_are_none_where_the_working_folder_is_gone(self, tmp_path: Path) -> None:
        program = """
os.mkdir(HERE + "/gone"); os.chdir(HERE + "/gone"); os.rmdir(HERE + "/gone")
print(isinstance(server._library_folders(), list))
"""
        assert run(program, tmp_path, "process") == "True\n"
