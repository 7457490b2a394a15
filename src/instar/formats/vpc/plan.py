"""The writes that make a VHD.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes, but for the identifier and the date. Differencing disks and preallocated ones, which
qemu-img does not make, follow the specification: "Dynamic Disk Header Format", "Implementing a Differencing Hard Disk".
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Plan, Series, Write
from instar.core.units import align_up, ceil_div
from instar.core.winpath import to_windows
from instar.formats.vpc.geometry import fit, volume
from instar.formats.vpc.ondisk import (
    BAT_OFFSET,
    CREATOR_QEMU,
    CREATOR_QEMU_EXACT,
    EPOCH,
    HEADER_OFFSET,
    LOCATORS,
    NO_OFFSET,
    PLATFORM_W2KU,
    PLATFORM_W2RU,
    SECTOR,
    TYPE_DIFFERENCING,
    TYPE_DYNAMIC,
    TYPE_FIXED,
    Footer,
    Header,
    Identity,
    ParentLocator,
    bitmap_bytes,
    sealed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.plan import Backing, Item, Seed

#: QEMU's file driver writes zeros over the first bytes of a file that it makes longer than nothing, to find
#: out the alignment of direct I/O; a fixed disk therefore has its first 4 KiB allocated.
_PROBED = 4096


class _Parts:
    """The items of a dynamic disk: some before, one for each sector bitmap, some after. None is kept."""

    __slots__ = ("after", "before", "blocks", "data", "size", "span")

    def __init__(self, before: list[Item], after: list[Item], *, data: int, span: int, size: int, blocks: int) -> None:
        self.before = before
        self.after = after
        #: Where the first bitmap stands, from one to the next, bytes of each, how many.
        self.data = data
        self.span = span
        self.size = size
        self.blocks = blocks

    def __iter__(self) -> Iterator[Item]:
        yield from self.before
        for number in range(self.blocks):
            yield Fill(self.data + number * self.span, self.size, "sector bitmap", pattern=b"\xff")
        yield from self.after


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a VHD for a request of ``size`` bytes (0 to 2040 GiB) with the options that ``resolve`` gave.

    With ``seed.backing`` a differencing disk; it has the size and the geometry of its parent.
    Bytes 0-15 of ``seed.entropy`` become the identifier, a UUID of version 4 (RFC 4122, 4.4);
    ``seed.time`` the date, kept within what the 32-bit field counts from 2000-01-01 UTC.

    >>> from instar.core.plan import Seed
    >>> plan = create(10 << 20, {"subformat": "dynamic", "force_size": False, "block_size": 2 << 20}, Seed())
    >>> plan.virtual_size, plan.sizes
    (10514432, (2560,))
    >>> [(item.offset, item.length, item.label) for item in plan.items]
    [(0, 512, 'footer copy'), (512, 1024, 'dynamic disk header'), (1536, 512, 'BAT'), (2048, 512, 'footer')]
    """
    force = bool(options["force_size"])
    fixed = options["subformat"] == "fixed"
    disk_type = TYPE_FIXED if fixed else TYPE_DYNAMIC
    parent = seed.backing
    if parent is None or parent.identity is None:
        virtual_size, chs = fit(size, force=force)
        creator = CREATOR_QEMU_EXACT if force else CREATOR_QEMU
    else:
        identity = Identity.unpack(parent.identity)
        virtual_size, disk_type = identity.current_size, TYPE_DIFFERENCING
        chs = (identity.cylinders, identity.heads, identity.sectors_per_track)
        creator = CREATOR_QEMU if volume(chs) * SECTOR == virtual_size else CREATOR_QEMU_EXACT
    footer = sealed(
        Footer(
            data_offset=NO_OFFSET if fixed else HEADER_OFFSET,
            timestamp=_stamp(seed.time),
            creator_app=creator,
            original_size=virtual_size,
            current_size=virtual_size,
            cylinders=chs[0],
            heads=chs[1],
            sectors_per_track=chs[2],
            disk_type=disk_type,
            unique_id=_uuid(seed.entropy),
        )
    )
    mode = str(options.get("preallocation", "off"))
    if fixed:
        return _fixed(virtual_size, footer, mode)
    return _dynamic(virtual_size, footer, int(options["block_size"]), mode, parent)


