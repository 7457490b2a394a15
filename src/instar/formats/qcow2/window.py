"""Small reads that go forward through a structure, served from larger pieces of the file.

Law: what lies past the end of the file reads as zeros; what no file can reach is an ``ImageError``.
"""

from __future__ import annotations

from instar.core.reader import read_padded
from instar.core.units import KiB
from instar.formats.qcow2.header import require_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader

_PIECE = 64 * KiB


class Window:
    """Bytes of one structure; one read of the file for each 64 KiB."""

    __slots__ = ("_data", "_reader", "_start", "_structure")

    def __init__(self, reader: Reader, structure: str) -> None:
        self._reader = reader
        self._structure = structure
        self._start = 0
        self._data = b""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, at most some 128 KiB, from ``offset``.

        Raises:
            ImageError: ``out-of-bounds``, no file is that long.
        """
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            require_readable(self._structure, offset, length)
            self._data = read_padded(self._reader, offset, max(length, _PIECE))
            self._start = offset
            begin = 0
        return self._data[begin : begin + length]
