"""Text of a cell on the terminal: whatever field it comes in, whatever is printed, no terminal acts on it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import (
    FILLERS,
    HOSTILE,
    RAW_BYTES,
    answering,
    attack,
    checked,
    facts,
    image_of,
    obey,
    replying_error,
    snapshot,
)
from tests.sandbox.backends import KVM
from tests.sandbox.exploited import changing, replying

import instar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from instar.sandbox.cell import Guest

TEXTS = {"controls": HOSTILE, "bytes": RAW_BYTES, "fillers": FILLERS, "long": "\x1b[31m" * 20_000}


def _specific(value: Any) -> dict[str, Any]:
    return facts(format_specific={"type": "qcow2", "data": {"compat": "1.1", "refcount-bits": 16, **value}})


#: Field -> the whole answer of a cell for a text in that field.
INFO: dict[str, Callable[[str], Any]] = {
    "format": lambda t: facts(t),
    "format with a name of the table before": lambda t: facts("qcow2" + t),
    "virtual_size": lambda t: facts(virtual_size=t),
    "cluster_size": lambda t: facts(cluster_size=t),
    "dirty": lambda t: facts(dirty=t),
    "unknown key": lambda t: facts(**{t: t}),
    "role": lambda t: facts(references=[[t, b"other", None, False]]),
    "role of a backing file": lambda t: facts(references=[["backing" + t, b"other", None, False]]),
    "name of the backing file": lambda t: facts(
        references=[["backing", t.encode("utf-8", "surrogateescape")[:4096], None, False]]
    ),
    "format of the backing file": lambda t: facts(references=[["backing", b"other", t, False]]),
    "name of a file that is needed": lambda t: facts(
        references=[["data-file", t.encode("utf-8", "surrogateescape")[:4096], "raw", True]]
    ),
    "icount": lambda t: facts(snapshots=[snapshot(icount=t)]),
    "id of a snapshot": lambda t: facts(snapshots=[snapshot(id=t)]),
    "name of a snapshot": lambda t: facts(snapshots=[snapshot(name=t)]),
    "date of a snapshot": lambda t: facts(snapshots=[snapshot(**{"date-sec": t})]),
    "clock of a snapshot": lambda t: facts(snapshots=[snapshot(**{"vm-clock-sec": t})]),
    "key of a snapshot": lambda t: facts(snapshots=[snapshot(**{t: 1})]),
    "type of format_specific": lambda t: facts(format_specific={"type": t, "data": {"compat": "1.1"}}),
    "key of format_specific": lambda t: _specific({t: 1}),
    "value of format_specific": lambda t: _specific({"compression-type": t}),
    "value of format_specific that is bytes": lambda t: _specific({"compat": t.encode("utf-8", "surrogateescape")}),
    "name of a bitmap": lambda t: _specific({"bitmaps": [{"flags": [t], "name": t, "granularity": 65536}]}),
    "encryption": lambda t: _specific({"encrypt": {"format": t, "ivgen-alg": t, t: t, "slots": [{t: t}]}}),
    "extents": lambda t: facts(
        "vmdk",
        format_specific={
            "type": "vmdk",
            "data": {
                "create-type": t,
                "cid": 1,
                "parent-cid": 2,
                "extents": [{"filename": t, "format": t, "virtual-size": 1}],
            },
        },
        extra={"extents": [t]},
    ),
    "extra": lambda t: facts(extra={"inconsistent_bitmaps": True, "version": t, t: t}),
}
CHECK: dict[str, Callable[[str], Any]] = {
    "structure of a finding": lambda t: checked(findings=[["corruption", t, "d", None, "", []]], corruptions=1),
    "detail of a finding": lambda t: checked(findings=[["corruption", "s", t, None, "", []]], corruptions=1),
    "code of a finding": lambda t: checked(findings=[["corruption", "s", "d", None, t, []]], corruptions=1),
    "severity of a finding": lambda t: checked(findings=[[t, "s", "d", None, "", []]], corruptions=1),
    "offset of a finding": lambda t: checked(findings=[["leak", "s", "d", t, "", []]], leaks=1),
    "values of a finding": lambda t: checked(findings=[["leak", "s", "d", 1, "qcow2-refcount-leak", [t]]], leaks=1),
    "totals": lambda t: checked(total_clusters=t, allocated_clusters=t),
    "format of what was checked": lambda t: {**checked(), "facts": facts(t)},
}
ERRORS: dict[str, Callable[[str], dict[str, Any]]] = {
    "class": lambda t: {"class": t, "detail": t},
    "kind": lambda t: {"class": "image", "kind": t, "structure": "s", "detail": "d"},
    "structure": lambda t: {"class": "image", "kind": "corrupt", "structure": t, "detail": "d"},
    "detail": lambda t: {"class": "image", "kind": "corrupt", "structure": "s", "detail": t},
    "detail with a quoted name": lambda t: {"class": "image", "kind": "corrupt", "structure": "s", "detail": f"'{t}'"},
    "field": lambda t: {"class": "image", "kind": "corrupt", "structure": "s", "detail": "d", "field": t},
    "field with a number": lambda t: {
        "class": "image", "kind": "too-large", "structure": "s", "detail": "d", "field": t, "value": 3, "limit": 2
    },
    "format": lambda t: {"class": "image", "kind": "corrupt", "structure": "s", "detail": "d", "format": t},
    "format as a folder": lambda t: {
        "class": "image", "kind": "corrupt", "structure": "s", "detail": "d", "format": "/../" + t
    },
    "limit": lambda t: {"class": "limit", "detail": t},
    "internal": lambda t: {"class": "internal", "detail": t},
    "system": lambda t: {"class": "os", "errno": 5, "file": t, "detail": t},
    "code of an option": lambda t: {"class": "option", "code": t, "detail": t, "values": {}},
    "values of an option": lambda t: {"class": "option", "code": "bad-choice", "detail": "d", "values": {"value": t}},
    "detected": lambda t: {
        "class": "option", "code": "backing-format-missing", "detail": t, "values": {"detected": t, "format": t}
    },
    "size": lambda t: {"class": "option", "code": "bad-image-size", "detail": t, "values": {"value": t}},
}  # fmt: skip
#: What is printed: words of the command line before and after the command's name.
SHOWN: dict[str, tuple[list[str], list[str]]] = {
    "human": ([], []),
    "json": ([], ["--output=json"]),
    "chain": ([], ["--backing-chain"]),
    "qemu-img": (["--dialect=qemu-img"], []),
    "qemu-img 7.2": (["--dialect=qemu-img", "--qemu-version=7.2"], []),
    "qemu-img json": (["--dialect=qemu-img"], ["--output=json"]),
    "verbose": (["-v"], []),
}


def _show(
    guest: Guest, command: str, shown: str, tmp_path: Path, kind: str = "process", *, fails: bool = False
) -> None:
    before, after = SHOWN[shown]
    if command == "check" and shown == "chain":
        after = []
    done = attack(guest, *before, command, *after, image_of(tmp_path), kind=kind)
    obey(done, json_asked="--output=json" in after)
    assert not any(line.startswith("{fake}") for line in (done.out + "\n" + done.err).split("\n"))
    if fails:
        assert done.code != 0


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("text", TEXTS)
def test_text_in_each_field_of_a_description(text: str, shown: str, tmp_path: Path) -> None:
    wrong = {}
    for field, make in INFO.items():
        try:
            _show(answering(make(TEXTS[text])), "info", shown, tmp_path)
        except AssertionError as error:
            wrong[field] = str(error).partition("\n")[0][:300]
    assert not wrong, "\n".join(f"{field}: {said}" for field, said in wrong.items())


@pytest.mark.parametrize("shown", ["human", "json", "qemu-img", "qemu-img 7.2", "qemu-img json", "verbose"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_in_each_field_of_a_report(text: str, shown: str, tmp_path: Path) -> None:
    wrong = {}
    for field, make in CHECK.items():
        try:
            _show(answering(make(TEXTS[text])), "check", shown, tmp_path)
        except AssertionError as error:
            wrong[field] = str(error).partition("\n")[0][:300]
    assert not wrong, "\n".join(f"{field}: {said}" for field, said in wrong.items())


@pytest.mark.parametrize("command", ["info", "check"])
@pytest.mark.parametrize("shown", ["human", "json", "qemu-img", "qemu-img 7.2", "qemu-img json", "verbose"])
@pytest.mark.parametrize("text", ["controls", "bytes", "fillers"])
def test_text_in_each_field_of_an_error(text: str, shown: str, command: str, tmp_path: Path) -> None:
    wrong = {}
    for field, make in ERRORS.items():
        try:
            _show(replying_error(**make(TEXTS[text])), command, shown, tmp_path, fails=True)
        except AssertionError as error:
            wrong[field] = str(error).partition("\n")[0][:300]
    assert not wrong, "\n".join(f"{field}: {said}" for field, said in wrong.items())


@pytest.mark.parametrize("kind", [KVM])
@pytest.mark.parametrize("field", ["format", "icount", "role", "name of a bitmap"])
def test_text_out_of_a_machine(field: str, kind: str, tmp_path: Path) -> None:
    _show(answering(INFO[field](HOSTILE)), "info", "human", tmp_path, kind)


@pytest.mark.parametrize("dialect", ["instar", "qemu-img"])
@pytest.mark.parametrize("text", ["controls", "bytes", "fillers"])
def test_format_of_a_backing_file_that_create_detects(text: str, dialect: str, tmp_path: Path) -> None:
    base = image_of(tmp_path)
    words = [f"--dialect={dialect}", "create", "-f", "qcow2", "-b", base, tmp_path / "new"]
    done = obey(attack(answering(facts(TEXTS[text])), *words))
    assert done.code != 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("field", ERRORS)
def test_error_of_a_create_cell(field: str, tmp_path: Path) -> None:
    for dialect in ("instar", "qemu-img"):
        guest = replying_error(**ERRORS[field](HOSTILE))
        done = obey(attack(guest, f"--dialect={dialect}", "create", "-f", "qcow2", tmp_path / "new", "1M"))
        assert done.code != 0
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dialect", ["instar", "qemu-img"])
def test_story_of_a_cell_that_dies(dialect: str, tmp_path: Path) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        story = (HOSTILE + RAW_BYTES).encode("utf-8", "surrogateescape")
        os.write(3, len(story).to_bytes(4, "little") + b"D" + story)
        os._exit(0)

    done = obey(attack(guest, f"--dialect={dialect}", "-v", "info", image_of(tmp_path)))
    assert done.code in (1, 70)
    done = obey(attack(guest, "info", "--output=json", image_of(tmp_path)))
    assert json.loads(done.err)["error"]["class"] == "SandboxError"


def test_story_that_a_cell_claims_to_be_its_failure_to_start(tmp_path: Path) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        text = HOSTILE.encode()
        os.write(3, len(text).to_bytes(4, "little") + b"X" + text)
        os._exit(3)

    done = obey(attack(guest, "-v", "info", image_of(tmp_path)))
    assert done.code == 70
    assert "could not be made" not in done.err


@pytest.mark.parametrize(
    "request_", [{"do": HOSTILE}, {"do": "format", "format": HOSTILE}, {HOSTILE: HOSTILE}, [HOSTILE]]
)
def test_request_of_an_info_cell(request_: Any, tmp_path: Path) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        ask(request_)
        return b""

    for words in (["info"], ["check"], ["--dialect=qemu-img", "info"], ["info", "--output=json"]):
        assert obey(attack(guest, *words, image_of(tmp_path))).code in (1, 70)


def test_errors_of_the_library_are_printable(tmp_path: Path) -> None:
    from tests.attacks.laws import unsafe_characters
    from tests.sandbox.exploited import exploited

    for make in ERRORS.values():
        with exploited(replying_error(**make(HOSTILE + RAW_BYTES + FILLERS))) as isolation:
            for operation in (instar.info, instar.check, instar.info_chain):
                with pytest.raises(instar.InstarError) as caught:
                    operation(str(image_of(tmp_path)), isolation=isolation)
                assert not unsafe_characters(str(caught.value)), make
                assert "\n" not in str(caught.value)


def test_honest_reply_with_a_hostile_name_of_a_snapshot_keeps_its_columns(tmp_path: Path) -> None:
    image = tmp_path / "image"
    instar.create(str(image), "1M", format="qcow2")

    def add(reply: Any) -> Any:
        reply["ok"]["snapshots"] = [snapshot(name="a\nb\x1b[1m", id="\t\v")]
        return reply

    done = obey(attack(changing(add), "info", image))
    assert len([line for line in done.out.split("\n") if "\\x1b[1m" in line]) <= 1


def test_name_that_the_caller_gave_is_escaped_for_people(tmp_path: Path) -> None:
    image = tmp_path / ("x" + HOSTILE.replace("/", "").replace("\0", "")[:60])
    image.write_bytes(bytes(512))
    for words in (["info"], ["check"], ["info", "--output=json"], ["--dialect=qemu-img", "info"]):
        obey(attack(replying(facts("raw")), *words, image))
