"""Windows into a file that has an image in it: a part of the cases of ``fuzz.differ``.

Law: names only, and the one file that they are about. Most windows are where the image is; the others are anywhere,
and raw, as what one program says of broken images is not to be found out here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

#: The file that the image is put into, and the longest image that is.
NAME = "windowed"
MOST = 4 << 20


def looks(chance: random.Random, image: Path, format: str) -> Iterator[list[str]]:
    """Put an image into a file beside it, and yield commands that look at windows into that."""
    if image.stat().st_size > MOST:
        return
    data = image.read_bytes()
    before, behind = chance.choice((0, 1, 512, 1000, 65536)), chance.choice((0, 1, 511, 512, 5000))
    image.with_name(NAME).write_bytes(b"\xb5" * before + data + b"\xa5" * behind)
    for _ in range(chance.randrange(1, 4)):
        offset, size = before, chance.choice((None, len(data), (len(data) + 511) // 512 * 512))
        if chance.random() < 0.3:
            offset = max(0, offset + chance.choice((-512, -1, 1, 512, len(data), len(data) + behind + 512)))
        if chance.random() < 0.3:
            size = chance.choice((0, 512, 4096, 65536, len(data) // 1024 * 512, len(data) + behind + 4096))
        tree = _tree(chance, offset, size)
        whole = offset == before and (size is None or size >= len(data))
        if whole or chance.random() < 0.5:
            tree = {**(chance.choice(({}, {"driver": format})) if whole else {"driver": "raw"}), "file": tree}
        name = "json:" + json.dumps(tree)
        command = chance.choice((["info", "--output=json"], ["info"], ["check"], ["check", "--output=json"]))
        yield [*command, name]


def _tree(chance: random.Random, offset: int, size: int | None) -> dict[str, Any]:
    """Return the options of a window, sometimes as one in another."""
    file: dict[str, Any] = {"driver": "file", "filename": NAME}
    inner = chance.choice((0, 0, 0, min(512, offset), offset // 2))
    if inner:
        file = {"driver": "raw", "offset": _number(chance, inner), "file": file}
    tree: dict[str, Any] = {"driver": "raw", "file": file}
    if offset or chance.random() < 0.5:
        tree["offset"] = _number(chance, offset - inner)
    if size is not None:
        tree["size"] = _number(chance, size)
    return tree


def _number(chance: random.Random, value: int) -> int | str | float:
    """Return a number in one of the ways in which it may be written."""
    return chance.choice((value, value, str(value), hex(value), f"{value}b", float(value)))