def _stamp(time: int) -> int:
    """Return seconds since 1970 as the format counts them."""
    return min(max(time - EPOCH, 0), 0xFFFFFFFF)


def _fixed(virtual_size: int, footer: bytes, mode: str) -> Plan:
    """Plan a fixed disk: data that reads as zeros, then the footer."""
    items: list[Item] = [Write(virtual_size, footer, "footer")]
    if virtual_size and mode == "off":
        items.insert(0, Fill(0, min(_PROBED, virtual_size), "start of data"))
    elif virtual_size:
        items.insert(0, Allocate(0, virtual_size, "data", mode=mode))
    return Plan(items, sizes=(virtual_size + SECTOR,), virtual_size=virtual_size, unit_name="block")


def _dynamic(virtual_size: int, footer: bytes, block_size: int, mode: str, parent: Backing | None) -> Plan:
    """Plan a dynamic or differencing disk: footer, header, parent locators, BAT padded to a sector, footer again.

    Without preallocation it has no block. Else each has its place in order, behind a bitmap that says of all sectors
    that they are here; in a differencing disk, that they are the parent's: those bitmaps are holes.
    """
    entries = ceil_div(virtual_size, block_size)
    # QEMU puts the first block right behind the BAT, so nothing may stand there: the locators come before it.
    table = BAT_OFFSET
    header = Header(max_table_entries=entries, block_size=block_size)
    items: list[Item] = [Write(0, footer, "footer copy")]
    if parent is not None:
        locators = _locators(header, parent, BAT_OFFSET)
        items += locators
        table = align_up(locators[-1].offset + locators[-1].length, SECTOR)
        header.table_offset = table
    items.insert(1, Write(HEADER_OFFSET, sealed(header), "dynamic disk header"))
    data = table + align_up(4 * entries, SECTOR)
    bitmap = bitmap_bytes(block_size)
    span = bitmap + block_size
    end = data
    blocks = 0
    if mode == "off" or not entries:
        items.append(Fill(table, data - table, "BAT", pattern=b"\xff\xff\xff\xff"))
    else:
        end = data + entries * span
        blocks = 0 if parent is not None else entries
        items.append(Series(table, entries, "BAT", first=data // SECTOR, step=span // SECTOR, width=4))
        used = table + 4 * entries
        if used < data:
            items.append(Fill(used, data - used, "rest of the BAT", pattern=b"\xff\xff\xff\xff"))
        if mode != "metadata":
            items.append(Allocate(data, end - data, "blocks", mode=mode))
    last: list[Item] = [Write(end, footer, "footer")]
    return Plan(
        _Parts(items, last, data=data, span=span, size=bitmap, blocks=blocks),
        sizes=(end + SECTOR,),
        virtual_size=virtual_size,
        unit=block_size,
        unit_name="block",
    )


def _locators(header: Header, parent: Backing, offset: int) -> list[Write]:
    """Name the parent in the header; return the absolute and the relative path, to stand from ``offset`` on."""
    header.parent_unique_id = Identity.unpack(parent.identity or b"").unique_id
    header.parent_timestamp = _stamp(parent.modified)
    header.parent_name = parent.absolute.rpartition("/")[2].encode("utf-16-be")
    rows, texts = b"", []
    for platform, path, label in (
        (PLATFORM_W2KU, parent.absolute, "parent's absolute path"),
        (PLATFORM_W2RU, parent.relative, "parent's relative path"),
    ):
        text = to_windows(path).encode("utf-16-le")
        sectors = ceil_div(len(text), SECTOR)
        rows += ParentLocator(
            platform_code=platform, data_space=sectors, data_length=len(text), data_offset=offset
        ).pack()
        texts.append(Write(offset, text, label))
        offset += sectors * SECTOR
    header.parent_locators = rows.ljust(LOCATORS * ParentLocator.SIZE, b"\0")
    return texts


def _uuid(entropy: bytes) -> bytes:
    """Return a UUID of version 4, variant 1, from the first 16 bytes of ``entropy``."""
    number = int.from_bytes(entropy[:16], "big")
    number = number & ~(0xF << 76) | 0x4 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return number.to_bytes(16, "big")
