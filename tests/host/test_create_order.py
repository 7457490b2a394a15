"""Many images at once come out as they would one after the other: the same files, results and errors."""

from __future__ import annotations

import collections
import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import instar
from instar.host.create_many import KEYS

NONE = instar.Isolation("none")
_SECRETS = {"s": b"passphrase"}
#: Few names, and some of them stand for the same file; some are what an image calls its other files.
_NAMES = (
    *(
        "a",
        "a",
        "a",
        "b",
        "a-flat",
        "link",
        "dir/a",
        "./a",
        "file:a",
        "link",
        "dir/../a",
        "dir/a",
        "down/a",
        "dir/b",
        "dangling",
        "a-flat",
        "a-s001",
    ),
    *("a-s002", "a-f001", "link-flat", "dir/a-flat", "loop", "no/a", "dir", ""),
)
_OPTIONS: dict[str, tuple[dict[str, str], ...]] = {
    "raw": ({},),
    "qcow2": (
        {},
        {"cluster_size": "4k"},
        {"data_file": "a"},
        {"data_file": "dir/b"},
        {"data_file": "file:link"},
        {"data_file": "b", "data_file_raw": "on", "keep_data_file": "on"},
        {"encrypt.format": "aes", "encrypt.key-secret": "s"},
        {"preallocation": "falloc"},
        {"cluster_size": "3"},
    ),
    "vmdk": ({}, {"subformat": "monolithicFlat"}, {"subformat": "twoGbMaxExtentSparse"}),
    "luks": ({"key-secret": "s", "iter-time": "1"}, {"key-secret": "none"}),
    "qcow": ({}, {"encrypt.format": "aes", "encrypt.key-secret": "s"}),
    **{name: ({},) for name in ("vpc", "vhdx", "vdi", "qed", "parallels")},
}
_BACKED = ("qcow2", "qed", "qcow", "vmdk", "vpc", "vhdx")


def job(random: random.Random) -> dict[str, Any]:
    """Return a job of some of everything."""
    format = random.choice(("raw", "raw", "qcow2", "vmdk", random.choice(list(_OPTIONS))))
    made: dict[str, Any] = {"filename": random.choice(_NAMES), "format": format}
    made["options"] = dict(random.choice(_OPTIONS[format]))
    if random.random() < 0.95:
        made["size"] = random.choice((512, 1 << 20, 3 << 20, (2 << 30) + 512 if format == "vmdk" else 4096))
    if format in _BACKED and random.random() < 0.1:
        base, kind = random.choice(_NAMES), random.choice(("raw", "qcow2", format))
        if random.random() < 0.5:
            made.update(backing=base, backing_format=kind)
        else:
            made["options"].update(backing_file=base, backing_fmt=kind)
        if random.random() < 0.5:
            made.pop("size", None)
    return made


def surroundings(folder: Path) -> None:
    """Make folders and links for the names to mean the same."""
    (folder / "dir").mkdir(parents=True)
    (folder / "down").symlink_to("dir")
    (folder / "link").symlink_to("a")
    (folder / "dir" / "b").symlink_to("../b")
    (folder / "dangling").symlink_to("dir/c")
    (folder / "loop").symlink_to("loop")


