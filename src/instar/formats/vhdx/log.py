"""The replay log: is it empty, does it hold entries that must be replayed, or can nothing be made of it.

Law: nothing is replayed here (see ``replay``). Each byte of the log is read at most once for the search, and at most
``MAX_LOG_EXAMINED`` bytes more to verify entries, whatever they claim.
Source: [MS-VHDX] 2.3.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.reader import MAX_READ, read_padded
from instar.core.units import ceil_div
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.crc32c import crc32c
from instar.formats.vhdx.ondisk import LOG_SECTOR, DataSectorHead, LogDescriptor, LogEntryHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.reader import Reader

#: Bytes of an entry that are looked at in one go.
_STEP = 16 * LOG_SECTOR
_GUID = LogEntryHeader.field("log_guid")


class Entry:
    """A valid log entry: where it starts within the log, and its header."""

    __slots__ = ("end", "header", "offset")

    def __init__(self, offset: int, header: LogEntryHeader) -> None:
        self.offset = offset
        self.header = header
        #: Where the next one starts; past the end of the log if this one wraps around.
        self.end = offset + header.entry_length


class Log:
    """The ring at ``offset`` of the file, ``length`` bytes long, whose entries carry ``guid``."""

    __slots__ = ("_budget", "guid", "image", "length", "offset")

    def __init__(self, image: Reader, offset: int, length: int, guid: bytes) -> None:
        self.image = image
        self.offset = offset
        self.length = length
        self.guid = guid
        self._budget = ondisk.MAX_LOG_EXAMINED

    def active_sequence(self) -> list[Entry]:
        """Return the entries to be replayed, first to last (2.3.3); none if no entry is valid.

        Raises:
            ImageError: ``corrupt``, there are valid entries, but no sequence of them is; ``too-large``, to verify
                what the entries claim would take too long.
        """
        best: list[Entry] = []
        resume = 0
        stray = -1
        for offset in self._candidates():
            if offset < resume:
                continue
            run = self._run(offset)
            if not run:
                continue
            last = run[-1]
            resume = last.end if last.offset >= offset else self.length
            starts = [entry.offset for entry in run]
            if last.header.tail not in starts:
                stray = offset
            elif not best or last.header.sequence_number > best[-1].header.sequence_number:
                best = run[starts.index(last.header.tail) :]
        if stray >= 0 and not best:
            raise ImageError(
                "corrupt",
                "log",
                "there are entries to be replayed, but where they begin is missing",
                field="tail",
                offset=self.offset + stray,
            )
        return best

    def _candidates(self) -> Iterator[int]:
        """Yield where sectors begin as an entry of this log does."""
        signature = ondisk.LOG_ENTRY_SIGNATURE
        for start in range(0, min(self.length, self.image.size - self.offset), MAX_READ):
            piece = read_padded(self.image, self.offset + start, MAX_READ)
            if signature in piece:
                for at in range(0, MAX_READ, LOG_SECTOR):
                    if piece.startswith(signature, at) and piece.startswith(self.guid, at + _GUID.offset):
                        yield start + at

    def _run(self, offset: int) -> list[Entry]:
        """Return the valid entries that follow one another from ``offset`` on, at most once around (2.3.2)."""
        run: list[Entry] = []
        room = self.length
        while room:
            entry = self._entry(offset, room)
            if entry is None or (run and entry.header.sequence_number != run[-1].header.sequence_number + 1):
                break
            run.append(entry)
            room -= entry.header.entry_length
            offset = entry.end % self.length
        return run

    def _entry(self, offset: int, room: int) -> Entry | None:
        """Return the entry at ``offset`` if it is valid and no longer than ``room`` (2.3.1)."""
        header = LogEntryHeader.unpack(self.read(offset, LOG_SECTOR))
        length = header.entry_length
        descriptors = LogEntryHeader.SIZE + header.descriptor_count * LogDescriptor.SIZE
        head_sectors = ceil_div(descriptors, LOG_SECTOR)
        if (
            header.signature != ondisk.LOG_ENTRY_SIGNATURE
            or header.log_guid != self.guid
            or header.sequence_number == 0
            or length % LOG_SECTOR
            or not head_sectors * LOG_SECTOR <= length <= room
        ):
            return None
        self._budget -= length
        if self._budget < 0:
            raise ImageError(
                "too-large",
                "log",
                "the entries of the log are too large to be verified",
                field="entry_length",
                offset=self.offset + offset,
                limit=ondisk.MAX_LOG_EXAMINED,
            )
        crc = 0
        head = bytearray()
        data_sectors = 0
        for at in range(0, length, _STEP):
            piece = self.read((offset + at) % self.length, min(_STEP, length - at))
            for low in range(max(0, head_sectors * LOG_SECTOR - at), len(piece), LOG_SECTOR):
                data_sectors += _is_data_sector(piece[low : low + LOG_SECTOR], header.sequence_number)
            head += piece[: max(0, descriptors - at)]
            crc = crc32c(piece if at else piece[:4] + bytes(4) + piece[8:], crc)
        wanted = _data_descriptors(head[LogEntryHeader.SIZE :], header.sequence_number)
        if crc != header.checksum or wanted is None or wanted > data_sectors:
            return None
        return Entry(offset, header)

    def holds_data(self, offset: int, sequence_number: int) -> bool:
        """Tell whether a data sector of the entry of that number stands at ``offset``."""
        return _is_data_sector(self.read(offset, LOG_SECTOR), sequence_number)

    def read(self, offset: int, length: int) -> bytes:
        """Read from the ring: what would lie past its end is at its start."""
        first = min(length, self.length - offset)
        data = read_padded(self.image, self.offset + offset, first)
        return data if first == length else data + read_padded(self.image, self.offset, length - first)


def _is_data_sector(sector: bytes, sequence_number: int) -> bool:
    """Tell whether a sector belongs to the entry of that number (2.3.1.4)."""
    head = DataSectorHead.unpack(sector)
    low = int.from_bytes(sector[-4:], "little")
    return head.signature == ondisk.DATA_SECTOR_SIGNATURE and head.sequence_high << 32 | low == sequence_number


def _data_descriptors(rows: bytes | bytearray, sequence_number: int) -> int | None:
    """Count the data descriptors of an entry; ``None`` if any descriptor is not valid (2.3.1.2, 2.3.1.3)."""
    count = 0
    for signature, _, length, file_offset, number in LogDescriptor.STRUCT.iter_unpack(rows):
        if number != sequence_number or file_offset % LOG_SECTOR:
            return None
        if signature == ondisk.DATA_DESCRIPTOR_SIGNATURE:
            count += 1
        elif signature != ondisk.ZERO_DESCRIPTOR_SIGNATURE or length % LOG_SECTOR:
            return None
    return count
