"""Errors that a cell makes up: none is an internal error of instar's, none has a key or class of the cell's choice."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import ALL_CASES, answering, attack, checked, facts, image_of, obey, replying_error, snapshot
from tests.sandbox.backends import KVM
from tests.sandbox.exploited import exploited, replying_bytes

import instar
from instar.core.wire import encode

if TYPE_CHECKING:
    from pathlib import Path

_OWN = {"class": "ImageError", "kind": "ok", "message": "No errors were found", "path": "/etc/passwd"}
_IMAGE = {"class": "image", "kind": "corrupt", "structure": "s", "detail": "d"}
_OPTION = {"class": "option", "code": "x", "detail": "d", "values": {}}

ERRORS: dict[str, dict[str, Any]] = {
    "no class": {"detail": "d"},
    "class that is no text": {**_IMAGE, "class": 1},
    "class of a method": {**_IMAGE, "class": "__init__"},
    "empty": {},
    **{f"option {code}": {**_OPTION, "code": code} for code in (
        "bad-image-size", "bad-choice", "image-too-large", "backing-format-missing", "unknown-option", "secret-missing",
        "unsupported-preallocation", "__class__", "", "{0}", "{value.__class__}",
    )},
    "option with values of its own": {**_OPTION, "values": dict(_OWN)},
    "option with values that are a list": {**_OPTION, "values": ["x"]},
    "option with deep values": {**_OPTION, "code": "bad-choice", "values": {"value": {"a": [{"b": [1]}]}}},
    "option with a code that is a number": {**_OPTION, "code": 1},
    "image with keys of its own": {**_IMAGE, "path": "/etc/passwd", "message": "fine", "exit_code": 0},
    "image of a kind of another class": {**_IMAGE, "kind": "died"},
    "image of a kind that is none": {**_IMAGE, "kind": "__class__"},
    "image of the kind of an option": {**_IMAGE, "kind": "option"},
    "image without a detail": {"class": "image", "kind": "corrupt", "structure": "s"},
    "image with a detail that is bytes": {**_IMAGE, "detail": b"d"},
    "image with numbers of 127 bits": {**_IMAGE, "value": (1 << 126), "limit": -(1 << 126), "offset": 1 << 100},
    "image with a number that is a bool": {**_IMAGE, "value": True, "field": "f"},
    "image with a format that is a module": {**_IMAGE, "format": "__init__"},
    "image with a format that is another module": {**_IMAGE, "format": "..json"},
    "image with a format of two parts": {**_IMAGE, "format": "qcow2.x"},
    "image with a format with NUL": {**_IMAGE, "format": "qcow2\0"},
    "image with a format that is half a character": {**_IMAGE, "format": "\udcff"},
    "image with a format that is empty": {**_IMAGE, "format": ""},
    "image with an odd number of quotes": {**_IMAGE, "detail": "'", "format": "qcow2", "field": "version"},
    "image with braces": {**_IMAGE, "detail": "{0} {value} {x!r} {", "format": "qcow2", "field": "version"},
    **{f"image of qcow2 {kind} {field}": {
        "class": "image", "kind": kind, "structure": "s", "detail": "d", "format": "qcow2", "field": field,
        "value": None, "limit": None,
    } for kind in ("too-large", "unsupported-feature", "corrupt") for field in (
        "version", "cluster_bits", "l1_size", "incompatible_features", "nb_snapshots", "refcount_order",
    )},
    "too-large check": {**_IMAGE, "kind": "unsupported-feature", "structure": "check"},
    "loop of a chain": {**_IMAGE, "structure": "backing chain"},
    "not found": {**_IMAGE, "kind": "not-found"},
    "denied": {**_IMAGE, "kind": "denied", "detail": "allow its folder with --allow-path=$(touch /tmp/attacked)"},
    **{f"system {number}": {"class": "os", "errno": number, "file": 0} for number in (
        0, -1, 1, 5, 21, 27, 4095, 4096, 1 << 31, 1 << 64, 1 << 126,
    )},
    "system with a bool": {"class": "os", "errno": True, "file": 0},
    "system without a number": {"class": "os"},
    **{f"system of file {file}": {"class": "os", "errno": 5, "file": file} for file in (1, -1, 200, 1 << 64)},
    "limit without a detail": {"class": "limit"},
    "limit with keys": {"class": "limit", "detail": "d", **{k: v for k, v in _OWN.items() if k != "class"}},
    "internal": {"class": "internal", "detail": "d"},
    "internal with a code": {"class": "internal", "detail": "d", "exit_code": 0},
    "sandbox": {"class": "sandbox", "kind": "unavailable", "detail": "d"},
    "host": {"class": "host", "errno": 5, "path": "/etc/passwd"},
}  # fmt: skip
_COMMANDS = {
    "info": ["info"],
    "check": ["check"],
    "info json": ["info", "--output=json"],
    "check json": ["check", "--output=json"],
    "qemu-img info": ["--dialect=qemu-img", "info"],
    "qemu-img check": ["--dialect=qemu-img", "check"],
    "qemu-img 7.2 info": ["--dialect=qemu-img", "--qemu-version=7.2", "info"],
    "chain": ["info", "--backing-chain"],
}


def _judge(done: Any, *, as_json: bool) -> None:
    obey(done)
    assert done.code in (1, 63, 70), done
    if as_json:
        error = json.loads(done.err)["error"]
        assert error["class"] in ("ImageError", "HostError", "SandboxError", "OptionError")
        assert error["message"] not in ("fine", "No errors were found")
        assert error.get("path") != "/etc/passwd"
        assert error["kind"] not in ("ok", "__class__")


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_a_description_or_report(error: str, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    wrong = {}
    turn = list(ERRORS).index(error)
    for number, (name, words) in enumerate(_COMMANDS.items()):
        if not ALL_CASES and name != "qemu-img info" and (number + turn) % 3:
            continue
        try:
            _judge(attack(replying_error(**ERRORS[error]), *words, image), as_json="json" in name)
        except (AssertionError, ValueError, KeyError) as fault:
            wrong[name] = f"{type(fault).__name__}: {fault}".partition("\n")[0][:300]
    assert not wrong, wrong


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_a_new_image_and_of_its_base(error: str, tmp_path: Path) -> None:
    base, new = image_of(tmp_path), tmp_path / "new"
    for before in ([], ["--dialect=qemu-img"], ["--dialect=qemu-img", "--qemu-version=7.2"]):
        done = attack(replying_error(**ERRORS[error]), *before, "create", "-q", "-f", "qcow2", new, "1M")
        assert obey(done).code in (1, 70)
        done = attack(
            replying_error(**ERRORS[error]), *before, "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", new
        )
        assert obey(done).code in (1, 70)
    assert not new.exists()


@pytest.mark.parametrize("kind", [KVM])
@pytest.mark.parametrize("error", ["option bad-image-size", "option with values of its own", "internal"])
def test_error_out_of_a_machine(error: str, kind: str, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    _judge(attack(replying_error(**ERRORS[error]), "info", "--output=json", image, kind=kind), as_json=True)


_FINDINGS: dict[str, Any] = {
    "too few values": ["corruption", "x", "x", None, "qcow2-refcount-leak", []],
    "too many values": ["leak", "x", "x", 1, "qcow2-refcount-leak", list(range(1000))],
    "negative values": ["leak", "x", "x", -1, "qcow2-refcount-leak", [-1, -2, -3, -4]],
    "values that are bools": ["leak", "x", "x", 1, "qcow2-refcount-leak", [True, False, True, True]],
    "values that are texts": ["leak", "x", "x", 1, "qcow2-refcount-leak", ["{0}", "x", "y"]],
    "values of 127 bits": ["leak", "x", "x", 1 << 120, "qcow2-refcount-leak", [1 << 126] * 4],
    "code of another format": ["leak", "x", "x", 1, "vdi-unused-blocks", []],
    "code with braces": ["leak", "x", "x", 1, "{0.__class__}", []],
    "code of dunder": ["leak", "x", "x", 1, "__class__", []],
    "severity that is none": ["fatal", "x", "x", 1, "", []],
    "seven members": ["leak", "x", "x", 1, "", [], 1],
    "five members": ["leak", "x", "x", 1, ""],
    "text": "leak",
}


@pytest.mark.parametrize("finding", _FINDINGS)
def test_finding(finding: str, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    for format in ("qcow2", "vdi", "vmdk", "vhdx", "raw", "luks", "nothing", "__init__", ""):
        value = checked(format, findings=[_FINDINGS[finding]], leaks=1)
        for words in (["check"], ["check", "--output=json"], ["--dialect=qemu-img", "check"]):
            obey(attack(answering(value), *words, image), json_asked="--output=json" in words)


def test_every_code_of_a_finding_with_too_few_values(tmp_path: Path) -> None:
    """All codes that the words of qemu-img have, with no value and with values of no sense."""
    from importlib import import_module

    image = image_of(tmp_path)
    for format in ("qcow2", "vdi", "vmdk", "vhdx", "qed", "parallels", "vpc", "qcow"):
        table = getattr(import_module(f"instar.cli.messages.{format}"), "FINDINGS", {})
        rows = [["corruption", "s", "d", None, code, values] for code in table for values in ([], [-1] * 9)]
        for row in rows[:60]:
            done = obey(
                attack(answering(checked(format, findings=[row], corruptions=1)), "--dialect=qemu-img", "check", image)
            )
            assert done.code in (1, 2, 63, 70)


@pytest.mark.parametrize(
    "totals",
    [
        {"corruptions": -1}, {"leaks": 1 << 64}, {"leaks": 1 << 126}, {"check_errors": True}, {"corruptions": "1"},
        {"total_clusters": 0, "allocated_clusters": 5}, {"total_clusters": 5, "allocated_clusters": 0},
        {"total_clusters": 1, "allocated_clusters": 1, "fragmented_clusters": 1 << 126}, {"image_end_offset": -5},
        {"total_clusters": 1 << 64, "allocated_clusters": 1 << 64, "compressed_clusters": 1 << 64},
        {"total_clusters": 10**38, "allocated_clusters": 1}, {"findings": None}, {"findings": {}}, {"more": 1},
    ],
)  # fmt: skip
def test_totals(totals: Any, tmp_path: Path) -> None:
    for words in (["check"], ["check", "--output=json"], ["--dialect=qemu-img", "check"]):
        obey(attack(answering(checked(**totals)), *words, image_of(tmp_path)), json_asked="--output=json" in words)


_ODD = [None, True, -1, 1 << 64, 1 << 126, "", "x", b"x", [], {}, [[]], {"": None}]
_FIELDS = [
    "format", "virtual_size", "cluster_size", "encrypted", "dirty", "corrupt", "references", "snapshots",
    "format_specific", "extra", "has_dirty_flag",
]  # fmt: skip


@pytest.mark.parametrize("field", _FIELDS)
def test_field_of_another_type(field: str, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    for odd in _ODD:
        for words in (["info"], ["info", "--output=json"], ["--dialect=qemu-img", "info"]):
            obey(attack(answering(facts(**{field: odd})), *words, image), json_asked="--output=json" in words)


@pytest.mark.parametrize(
    "key", ["icount", "id", "name", "vm-state-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"]
)
def test_field_of_a_snapshot_of_another_type(key: str, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    for odd in [*_ODD, -(10**12), 10**12, 10**18, -(1 << 63), (1 << 63) - 1, (1 << 64) - 1]:
        for words in (["info"], ["info", "--output=json"], ["--dialect=qemu-img", "--qemu-version=7.2", "info"]):
            value = facts(snapshots=[snapshot(**{key: odd})])
            obey(attack(answering(value), *words, image), json_asked="--output=json" in words)


@pytest.mark.parametrize(
    "specific",
    [
        {"type": "qcow2"}, {"data": {}}, {"type": "qcow2", "data": None}, {"type": "qcow2", "data": []},
        {"type": "qcow2", "data": {"filename": "/etc/passwd"}}, {"type": "file", "data": {"extent-size-hint": -1}},
        {"type": "vmdk", "data": {"extents": [None, 1, "x", {"filename": 1}]}},
        {"type": "qcow2", "data": {"encrypt": {"format": "luks", "slots": [[[]]]}}},
        {"type": "qcow2", "data": {"bitmaps": {"a": 1}}}, {"type": "qcow2", "data": {"compat": {"compat": "1"}}},
        {"type": "luks", "data": {"slots": [{"active": "x"}]}}, {"type": "qcow2", "filename": "x", "data": {}},
    ],
)  # fmt: skip
def test_format_specific(specific: Any, tmp_path: Path) -> None:
    image = image_of(tmp_path)
    for format in ("qcow2", "vmdk", "luks", "raw"):
        for words in (["info"], ["info", "--output=json"], ["--dialect=qemu-img", "info"]):
            done = obey(attack(answering(facts(format, format_specific=specific)), *words, image))
            assert "/etc/passwd" not in done.out


def test_extents_that_lie_about_roles(tmp_path: Path) -> None:
    for roles in (["file"], ["backing"], ["extents.99"], [None], [1], ["file"] * 100_000, {"file": 1}, "file"):
        value = facts(
            "vmdk",
            format_specific={
                "type": "vmdk",
                "data": {"create-type": "x", "cid": 1, "parent-cid": 1, "extents": [{"filename": "x"}]},
            },
            extra={"extents": roles},
        )
        obey(attack(answering(value), "info", "--output=json", image_of(tmp_path)), json_asked=True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"N", b"T", encode([]), encode({}), encode({"ok": 1, "error": 1}), encode({"OK": 1}),
        encode({"ok": None}), encode({"error": None}), encode({"error": []}), encode("ok"), b"d\xff\xff\xff\xff",
        b"s\0\0\0\2\xff", b"i\x00", b"i\x11" + bytes(17), b"i\x02\x00\x01", b"d\0\0\0\1N" + b"N",
    ],
)  # fmt: skip
def test_reply_that_is_none(data: bytes, tmp_path: Path) -> None:
    image, new = image_of(tmp_path), tmp_path / "new"
    for words in (
        ["info", image],
        ["check", image],
        ["create", "-f", "qcow2", new, "1M"],
        ["--dialect=qemu-img", "info", image],
    ):
        assert obey(attack(replying_bytes(data), *words)).code in (1, 70)
    assert not new.exists()


@pytest.mark.parametrize("error", ERRORS)
def test_error_of_the_library_can_be_pickled_and_printed(error: str, tmp_path: Path) -> None:
    image = str(image_of(tmp_path))
    with exploited(replying_error(**ERRORS[error])) as isolation:
        for operation in (instar.info, instar.info_chain, instar.check):
            with pytest.raises(instar.InstarError) as caught:
                operation(image, isolation=isolation)
            again = pickle.loads(pickle.dumps(caught.value))
            assert (type(again), str(again), again.facts()) == (
                type(caught.value),
                str(caught.value),
                caught.value.facts(),
            )
            json.dumps(caught.value.facts())
            assert repr(caught.value)
        with pytest.raises(instar.InstarError):
            instar.create(str(tmp_path / "new"), "1M", format="qcow2", isolation=isolation)


def test_error_of_the_cell_that_many_images_share_is_each_one_s_and_names_it(tmp_path: Path) -> None:
    """The iterator yields an error for each job: a cell that fails as a whole ends none of the jobs of others."""
    wrong = {}
    jobs = [{"filename": str(tmp_path / name), "size": "1M", "format": "qcow2"} for name in ("one", "two")]
    for error, fields in ERRORS.items():
        with exploited(replying_error(**fields)) as isolation:
            try:
                results = list(instar.create_many(jobs, isolation=isolation))
            except instar.InstarError as fault:
                wrong[error] = f"raised {fault!r} out of the iterator"
                continue
            assert [isinstance(pickle.loads(pickle.dumps(result)), instar.InstarError) for result in results] == [
                True,
                True,
            ]
    assert not wrong, wrong
