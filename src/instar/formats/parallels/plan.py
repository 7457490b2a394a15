"""The writes that make a Parallels image.

Law: pure. The same size and options give the same plan, and the plan gives the bytes that ``qemu-img create``
writes: nothing in them is random.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Plan, Series, Write
from instar.core.units import align_up, ceil_div
from instar.formats.parallels.ondisk import HEADS, SECTOR, SECTORS_PER_TRACK, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image for a request of ``size`` bytes with the options that ``resolve`` gave; ``seed`` is not used.

    >>> from instar.core.plan import Seed
    >>> plan = create(10 << 20, {"cluster_size": 1 << 20, "preallocation": "off"}, Seed())
    >>> plan.virtual_size, plan.sizes
    (10485760, (1048576,))
    >>> [(item.offset, item.length, item.label) for item in plan.items]
    [(0, 512, 'header'), (512, 1048064, 'BAT')]
    """
    cluster = int(options["cluster_size"])
    mode = str(options["preallocation"])
    sectors = ceil_div(size, SECTOR)
    entries = ceil_div(sectors * SECTOR, cluster)
    table = Header.SIZE + 4 * entries
    data = align_up(table, cluster)
    header = Header(
        # The field has 32 bits; QEMU keeps the lower half too.
        cylinders=sectors // HEADS // SECTORS_PER_TRACK & 0xFFFFFFFF,
        tracks=cluster // SECTOR,
        bat_entries=entries,
        nb_sectors=sectors,
        data_off=data // SECTOR,
    ).pack()
    items: list[Item]
    end = data
    if mode == "off" or not entries:
        items = [Write(0, header.ljust(SECTOR, b"\0"), "header")]
        if data > SECTOR:
            # QEMU has the file system make it zero as well, so that it takes storage from the start.
            items.append(Allocate(SECTOR, data - SECTOR, "BAT", mode="full"))
    else:
        end += entries * cluster
        items = [Allocate(0, data, "header and BAT", mode="full"), Write(0, header, "header")]
        items.append(Series(Header.SIZE, entries, "BAT", first=data // cluster, step=1, width=4, endian="<"))
        if mode != "metadata":
            items.append(Allocate(data, end - data, "clusters", mode=mode))
    return Plan(items, sizes=(end,), virtual_size=sectors * SECTOR, unit=cluster)
