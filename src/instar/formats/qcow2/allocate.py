"""Which host cluster goes where: the refcounts of a growing file, kept as runs instead of one by one.

Law: clusters are handed out in QEMU's order, so that a new image has the bytes that qemu-img would write.
Time and memory grow with the number of runs and of refcount blocks, never with the number of clusters.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.units import ceil_div
from instar.formats.qcow2.ondisk import (
    FORMAT,
    MAX_CLUSTER_OFFSET,
    MAX_REFCOUNT_TABLE_SIZE,
    REFCOUNT_TABLE_ENTRY_SIZE,
)


def too_large(value: int, limit: int, what: str) -> OptionError:
    """Return the error for an image whose structures outgrow the format; ``value`` and ``limit`` in bytes."""
    return OptionError(
        "image-too-large",
        f"{what} would need {value} bytes, of at most {limit}; use a larger cluster size",
        format=FORMAT,
        limit=limit,
        value=value,
    )


def refcount_blocks(clusters: int, cluster_size: int, refcount_order: int, *, spare: bool) -> int:
    """Return how many refcount blocks count ``clusters`` clusters, themselves and their table.

    With ``spare``, half of the table's size is counted again, for the table's next growth.
    """
    per_block = cluster_size * 8 >> refcount_order
    per_table_cluster = cluster_size // REFCOUNT_TABLE_ENTRY_SIZE
    table = blocks = 0
    while True:
        needed = ceil_div(clusters + table + blocks, per_block)
        needed_table = ceil_div(needed, per_table_cluster)
        settled = needed + needed_table == blocks + table
        table, blocks = needed_table, needed
        if settled:
            if not spare:
                return blocks
            spare = False
            clusters += ceil_div(table, 2)


def most_clusters(counted: int, cluster_size: int, refcount_order: int, *, exact: bool) -> int:
    """Return how many clusters a new file of ``counted`` clusters has at most, with its header and refcounts.

    With ``exact`` the refcount table was made anew in the end, for all of it (see ``Allocator.new_table``).
    """
    first = entries = cluster_size // REFCOUNT_TABLE_ENTRY_SIZE
    most = 3 + counted
    blocks = refcount_blocks(most, cluster_size, refcount_order, spare=True)
    most += blocks - 1
    if exact:
        most += ceil_div(blocks, first)
    # Each growth of the table leaves the former one where it was, and may leave free what was left of a block's range.
    while entries < blocks:
        entries = ceil_div(3 * entries, 2)
        most += (cluster_size * 8 >> refcount_order) + ceil_div(entries, first) + 1
    return most


class Allocator:
    """The host clusters of a new image. Numbers are cluster indexes unless they say bytes.

    It starts as the file does: header, refcount table and first refcount block in clusters 0, 1 and 2.
    No cluster of a new image is ever counted twice, so a set of used runs is all the state of the refcounts.

    Attributes:
        per_block: clusters that one refcount block counts.
        used: runs of used clusters as ``[start, end]``, sorted, apart from each other.
        blocks: the refcount table: the cluster of each refcount block, 0 where there is none.
        table_start: first cluster of the refcount table.
        dropped: former refcount tables as ``(start, entries)``; their bytes stay in the file until reused.
        end: bytes that metadata reaches in the file.
    """

    def __init__(self, cluster_size: int, refcount_order: int) -> None:
        self.cluster_size = cluster_size
        self.refcount_order = refcount_order
        self.per_block = cluster_size * 8 >> refcount_order
        self.used = [[0, 3]]
        self.blocks = [2] + [0] * (cluster_size // REFCOUNT_TABLE_ENTRY_SIZE - 1)
        self.table_start = 1
        self.dropped: list[tuple[int, list[int]]] = []
        self.end = 3 * cluster_size
        #: The search for free clusters starts here. What lies before may be free and is forgotten.
        self._next = 3

    @property
    def table_clusters(self) -> int:
        """Clusters of the refcount table."""
        return len(self.blocks) * REFCOUNT_TABLE_ENTRY_SIZE // self.cluster_size

    def is_free(self, cluster: int) -> bool:
        """Tell whether nothing uses ``cluster``."""
        return self._free_from(cluster, 1) == 1

    def write(self, start: int, length: int) -> None:
        """Note that ``length`` bytes are written from cluster ``start`` on."""
        self.end = max(self.end, start * self.cluster_size + length)

    def alloc(self, count: int) -> int:
        """Take the first ``count`` free clusters in a row; return the first.

        Raises:
            OptionError: ``image-too-large``, past what a table entry can point to, or past the largest
                refcount table.
        """
        while True:
            start = self._find(count)
            self._limit(start + count)
            if self._count(start, count):
                return start

    def alloc_at(self, start: int, count: int) -> int:
        """Take up to ``count`` free clusters from ``start`` on; return how many are free there.

        Raises:
            OptionError: see ``alloc``.
        """
        self._limit(start + count)
        while True:
            free = self._free_from(start, count)
            if not free or self._count(start, free):
                return free

    def alloc_rows(self, count: int, length: int) -> tuple[int, int]:
        """Take as many as possible of ``count`` rows of ``length`` clusters that lie one after the other.

        It is what ``count`` calls of ``alloc(length)`` would do, as far as no refcount block is in the way
        and everything after the first free cluster is free.

        Returns:
            First cluster and number of rows; 0 rows where it has to be done in single steps.
        """
        start = self._first_fit(1, self._next)
        if start < self.used[-1][1]:
            return start, 0
        missing = self._missing(start // self.per_block, len(self.blocks))
        rows = min(count, (missing * self.per_block - start) // length)
        if rows > 0:
            self._limit(start + rows * length)
            self._mark(start, rows * length)
            self._next = start + rows * length
        return start, max(rows, 0)

    def alloc_rounds(self, count: int, length: int) -> list[tuple[int, int, int]]:
        """Take up to ``count`` rows of data and the L2 table behind it, with the refcount blocks they need.

        It is what ``alloc_rows(…, length)``, a row that a missing block splits, and so on in turn would do: rows up
        to the end of what blocks count; a row's ``length - 1`` data clusters, the block behind them, and its table.
        (Where the data ends exactly with a block's range, the table comes first.) Such a round is the same for each
        block of a large image, so it is computed here without asking who uses what.

        Returns:
            First data cluster, rows and place of the last row's table of each round; nothing where it has to be
            done in other steps.
        """
        start, data = self._next, length - 1
        blocks, per_block = self.blocks, self.per_block
        index = self._missing(start // per_block, len(blocks))
        found: list[tuple[int, int, int]] = []
        if start != self.used[-1][1]:
            return found
        while index < len(blocks) and not blocks[index]:
            border = index * per_block
            rows = max((border - start) // length, 0)
            at = start + rows * length  # of the row that is split
            end = at + length + 1
            if rows >= count or end > border + per_block or (end - 1) * self.cluster_size > MAX_CLUSTER_OFFSET:
                break
            block, table = (at + length, at + data) if at + data == border else (at + data, at + length)
            blocks[index] = block
            found.append((start, rows + 1, table))
            start = end
            count -= rows + 1
            index += 1
        self.used[-1][1] = self._next = start
        if found:
            self.write(start, 0)
        return found

    def new_table(self, start: int, more: int, *, exact: bool, index: int = 0, block: int = 0) -> int:
        """Move the refcount table to ``start``, from where on all is free, with the blocks that count it.

        Args:
            start: where the new refcount blocks go, and behind them the table.
            more: clusters beyond the table that must be counted, too.
            exact: give the table just the entries that are needed, else half as many again.
            index: entry of the table for ``block``, if there is one.
            block: cluster of a refcount block that no table has yet.

        Returns:
            First cluster after the table.

        Raises:
            OptionError: ``image-too-large``, the table would be larger than QEMU opens.
        """
        blocks = refcount_blocks(start + more, self.cluster_size, self.refcount_order, spare=not exact)
        per_cluster = self.cluster_size // REFCOUNT_TABLE_ENTRY_SIZE
        clusters = ceil_div(blocks if exact else blocks + ceil_div(blocks, 2), per_cluster)
        if clusters * self.cluster_size > MAX_REFCOUNT_TABLE_SIZE:
            raise too_large(clusters * self.cluster_size, MAX_REFCOUNT_TABLE_SIZE, "the refcount table")
        old_start, old, old_clusters = self.table_start, self.blocks, self.table_clusters
        table = old[: clusters * per_cluster]
        table += [0] * (clusters * per_cluster - len(table))
        if block:
            table[index] = block
        free = start
        for entry in range(start // self.per_block, blocks):
            if not table[entry]:
                table[entry] = free
                free += 1
        self.table_start, self.blocks = free, table
        end = free + clusters
        self._mark(start, end - start)
        self.write(end, 0)
        self.dropped.append((old_start, old))
        self._unmark(old_start, old_clusters)
        self._next = min(self._next, old_start)
        return end

    def _count(self, start: int, count: int) -> bool:
        """Mark clusters as used. ``False``: a refcount block had to be made, search again."""
        first, last = start // self.per_block, (start + count - 1) // self.per_block
        missing = self._missing(first, last + 1)
        if missing > last:
            self._mark(start, count)
            return True
        # As far as there are blocks, clusters are counted before the new block looks for its place.
        counted = max(0, missing * self.per_block - start)
        self._mark(start, counted)
        self._add_block(start + counted)
        self._unmark(start, counted)
        self._next = min(self._next, start)
        return False

    def _add_block(self, cluster: int) -> None:
        """Make the refcount block that counts ``cluster``, and a larger table if the block needs one."""
        index = cluster // self.per_block
        block = self._find(1)
        if block // self.per_block == index:
            self._mark(block, 1)
        elif not self._count(block, 1):
            # Counting the block's own cluster made another block. The caller searches again and comes back.
            return
        self.write(block + 1, 0)
        if index < len(self.blocks):
            self.blocks[index] = block
            return
        # A table that has no entry for the block grows. It goes to the start of the next block's range.
        ranges = max(cluster, block) // self.per_block + 1
        self.new_table(ranges * self.per_block, 0, exact=False, index=index, block=block)

    def _missing(self, first: int, end: int) -> int:
        """Return the first index in ``first`` … ``end`` without a refcount block, else ``end``."""
        known = min(end, len(self.blocks))
        step = 1024
        for low in range(first, known, step):
            part = self.blocks[low : min(low + step, known)]
            if 0 in part:
                return low + part.index(0)
        return max(first, known)

    def _limit(self, end: int) -> None:
        if (end - 1) * self.cluster_size > MAX_CLUSTER_OFFSET:
            raise too_large(end * self.cluster_size, MAX_CLUSTER_OFFSET + 1, "the image file")

    def _find(self, count: int) -> int:
        start = self._first_fit(count, self._next)
        self._next = start + count
        return start

    def _first_fit(self, count: int, start: int) -> int:
        """Return the first cluster from ``start`` on with ``count`` free ones in a row."""
        if start >= self.used[-1][1]:
            return start
        for low, high in self.used:
            if high > start:
                if start + count <= low:
                    return start
                start = high
        return start

    def _free_from(self, start: int, count: int) -> int:
        """Return how many clusters, up to ``count``, are free from ``start`` on."""
        for low, high in reversed(self.used):
            if low <= start:
                return count if high <= start else 0
            count = min(count, low - start)
        return count

    def _mark(self, start: int, count: int) -> None:
        """Add a run of free clusters to the used ones."""
        if not count:
            return
        runs = self.used
        end = start + count
        at = len(runs)
        while at and runs[at - 1][0] > start:
            at -= 1
        if at and runs[at - 1][1] == start:
            at -= 1
            runs[at][1] = end
        else:
            runs.insert(at, [start, end])
        if at + 1 < len(runs) and runs[at + 1][0] == end:
            runs[at][1] = runs.pop(at + 1)[1]

    def _unmark(self, start: int, count: int) -> None:
        """Take a run away from the used clusters, all of which are used."""
        if not count:
            return
        end = start + count
        at = len(self.used) - 1
        while self.used[at][0] > start:
            at -= 1
        low, high = self.used[at]
        self.used[at : at + 1] = [run for run in ([low, start], [end, high]) if run[0] < run[1]]
