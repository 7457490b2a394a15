"""Whatever a cell answers: each place of each honest reply with each hostile value in it, through whole commands."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from fuzz.replying import HOSTILE, cells_of, changed, clean, commands, faults, places, prepare, run

from instar.core.image import ImageFacts, Reference
from instar.formats import readable
from instar.host.replies import judge_reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fuzz.replying import Place, Replies

#: Ordinary runs try one value in so many, each place with others.
STEP = 1 if os.environ.get("INSTAR_ALL_CASES") else 7
FORMATS = [row.name for row in readable()]


def attacks(replies: Replies, format: str) -> Iterator[tuple[str, Place, Any, tuple[str, ...]]]:
    """Yield the operation, the place, the value, and the command that meets it."""
    turn = count()
    for operation, several in commands(format).items():
        different: dict[str, Any] = {repr(value): value for value in replies.seen[operation]}
        for place in dict.fromkeys(place for value in different.values() for place in places(value)):
            for new in HOSTILE:
                number = next(turn)
                if number % STEP == 0:
                    yield operation, place, new, several[number // STEP % len(several)]


@pytest.mark.parametrize("format", FORMATS)
def test_a_command_survives_every_hostile_value_at_every_place(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replies = prepare(tmp_path, format)
    clean(tmp_path)
    found = []
    refused = tried = 0
    with cells_of(replies.guest):
        for operation, place, new, words in attacks(replies, format):
            reached = []

            def change(
                name: str, value: Any, *, at: Any = (operation, place, new), reached: list[Any] = reached
            ) -> Any:
                if name != at[0]:
                    return value
                reached.append(name)
                return changed(value, at[1], at[2])

            replies.change = change
            done = run(["--isolation=process", *words])
            clean(tmp_path)
            tried += 1
            refused += done[0] == 70
            assert reached, f"{words} had no cell of {operation}"
            found += [f"{operation} {place} = {new!r:.60}: {words}: {fault}" for fault in faults(words, done)]
    assert not found, "\n".join(found[:20])
    assert tried // 3 < refused < tried, f"{refused} of {tried} were refused"


def test_honest_replies_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for format in FORMATS:
        replies = prepare(tmp_path, format)
        clean(tmp_path)
        for operation in ("info", "check", "create", "create-many"):
            for value in replies.seen.get(operation, ()):
                assert judge_reply(operation, value) == value


def test_an_answer_that_changes_its_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is that of the format announced."""
    monkeypatch.chdir(tmp_path)
    replies = prepare(tmp_path, "qcow2")
    with cells_of(replies.guest):
        replies.change = lambda operation, value: (
            {"ok": ImageFacts("raw", 512).to_wire()} if operation == "info" else value
        )
        for words in (["info", "image"], ["info", "-f", "qcow2", "image"]):
            code, out, err = run(["--isolation=process", *words])
            assert (code, out) == (70, "")
            assert "the cell named two formats" in err


def test_files_are_granted_to_no_image_but_for_its_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replies = prepare(tmp_path, "qcow2")
    (tmp_path / "neighbour").write_bytes(b"secret")
    facts = ImageFacts("qcow2", 512, references=[Reference("data-file", b"neighbour", required=True)]).to_wire()
    asked = []

    def change(operation: str, value: Any) -> Any:
        asked.append(operation)
        return {"ok": facts} if operation == "info" else value

    with cells_of(replies.guest):
        replies.change = change
        assert run(["--isolation=process", "info", "image"])[0] == 70
    assert asked == ["ask info", "info"]
