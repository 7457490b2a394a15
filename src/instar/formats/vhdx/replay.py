"""An image as it reads once its log is replayed, with nothing written.

Law: what the log says is a list of places, not of bytes: at most ``MAX_DESCRIPTORS`` rows are kept, and a data sector
is read from the log when it is asked for.
Source: [MS-VHDX] 2.3.1 (descriptors), 2.3.3 (replay).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import pairwise

from instar.core.errors import ImageError
from instar.core.reader import read_padded
from instar.core.units import INT64_MAX, ceil_div
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.ondisk import LOG_SECTOR, LogDescriptor, LogEntryHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.formats.vhdx.log import Entry, Log

    #: Where in the log the sector stands, and its first 8 and last 4 bytes; ``None`` for a run of zeros.
    Source = tuple[int, bytes, bytes] | None
    #: First byte, last byte + 1, what to read there.
    Span = tuple[int, int, Source]

#: Descriptors that are replayed: those of any log of 2 MiB; a larger one has that many only if it is full of zeros.
MAX_DESCRIPTORS = 1 << 16


class Replayed:
    """A file with the changes of a log in their places."""

    __slots__ = ("_image", "_log", "_spans", "_starts", "number", "size")

    def __init__(self, log: Log, entries: list[Entry]) -> None:
        """Read the descriptors of ``entries``, the active sequence of ``log``.

        Raises:
            ImageError: ``corrupt``, a change lies where no file reaches, or its sector is not in the log;
                ``too-large``, there are more changes than ``MAX_DESCRIPTORS``.
        """
        self._log = log
        self._image = log.image
        self.number = log.image.number
        last = entries[-1].header.last_file_offset
        if last > INT64_MAX:
            raise _corrupt(log, entries[-1], "last_file_offset", "the file would be longer than any", last)
        if sum(entry.header.descriptor_count for entry in entries) > MAX_DESCRIPTORS:
            raise ImageError(
                "too-large",
                "log",
                "the log holds too many changes to be replayed in memory",
                field="descriptor_count",
                limit=MAX_DESCRIPTORS,
                offset=log.offset,
            )
        self.size = max(log.image.size, last)
        self._spans = _flatten([span for entry in entries for span in _changes(log, entry)])
        self._starts = [start for start, _, _ in self._spans]

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end of the file."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        data = read_padded(self._image, offset, end - offset)
        index = max(0, bisect_right(self._starts, offset) - 1)
        changed: bytearray | None = None
        while index < len(self._spans) and self._starts[index] < end:
            start, stop, source = self._spans[index]
            index += 1
            if stop <= offset:
                continue
            changed = bytearray(data) if changed is None else changed
            low, high = max(start, offset), min(stop, end)
            piece = bytes(high - low) if source is None else self._sector(source)[low - start : high - start]
            changed[low - offset : high - offset] = piece
        return data if changed is None else bytes(changed)

    def _sector(self, source: tuple[int, bytes, bytes]) -> bytes:
        place, leading, trailing = source
        return leading + self._log.read(place, LOG_SECTOR)[8:-4] + trailing


def _corrupt(log: Log, entry: Entry, field: str, detail: str, value: int) -> ImageError:
    return ImageError("corrupt", "log", detail, field=field, value=value, offset=log.offset + entry.offset)


def _changes(log: Log, entry: Entry) -> list[Span]:
    """Return the changes of one entry in their order."""
    header = entry.header
    length = LogEntryHeader.SIZE + header.descriptor_count * LogDescriptor.SIZE
    rows = log.read(entry.offset, length)[LogEntryHeader.SIZE :]
    sector = ceil_div(length, LOG_SECTOR)
    found: list[Span] = []
    for signature, trailing, leading, offset, _ in LogDescriptor.STRUCT.iter_unpack(rows):
        if signature == ondisk.ZERO_DESCRIPTOR_SIGNATURE:
            end, source = offset + leading, None
        else:
            place = (entry.offset + sector * LOG_SECTOR) % log.length
            if not log.holds_data(place, header.sequence_number):
                raise _corrupt(log, entry, "data_sector", "a data sector is not where its descriptor says", place)
            sector += 1
            end, source = offset + LOG_SECTOR, (place, leading.to_bytes(8, "little"), trailing)
        if end > INT64_MAX:
            raise _corrupt(log, entry, "descriptor_offset", "a change lies past the end of any file", end)
        if end > offset:
            found.append((offset, end, source))
    return found


def _flatten(changes: list[Span]) -> list[Span]:
    """Return changes that do not overlap, in the order of the file; of two in one place the later one stays."""
    order = sorted(range(len(changes)), key=lambda number: changes[number][0])
    points = sorted({point for start, end, _ in changes for point in (start, end)})
    open_now: list[int] = []  # the latest change last; ended ones go when they come up
    found: list[Span] = []
    following = 0
    for low, high in pairwise(points):
        while following < len(order) and changes[order[following]][0] <= low:
            insort(open_now, order[following])
            following += 1
        while open_now and changes[open_now[-1]][1] <= low:
            open_now.pop()
        if open_now:
            found.append((low, high, changes[open_now[-1]][2]))
    return found
