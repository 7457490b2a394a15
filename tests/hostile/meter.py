"""What is done with a hostile image, what that may cost, and the worker that does it and measures.

Law: the bounds are here and nowhere else. Time is processor time of the command and its cells, memory the most that
either had at once, so a busy machine changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hostile.corpus import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.hostile.corpus import Hostile

#: Everything, or the part of it that ordinary runs have time for.
ALL = bool(os.environ.get("INSTAR_ALL_CASES"))
#: Seconds of processor time, of a command and its cells; a case may name more for its check (``Hostile.seconds``).
SECONDS = 10.0
#: Bytes of memory, of the command and of each cell.
MEMORY = 256 * MiB
#: Characters of output: a list of the 65,536 snapshots that an image may have, as JSON; and of messages, of which a
#: check has a thousand.
OUTPUT, MESSAGES = 48 * MiB, MiB
#: A case whose check may not be bounded by ``SECONDS`` says so; this is what it may say at most.
MOST_SECONDS = 60.0

_ROOT = Path(__file__).parent.parent.parent
_BASES = {"chain": "qcow2", "file": "raw"}
_QEMU = ["--dialect=qemu-img", "--qemu-version=7.2"]
#: Exit codes as designed, by operation.
CODES = {"info": {0, 1}, "check": {0, 1, 2, 3, 63}, "create": {0, 1}}


def operations(case: Hostile) -> list[list[str]]:
    """Return the commands that look at an image, in the folder where it is."""
    format = _BASES.get(case.format, case.format)
    found = [
        ["info", "image"],
        ["info", "--backing-chain", "--output=json", "image"],
        ["check", "image"],
        ["create", "-f", "qcow2", "-b", "image", "-F", format, "top"],
        [*_QEMU, "info", "--backing-chain", "image"],
        [*_QEMU, "check", "--output=json", "image"],
        ["info", "--output=json", "image"],
        ["create", "-f", "qcow2", "-b", "image", "top"],
        [*_QEMU, "info", "--output=json", "image"],
    ]
    if format in ("vmdk", "vpc", "vhdx"):
        found.append(["create", "-f", format, "-b", "image", "top"])
    return found


class Worker:
    """A process that runs commands and measures them; ``before`` are words such as ``strace`` and its options."""

    def __init__(self, *before: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("INSTAR_")}
        env["PYTHONPATH"] = f"{_ROOT / 'src'}:{_ROOT}"
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.hostile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=_ROOT,
        )

    def run(self, words: Sequence[str], folder: Path) -> dict[str, Any]:
        """Run one command in a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": list(words), "folder": str(folder)}).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()


#: Characters that a terminal acts on, or that are none, turn text round, or are not seen.
_UNSAFE = (
    *((0x00, 0x09), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160)),
    *((0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800)),
    *((0x3164, 0x3164), (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB)),
    *((0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)


def unprintable(text: str) -> set[str]:
    """Return the characters of a text that must not reach a terminal as they are."""
    return {char for char in set(text) if any(first <= ord(char) <= last for first, last in _UNSAFE)}


def faults(words: Sequence[str], done: dict[str, Any], seconds: float = 0) -> Iterator[str]:
    """Yield what a command did that it must not; ``seconds`` is the bound of a case that says so."""
    operation = next(word for word in words if word in CODES)
    if done["code"] not in CODES[operation]:
        yield f"exit code {done['code']}: {done['err'][:300]}"
    if done["code"] == 1 and not done["err"] and operation != "check":
        yield "it fails and says nothing"
    if "Traceback" in done["err"]:
        yield "a traceback"
    spent = done.get("host_cpu", 0) + done.get("cell_cpu", 0)
    allowed = max(SECONDS, seconds if operation == "check" else 0)
    if spent > allowed:
        yield f"{spent:.1f} s of processor time"
    for who in ("host", "cell"):
        if done.get(f"{who}_rss", 0) > MEMORY:
            yield f"{done[f'{who}_rss'] >> 20} MiB in the {who}"
    if len(done["out"]) > OUTPUT or len(done["err"]) > MESSAGES:
        yield f"{len(done['out'])} characters of output, {len(done['err'])} of messages"
    if bad := unprintable(done["out"] + done["err"]):
        yield f"characters that a terminal acts on: {sorted(bad)[:8]}"
