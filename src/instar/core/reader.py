"""How a parser sees a file: its size, and bytes at an offset. Nothing else.

Law: every length read from an image is compared with a limit here before a byte is asked for.
"""

from __future__ import annotations

import sys
from array import array

from instar.core.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Reader(Protocol):
        """A file opened for reading. ``number`` is the index under which the host granted it."""

        number: int
        #: Length in bytes when the file was granted.
        size: int

        def read(self, offset: int, length: int) -> bytes:
            """Return up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
            ...


#: Longest single read a helper of this module makes.
MAX_READ = 1 << 20
#: The most that ``Ahead`` reads in one go.
_AHEAD = 256 << 10


def read_exact(reader: Reader, offset: int, length: int, structure: str) -> bytes:
    """Read exactly ``length`` bytes (at most 64 MiB) of ``structure``.

    Raises:
        ImageError: ``out-of-bounds`` if the range is not wholly inside the file, ``too-large`` past 64 MiB.
    """
    if length > 64 * MAX_READ:
        raise ImageError(
            "too-large",
            structure,
            "the structure is too large to read",
            value=length,
            limit=64 * MAX_READ,
            offset=offset,
        )
    if offset < 0 or length < 0 or offset + length > reader.size:
        raise ImageError(
            "out-of-bounds",
            structure,
            "the structure reaches past the end of the file",
            value=offset + length,
            field="end",
            limit=reader.size,
            offset=offset,
        )
    data = reader.read(offset, length)
    if len(data) != length:
        raise ImageError(
            "out-of-bounds",
            structure,
            "the file became shorter while it was read",
            value=len(data),
            limit=length,
            offset=offset,
        )
    return data


def read_padded(reader: Reader, offset: int, length: int) -> bytes:
    """Read ``length`` bytes; what lies past the end of the file reads as zeros, as in QEMU."""
    data = reader.read(offset, max(0, min(length, reader.size - offset))) if 0 <= offset < reader.size else b""
    return data if len(data) == length else data + bytes(length - len(data))


class Ahead:
    """Reads like ``read_padded``, and reads ahead while what is asked for goes forward without a gap.

    A cell pays for each read by leaving its machine, so many small tables in a row are read in one go.
    """

    __slots__ = ("_data", "_next", "_piece", "_reader", "_start")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._start = 0
        self._data = b""
        self._next = -1
        self._piece = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; what lies past the end of the file reads as zeros."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            self._piece = min(2 * max(self._piece, length), _AHEAD) if offset == self._next else 0
            if length >= self._piece:
                self._next = offset + length
                return read_padded(self._reader, offset, length)
            self._data = read_padded(self._reader, offset, self._piece)
            self._start = offset
            begin = 0
        self._next = offset + length
        return self._data[begin : begin + length]


def table(data: bytes, code: str, endian: str) -> array[int]:
    """Decode a table of integers: ``code`` is ``H``, ``I`` or ``Q``, ``endian`` ``>`` or ``<``.

    ``len(data)`` must be a multiple of the entry size.
    """
    entries = array(code, data)
    if (endian == ">") == (sys.byteorder == "little"):
        entries.byteswap()
    return entries


def read_table(reader: Reader, offset: int, count: int, code: str, endian: str, structure: str) -> array[int]:
    """Read a table of ``count`` integers that must lie wholly inside the file; see ``table``."""
    return table(read_exact(reader, offset, count * array(code).itemsize, structure), code, endian)


def iter_table(
    reader: Reader, offset: int, count: int, code: str, endian: str, structure: str
) -> Iterator[tuple[int, array[int]]]:
    """Yield ``(index of first entry, entries)`` in pieces of at most 1 MiB, for tables of any length.

    Raises:
        ImageError: ``out-of-bounds`` if the table is not wholly inside the file.
    """
    size = array(code).itemsize
    if offset < 0 or offset + count * size > reader.size:
        raise ImageError(
            "out-of-bounds",
            structure,
            "the table reaches past the end of the file",
            value=offset + count * size,
            field="end",
            limit=reader.size,
            offset=offset,
        )
    step = MAX_READ // size
    for first in range(0, count, step):
        piece = min(step, count - first)
        yield first, read_table(reader, offset + first * size, piece, code, endian, structure)
