"""Where the structures of an image stand, learned by watching a reader at work; their declarations say the rest.

Law: nothing here knows a format. A structure that is read anywhere is a place to mutate, field by field.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fuzz.reading import Memory
from instar.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Values at which readers have gone wrong before.
INTERESTING = (
    *(0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32),
    *(1 << 55, (1 << 56) - 512, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
#: How many of the last reads a structure may come from.
_REMEMBERED = 8
_MOST_PLACES = 2000

#: Offset in the file, size in bytes, byte order.
Place = tuple[int, int, str]


def places(run: Callable[[bytes], object], data: bytes) -> list[Place]:
    """Return where the fields of structures stand that ``run`` finds in ``data``."""
    found: dict[Place, None] = {}
    with _watched(found):
        try:
            run(data)
        except Exception:
            pass  # what is wrong with the seed is for somebody else to say
    return list(found)


@contextmanager
def _watched(found: dict[Place, None]) -> Iterator[None]:
    reads: list[tuple[int, bytes]] = []
    read, unpack = Memory.read, Record.__dict__["unpack"]

    def reading(self: Memory, offset: int, length: int) -> bytes:
        data = read(self, offset, length)
        reads.append((offset, data))
        del reads[:-_REMEMBERED]
        return data

    def unpacking(cls: type[Record], data: bytes | memoryview, offset: int = 0) -> object:
        piece = bytes(data[offset : offset + cls.SIZE])
        for start, whole in reversed(reads):
            within = whole.find(piece) if piece else -1
            if within >= 0 and len(found) < _MOST_PLACES:
                order = "big" if cls.STRUCT.format[:1] == ">" else "little"
                found.update(dict.fromkeys((start + within + f.offset, f.size, order) for f in cls.FIELDS))
                break
        return unpack.__func__(cls, data, offset)

    Memory.read = reading  # type: ignore[method-assign]
    Record.unpack = classmethod(unpacking)  # type: ignore[assignment]
    try:
        yield
    finally:
        Memory.read = read  # type: ignore[method-assign]
        Record.unpack = unpack  # type: ignore[method-assign]


def change_number(chance: random.Random, out: bytearray, at: int, width: int, order: str) -> None:
    """Overwrite a number, or add a little to it."""
    value = int.from_bytes(out[at : at + width], order)  # type: ignore[arg-type]
    kind = chance.random()
    if kind < 0.4:
        value = chance.choice(INTERESTING)
    elif kind < 0.7:
        value += chance.choice((-512, -8, -2, -1, 1, 2, 8, 512, 65536))
    elif kind < 0.8:
        value = len(out) + chance.choice((-512, -1, 0, 1, 512))
    elif kind < 0.9:
        value <<= chance.randrange(1, 16)
    else:
        value = chance.getrandbits(8 * width)
    end = min(at + width, len(out))
    out[at:end] = (value % (1 << 8 * width)).to_bytes(width, order)[: end - at]  # type: ignore[arg-type]
