"""The program as a whole: its words before a command, its ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tests.support import instar, settle

from instar.cli.commands.shared import define
from instar.cli.session import Session


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "a command is missing"),
        (["frob"], "no command 'frob'"),
        (["--frob"], "no option '--frob'"),
        (["--dialect"], "'--dialect' needs a value"),
        (["--dialect", "french", "info", "x"], "no dialect 'french'"),
        (["--isolation=jail", "info", "x"], "no isolation 'jail'"),
    ],
)
def test_refuses_in_one_line(words, expected):
    done = instar(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("instar: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_overview_names_every_command():
    done = instar("--help")
    assert done.returncode == 0
    for word in ("create", "info", "check", "--isolation", "INSTAR_QEMU_VERSION"):
        assert word in done.stdout


def test_version_is_one_line():
    assert instar("-V").stdout.startswith("instar 0.")


@pytest.mark.parametrize(
    ("name", "value"), [("INSTAR_ISOLATION", "jail"), ("INSTAR_QEMU_VERSION", "x"), ("INSTAR_DIALECT", "x")]
)
def test_a_wrong_variable_is_refused_as_a_wrong_word(name, value):
    done = instar("info", "x", **{name: value})
    assert done.returncode == 1
    assert value in done.stderr


def test_a_cell_that_cannot_be_had_is_no_reason_to_go_without(tmp_path):
    instar("create", "-q", "d", "1M", cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A machine with its 256 MiB does not fit into this; a process does.
    command = f"ulimit -v 250000; exec {sys.executable} -m instar -v --isolation=$0 info d"
    done = {
        kind: subprocess.run(["sh", "-c", command, kind], cwd=tmp_path, env=env, capture_output=True, check=False)
        for kind in ("kvm", "auto")
    }
    assert (done["kvm"].returncode, done["kvm"].stdout) == (70, b"")
    assert b"sandbox unavailable" in done["kvm"].stderr
    assert done["auto"].returncode == 0
    assert done["auto"].stderr.startswith(b"instar: isolation: kvm: ")


def test_without_isolation_the_answer_is_the_same(tmp_path):
    instar("create", "-q", "-f", "vhdx", "d", "1M", cwd=tmp_path)
    settle(tmp_path / "d")
    assert instar("info", "d", cwd=tmp_path).stdout == instar("--isolation=none", "info", "d", cwd=tmp_path).stdout


_WARNING = "instar: warning: isolation 'none': nothing stands between this process and the image's bytes\n"


@pytest.mark.parametrize("dialect", ["instar", "qemu-img"])
@pytest.mark.parametrize(
    "words", [("create", "-f", "qcow2", "new", "1M"), ("info", "d"), ("check", "d"), ("info", "missing")], ids=" ".join
)
def test_without_isolation_that_is_always_said_first(dialect, words, tmp_path):
    instar("create", "-q", "-f", "qcow2", "d", "1M", cwd=tmp_path)
    environment = {"INSTAR_ISOLATION": "none", "INSTAR_ACCEPT_NO_ISOLATION": "1"}
    said = instar(*words, cwd=tmp_path, dialect=dialect, **environment)
    assert said.stderr.startswith(_WARNING)
    assert said.stderr.count(_WARNING) == 1
    plain = instar(*words, cwd=tmp_path, dialect=dialect)
    assert said.stderr.replace(_WARNING, "") == plain.stderr
    assert said.returncode == plain.returncode
    named = instar("--isolation=none", *words, cwd=tmp_path, dialect=dialect)
    assert (named.stderr, named.returncode) == (said.stderr, said.returncode)


@pytest.mark.parametrize("accepted", [None, "0", "yes", ""])
def test_one_variable_alone_does_not_take_the_walls_away(accepted, tmp_path):
    (tmp_path / "d").write_bytes(bytes(512))
    more = {} if accepted is None else {"INSTAR_ACCEPT_NO_ISOLATION": accepted}
    done = instar("info", "d", cwd=tmp_path, INSTAR_ISOLATION="none", **more)
    assert (done.returncode, done.stdout) == (1, "")
    assert "INSTAR_ACCEPT_NO_ISOLATION=1" in done.stderr
    assert "--isolation=none" in done.stderr


def test_a_reader_that_goes_away_is_no_error_message(tmp_path):
    instar("create", "-q", "-f", "qcow2", "d", "1M", cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m instar info d | true"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.stderr == b""


def test_an_interrupt_ends_the_program_by_its_signal_and_leaves_nothing(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "instar", "create", "-f", "qcow2", "-o", "preallocation=metadata", "d", "8T"]
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE) as process:
        try:
            process.wait(0.6)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_keep_it_from_working(closed, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"exec {sys.executable} -m instar create -f qcow2 d 1M {closed}"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, check=False).returncode == 0
    assert (tmp_path / "d").stat().st_size == 196616


def test_output_that_cannot_be_written_is_said(tmp_path):
    instar("create", "-q", "-f", "qcow2", "d", "1M", cwd=tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"exec {sys.executable} -m instar info d > /dev/full"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "instar: the output cannot be written: No space left on device\n")


def test_cells_are_not_forked_from_a_program_that_holds_a_secret():
    session = Session(as_qemu=False)
    assert session.isolation.single_threaded
    define(session, "secret,id=a,data=passphrase")
    assert not session.isolation.single_threaded
    session.set("isolation", "process")
    assert not session.isolation.single_threaded
