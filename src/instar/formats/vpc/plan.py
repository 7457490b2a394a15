"""The writes that make a VHD.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes, but for the identifier and the date.
"""

from __future__ import annotations

from instar.core.plan import Fill, Plan, Write
from instar.core.units import align_up, ceil_div
from instar.formats.vpc.geometry import fit
from instar.formats.vpc.ondisk import (
    BAT_OFFSET,
    CREATOR_QEMU,
    CREATOR_QEMU_EXACT,
    EPOCH,
    HEADER_OFFSET,
    NO_OFFSET,
    SECTOR,
    TYPE_DYNAMIC,
    TYPE_FIXED,
    Footer,
    Header,
    sealed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed

#: QEMU's file driver writes zeros over the first bytes of a file that it makes longer than nothing, to find
#: out the alignment of direct I/O; a fixed disk therefore has its first 4 KiB allocated.
_PROBED = 4096


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a VHD for a request of ``size`` bytes (0 to 2040 GiB) with the options that ``resolve`` gave.

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
    virtual_size, (cylinders, heads, track) = fit(size, force=force)
    fixed = options["subformat"] == "fixed"
    footer = sealed(
        Footer(
            data_offset=NO_OFFSET if fixed else HEADER_OFFSET,
            timestamp=min(max(seed.time - EPOCH, 0), 0xFFFFFFFF),
            creator_app=CREATOR_QEMU_EXACT if force else CREATOR_QEMU,
            original_size=virtual_size,
            current_size=virtual_size,
            cylinders=cylinders,
            heads=heads,
            sectors_per_track=track,
            disk_type=TYPE_FIXED if fixed else TYPE_DYNAMIC,
            unique_id=_uuid(seed.entropy),
        )
    )
    if fixed:
        return _fixed(virtual_size, footer)
    return _dynamic(virtual_size, footer, int(options["block_size"]))


def _fixed(virtual_size: int, footer: bytes) -> Plan:
    """Plan a fixed disk: data that reads as zeros, then the footer."""
    items: list[Item] = [Write(virtual_size, footer, "footer")]
    if virtual_size:
        items.insert(0, Fill(0, min(_PROBED, virtual_size), "start of data"))
    return Plan(items, sizes=(virtual_size + SECTOR,), virtual_size=virtual_size, unit_name="block")


def _dynamic(virtual_size: int, footer: bytes, block_size: int) -> Plan:
    """Plan a dynamic disk without a block: footer, header, BAT padded to a sector, footer again."""
    entries = ceil_div(virtual_size, block_size)
    header = Header(max_table_entries=entries, block_size=block_size)
    bat_size = align_up(4 * entries, SECTOR)
    items: list[Item] = [
        Write(0, footer, "footer copy"),
        Write(HEADER_OFFSET, sealed(header), "dynamic disk header"),
        Fill(BAT_OFFSET, bat_size, "BAT", pattern=b"\xff\xff\xff\xff"),
        Write(BAT_OFFSET + bat_size, footer, "footer"),
    ]
    return Plan(
        items,
        sizes=(BAT_OFFSET + bat_size + SECTOR,),
        virtual_size=virtual_size,
        unit=block_size,
        unit_name="block",
    )


def _uuid(entropy: bytes) -> bytes:
    """Return a UUID of version 4, variant 1, from the first 16 bytes of ``entropy``."""
    number = int.from_bytes(entropy[:16], "big")
    number = number & ~(0xF << 76) | 0x4 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return number.to_bytes(16, "big")
