"""The stored baselines: what each version of qemu-img answered to every case.

Law: readable in a diff and short. A case is an entry, a question a line; versions that give the same answer stand
before it together. What is in JSON is kept as JSON when that loses nothing, and absent is what is empty.
"""

from __future__ import annotations

import json
import lzma
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.baselines.cases import Case

FOLDER = Path(__file__).parent
GROUPS = ("create", "used")

_EMPTY = re.compile(r"^( *)(.*[\[{])([\]}])(?=,?$)", re.M)

Version = tuple[int, int]
#: ``code``, ``out``, ``err``, and of a creation ``files``: name, length and digest.
Answer = dict[str, Any]


class Kept(NamedTuple):
    """What is kept of a case: digest of its recipe, lengths of the images made, answers to each line by version."""

    recipe: str
    lengths: dict[str, int]
    answers: dict[str, dict[Version, Answer]]


def images_of(case: Case) -> Path:
    """Return where the image of a case is kept, if it is."""
    name = f"{case.group.rpartition('/')[2]}-{case.name}".replace(" ", "-")
    return FOLDER / "images" / f"{name}.xz"


def write_image(case: Case, image: Path) -> None:
    """Keep an image."""
    target = images_of(case)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(lzma.compress(image.read_bytes(), preset=9))


def read_image(case: Case) -> bytes:
    """Return a kept image."""
    return lzma.decompress(images_of(case).read_bytes())


def _packed(answer: Answer) -> Answer:
    """Return an answer as it is kept."""
    kept = {key: value for key, value in answer.items() if value}
    if (out := kept.get("out", "")).startswith("{"):
        value = json.loads(out)
        if _unparsed(value) == out:
            kept["json"] = value
            del kept["out"]
    return kept


def _unpacked(kept: Answer) -> Answer:
    answer = {"code": 0, "out": "", "err": "", **kept}
    if "json" in answer:
        answer["out"] = _unparsed(answer.pop("json"))
    return answer


def _unparsed(value: object) -> str:
    """Write JSON as qemu-img does, which breaks the line in what is empty, too."""
    return _EMPTY.sub(r"\1\2\n\1\3", json.dumps(value, indent=4, ensure_ascii=False)) + "\n"


def _name(version: Version) -> str:
    return ".".join(map(str, version))


@cache
def load(group: str) -> dict[str, Kept]:
    """Return what is kept of a group's cases, by their names."""
    path = FOLDER / f"{group}.json"
    if not path.exists():
        return {}
    found = {}
    for name, row in json.loads(path.read_text(encoding="utf-8")).items():
        answers = {
            line: {
                (int(major), int(minor)): _unpacked(kept)
                for versions, kept in by_version.items()
                for major, _, minor in (version.partition(".") for version in versions.split())
            }
            for line, by_version in row["answers"].items()
        }
        found[name] = Kept(row["recipe"], row.get("lengths", {}), answers)
    return found


def save(group: str, rows: dict[str, Kept]) -> None:
    """Write what is kept of a group's cases."""
    blocks = []
    for name, row in rows.items():
        lines = []
        for line, by_version in row.answers.items():
            same: dict[str, list[str]] = {}
            for version, answer in by_version.items():
                same.setdefault(_dumped(_packed(answer)), []).append(_name(version))
            told = ",\n".join(f'   "{" ".join(versions)}": {answer}' for answer, versions in same.items())
            lines.append(f"  {_dumped(line)}: {{\n{told}}}")
        head = f'  "recipe": "{row.recipe}",\n'
        if row.lengths:
            head += f'  "lengths": {_dumped(row.lengths)},\n'
        joined = ",\n".join(lines)
        blocks.append(f' {_dumped(name)}: {{\n{head}  "answers": {{\n{joined}}}}}')
    path = FOLDER / f"{group}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    load.cache_clear()


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
