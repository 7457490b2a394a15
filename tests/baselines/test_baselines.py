"""As each version of qemu-img: what instar says and makes is what the stored baselines have.

An ordinary run plays each case once, and again for each version that answered otherwise. ``INSTAR_ALL_CASES=1`` plays
every case as every version, and asks the program of this machine all of them too.
"""

from __future__ import annotations

import os
import shutil
import zlib
from typing import TYPE_CHECKING

import pytest
from tests.baselines import differences
from tests.baselines.cases import RECORDED, Case, cases
from tests.baselines.play import answers, make, ours, real_program
from tests.baselines.store import FOLDER, GROUPS, Kept, images_of, load
from tests.cli.dialect.differences import expected
from tests.compat.versions import programs
from tests.support import QEMU_IMG, needs_qemu_img, needs_qemu_io

if TYPE_CHECKING:
    from pathlib import Path

    from tests.baselines.store import Answer, Version

_DOCUMENT = FOLDER.parents[1] / "docs" / "testing.md"
_ALL = bool(os.environ.get("INSTAR_ALL_CASES"))
_BY_GROUP: dict[str, list[Case]] = {}
for _case in cases():
    _BY_GROUP.setdefault(_case.group, []).append(_case)
_CREATED = [group for group in _BY_GROUP if group.startswith("create/")]
_USED = [group for group in _BY_GROUP if group.startswith("used/")]
_NONE: Answer = {"code": "nothing", "out": "", "err": ""}


def _chance(text: str) -> int:
    return zlib.crc32(text.encode())


def _kept(case: Case) -> Kept:
    return load(case.group)[case.name]


def _of(kept: Kept, version: Version) -> dict[str, Answer]:
    return {line: by_version[version] for line, by_version in kept.answers.items() if version in by_version}


def _versions(case: Case) -> list[Version]:
    """Return the versions as which a case is played."""
    if _ALL:
        return list(RECORDED)
    told = {version: _of(_kept(case), version) for version in RECORDED}
    chosen: list[Version] = []
    for version in sorted(RECORDED, key=lambda v: _chance(f"{case}{v}")):
        if all(told[version] != told[other] for other in chosen):
            chosen.append(version)
    return chosen


def _unlike(case: Case, version: Version, got: dict[str, Answer]) -> dict[str, set[str]]:
    """Return by line the parts of an answer that are not as kept."""
    kept = _of(_kept(case), version)
    found = {}
    for line in case.asked:
        if line not in kept and line not in got:
            break
        want, have = expected(line, version, kept.get(line, _NONE)), got.get(line, _NONE)
        parts = {part for part in {*want, *have} if want.get(part) != have.get(part)}
        if parts:
            found[line] = parts
        if line.startswith("create") and "code" in parts:
            break  # what one of them made can only be asked of that one
    return found


def _faults(case: Case, folder: Path) -> list[str]:
    """Play a case as each version in a folder; return what differs and has no reason."""
    told = []
    for version in _versions(case):
        place = folder
        if not case.made:
            place = folder / str(version)
            place.mkdir()
        got = answers(case, place, ours(version))
        for line, parts in _unlike(case, version, got).items():
            parts = parts.difference(*(named.parts for named in differences.of(case, line, version)))
            kept = _of(_kept(case), version).get(line)
            told += [
                f"{case.group} {case.name} {version}: {line}, {part}\n"
                f"  qemu-img: {kept and kept.get(part)!r}\n  instar:   {got.get(line, _NONE).get(part)!r}"
                for part in sorted(parts)
            ]
    return told


