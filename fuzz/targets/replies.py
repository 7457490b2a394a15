"""What a cell answers and asks, of every operation: honest replies, changed at places that an input's bytes choose."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz.replying import HOSTILE, TEXT, cells_of, changed, clean, commands, faults, places, prepare, run
from instar.core.wire import WireError, decode
from instar.formats import readable

if TYPE_CHECKING:
    from fuzz.replying import Replies

_FORMATS = [row.name for row in readable()]
#: Folder and honest replies of the formats that had their turn.
_PREPARED: dict[str, tuple[Path, Replies]] = {}


def seeds() -> list[bytes]:
    """Return an input for each format and for one change to four; their bytes mean nothing by themselves."""
    return [
        bytes([number, changes, salt]) for number in range(len(_FORMATS)) for changes in range(4) for salt in (0, 7)
    ]


def one_input(data: bytes) -> None:
    """Any reply gives a result or one of the library's errors, in every dialect, with nothing that a terminal obeys."""
    chance = random.Random(data)
    format = _FORMATS[(data[0] if data else 0) % len(_FORMATS)]
    folder, replies = _prepared(format)
    operation, several = chance.choice(sorted(commands(format).items()))
    words = chance.choice(several)
    honest = chance.choice(replies.seen[operation])
    changes = 1 + (data[1] if len(data) > 1 else 0) % 4
    reply: Any = honest
    for _ in range(changes):
        reply = changed(reply, chance.choice(list(places(reply))), _value(chance, data))
    before = os.getcwd()
    os.chdir(folder)
    try:
        replies.change = lambda name, value: reply if name == operation else value
        with cells_of(replies.guest):
            found = list(faults(words, run(["--isolation=process", *words])))
        clean(folder)
    finally:
        os.chdir(before)
    assert not found, f"{operation} of {format} = {reply!r:.2000}: {words}: {found}"


def _value(chance: random.Random, data: bytes) -> object:
    """Return something hostile: one of those known, a number at an edge, a text, a value out of the input itself."""
    kind = chance.randrange(6)
    if kind < 3:
        return chance.choice(HOSTILE)
    if kind == 3:
        return (1 << chance.choice((7, 8, 16, 31, 32, 63, 64, 65, 100, 126))) + chance.randrange(-1, 2)
    if kind == 4:
        return "".join(
            chance.choice((*TEXT, "a", "é", "\u3042", "\udc80", "{", "}")) for _ in range(chance.randrange(40))
        )
    try:
        return decode(data[2:])
    except WireError:
        return data[2:]


def _prepared(format: str) -> tuple[Path, Replies]:
    if format not in _PREPARED:
        folder = Path(tempfile.mkdtemp(prefix="instar-replies-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        before = os.getcwd()
        os.chdir(folder)
        try:
            _PREPARED[format] = folder, prepare(folder, format)
            clean(folder)
        finally:
            os.chdir(before)
    return _PREPARED[format]
