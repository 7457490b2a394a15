"""What real versions of qemu-img answered to every line, kept here so that ordinary runs need none of them.

``python -m tests.cli.dialect.answers`` asks what is new in ``lines``; with a pattern, what matches it again. Every line
takes some minutes.
"""

from __future__ import annotations

import json
import lzma
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.cli.dialect.lines import lines, words
from tests.cli.dialect.world import Version, World

RECORDED: tuple[Version, ...] = ((7, 2), (10, 0), (11, 1))
FILE = Path(__file__).parent / "answers.json.xz"

Answers = dict[str, dict[Version, dict[str, Any]]]


@cache
def load() -> Answers:
    """Return the answers by line and version. Equal ones are stored once, and so are equal texts."""
    with lzma.open(FILE, "rt", encoding="utf-8") as file:
        kept = json.load(file)
    texts = kept["texts"]
    answers = [
        {key: texts[value] if key in ("out", "err", "info") else value for key, value in answer.items()}
        for answer in kept["answers"]
    ]
    return {
        line: dict(zip(RECORDED, (answers[n] for n in numbers), strict=True)) for line, numbers in kept["lines"].items()
    }


def save(found: Answers) -> None:
    """Write the answers."""
    texts: dict[str, int] = {}
    answers: dict[str, int] = {}
    rows = {}
    for line, by_version in found.items():
        rows[line] = []
        for version in RECORDED:
            answer = {
                key: texts.setdefault(value, len(texts)) if key in ("out", "err", "info") else value
                for key, value in by_version[version].items()
            }
            rows[line].append(answers.setdefault(json.dumps(answer), len(answers)))
    kept = {"texts": list(texts), "answers": [json.loads(answer) for answer in answers], "lines": rows}
    with lzma.open(FILE, "wt", encoding="utf-8", preset=9) as file:
        json.dump(kept, file, separators=(",", ":"))


def ask(wanted: list[str]) -> Answers:
    """Run lines through every recorded version."""
    from tests.compat.versions import real

    found: Answers = {line: {} for line in wanted}
    from concurrent.futures import ThreadPoolExecutor

    def run(version: Version) -> None:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder))
            for line in wanted:
                found[line][version] = world.theirs(words(line), real(version))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, RECORDED))
    return found


if __name__ == "__main__":
    again = re.compile(sys.argv[1]) if len(sys.argv) > 1 else None
    old = {
        line: answer for line, answer in (load() if FILE.exists() else {}).items() if not (again and again.search(line))
    }
    new = [line for line in lines() if line not in old]
    save({line: answer for line, answer in {**old, **ask(new)}.items() if line in set(lines())})
    print(f"{len(new)} lines asked, {len(lines())} kept")