def _played(case: Case, folder: Path) -> list[str]:
    folder.mkdir()
    try:
        return _faults(case, folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("group", _CREATED)
def test_what_is_created_and_said_is_that_of_each_version(group, tmp_path):
    told = [fault for case in _BY_GROUP[group] for fault in _played(case, tmp_path / "case")]
    assert not told, f"{len(told)} answers differ\n" + "\n".join(told[:10])


def _made(case: Case, folder: Path) -> bool:
    """Make the image of a case; tell whether it is laid out as the one that was described."""
    folder.mkdir()
    lengths = make(case, folder)
    if lengths == _kept(case).lengths:
        return True
    assert _own_version() not in RECORDED[1:2], f"{case.name}: {lengths}"
    return False


def _own_version() -> Version | None:
    return next((version for version, program in programs().items() if program == QEMU_IMG), None)


@needs_qemu_img
@needs_qemu_io
@pytest.mark.parametrize("group", _USED)
def test_images_in_use_are_described_and_checked_as_by_each_version(group, tmp_path):
    told = []
    played = 0
    for case in _BY_GROUP[group]:
        folder = tmp_path / case.name
        if _made(case, folder):
            played += 1
            told += _faults(case, folder)
        shutil.rmtree(folder)
    assert not told, f"{len(told)} answers differ\n" + "\n".join(told[:10])
    if not played:
        pytest.skip("the programs of this machine lay out images in another way")


@needs_qemu_img
@needs_qemu_io
def test_the_program_of_this_machine_says_what_is_kept(tmp_path):
    """Of some cases, or of all on demand."""
    version = _own_version()
    if version not in RECORDED:
        pytest.skip(f"no answers of {version} are kept")
    program = real_program(str(QEMU_IMG))
    told = []
    for case in cases()[:: 1 if _ALL else 23]:
        folder = tmp_path / "case"
        if not _made(case, folder):
            continue
        if answers(case, folder, program) != _of(_kept(case), version):
            told.append(f"{case.group} {case.name}")
        shutil.rmtree(folder)
    assert not told


@pytest.mark.parametrize("named", differences.NAMED, ids=lambda named: named.reason)
def test_each_named_difference_is_there(named, tmp_path):
    for case in cases():
        versions = [v for v in named.versions for line in case.asked if named.covers(case, line, v)]
        if not versions or (case.made and QEMU_IMG is None):
            continue
        folder = tmp_path / case.name.replace("/", "-")
        folder.mkdir()
        make(case, folder)
        for line, parts in _unlike(case, versions[0], answers(case, folder, ours(versions[0]))).items():
            if named.covers(case, line, versions[0]) and parts & set(named.parts):
                return
    pytest.fail("it makes no difference")


def test_each_named_difference_is_told():
    told = _DOCUMENT.read_text(encoding="utf-8")
    assert not [named.reason for named in differences.NAMED if f"| {named.reason} |" not in told]


def test_baselines_are_those_of_the_cases():
    """A case, a step of it or a version is new: run ``./dev baselines``."""
    names = {group: {case.name for case in rows} for group, rows in _BY_GROUP.items()}
    assert sum(len(rows) for rows in names.values()) == len(cases())
    assert {group: set(load(group)) for group in names} == names
    for case in cases():
        kept = _kept(case)
        assert kept.recipe == case.recipe, f"{case.group} {case.name}"
        assert list(kept.answers) == [line for line in case.asked if line in kept.answers]
        for version in RECORDED:
            told = _of(kept, version)
            failed = [line for line, answer in told.items() if line.startswith("create") and answer["code"]]
            assert set(told) == set(case.asked) or failed == list(told)[-1:], f"{case.name} {version}"


def test_nothing_else_is_kept():
    found = {path for folder in (*GROUPS, "images") for path in (FOLDER / folder).iterdir()}
    wanted = {FOLDER / f"{group}.json" for group in _BY_GROUP}
    assert found == wanted | {images_of(case) for case in cases() if case.maker}
    assert sum(path.stat().st_size for path in found) < 1_500_000


def test_matrix_is_as_wide_as_promised():
    by_format = {group: len({case.name.rpartition(", ")[0] for case in _BY_GROUP[group]}) for group in _CREATED}
    assert len(by_format) == 10
    assert min(by_format.values()) >= 10
