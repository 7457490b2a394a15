"""What to write to make a VHDX image: byte for byte what qemu-img writes, but for what is random and its name.

Law: pure. Sizes and options come judged (``options.resolve``), randomness comes in the seed.
Ranges that qemu-img leaves as holes (the log, the table of a dynamic disk without zero states) are left out.
"""

from __future__ import annotations

import sys
from array import array

from instar.core.plan import PIECE, Fill, Plan, Series, Write
from instar.core.units import MiB, align_up, ceil_div
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.crc32c import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.plan import Item, Seed


class Bat(Series):
    """Block allocation table of ``count`` payload entries ``first + k·step``, and a zero after each ``ratio`` of them.

    The zeros are sector bitmap entries; none stands after the last payload entry ([MS-VHDX] 2.5).
    """

    __slots__ = ("ratio",)

    def __init__(self, offset: int, count: int, *, first: int, step: int, ratio: int) -> None:
        super().__init__(offset, count, "block allocation table", first=first, step=step, endian="<")
        self.ratio = ratio
        self.length = (count + (count - 1) // ratio) * ondisk.ENTRY_SIZE

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        per_piece = max(1, PIECE // ((self.ratio + 1) * ondisk.ENTRY_SIZE)) * self.ratio
        end = self.offset + self.length
        offset = self.offset
        for start in range(0, self.count, per_piece):
            data = b"".join(
                self._entries(k, min(k + self.ratio, self.count)) + bytes(ondisk.ENTRY_SIZE)
                for k in range(start, min(start + per_piece, self.count), self.ratio)
            )[: end - offset]
            yield offset, data
            offset += len(data)

    def _entries(self, start: int, stop: int) -> bytes:
        low = self.first + start * self.step
        number = stop - start
        entries = array("Q", range(low, low + number * self.step, self.step) if self.step else [low] * number)
        if sys.byteorder == "big":
            entries.byteswap()
        return entries.tobytes()

    def describe(self) -> str:
        """Return what is written, for people."""
        return f"bat    {self.first:#x} + k·{self.step:#x}, {self.count} × 64 bit <, and 0 after each {self.ratio}"


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image of ``size`` bytes, which are rounded up to 512.

    ``seed.entropy``: bytes 0-15 file write GUID, 16-31 data write GUID, 32-47 virtual disk id (page 83),
    48-51 sequence number of the first header.

    >>> from instar.core.options import Settings
    >>> from instar.core.plan import Seed
    >>> from instar.formats.vhdx.options import resolve
    >>> plan = create(10**9, resolve(10**9, Settings(), None), Seed())
    >>> plan.virtual_size, plan.unit, plan.sizes
    (1000000000, 8388608, (8388608,))
    >>> [item.label for item in plan.items][:3]
    ['file identifier', 'header 1', 'header 2']

    Source: [MS-VHDX] 2.2 to 2.6; layout and order of qemu-img 7.2.
    """
    size = align_up(size, 512)
    block_size = int(options["block_size"])
    log_size = int(options["log_size"])
    fixed = options["subformat"] == "fixed"
    zero = bool(options["block_state_zero"])

    bat_offset = align_up(ondisk.HEADER_SECTION + log_size, MiB)
    bat_length = align_up(_bat_entries(size, block_size) * ondisk.ENTRY_SIZE, MiB)
    metadata_offset = bat_offset + bat_length
    data_offset = metadata_offset + ondisk.DATA_GAP
    file_id = ondisk.FILE_SIGNATURE + ondisk.CREATOR
    items: list[Item] = [Write(ondisk.FILE_ID_OFFSET, file_id, "file identifier")]
    for number, offset in enumerate(ondisk.HEADER_OFFSETS):
        items.append(Write(offset, _header(seed.entropy, number, log_size), f"header {number + 1}"))
    regions = _region_table(bat_offset, bat_length, metadata_offset)
    for number, offset in enumerate(ondisk.REGION_TABLE_OFFSETS):
        items.append(Write(offset, regions, f"region table {number + 1}"))
    if fixed or zero:
        items += _bat(bat_offset, bat_length, size, block_size, None if zero else data_offset)
    items.append(Write(metadata_offset, _metadata_table(), "metadata table"))
    items.append(
        Write(
            metadata_offset + ondisk.METADATA_TABLE_SIZE,
            b"".join(_metadata_items(size, block_size, fixed=fixed, disk_id=seed.entropy[32:48])),
            "metadata items",
        )
    )
    return Plan(
        tuple(items),
        sizes=(data_offset + (size if fixed else 0),),
        virtual_size=size,
        unit=block_size,
        unit_name="block",
    )


def _bat_entries(size: int, block_size: int) -> int:
    """Return how many entries qemu-img makes room for.

    For a disk of size 0 it computes "blocks − 1" in 32 bits, and its reader insists on the room that follows from it.
    """
    if not size:
        return 0xFFFF_FFFF // ondisk.chunk_ratio(block_size)
    return ondisk.bat_entries(size, block_size)


def _header(entropy: bytes, number: int, log_size: int) -> bytes:
    header = ondisk.Header(
        sequence_number=int.from_bytes(entropy[48:52], "little") + number,
        file_write_guid=ondisk.random_guid(entropy[0:16]),
        data_write_guid=ondisk.random_guid(entropy[16:32]),
        log_length=log_size,
        log_offset=ondisk.HEADER_SECTION,
    )
    # The rest of the 4 KiB that the checksum covers is a hole.
    header.checksum = checksum(header.pack().ljust(ondisk.HEADER_BLOCK, b"\0"))
    return header.pack()


def _region_table(bat_offset: int, bat_length: int, metadata_offset: int) -> bytes:
    body = b"".join(
        [
            ondisk.RegionTableHeader(entry_count=2).pack(),
            ondisk.RegionTableEntry(guid=ondisk.BAT_REGION, file_offset=bat_offset, length=bat_length).pack(),
            ondisk.RegionTableEntry(
                guid=ondisk.METADATA_REGION, file_offset=metadata_offset, length=ondisk.METADATA_REGION_SIZE
            ).pack(),
        ]
    ).ljust(ondisk.REGION_TABLE_SIZE, b"\0")
    return body[:4] + checksum(body).to_bytes(4, "little") + body[8:]


def _bat(offset: int, length: int, size: int, block_size: int, data_offset: int | None) -> Iterator[Item]:
    """Yield the table: all blocks zero, or, with ``data_offset``, all in place from there on."""
    blocks = ceil_div(size, block_size)
    written = 0
    if blocks:
        first, step = (ondisk.ZERO, 0) if data_offset is None else (data_offset | ondisk.FULLY_PRESENT, block_size)
        table = Bat(offset, blocks, first=first, step=step, ratio=ondisk.chunk_ratio(block_size))
        written = table.length
        yield table
    if written < length:
        yield Fill(offset + written, length - written, "rest of the block allocation table")


def _metadata_items(size: int, block_size: int, *, fixed: bool, disk_id: bytes) -> tuple[bytes, ...]:
    """Return the five required items, in qemu-img's order, which is that of ``_metadata_table``."""
    flags = ondisk.LEAVE_BLOCKS_ALLOCATED if fixed else 0
    sector = (512).to_bytes(4, "little")
    return (
        ondisk.FileParameters(block_size=block_size, flags=flags).pack(),
        size.to_bytes(8, "little"),
        ondisk.random_guid(disk_id),
        sector,
        sector,
    )


def _metadata_table() -> bytes:
    disk = ondisk.ITEM_IS_VIRTUAL_DISK | ondisk.ITEM_REQUIRED
    rows = (
        (ondisk.FILE_PARAMETERS, 8, ondisk.ITEM_REQUIRED),
        (ondisk.VIRTUAL_DISK_SIZE, 8, disk),
        (ondisk.VIRTUAL_DISK_ID, 16, disk),
        (ondisk.LOGICAL_SECTOR_SIZE, 4, disk),
        (ondisk.PHYSICAL_SECTOR_SIZE, 4, disk),
    )
    body = ondisk.MetadataTableHeader(entry_count=len(rows)).pack()
    offset = ondisk.METADATA_TABLE_SIZE
    for item_id, length, flags in rows:
        body += ondisk.MetadataTableEntry(item_id=item_id, offset=offset, length=length, flags=flags).pack()
        offset += length
    return body.ljust(ondisk.METADATA_TABLE_SIZE, b"\0")
