"""Attacks on the host: from a cell whose parser was taken over, from an image, from the folder that an image is in.

Each test is one attack, and its name says which. What it asserts is a law, whatever the mending behind it looks like:

- the exit code is one that was designed; "internal error" (71) is none of them,
- nothing reaches the terminal that a terminal acts on, or that hides what else is there,
- JSON that was asked for is JSON, and no key of it is the attacker's,
- a reply costs the host at most 256 MiB of memory, and processor time of a few seconds,
- an operation ends in time, and takes only the space on disk that was asked for,
- no file is opened that the gate does not let pass, and no byte of a caller's secret is in a cell,
- memory of the caller's stays as it was.

Modules are sorted by what is attacked. Cells run the attacker's code by ``tests.sandbox.exploited``. This module has
the laws that are asserted in many places, and honest replies to change.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import unicodedata
from typing import TYPE_CHECKING, Any

from tests.sandbox.exploited import Done, exploited, replying

from instar.core.finding import Report
from instar.core.image import ImageFacts

if TYPE_CHECKING:
    from pathlib import Path

    from instar.core.wire import Wire
    from instar.sandbox.cell import Guest

MiB = 1 << 20
#: What the largest lawful reply may cost the host.
MOST_MEMORY = 256 * MiB
#: Seconds of processor time that the host may spend on a reply, twice over for a machine that does other things too.
MOST_CPU = 2 * 5.0
#: Exit codes of instar: done, failed, damage, leaks, nothing to check, the cell's fault. Not 71, a fault of its own.
EXIT_CODES = (0, 1, 2, 3, 63, 70)
#: Tests that take long, and differ from others in amount only.
ALL_CASES = bool(os.environ.get("INSTAR_ALL_CASES"))

#: What terminals act on, and what hides or turns around what is beside it.
HOSTILE = (
    "\x1b]52;c;bWFzaw==\x07\x1b]0;title\x07\x1b[2J\x1b[1A"
    "\r\x08\x0b\x0c\x7f\x00\x9b2J\x9d0;x\x9c\x85\u2028\u2029"
    "\u202e\u202d\u202a\u202c\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    "\u200b\u200c\u200d\u2060\u2061\u2064\ufeff\u00ad\u180e\ufff9\ufffb\U000e0001\U000e0041\n{fake} line: %s\t"
)
#: Letters and marks that Unicode has as invisible (Default_Ignorable_Code_Point), beside those above.
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef"
#: Bytes that are no UTF-8, as texts of a reply carry them: C1 controls for who reads a byte as a character.
RAW_BYTES = "".join(chr(0xDC00 + byte) for byte in range(0x80, 0x100))


def unsafe_characters(text: str) -> list[str]:
    """Return the characters of an output that a terminal would act on, or that cannot be seen."""
    found = []
    for char in set(text):
        code = ord(char)
        if char == "\n":
            continue
        category = unicodedata.category(char)
        if category in ("Cc", "Cf", "Cs", "Zl", "Zp") or 0xE0000 <= code <= 0xE0FFF or char in FILLERS:
            found.append(f"U+{code:04X}")
    return sorted(found)


def obey(done: Done, *, json_asked: bool = False, codes: tuple[int, ...] = EXIT_CODES) -> Done:
    """Fail unless a command that was attacked kept the laws of exit codes, text and JSON; return it."""
    assert done.code in codes, f"exit code {done.code} is by no one's design: {done!r}"
    assert not unsafe_characters(done.out), f"on standard output: {unsafe_characters(done.out)}: {done!r}"
    assert not unsafe_characters(done.err), f"on standard error: {unsafe_characters(done.err)}: {done!r}"
    assert "Traceback" not in done.err
    if json_asked and done.out:
        json.loads(done.out)
    return done


def obey_budget(done: Done, *, cpu: float = MOST_CPU, memory: int = MOST_MEMORY) -> Done:
    """Fail unless a command that was run by itself kept to the host's budget as well."""
    assert done.host_rss, f"the command did not end by itself: {done!r}"
    assert done.host_rss <= memory, f"the host took {done.host_rss >> 20} MiB: {done!r}"
    assert done.host_cpu <= cpu, f"the host computed {done.host_cpu:.1f} s: {done!r}"
    assert len(done.out) <= 64 * MiB, f"the host printed {len(done.out) >> 20} MiB"
    return done


def attack(guest: Guest, *words: str | Path, kind: str = "process", seconds: float = 60) -> Done:
    """Run a command here, with ``guest`` in each of its cells; return its code and what it printed."""
    from instar.cli.main import main

    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    started = time.monotonic()
    with _streams(out, err), exploited(guest, kind):
        code = main(["instar", f"--isolation={kind}", *map(str, words)])
    assert time.monotonic() - started < seconds, "the operation took too long"
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue())  # type: ignore[attr-defined]
    return Done(code, texts[0], texts[1], {})


@contextlib.contextmanager
def _streams(out: io.TextIOWrapper, err: io.TextIOWrapper) -> Any:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def facts(format: str = "qcow2", /, **changes: Any) -> dict[str, Any]:
    """Return what an honest cell says of an image of 1 MiB, with changes."""
    return {**ImageFacts(format, 1 << 20).to_wire(), **changes}


def checked(format: str = "qcow2", /, **changes: Any) -> dict[str, Any]:
    """Return what an honest cell says of an image that it checked, with changes to the report."""
    report: Any = Report().to_wire()
    return {"facts": facts(format), "report": {**report, **changes}}


def snapshot(**changes: Any) -> dict[str, Wire]:
    """Return an honest row of a snapshot, with changes."""
    return {
        "id": "1",
        "name": "first",
        "vm-state-size": 0,
        "date-sec": 1,
        "date-nsec": 0,
        "vm-clock-sec": 0,
        "vm-clock-nsec": 0,
        **changes,
    }


def replying_error(**fields: Any) -> Guest:
    """Return a guest whose answer to anything is an error with these fields."""
    from instar.core.wire import encode

    data = encode({"error": fields})
    return lambda job, files, ask: data


def answering(value: Any) -> Guest:
    """Return a guest that answers with a value, whatever it is asked; that of ``facts`` announces its format."""
    inner = value.get("facts", value) if isinstance(value, dict) else None
    said = inner.get("format") if isinstance(inner, dict) else None
    return replying(value, format=said if isinstance(said, str) else "qcow2")


def image_of(folder: Path, size: int = 4096) -> Path:
    """Make a file that cells are asked about."""
    path = folder / "image"
    path.write_bytes(bytes(size))
    return path
