"""The tables of a new image as items of a plan: refcount table and blocks, L1 table, L2 tables.

Law: an item knows its place and length at once, and makes its bytes when they are written.
"""

from __future__ import annotations

import struct
import sys

from instar.core.plan import PIECE, Fill, Series, Write
from instar.formats.qcow2.ondisk import COPIED, L1_ENTRY_SIZE, L2_ENTRY_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.plan import Item
    from instar.formats.qcow2.layout import Layout


#: Entries that are packed at a time.
_BATCH = 1 << 14
#: Entries of a refcount table that are looked at in one go.
_STEP = 128


class Ramp:
    """Makes entries that grow by ``step``, many at a time, by copying.

    Entries of places in the file from one multiple of 2^24 (of 2^32, for large clusters) to the next differ from
    those behind any other in their high bytes only. So there is one table of them, whose high bytes are set when
    others are needed, a column at a time, and what is asked for is cut out of it.

    ``spacing`` is the bytes from one entry to the next; what is between them stays zero.
    """

    __slots__ = ("_bits", "_high", "_mask", "_shift", "_table", "_view", "count", "spacing", "step")

    def __init__(self, step: int, spacing: int) -> None:
        """Take a power of two from 512 bytes to 2 MiB as step."""
        self.step = step
        self.spacing = spacing
        self._shift = step.bit_length() - 1
        self._bits = 24 if step < 1 << 16 else 32
        self._mask = (1 << self._bits) - 1
        #: Entries that differ in their low bytes.
        self.count = (1 << self._bits) // step
        self._high = 0
        self._table = bytearray()
        self._view = memoryview(self._table)

    def table(self, first: int, count: int) -> bytes:
        """Return ``count`` entries of 64 bits each, big endian; only flags of ``first`` are no multiple of ``step``.

        No entry reaches 2^64.
        """
        low = (first & self._mask) >> self._shift
        if low + count <= self.count:
            high = first >> self._bits
            if high != self._high or not self._table:
                self._set(high)
            return bytes(self._view[low * self.spacing : (low + count) * self.spacing])
        parts = []
        while count:
            number = min(count, self.count - ((first & self._mask) >> self._shift))
            parts.append(self.table(first, number))
            first += number * self.step
            count -= number
        return b"".join(parts)

    def _set(self, high: int) -> None:
        """Give the high bytes of all entries their value."""
        if not self._table:
            self._make()
        size = 8 - self._bits // 8
        for column, (old, new) in enumerate(
            zip(self._high.to_bytes(size, "big"), high.to_bytes(size, "big"), strict=True)
        ):
            if old != new:
                self._table[column :: self.spacing] = bytes((new,)) * self.count
        self._high = high

    def _make(self) -> None:
        """Make the table, a column of bytes at a time."""
        table, count = bytearray(self.count * self.spacing), self.count
        for column in range(8 - self._bits // 8, 8):
            # Byte j of entry k, from the low end, is k·2^(shift of the step - 8j).
            shift = 8 * (7 - column) - self._shift
            if shift < 0:
                values = bytes(k << -shift & 255 for k in range(256))
            else:
                values = b"".join(bytes((k,)) * (1 << shift) for k in range(256))
            table[column :: self.spacing] = (values * -(-count // len(values)))[:count]
        self._table, self._view = table, memoryview(table)


class Entries(Series):
    """The L2 entries of one run of data clusters; extended ones have a subcluster bitmap of 0."""

    __slots__ = ("_ramp",)

    def __init__(self, offset: int, count: int, label: str, first: int, ramp: Ramp) -> None:
        # Not by way of ``Series.__init__``: there may be millions of these.
        self.file = 0
        self.offset = offset
        self.count = count
        self.length = count * ramp.spacing
        self.first = first
        self.step = ramp.step
        self.width = L2_ENTRY_SIZE
        self.endian = ">"
        self.label = label
        self._ramp = ramp

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        ramp = self._ramp
        most = PIECE // ramp.spacing
        if self.count <= most:
            yield self.offset, ramp.table(self.first, self.count)
            return
        for start in range(0, self.count, most):
            first = self.first + start * self.step
            yield self.offset + start * ramp.spacing, ramp.table(first, min(most, self.count - start))

    def describe(self) -> str:
        """Return what is written, for people."""
        wide = ", bitmap 0 after each" if self._ramp.spacing > L2_ENTRY_SIZE else ""
        return super().describe() + wide


def refcount_table(layout: Layout) -> Item:
    """Return the refcount table, all clusters of it."""
    size = layout.cluster_size
    return Write(layout.clusters.table_start * size, _block_offsets(layout.clusters.blocks, size), "refcount table")


def refcount_blocks(layout: Layout) -> Iterator[Item]:
    """Yield the refcount blocks; neighbours in the file that count used clusters only are one item."""
    clusters = layout.clusters
    size, per_block = layout.cluster_size, clusters.per_block
    ones = _ones(per_block, size)
    full = [0, 0, 0]
    runs = iter(clusters.used)
    run: list[int] | None = next(runs)
    for index, block in enumerate(clusters.blocks[: _end(clusters.blocks)]):
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
    """Yield the refcount tables that larger ones replaced, where nothing took their place.

    QEMU leaves their bytes behind. A data cluster that took a place must read as zeros and has no item.
    """
    clusters = layout.clusters
    size = layout.cluster_size
    for start, entries in clusters.dropped:
        data = _block_offsets(entries, size)
        for cluster in range(start, start + len(data) // size):
            if clusters.is_free(cluster):
                at = (cluster - start) * size
                yield Write(cluster * size, data[at : at + size], "former refcount table")


def l1_table(layout: Layout) -> Item:
    """Return the L1 table: zeros, or the L2 tables with their ``COPIED`` flag."""
    size = layout.cluster_size
    offset, length = layout.l1_start * size, layout.l1_entries * L1_ENTRY_SIZE
    module = sys.modules.get("array")  # the layout imported it if there are tables
    if module is None or not (rows := list(layout.table_rows())):
        return Fill(offset, length, "L1 table")
    entries = module.array("Q")
    for first, count, step in rows:
        low = first * size | COPIED
        entries.extend(range(low, low + count * step * size, step * size))
    if sys.byteorder == "little":
        entries.byteswap()
    return Write(offset, entries.tobytes(), "L1 table")


def l2_tables(layout: Layout) -> Iterator[Item]:
    """Yield the L2 tables, a series for every run of data clusters."""
    size, entries = layout.cluster_size, layout.l2_entries
    entry = size // entries
    ramp = Ramp(size, entry)
    runs = layout.data()
    first = left = guest = 0
    for index, table in enumerate(layout.tables()):
        filled = 0
        while filled < entries and guest < layout.data_clusters:
            if not left:
                first, left = next(runs)
            count = min(left, entries - filled)
            offset = table * size + filled * entry
            yield Entries(offset, count, f"L2 table {index}", first * size | COPIED, ramp)
            first, left = first + count, left - count
            filled += count
            guest += count
        if filled < entries:
            yield Fill(table * size + filled * entry, (entries - filled) * entry, f"rest of L2 table {index}")


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


def _block_offsets(blocks: list[int], size: int) -> bytes:
    """Return a refcount table: host offsets of refcount blocks."""
    parts = []
    end = _end(blocks)
    for start in range(0, end, _BATCH):
        batch = [block * size for block in blocks[start : min(start + _BATCH, end)]]
        parts.append(struct.pack(f">{len(batch)}Q", *batch) if any(batch) else bytes(8 * len(batch)))
    return b"".join([*parts, bytes(8 * (len(blocks) - end))])


def _end(blocks: list[int]) -> int:
    """Return an index from which on a refcount table is empty: a new one mostly is, and long."""
    end = len(blocks)
    while end and not any(blocks[max(0, end - _STEP) : end]):
        end = max(0, end - _STEP)
    return end
