"""Plans a new qcow2 image, byte for byte the one that qemu-img makes.

Law: a table is one item, made when it is written. Clusters that qemu-img leaves as holes have no item.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Plan, Write
from instar.core.units import SECTOR, align_up
from instar.formats.qcow2.first_cluster import first_cluster
from instar.formats.qcow2.layout import Layout
from instar.formats.qcow2.ondisk import REFCOUNT_ORDER_V2, Header
from instar.formats.qcow2.tables import former_tables, l1_table, l2_tables, refcount_blocks, refcount_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.plan import Item, Seed


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan an image for a disk of ``size`` bytes, rounded up to 512.

    Args:
        size: bytes, not above what ``options.resolve`` accepts.
        options: what ``options.resolve`` returned.
        seed: ``backing`` is the backing file; entropy, time and name are not used.

    Raises:
        OptionError: ``image-too-large``, ``qcow2-backing-name-length``, ``qcow2-backing-name-space``.

    >>> from instar.core.options import Settings
    >>> from instar.core.plan import Seed
    >>> from instar.formats.qcow2.options import resolve
    >>> plan = create(1 << 30, resolve(1 << 30, Settings(), None), Seed())
    >>> plan.sizes
    (196624,)
    >>> for item in plan.items:
    ...     print(f"{item.offset:#x} {item.length} {item.label}")
    0x0 65536 header
    0x10000 65536 refcount table
    0x20000 65536 refcount block 0
    0x30000 16 L1 table
    """
    size = align_up(size, SECTOR)
    cluster_size = int(options["cluster_size"])
    version = int(options["version"])
    layout = Layout(
        size,
        cluster_size,
        int(options["refcount_bits"]).bit_length() - 1 if version >= 3 else REFCOUNT_ORDER_V2,
        extended_l2=bool(options["extended_l2"]),
        preallocation=str(options["preallocation"]),
    )
    header = Header(
        version=version,
        cluster_bits=cluster_size.bit_length() - 1,
        size=size,
        l1_size=layout.l1_entries,
        l1_table_offset=layout.l1_start * cluster_size,
        refcount_table_offset=layout.clusters.table_start * cluster_size,
        refcount_table_clusters=layout.clusters.table_clusters,
    )
    backing = seed.backing
    first = first_cluster(
        header,
        options,
        backing_file=backing.name if backing else None,
        backing_fmt=backing.format if backing else None,
    )
    items = _Items(layout, first.ljust(cluster_size, b"\0"), str(options["preallocation"]))
    return Plan(items, sizes=(layout.end,), virtual_size=size, unit=cluster_size)


class _Items:
    """The items of a plan, made anew each time they are asked for."""

    __slots__ = ("first", "layout", "mode")

    def __init__(self, layout: Layout, first: bytes, mode: str) -> None:
        self.layout = layout
        self.first = first
        self.mode = mode

    def __iter__(self) -> Iterator[Item]:
        layout = self.layout
        yield Write(0, self.first, "header")
        yield refcount_table(layout)
        yield from refcount_blocks(layout)
        yield from former_tables(layout)
        if layout.l1_entries:
            yield l1_table(layout)
        yield from l2_tables(layout)
        if layout.tail:
            yield Fill(*layout.tail, "end of the last data cluster")
        if layout.reserved:
            yield Allocate(*layout.reserved, "data clusters", mode=self.mode)
