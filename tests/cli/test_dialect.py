"""Word for word as qemu-img: answers of three versions to more than two thousand lines, and a few asked live.

An ordinary run takes each line once, and again for each version that answers otherwise; of the dear ones (LUKS) a few.
``INSTAR_DIALECT_LINES=all`` is every line under every version. How answers are recorded: ``tests.cli.dialect.answers``.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import pytest
from tests.cli.dialect.answers import RECORDED, load
from tests.cli.dialect.differences import RULES, comparable, expected
from tests.cli.dialect.lines import lines, words
from tests.cli.dialect.world import World
from tests.compat.versions import programs
from tests.support import instar, needs_qemu_img, run

#: Parts into which the table is cut, so that several processors share it.
_PARTS = 8
_ALL = os.environ.get("INSTAR_DIALECT_LINES") == "all"
_QUIRKS = Path(__file__).parents[2] / "docs" / "quirks.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("dialect"))


def _chance(line: str) -> int:
    return zlib.crc32(line.encode("utf-8", "surrogateescape"))


def _versions(line: str) -> list[tuple[int, int]]:
    """Return the versions under which a line is run."""
    answers = load()[line]
    if _ALL:
        return list(RECORDED)
    if "luks" in line and "Formatting" in answers[RECORDED[0]]["out"] and _chance(line) % 8:
        return []
    kept: list[tuple[int, int]] = []
    for version in sorted(RECORDED, key=lambda v: _chance(f"{line}{v}")):
        if all(answers[version] != answers[other] for other in kept):
            kept.append(version)
    return kept


@pytest.mark.parametrize("part", range(_PARTS))
def test_every_line_gives_what_qemu_img_gives(part, world):
    told = []
    for line in lines()[part::_PARTS]:
        for version in _versions(line):
            want = expected(line, version, load()[line][version])
            got = comparable(world.ours(words(line), version))
            if want != got:
                told.append(f"{version} {line}\n  qemu-img: {want}\n  instar:   {got}")
    assert not told, f"{len(told)} answers differ\n" + "\n".join(told[:10])


def test_every_line_has_been_recorded():
    assert set(load()) == set(lines())
    assert len(lines()) > 2000


def test_every_difference_is_told_to_users():
    quirks = _QUIRKS.read_text(encoding="utf-8")
    missing = [rule.__doc__ for rule in RULES if rule.__doc__ not in quirks]
    assert not missing


@needs_qemu_img
def test_recorded_answers_are_those_of_the_program_here(world):
    for version, program in programs().items():
        if version not in RECORDED:
            continue
        for line in lines()[version[0] :: 499]:
            want = load()[line][version]
            assert world.theirs(words(line), program) == want, line


@pytest.mark.parametrize("line", [line for line in lines()[::211] if "luks" not in line])
def test_the_program_itself_says_the_same(line, world):
    version = RECORDED[_chance(line) % len(RECORDED)]
    want = expected(line, version, load()[line][version])
    done = instar(*words(line), cwd=world.folder, dialect="qemu-img", INSTAR_QEMU_VERSION=".".join(map(str, version)))
    world.changes()
    assert (done.returncode, done.stderr) == (want["code"], want["err"])


@pytest.mark.parametrize("command", ["create", "info", "check"])
def test_passphrases_are_in_no_answer(command, world):
    name = {"create": "t"}.get(command, "b.luks")
    for text in (
        "data=hush-hush,file=pass",
        "data=hush-hush,format=foo",
        "data=hush-hush!,format=base64",
        "data=hush-hush",
    ):
        for format in ("luks", "qcow2"):
            size = ["1M", "-o", "key-secret=nope"] if command == "create" else []
            arguments = [command, "--object", f"secret,id=s,{text}", "-f", format, name, *size]
            for dialect in ("qemu-img", "instar"):
                done = instar(*arguments, cwd=world.folder, dialect=dialect, INSTAR_DEBUG="1")
                assert "hush" not in done.stdout + done.stderr
    world.changes()


def test_a_link_of_that_name_speaks_as_qemu_img(tmp_path):
    script = tmp_path / "qemu-img"
    script.write_text("import sys\nfrom instar.cli.main import main\nsys.exit(main())\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = run(sys.executable, script, "create", "-f", "raw", "t", "1M", cwd=tmp_path, env=env)
    assert done.stdout == "Formatting 't', fmt=raw size=1048576\n"


def test_dialect_can_be_asked_for_before_the_command(tmp_path):
    done = instar("--dialect", "qemu-img", "create", "-f", "raw", "t", "1M", cwd=tmp_path)
    assert done.stdout == "Formatting 't', fmt=raw size=1048576\n"


def test_version_reads_as_that_of_qemu_img():
    assert instar("--version", dialect="qemu-img", INSTAR_QEMU_VERSION="7.2").stdout.startswith(
        "qemu-img version 7.2.22 ("
    )
