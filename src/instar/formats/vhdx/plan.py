"""What to write to make a VHDX image: byte for byte what qemu-img writes, but for what is random and its name.

Law: pure. Sizes and options come judged (``options.resolve``), randomness comes in the seed.
Ranges that qemu-img leaves as holes (the log, the table of a dynamic disk without zero states) are left out.
Differencing disks and preallocated ones, which qemu-img does not make, follow [MS-VHDX] 2.4 to 2.6.
"""

from __future__ import annotations

import sys
from array import array

from instar.core.errors import ImageError
from instar.core.plan import PIECE, Allocate, Fill, Plan, Series, Write
from instar.core.units import MiB, align_up, ceil_div
from instar.core.winpath import to_windows
from instar.formats.vhdx import ondisk
from instar.formats.vhdx.crc32c import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.plan import Backing, Item, Seed


class Bat(Series):
    """Block allocation table of ``count`` payload entries ``first + k·step``, and one more after each ``ratio``.

    Those are sector bitmap entries: zero, and none stands after the last payload entry ([MS-VHDX] 2.5). With
    ``bitmaps`` they are that and a mebibyte more each, and the last one is there too, its chunk filled up with zeros.
    """

    __slots__ = ("bitmaps", "ratio")

    def __init__(self, offset: int, count: int, *, first: int, step: int, ratio: int, bitmaps: int = 0) -> None:
        super().__init__(offset, count, "block allocation table", first=first, step=step, endian="<")
        self.ratio = ratio
        self.bitmaps = bitmaps
        last = ceil_div(count, ratio) * (ratio + 1) if bitmaps else count + (count - 1) // ratio
        self.length = last * ondisk.ENTRY_SIZE

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        per_piece = max(1, PIECE // ((self.ratio + 1) * ondisk.ENTRY_SIZE)) * self.ratio
        end = self.offset + self.length
        offset = self.offset
        for start in range(0, self.count, per_piece):
            data = b"".join(
                self._entries(k, min(k + self.ratio, self.count)).ljust(self.ratio * ondisk.ENTRY_SIZE, b"\0")
                + self._bitmap(k // self.ratio)
                for k in range(start, min(start + per_piece, self.count), self.ratio)
            )[: end - offset]
            yield offset, data
            offset += len(data)

    def _bitmap(self, chunk: int) -> bytes:
        entry = self.bitmaps + chunk * ondisk.BITMAP_BLOCK if self.bitmaps else 0
        return entry.to_bytes(ondisk.ENTRY_SIZE, "little")

    def _entries(self, start: int, stop: int) -> bytes:
        low = self.first + start * self.step
        number = stop - start
        entries = array("Q", range(low, low + number * self.step, self.step) if self.step else [low] * number)
        if sys.byteorder == "big":
            entries.byteswap()
        return entries.tobytes()

    def describe(self) -> str:
        """Return what is written, for people."""
        between = f"{self.bitmaps:#x} + k·{ondisk.BITMAP_BLOCK:#x}" if self.bitmaps else "0"
        return (
            f"bat    {self.first:#x} + k·{self.step:#x}, {self.count} × 64 bit <, and {between} after each {self.ratio}"
        )


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image of ``size`` bytes, which are rounded up to 512; with ``seed.backing`` a differencing disk.

    ``seed.entropy``: bytes 0-15 file write GUID, 16-31 data write GUID, 32-47 virtual disk id (page 83; a child has
    its parent's), 48-51 sequence number of the first header.

    Raises:
        ImageError: ``unsupported-feature``, the parent has items that a child would have to copy.

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
    mode = str(options.get("preallocation", "off"))
    disk = _Disk(size, block_size, seed)

    bat_offset = align_up(ondisk.HEADER_SECTION + log_size, MiB)
    bat_length = align_up(disk.bat_entries * ondisk.ENTRY_SIZE, MiB) or MiB
    metadata_offset = bat_offset + bat_length
    data_offset = metadata_offset + ondisk.DATA_GAP
    file_id = ondisk.FILE_SIGNATURE + ondisk.CREATOR
    items: list[Item] = [Write(ondisk.FILE_ID_OFFSET, file_id, "file identifier")]
    for number, offset in enumerate(ondisk.HEADER_OFFSETS):
        items.append(Write(offset, _header(seed.entropy, number, log_size), f"header {number + 1}"))
    regions = _region_table(bat_offset, bat_length, metadata_offset, required=disk.is_child)
    for number, offset in enumerate(ondisk.REGION_TABLE_OFFSETS):
        items.append(Write(offset, regions, f"region table {number + 1}"))
    # A child's sector bitmaps are holes, and so say of each sector that it is the parent's. They need not be there
    # before a block is, but some readers (libvhdi) look at them all the same.
    bitmaps = data_offset | ondisk.BITMAP_PRESENT if disk.is_child else 0
    payload = data_offset + disk.chunks * ondisk.BITMAP_BLOCK
    end = payload + (size if fixed else 0)
    if mode != "off":
        end = payload + disk.blocks * block_size
        state = ondisk.PARTIALLY_PRESENT if disk.is_child else ondisk.FULLY_PRESENT
        items += _bat(bat_offset, bat_length, disk, payload | state, block_size, bitmaps)
    elif disk.is_child:
        items += _bat(bat_offset, bat_length, disk, ondisk.NOT_PRESENT, 0, bitmaps)
    elif zero:
        items += _bat(bat_offset, bat_length, disk, ondisk.ZERO, 0)
    elif fixed:
        items += _bat(bat_offset, bat_length, disk, data_offset | ondisk.FULLY_PRESENT, block_size)
    items.append(Write(metadata_offset, disk.metadata_table(), "metadata table"))
    items.append(
        Write(
            metadata_offset + ondisk.METADATA_TABLE_SIZE, b"".join(disk.metadata_items(fixed=fixed)), "metadata items"
        )
    )
    if mode in ("falloc", "full") and end > data_offset:
        items.append(Allocate(data_offset, end - data_offset, "blocks", mode=mode))
    return Plan(tuple(items), sizes=(end,), virtual_size=size, unit=block_size, unit_name="block")


class _Disk:
    """What follows from the size, the block size and the parent of a disk."""

    __slots__ = ("block_size", "blocks", "chunks", "identity", "parent", "ratio", "seed", "size")

    def __init__(self, size: int, block_size: int, seed: Seed) -> None:
        self.size = size
        self.block_size = block_size
        self.seed = seed
        self.parent: Backing | None = None
        self.identity = ondisk.Identity(
            data_write_guid=b"",
            disk_id=ondisk.random_guid(seed.entropy[32:48]),
            logical_sector=512,
            physical_sector=512,
            other_items=0,
        )
        if seed.backing is not None and seed.backing.identity is not None:
            self.parent = seed.backing
            self.identity = ondisk.Identity.unpack(seed.backing.identity)
            if self.identity.other_items:
                raise ImageError(
                    "unsupported-feature",
                    "metadata table",
                    "the parent has items of the virtual disk that a child would have to copy, and they are unknown",
                    value=self.identity.other_items,
                )
        self.blocks = ceil_div(size, block_size)
        self.ratio = ondisk.chunk_ratio(block_size, self.identity.logical_sector)
        #: Sector bitmap blocks; only children have them.
        self.chunks = ceil_div(self.blocks, self.ratio) if self.is_child else 0

    @property
    def is_child(self) -> bool:
        return self.parent is not None

    @property
    def bat_entries(self) -> int:
        """How many entries there is room for."""
        return (
            self.chunks * (self.ratio + 1) if self.is_child else ondisk.created_bat_entries(self.size, self.block_size)
        )

    def metadata_items(self, *, fixed: bool) -> tuple[bytes, ...]:
        """Return the five required items, in qemu-img's order, which is the table's; then the parent locator."""
        flags = (ondisk.LEAVE_BLOCKS_ALLOCATED if fixed else 0) | (ondisk.HAS_PARENT if self.is_child else 0)
        found = self.identity
        items = (
            ondisk.FileParameters(block_size=self.block_size, flags=flags).pack(),
            self.size.to_bytes(8, "little"),
            found.disk_id,
            found.logical_sector.to_bytes(4, "little"),
            found.physical_sector.to_bytes(4, "little"),
        )
        return (*items, self._locator()) if self.is_child else items

    def _locator(self) -> bytes:
        """Return the parent locator (2.6.2.6).

        Of the three paths one is demanded. The relative one is the only one that can be told here: the others begin
        with a drive or a volume of Windows.
        """
        path = "" if self.parent is None else self.parent.relative
        pairs = (
            (ondisk.PARENT_LINKAGES[0], "{" + ondisk.guid_text(self.identity.data_write_guid) + "}"),
            (ondisk.PARENT_PATHS[0], to_windows(path)),
        )
        texts, rows = b"", b""
        start = ondisk.ParentLocatorHeader.SIZE + len(pairs) * ondisk.ParentLocatorEntry.SIZE
        for pair in pairs:
            key, value = (text.encode("utf-16-le") for text in pair)
            at = start + len(texts)
            rows += ondisk.ParentLocatorEntry(
                key_offset=at, value_offset=at + len(key), key_length=len(key), value_length=len(value)
            ).pack()
            texts += key + value
        return ondisk.ParentLocatorHeader(key_value_count=len(pairs)).pack() + rows + texts

    def metadata_table(self) -> bytes:
        """Return the table of ``metadata_items``."""
        disk = ondisk.ITEM_IS_VIRTUAL_DISK | ondisk.ITEM_REQUIRED
        rows = [
            (ondisk.FILE_PARAMETERS, 8, ondisk.ITEM_REQUIRED),
            (ondisk.VIRTUAL_DISK_SIZE, 8, disk),
            (ondisk.VIRTUAL_DISK_ID, 16, disk),
            (ondisk.LOGICAL_SECTOR_SIZE, 4, disk),
            (ondisk.PHYSICAL_SECTOR_SIZE, 4, disk),
        ]
        if self.is_child:
            rows.append((ondisk.PARENT_LOCATOR, len(self._locator()), ondisk.ITEM_REQUIRED))
        body = ondisk.MetadataTableHeader(entry_count=len(rows)).pack()
        offset = ondisk.METADATA_TABLE_SIZE
        for item_id, length, flags in rows:
            body += ondisk.MetadataTableEntry(item_id=item_id, offset=offset, length=length, flags=flags).pack()
            offset += length
        return body.ljust(ondisk.METADATA_TABLE_SIZE, b"\0")


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


def _region_table(bat_offset: int, bat_length: int, metadata_offset: int, *, required: bool) -> bytes:
    """Return a region table; qemu-img leaves out that both regions are required (2.2.3.2)."""
    flags = ondisk.REGION_REQUIRED if required else 0
    rows = (
        (ondisk.BAT_REGION, bat_offset, bat_length),
        (ondisk.METADATA_REGION, metadata_offset, ondisk.METADATA_REGION_SIZE),
    )
    body = ondisk.RegionTableHeader(entry_count=len(rows)).pack()
    for guid, offset, length in rows:
        body += ondisk.RegionTableEntry(guid=guid, file_offset=offset, length=length, flags=flags).pack()
    body = body.ljust(ondisk.REGION_TABLE_SIZE, b"\0")
    return body[:4] + checksum(body).to_bytes(4, "little") + body[8:]


def _bat(offset: int, length: int, disk: _Disk, first: int, step: int, bitmaps: int = 0) -> Iterator[Item]:
    """Yield the table, and zeros to the end of its region."""
    written = 0
    if disk.blocks:
        table = Bat(offset, disk.blocks, first=first, step=step, ratio=disk.ratio, bitmaps=bitmaps)
        written = table.length
        yield table
    if written < length:
        yield Fill(offset + written, length - written, "rest of the block allocation table")
