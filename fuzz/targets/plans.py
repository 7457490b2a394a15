"""Creations of every format, chosen by an input's bytes: what is made can be read again, and is what was asked for."""

from __future__ import annotations

import random
from bisect import bisect_right
from typing import TYPE_CHECKING

from fuzz import choices
from fuzz.reading import IDENTITIES, SEED_SIZE, assert_one_line, part
from instar.core import NEWEST
from instar.core.errors import OptionError
from instar.core.options import read_settings
from instar.core.plan import Allocate, Backing, Seed
from instar.core.units import align_up, is_power_of_two
from instar.formats import creatable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.plan import Plan

_FORMATS = [row.name for row in creatable() if row.name != "raw"]
#: More metadata than this is not read back; making it would take the second that a whole test has.
_MOST_METADATA = 4 << 20
#: A disk above this may have as much, and finding out takes as long.
_MOST_SIZE = 1 << 34
#: Named where the new image goes; their values mean files.
_FILES = ("size", "backing_file", "backing_fmt", "data_file", "keep_data_file", "data_file_raw")


def seeds() -> list[bytes]:
    """Return some chances for each format."""
    chance = random.Random(3)
    return [bytes((number,)) + chance.randbytes(64) for number in range(len(_FORMATS)) for _ in range(4)]


class Made:
    """One file of a plan, as a parser sees it, without the file."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.number = number
        self.size = plan.sizes[number]
        pieces = [p for i in plan.items if i.file == number and not isinstance(i, Allocate) for p in i.pieces()]
        self._pieces = sorted(pieces)
        self._starts = [offset for offset, _ in self._pieces]

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        out = bytearray(max(0, min(length, self.size - offset)))
        for start, data in self._pieces[max(0, bisect_right(self._starts, offset) - 1) :]:
            if start >= offset + len(out):
                break
            if start + len(data) > offset:
                skip = max(0, offset - start)
                at = max(0, start - offset)
                piece = data[skip : skip + len(out) - at]
                out[at : at + len(piece)] = piece
        return bytes(out)


def one_input(data: bytes) -> None:
    """Any choices give an ``OptionError``, or a plan whose image is sound and describes the disk that was asked for."""
    format = _FORMATS[data[0] % len(_FORMATS) if data else 0]
    chance = choices.FromBytes(data[1:])
    chosen = choices.options(chance, format, NEWEST, _FILES, ours=True)
    size = choices.size(chance, choices.most(format, chosen))
    secrets = [(key, "s") for key in ("key-secret", "encrypt.key-secret") if key in dict(chosen)]
    if not 0 <= size <= _MOST_SIZE:
        return
    backing = None
    least = size
    if choices.takes_backing(format) and chance.random() < 0.3:
        if format in IDENTITIES:
            size = least = SEED_SIZE
        identity = IDENTITIES.get(format)
        if identity and format == "vpc" and chance.random() < 0.5:
            # The footer's size, which the child takes over, is any where the parent goes by its geometry.
            least = 512 * chance.getrandbits(chance.choice((8, 32, 55)))
            identity = identity[:16] + least.to_bytes(8, "big") + identity[24:]
        backing = Backing("b", format, virtual_size=size, content_id=7, identity=identity)
        backing.relative, backing.absolute = "b", "/b"
    options = part(format, "options")
    try:
        pairs = [(key, value) for key, value in (*chosen, *secrets)]
        settings = read_settings(options.CREATE, pairs, format=format)
        resolved = options.resolve(size, settings, backing)
        seed = Seed(entropy=bytes(64), file_name="x.vmdk", backing=backing, secret=b"secret", pbkdf_rate=1000)
        plan = part(format, "plan").create(size, resolved, seed)
    except OptionError as error:
        assert_one_line(error)
        return
    plan.check()
    assert plan.virtual_size >= least or resolved.get("detached-header")
    if format == "vpc" and not plan.virtual_size:
        return  # fixed, it is a footer alone, which nobody opens (quirks.md)
    if plan.metadata_bytes() <= _MOST_METADATA and not resolved.get("detached-header"):
        _read_again(format, plan, backing, resolved)


def _read_again(format: str, plan: Plan, backing: Backing | None, resolved: dict[str, int | bool | str]) -> None:
    files: Sequence[Made] = [Made(plan, number) for number in range(len(plan.sizes))]
    facts = part(format, "parse").info(files[0], [], generation=NEWEST)
    parts: list[Made | None] = list(files[1 : 1 + sum(r.required for r in facts.references)])
    if parts:
        facts = part(format, "parse").info(files[0], parts, generation=NEWEST)
    assert facts.virtual_size == align_up(plan.virtual_size, 512), (facts.virtual_size, plan.virtual_size)
    assert (facts.backing is not None) == (backing is not None)
    unit = facts.cluster_size
    for key in ("cluster_size", "block_size", "grain_size"):
        if unit and resolved.get(key):
            assert unit == resolved[key], (key, unit, resolved[key])
    if format == "parallels" and not is_power_of_two(int(resolved["cluster_size"])):
        return  # 8.2 and later find fault with such of their own (quirks.md)
    report = part(format, "check").check(
        files[0], [None] if format in IDENTITIES and backing else parts, generation=NEWEST
    )
    assert not report.corruptions, report.findings
    assert not report.leaks - report.false_leaks, report.findings
    assert not report.check_errors, report.findings
