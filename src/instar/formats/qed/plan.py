"""The writes that make a QED image.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes.
"""

from __future__ import annotations

from instar.core.plan import Fill, Plan, Write
from instar.core.units import SECTOR, align_up
from instar.formats.qed.ondisk import F_BACKING_FILE, F_BACKING_FORMAT_NO_PROBE, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image for a disk of ``size`` bytes with the options that ``resolve`` gave. Takes no randomness.

    >>> from instar.core.plan import Seed
    >>> plan = create(1 << 20, {"cluster_size": 65536, "table_size": 4}, Seed())
    >>> plan.virtual_size, plan.sizes
    (1048576, (327680,))
    >>> [(item.offset, item.length, item.label) for item in plan.items]
    [(0, 64, 'header'), (65536, 262144, 'L1 table')]
    """
    cluster_size, table_size = int(options["cluster_size"]), int(options["table_size"])
    virtual_size = align_up(size, SECTOR)
    name = b""
    features = 0
    if seed.backing is not None:
        name = seed.backing.name.encode("utf-8", "surrogateescape")
        features = F_BACKING_FILE
        if seed.backing.format == "raw":
            features |= F_BACKING_FORMAT_NO_PROBE
    header = Header(
        cluster_size=cluster_size,
        table_size=table_size,
        features=features,
        l1_table_offset=cluster_size,
        image_size=virtual_size,
        backing_filename_offset=Header.SIZE if name else 0,
        backing_filename_size=len(name),
    )
    l1_size = cluster_size * table_size
    items: list[Item] = [Write(0, header.pack(), "header")]
    if name:
        items.append(Write(Header.SIZE, name, "backing file name"))
    items.append(Fill(cluster_size, l1_size, "L1 table"))
    return Plan(items, sizes=(cluster_size + l1_size,), virtual_size=virtual_size, unit=cluster_size)
