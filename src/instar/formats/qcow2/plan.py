"""Plans a new qcow2 image, byte for byte the one that qemu-img makes.

Law: a table is one item, made when it is written. Clusters that qemu-img leaves as holes have no item.
"""

from __future__ import annotations

import sys
from array import array

from instar.core.plan import Allocate, Fill, Plan, Series, Write
from instar.core.units import SECTOR, align_up
from instar.formats.qcow2.first_cluster import first_cluster
from instar.formats.qcow2.layout import Layout
from instar.formats.qcow2.ondisk import COPIED, L1_ENTRY_SIZE, L2_ENTRY_SIZE, REFCOUNT_ORDER_V2, Header

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
        size = layout.cluster_size
        yield Write(0, self.first, "header")
        entries = array("Q", [block * size for block in layout.clusters.blocks])
        yield Write(layout.clusters.table_start * size, _big_endian(entries), "refcount table")
        yield from refcounts(layout)
        yield from former_tables(layout)
        if layout.l1_entries:
            yield l1_table(layout)
        yield from l2_tables(layout)
        if layout.tail:
            yield Fill(*layout.tail, "end of the last data cluster")
        if layout.reserved:
            yield Allocate(*layout.reserved, "data clusters", mode=self.mode)


class SparseSeries(Series):
    """A series with 8 zero bytes after each entry: extended L2 entries, no subcluster of which is allocated."""

    __slots__ = ()

    def __init__(self, offset: int, count: int, label: str, *, first: int, step: int) -> None:
        super().__init__(offset, count, label, first=first, step=step)
        self.length = 2 * count * self.width

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        for offset, dense in super().pieces():
            wide = array("Q", bytes(2 * len(dense)))
            wide[::2] = array("Q", dense)
            yield 2 * offset - self.offset, wide.tobytes()

    def describe(self) -> str:
        """Return what is written, for people."""
        return f"{super().describe()}, 64 bit 0 after each"


def refcounts(layout: Layout) -> Iterator[Item]:
    """Yield the refcount blocks; neighbours in the file that count used clusters only are one item."""
    clusters = layout.clusters
    size, per_block = layout.cluster_size, clusters.per_block
    ones = _ones(per_block, size)
    full = [0, 0, 0]
    runs = iter(clusters.used)
    run: list[int] | None = next(runs)
    for index, block in enumerate(clusters.blocks):
        if not block:
            continue
        low, high = index * per_block, (index + 1) * per_block
        counted = []
        while run is not None and run[0] < high:
            if run[1] > low:
                counted.append((max(run[0], low) - low, min(run[1], high) - low))
            if run[1] >= high:
                break
            run = next(runs, None)
        if counted == [(0, per_block)]:
            if full[1] and (full[0] + full[1], full[2] + full[1]) == (block, index):
                full[1] += 1
                continue
            if full[1]:
                yield _full_blocks(full, size, ones)
            full = [block, 1, index]
            continue
        data = bytearray(size)
        for start, end in counted:
            _count_in(data, start, end, per_block, ones)
        yield Write(block * size, bytes(data), f"refcount block {index}")
    if full[1]:
        yield _full_blocks(full, size, ones)


def former_tables(layout: Layout) -> Iterator[Item]:
    """Yield the refcount tables that larger ones replaced, where nothing took their place."""
    clusters = layout.clusters
    size = layout.cluster_size
    for start, entries in clusters.dropped:
        data = _big_endian(array("Q", [block * size for block in entries]))
        for cluster in range(start, start + len(data) // size):
            if clusters.is_free(cluster):
                at = (cluster - start) * size
                yield Write(cluster * size, data[at : at + size], "former refcount table")


def l1_table(layout: Layout) -> Item:
    """Return the L1 table: zeros, or the L2 tables with their ``COPIED`` flag."""
    size = layout.cluster_size
    offset, length = layout.l1_start * size, layout.l1_entries * L1_ENTRY_SIZE
    entries = array("Q")
    for first, count, step in layout.table_rows():
        low = first * size | COPIED
        entries.extend(range(low, low + count * step * size, step * size))
    if not entries:
        return Fill(offset, length, "L1 table")
    return Write(offset, _big_endian(entries), "L1 table")


def l2_tables(layout: Layout) -> Iterator[Item]:
    """Yield the L2 tables, each as one series for every run of data clusters."""
    size = layout.cluster_size
    entry = size // layout.l2_entries
    kind = Series if entry == L2_ENTRY_SIZE else SparseSeries
    runs = layout.data()
    first = left = 0
    guest = 0
    for index, table in enumerate(layout.tables()):
        filled = 0
        while filled < layout.l2_entries and guest < layout.data_clusters:
            if not left:
                first, left = next(runs)
            count = min(left, layout.l2_entries - filled)
            yield kind(
                table * size + filled * entry, count, f"L2 table {index}", first=first * size | COPIED, step=size
            )
            first, left = first + count, left - count
            filled += count
            guest += count
        if filled < layout.l2_entries:
            yield Fill(table * size + filled * entry, (layout.l2_entries - filled) * entry, f"rest of L2 table {index}")


def _full_blocks(blocks: list[int], size: int, ones: bytes) -> Fill:
    start, count, index = blocks
    name = f"refcount block {index}" if count == 1 else f"refcount blocks {index} to {index + count - 1}"
    return Fill(start * size, count * size, name, pattern=ones)


def _ones(per_block: int, size: int) -> bytes:
    """Return refcounts of 1, as many as fill whole bytes: one, or those of a byte."""
    bits = size * 8 // per_block
    if bits >= 8:
        return (1).to_bytes(bits // 8, "big")
    return bytes([sum(1 << at for at in range(0, 8, bits))])


def _count_in(block: bytearray, start: int, end: int, per_block: int, ones: bytes) -> None:
    """Set the refcounts ``start`` … ``end`` of a block to 1; narrow ones are packed from the low bits."""
    bits = len(block) * 8 // per_block
    if bits < 8:
        per_byte = 8 // bits
        while start < end and start % per_byte:
            block[start // per_byte] |= 1 << start % per_byte * bits
            start += 1
        while end > start and end % per_byte:
            end -= 1
            block[end // per_byte] |= 1 << end % per_byte * bits
    low, high = start * bits // 8, end * bits // 8
    block[low:high] = ones * ((high - low) // len(ones))


def _big_endian(entries: array[int]) -> bytes:
    """Return a table of 64-bit entries as bytes; ``entries`` is changed."""
    if sys.byteorder == "little":
        entries.byteswap()
    return entries.tobytes()