def tree(folder: Path) -> dict[str, object]:
    """Return what is in a folder: the bytes of files, the targets of links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:
                content = file.read(8 << 20)
            found[name] = path.stat().st_size, content.rstrip(b"\0")
    return found


def facts(result: instar.CreateResult | instar.InstarError) -> object:
    if isinstance(result, instar.InstarError):
        return type(result), result.facts()
    return result.filename, result.format, result.virtual_size, result.files, result.metadata_bytes, result.in_place


def one_by_one(jobs: list[dict[str, Any]]) -> list[instar.CreateResult | instar.InstarError]:
    results: list[instar.CreateResult | instar.InstarError] = []
    for one in jobs:
        words = dict(one)
        try:
            results.append(instar.create(words.pop("filename"), isolation=NONE, secrets=_SECRETS, **words))
        except instar.InstarError as error:
            results.append(error)
    return results


@pytest.mark.parametrize("seed", range(24))
def test_many_are_made_as_one_after_the_other(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_600_000_000.0)
    monkeypatch.setattr("os.urandom", bytes)
    monkeypatch.setattr("instar.host.secrets.key_rate", lambda request: 1)
    # A file's time of change is recorded by some formats; both are made in the same second or so.
    monkeypatch.setattr("instar.formats.vpc.plan._stamp", lambda time: 0)
    # Temporary names, where a file is replaced, are random for a reason.
    numbers = itertools.count()
    monkeypatch.setattr("instar.host.temporary.make_name", lambda base: f".{base[:180]}.{next(numbers)}.instar")
    chance = random.Random(seed)
    jobs = [job(chance) for _ in range(chance.choice((6, 12, 40)))]
    together = chance.choice((3, 256, 256))
    results: dict[str, list[object]] = {}
    # The same folder both times, as names are written into images.
    place = tmp_path / "place"
    for way in ("many", "one"):
        surroundings(place)
        monkeypatch.chdir(place)
        if way == "many":
            from instar.host.create_many import create_many

            done = list(create_many(jobs, isolation=NONE, secrets=_SECRETS, together=together))
        else:
            done = one_by_one(jobs)
        results[way] = [*map(facts, done), tree(place)]
        monkeypatch.chdir(tmp_path)
        place.rename(tmp_path / way)
    for index, (many, one) in enumerate(zip(results["many"], results["one"], strict=True)):
        assert many == one, (index, jobs[index] if index < len(jobs) else "files")


def make(*jobs: dict[str, Any]) -> list[Any]:
    return list(instar.create_many(jobs, isolation=NONE, secrets=_SECRETS))


def test_last_of_two_with_one_name_stays(tmp_path: Path) -> None:
    name = f"{tmp_path}/x"
    make({"filename": name, "size": 512, "format": "qcow2"}, {"filename": name, "size": 5120})
    assert (tmp_path / "x").read_bytes() == bytes(5120)
    make({"filename": name, "size": 512}, {"filename": f"file:{name}", "size": 512, "format": "qcow2"})
    assert (tmp_path / "x").read_bytes().startswith(b"QFI\xfb")


def test_image_that_is_named_like_the_extent_of_one_before_it_stays(tmp_path: Path) -> None:
    make(
        {"filename": f"{tmp_path}/x.vmdk", "size": 4096, "format": "vmdk", "options": {"subformat": "monolithicFlat"}},
        {"filename": f"{tmp_path}/x-flat.vmdk", "size": 512},
    )
    assert (tmp_path / "x-flat.vmdk").stat().st_size == 512


def test_backing_file_can_be_named_in_an_odd_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option without a value, whose name begins with "no", is that option switched off: here a file called off."""
    monkeypatch.chdir(tmp_path)
    odd = {
        "filename": "x",
        "size": 512,
        "format": "qcow2",
        "options": [["nobacking_file", None], ["backing_fmt", "qcow2"]],
    }
    base, top = make({"filename": "off", "size": 512, "format": "qcow2"}, odd)
    assert isinstance(base, instar.CreateResult)
    assert isinstance(top, instar.CreateResult)
    assert top.backing_filename == "off"


def test_images_that_need_no_cell_are_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instar.sandbox.cell.find", lambda kind: (None, "none here"))
    jobs = [{"filename": f"{tmp_path}/{n}", "size": 512, "format": format} for n, format in enumerate(["raw", "qed"])]
    made = instar.create_many(jobs)
    assert isinstance(next(made), instar.CreateResult)
    with pytest.raises(instar.SandboxError, match="none here"):
        next(made)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


_KEYS = st.sampled_from(["filename", *KEYS]) | st.text(max_size=3) | st.integers()
_LEAVES = st.sampled_from(
    [None, True, 0, -1, 1.5, 1 << 70, b"x", "", "qcow2", "raw", "vmdk", "1M", "preallocation", "backing_file", "\ud800"]
) | st.text(max_size=9)
_VALUES = st.recursive(
    _LEAVES | st.just(object()) | st.just(Path("x")),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(_LEAVES, inner, max_size=3),
    max_leaves=5,
)


class TestJobs:
    @pytest.mark.parametrize("given", [None, 1, "x", b"", [], [("filename", "x")], set(), dict, 1.5, True], ids=repr)
    def test_that_is_no_mapping_is_an_error_in_its_place(self, given: Any, tmp_path: Path) -> None:
        good = {"filename": f"{tmp_path}/x", "size": 512}
        results = make(good, given, good)
        assert [type(result) for result in results] == [instar.CreateResult, instar.OptionError, instar.CreateResult]

    def test_may_be_any_mapping_and_name_files_as_python_does(self, tmp_path: Path) -> None:
        words = {"filename": tmp_path / "x", "size": 512, "format": "qcow2"}
        backed = {"filename": bytes(tmp_path / "y"), "format": "qcow2", "backing": Path("x"), "backing_format": "qcow2"}
        results = make(collections.ChainMap({}, words), backed)
        assert [result.filename for result in results] == [f"{tmp_path}/x", f"{tmp_path}/y"]
        assert results[1].backing_filename == "x"

    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(_KEYS, _VALUES))
    def test_of_any_values_gives_a_result_or_an_error(self, given: dict[Any, Any]) -> None:
        if isinstance(given.get("filename"), (str, bytes, Path)):
            given["filename"] = "/dev/null/x"  # nothing is made
        (result,) = make(given)
        assert isinstance(result, instar.InstarError)
        assert not isinstance(result, instar.InternalError)
