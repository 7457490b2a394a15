"""What the operator of a machine has decided holds on the command line, whatever its user asks for.

The program reads one path, which nothing but code can change; these tests run it with another.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.sandbox.backends import needs_kvm
from tests.support import instar, run

import instar as library

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can write a file that instar takes")

START = """
import sys
from instar.cli import session
session.CONFIGURATION = sys.argv.pop(1)
{}
sys.argv[0] = "instar"
from instar.cli.main import start
start()
"""
#: As on a machine without KVM, and on one whose machines fail to start.
NO_DEVICE = "import instar.sandbox.kvm.cell as kvm; kvm.why_unavailable = lambda: 'not today'"
NO_START = """
import instar.sandbox.kvm.cell as kvm
from instar.core.errors import SandboxError
kvm.why_unavailable = lambda: None
def fail(*_): raise SandboxError("unavailable", "the machine does not start")
kvm.KvmCell.run = fail
"""


class Machine:
    """A folder with an image, and a configuration."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "instar.toml"

    def says(self, text, mode=0o644):
        self.path.write_text(text)
        self.path.chmod(mode)

    def instar(self, *words, before="", **variables):
        env = {k: v for k, v in os.environ.items() if not k.startswith("INSTAR_")}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), **variables}
        return run(sys.executable, "-c", START.format(before), self.path, *words, cwd=self.folder, env=env)


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "disks").mkdir()
    cell = library.Isolation("none")
    library.create(str(tmp_path / "bases/base"), 1 << 20, format="qcow2", isolation=cell)
    library.create(
        str(tmp_path / "disks/top"),
        1 << 20,
        format="qcow2",
        backing="../bases/base",
        backing_format="qcow2",
        open_backing=False,
        isolation=cell,
    )
    return Machine(tmp_path)


@as_root
def test_folders_are_open_to_the_names_in_images(machine):
    words = ("info", "--backing-chain", "disks/top")
    assert machine.instar(*words).returncode == 1
    machine.says(f'allow-path = ["/nowhere", "{machine.folder}/bases"]\n')
    for dialect in ("instar", "qemu-img"):
        done = machine.instar(f"--dialect={dialect}", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("image: ") == 2
    machine.says('allow-path = ["/nowhere"]\n')
    assert machine.instar(*words).returncode == 1
    assert machine.instar(*words, INSTAR_ALLOW_PATH=f"{machine.folder}/bases").returncode == 0
    assert machine.instar(*words, "--allow-path=bases").returncode == 0


@as_root
def test_the_version_is_the_default_and_no_more(machine):
    machine.says('qemu-version = "7.2"\n')

    def version(*words, **variables):
        return machine.instar("--dialect=qemu-img", *words, "--version", **variables).stdout.split()[2]

    assert version() == "7.2.22"
    assert version(INSTAR_QEMU_VERSION="10.0") == "10.0.13"
    assert version("--qemu-version=11.1", INSTAR_QEMU_VERSION="10.0") == "11.1.2"
    assert "children" not in json.loads(machine.instar("info", "--output=json", "disks/top").stdout)


WEAKER = [("process", "none"), ("kvm", "none"), ("kvm", "process")]


@as_root
@pytest.mark.parametrize(("floor", "asked"), WEAKER)
@pytest.mark.parametrize("dialect", ["instar", "qemu-img"])
def test_nobody_can_ask_for_less_than_the_floor(floor, asked, dialect, machine):
    machine.says(f'minimum-isolation = "{floor}"\n')
    start = [f"--dialect={dialect}"]
    ways = [
        machine.instar(*start, f"--isolation={asked}", "info", "disks/top"),
        machine.instar(*start, "info", "disks/top", INSTAR_ISOLATION=asked, INSTAR_ACCEPT_NO_ISOLATION="1"),
        machine.instar(
            *start, "info", "disks/top", INSTAR_ISOLATION=asked, INSTAR_ACCEPT_NO_ISOLATION="1", INSTAR_DEBUG="1"
        ),
        machine.instar(*start, f"--isolation={floor}", f"--isolation={asked}", "info", "disks/top"),
    ]
    if dialect == "instar":
        ways.append(machine.instar("info", f"--isolation={asked}", "disks/top"))
        ways.append(machine.instar("info", "disks/top", f"--isolation={asked}"))
        ways.append(machine.instar("sandbox", "--quick", f"--isolation={asked}"))
    for done in ways:
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            done.stderr
            == f"instar: isolation '{asked}' is weaker than this host's minimum-isolation, which is {floor}\n"
        )


