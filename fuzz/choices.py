"""Random choices of a creation: options by their declarations, sizes where formats have their edges.

Law: all chance comes from the ``Random`` that is handed in. ``FromBytes`` is one whose numbers are an input's bytes, so
that what mutates the input changes one choice, not all.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from instar.formats import find
from instar.host.request import option_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from instar.core.options import Option

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
#: Above this no space is reserved or tables filled in advance; some formats fill tables without being asked.
_MOST_BY_OPTION = dict.fromkeys(
    (
        *(("preallocation", mode) for mode in ("metadata", "falloc", "full")),
        ("static", "on"),
        *(("subformat", kind) for kind in ("fixed", "monolithicFlat", "twoGbMaxExtentFlat")),
    ),
    64 * MiB,
)
_MOST = 1 << 62
_MOST_BY_FORMAT = {"vmdk": 2 * TiB}
_SIZES = (0, 1, 511, 512, 513, 64 * KiB, MiB, 10 * MiB + 512, 64 * MiB, 100 * MiB - 1, GiB, 2 * GiB, 4 * GiB, 2 * TiB)
_SIZE_WORDS = ("1.5M", "3k", "2049b", "0x100000", "-1", "1x", "9E", "", "12M ", "1e3")


class FromBytes(random.Random):
    """Chance out of an input: each number takes the bytes it needs, zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    def getrandbits(self, count: int) -> int:
        """Return a number of ``count`` bits."""
        length = (count + 7) // 8
        piece = self._data[self._at : self._at + length]
        self._at += length
        return int.from_bytes(piece, "little") & (1 << count) - 1

    def random(self) -> float:
        """Return a number from 0 to below 1."""
        return self.getrandbits(16) / (1 << 16)


def options(
    chance: random.Random, format: str, version: tuple[int, int], leave: tuple[str, ...] = (), *, ours: bool = False
) -> tuple[tuple[str, str], ...]:
    """Return settings of some of a format's options, without those that ``leave`` names (``encrypt.`` names many).

    ``ours``: also options that qemu-img of ``version`` does not have.
    """
    rows = [
        row
        for row in option_rows(format)
        if (ours or (not row.extension and row.since <= version))
        and row.name not in leave
        and f"{row.name.partition('.')[0]}." not in leave
    ]
    return tuple((row.name, value(chance, row)) for row in rows if chance.random() < 0.25)


def most(format: str, chosen: Iterable[tuple[str, str]]) -> int:
    """Return the largest size of a disk that does not fill the machine."""
    return min(_MOST_BY_FORMAT.get(format, _MOST), *(_MOST_BY_OPTION.get(option, _MOST) for option in chosen), _MOST)


def size_word(chance: random.Random, largest: int) -> str:
    """Return a size as typed; now and then not a good one."""
    kind = chance.random()
    return chance.choice(_SIZE_WORDS) if kind < 0.05 else str(_size(chance, largest, kind))


def size(chance: random.Random, largest: int) -> int:
    """Return a size in bytes: an edge, about a power of two, or any."""
    return _size(chance, largest, chance.random())


def _size(chance: random.Random, largest: int, kind: float) -> int:
    if kind < 0.5:
        return min(chance.choice(_SIZES), largest)
    if kind < 0.6:
        return min(1 << chance.randrange(63), largest) + chance.choice((-512, -1, 0, 1, 512))
    return chance.randrange(min(largest, 256 * MiB))


def value(chance: random.Random, row: Option) -> str:
    """Return a value for an option, most often one that it takes."""
    if chance.random() < 0.04:
        return chance.choice(("", "foo", "-1", "0", "99999999999999999999", "1.5", "on"))
    if row.type == "bool":
        return chance.choice(("on", "off"))
    if row.choices:
        return chance.choice((*row.choices, *row.aliases))
    if row.type == "size":
        return str(chance.choice((1, 1, 1, 3)) * (1 << chance.randrange(8, 27)))
    if row.type == "num":
        return str(chance.choice((1 << chance.randrange(8), chance.randrange(100))))
    return chance.choice(("4", "undefined", "7", "x y", "2147483647"))


def takes_backing(format: str) -> bool:
    """Tell whether images of a format may have a backing file."""
    row = find(format)
    return row is not None and row.backing is not None
