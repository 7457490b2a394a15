"""The writes that make a VDI.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes, but for the two identifiers.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Plan, Series, Write
from instar.core.units import align_up, ceil_div
from instar.formats.vdi.ondisk import BLOCK, MAP_OFFSET, SECTOR, TYPE_DYNAMIC, TYPE_STATIC, UNALLOCATED, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a VDI for a request of ``size`` bytes (0 to ``MAX_SIZE``) with the options that ``resolve`` gave.

    Bytes 0-15 of ``seed.entropy`` become the identifier of the image, bytes 16-31 that of its last change: UUIDs of
    version 4 (RFC 4122, 4.4), stored as Windows does.

    >>> from instar.core.plan import Seed
    >>> plan = create(10 << 20, {"static": False, "preallocation": "off"}, Seed())
    >>> plan.virtual_size, plan.sizes
    (10485760, (1024,))
    >>> [(item.offset, item.length, item.label) for item in plan.items]
    [(0, 512, 'header'), (512, 40, 'block map'), (552, 472, 'rest of the block map')]
    """
    static = bool(options["static"])
    virtual_size = align_up(size, SECTOR)
    blocks = ceil_div(virtual_size, BLOCK)
    used = MAP_OFFSET + 4 * blocks
    data = align_up(used, SECTOR)
    header = Header(
        image_type=TYPE_STATIC if static else TYPE_DYNAMIC,
        offset_data=data,
        disk_size=virtual_size,
        blocks_in_image=blocks,
        blocks_allocated=blocks if static else 0,
        uuid_image=_uuid(seed.entropy[:16]),
        uuid_last_snap=_uuid(seed.entropy[16:32]),
    )
    items: list[Item] = [Write(0, header.pack(), "header")]
    if blocks and static:
        items.append(Series(MAP_OFFSET, blocks, "block map", first=0, step=1, width=4, endian="<"))
    elif blocks:
        items.append(Fill(MAP_OFFSET, 4 * blocks, "block map", pattern=UNALLOCATED.to_bytes(4, "little")))
    if used < data:
        items.append(Fill(used, data - used, "rest of the block map"))
    end = data + blocks * BLOCK if static else data
    mode = str(options["preallocation"])
    if mode != "off" and data < end:
        items.append(Allocate(data, end - data, "blocks", mode=mode))
    return Plan(items, sizes=(end,), virtual_size=virtual_size, unit=BLOCK, unit_name="block")


def _uuid(entropy: bytes) -> bytes:
    """Return a UUID of version 4, variant 1, from 16 bytes, its first three fields little endian."""
    raw = bytearray(entropy)
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:])