@as_root
@pytest.mark.parametrize(("before", "reason"), [(NO_DEVICE, "not today"), (NO_START, "does not start")])
@pytest.mark.parametrize("words", [(), ("--isolation=auto",), ("--isolation=kvm",)], ids=str)
def test_auto_steps_down_no_further_than_the_floor(before, reason, words, machine):
    machine.says('minimum-isolation = "kvm"\n')
    done = machine.instar(*words, "info", "disks/top", before=before)
    assert (done.returncode, done.stdout) == (70, "")
    assert reason in done.stderr
    assert "minimum-isolation" in done.stderr
    assert "--isolation=" not in done.stderr
    machine.says('minimum-isolation = "process"\n')
    if words != ("--isolation=kvm",):
        assert machine.instar(*words, "info", "disks/top", before=before).returncode == 0


@as_root
@needs_kvm
def test_the_floor_itself_and_what_is_stronger_is_allowed(machine):
    for floor, asked in (
        ("process", "process"),
        ("process", "kvm"),
        ("process", "auto"),
        ("kvm", "kvm"),
        ("kvm", "auto"),
    ):
        machine.says(f'minimum-isolation = "{floor}"\n')
        assert machine.instar(f"--isolation={asked}", "info", "disks/top").returncode == 0
        assert machine.instar("info", "disks/top", INSTAR_ISOLATION=asked).returncode == 0


@as_root
@pytest.mark.parametrize(
    "words", [("info", "disks/top"), ("check", "disks/top"), ("create", "new", "1M"), ("sandbox",)]
)
def test_a_file_that_cannot_be_trusted_or_understood_ends_the_command(words, machine):
    for text, mode, mend in (
        ("", 0o666, "chmod go-w"),
        ('minimum-isolaton = "kvm"\n', 0o644, "line 1: there is no 'minimum-isolaton'"),
    ):
        machine.says(text, mode)
        done = machine.instar(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"instar: {machine.path}")
        assert mend in done.stderr
        assert not (machine.folder / "new").exists()


@as_root
def test_nothing_in_the_environment_names_another_file(machine):
    machine.says('minimum-isolation = "kvm"\n', 0o666)
    for name in ("INSTAR_CONFIG", "INSTAR_CONFIGURATION", "INSTAR_TOML", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "HOME"):
        assert instar("info", "disks/top", cwd=machine.folder, **{name: str(machine.path)}).returncode == 0


@as_root
def test_the_self_test_shows_it(machine):
    words = ("sandbox", "--quick", "--isolation=process")
    assert "configuration" not in json.loads(machine.instar(*words, "--output=json").stdout)
    machine.says('allow-path = ["/a", "/b c"]\nminimum-isolation = "process"\nqemu-version = "10.0"\n')
    assert machine.instar(*words).stdout.startswith(
        f"{machine.path}:\n  minimum-isolation: process\n  allow-path: /a, /b c\n  qemu-version: 10.0\n\nprocess: "
    )
    assert json.loads(machine.instar(*words, "--output=json").stdout)["configuration"] == {
        "path": str(machine.path),
        "minimum-isolation": "process",
        "allow-path": ["/a", "/b c"],
        "qemu-version": "10.0",
    }


@as_root
def test_the_library_reads_it_when_asked_only(machine, monkeypatch):
    machine.says(f'allow-path = ["{machine.folder}/bases"]\nminimum-isolation = "kvm"\nqemu-version = "7.2"\n')
    found = library.read_configuration(str(machine.path))
    with pytest.raises(library.OptionError, match="minimum-isolation, which is kvm"):
        library.Isolation("process", floor=found.minimum_isolation)
    chain = library.info_chain(
        str(machine.folder / "disks/top"), allow=found.allow, isolation=library.Isolation("none")
    )
    assert len(chain) == 2
    opened = []
    monkeypatch.setattr(
        os, "open", lambda name, *more, real=os.open, **how: opened.append(name) or real(name, *more, **how)
    )
    library.info(str(machine.folder / "disks/top"), isolation=library.Isolation("none"))
    assert opened and not [name for name in opened if "toml" in str(name)]


def test_where_there_is_none_nothing_is_loaded_to_read_it():
    code = "import sys; from instar.cli.session import Session; Session(as_qemu=False)"
    show = "print('instar.host.configuration' in sys.modules)"
    done = run(sys.executable, "-c", f"{code}; {show}", env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")})
    assert done.stdout == f"{os.path.lexists('/etc/instar.toml')}\n"
