"""Where the tables and the preallocated clusters of a new image lie.

Law: the steps are qemu-img's, in its order: L1 table, then the guest's clusters from the first to the last.
What it finds is kept as rows (a start, a length, how often it repeats), so that large images stay small here.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.units import align_up, ceil_div
from instar.formats.qcow2.allocate import Allocator
from instar.formats.qcow2.ondisk import (
    FORMAT,
    L1_ENTRY_SIZE,
    L2_ENTRY_SIZE,
    L2_ENTRY_SIZE_EXTENDED,
    MAX_CLUSTER_BITS,
    MAX_L1_ENTRIES,
    SUBCLUSTERS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

#: QEMU preallocates in requests of at most INT_MAX bytes; where they end decides what lies side by side.
MAX_REQUEST = (1 << 31) - 1


def check_size(size: int, cluster_size: int, *, extended_l2: bool) -> None:
    """Refuse a disk of ``size`` bytes if the largest L1 table cannot map it.

    Raises:
        OptionError: ``image-too-large``; ``limit`` is the largest size in bytes.
    """
    entry = L2_ENTRY_SIZE_EXTENDED if extended_l2 else L2_ENTRY_SIZE
    limit = MAX_L1_ENTRIES * (cluster_size // entry) * cluster_size
    if size > limit:
        hint = "; use a larger cluster size" if cluster_size < 1 << MAX_CLUSTER_BITS else ""
        raise OptionError(
            "image-too-large",
            f"with clusters of {cluster_size} bytes a qcow2 disk has at most {limit} bytes, not {size}{hint}",
            format=FORMAT,
            limit=limit,
            value=size,
        )


class Layout:
    """The clusters of a new image.

    Attributes:
        l2_entries: entries of one L2 table.
        data_clusters: clusters of the virtual disk, the last one perhaps in part.
        clusters: the allocator in its final state: refcounts and refcount table.
        l1_entries, l1_start: size and first cluster of the L1 table.
        reserved: ``(offset, length)`` in bytes of data clusters to reserve, or ``None``.
        tail: ``(offset, length)`` in bytes of the zeros behind the end of the virtual disk, or ``None``.
        crypto: ``(offset, length)`` in bytes of the clusters of the encryption header, or ``None``.
        end: length of the file in bytes. data_end: that of the external data file, 0 if there is none.

    ``reserved``, ``tail`` and the runs of ``data`` are places in the external data file, if there is one.
    """

    def __init__(
        self,
        size: int,
        cluster_size: int,
        refcount_order: int,
        *,
        extended_l2: bool = False,
        preallocation: str = "off",
        data_file: bool = False,
        crypto_header: int = 0,
    ) -> None:
        """Lay out an image for a disk of ``size`` bytes, a multiple of 512.

        With ``data_file`` the guest's clusters are in another file, each at its own offset. An encryption header of
        ``crypto_header`` bytes gets clusters behind all else.

        Raises:
            OptionError: ``image-too-large``.
        """
        self.size = size
        self.cluster_size = cluster_size
        self.extended_l2 = extended_l2
        self.l2_entries = cluster_size // (L2_ENTRY_SIZE_EXTENDED if extended_l2 else L2_ENTRY_SIZE)
        self.data_clusters = ceil_div(size, cluster_size)
        self.l1_entries = ceil_div(self.data_clusters, self.l2_entries)
        self.l1_start = 0
        self.reserved: tuple[int, int] | None = None
        self.tail: tuple[int, int] | None = None
        self.crypto: tuple[int, int] | None = None
        #: Triples: first L2 table of a row, number of tables, clusters from one to the next.
        self._tables: list[int] | array[int] = []
        #: Triples: first data cluster of a run, clusters, number of such runs, each with an L2 table before it.
        self._data: list[int] | array[int] = []
        check_size(size, cluster_size, extended_l2=extended_l2)
        self.clusters = Allocator(cluster_size, refcount_order)
        if self.l1_entries:
            length = self.l1_entries * L1_ENTRY_SIZE
            self.l1_start = self.clusters.alloc(ceil_div(length, cluster_size))
            self.clusters.write(self.l1_start, length)
        self.data_end = size if data_file else 0
        data_end = 0
        if preallocation != "off":
            from array import array  # 3 ms of start-up, and a quarter of the memory

            self._tables, self._data = array("Q"), array("Q")
            if data_file:
                self.data_end = self._map_one_to_one(preallocation)
            else:
                data_end = self._map() if preallocation == "metadata" else self._reserve()
        if crypto_header:
            count = ceil_div(crypto_header, cluster_size)
            start = self.clusters.alloc(count)
            self.clusters.write(start, count * cluster_size)
            self.crypto = (start * cluster_size, count * cluster_size)
        self.end = max(self.clusters.end, data_end)

    def tables(self) -> Iterator[int]:
        """Yield the first cluster of each L2 table, in the order of the L1 table."""
        for start, count, step in self.table_rows():
            yield from range(start, start + count * step, step)

    def table_rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield rows of L2 tables as ``(first, count, step)``: ``count`` tables, ``step`` clusters apart."""
        for at in range(0, len(self._tables), 3):
            yield self._tables[at], self._tables[at + 1], self._tables[at + 2]

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield runs of data clusters as ``(first, count)``, in the order of the guest."""
        step = 1 + self.l2_entries
        for at in range(0, len(self._data), 3):
            start, count, times = self._data[at : at + 3]
            for k in range(times):
                yield start + k * step, count

    def _place(self, first: int, count: int, step: int) -> None:
        """Note a row of L2 tables, which are written in full."""
        self._tables.extend((first, count, step))
        self.clusters.write(first + (count - 1) * step + 1, 0)

    def _map(self) -> int:
        """Allocate L2 tables and data in turn (``preallocation=metadata``); return where the data ends in bytes."""
        clusters, entries, total = self.clusters, self.l2_entries, self.data_clusters
        most = MAX_REQUEST // self.cluster_size
        done = tables = 0
        last = 0
        while done < total:
            ahead = tables * entries - done
            if ahead == entries < most and (whole := (total - done - 1) // entries):
                rounds = clusters.alloc_rounds(whole, 1 + entries)
                for start, rows, table in rounds:
                    if rows > 1:
                        self._tables.extend((start + entries, rows - 1, 1 + entries))
                    self._tables.extend((table, 1, 1))
                    self._data.extend((start, entries, rows))
                    tables += rows
                    done += rows * entries
                if rounds:
                    continue
            if ahead in (0, entries) and (whole := (total - done - bool(ahead)) // entries):
                # Whole tables in a row. The first one's may be there already, then each has the next one's behind it.
                start, rows = clusters.alloc_rows(whole, 1 + entries)
                if rows:
                    self._place(start + ahead, rows, 1 + entries)
                    self._data.extend((start if ahead else start + 1, entries, rows))
                    tables += rows
                    done += rows * entries
                    last = start + rows * (1 + entries) - bool(ahead)
                    continue
            # One request: it goes on as long as the data is in one piece, though tables lie in between.
            asked = min(most, total - done)
            first = got = 0
            while got < asked:
                if done + got == tables * entries:
                    self._place(clusters.alloc(1), 1, 1)
                    tables += 1
                count = min(asked - got, tables * entries - done - got)
                if not got:
                    first = clusters.alloc(count)
                else:
                    count = clusters.alloc_at(first + got, count)
                    if not count:
                        break
                self._data.extend((first + got, count, 1))
                got += count
            done += got
            last = first + got
        return self._end_of_disk(last)

    def _end_of_disk(self, last: int) -> int:
        """Return where a disk ends in bytes whose last cluster lies before ``last``; find the zeros behind it."""
        over = self.data_clusters * self.cluster_size - self.size
        end = last * self.cluster_size - over
        if not over:
            return end
        # Linking a cluster that is used in part fills up the rest, of the subcluster where there are any.
        part = self.cluster_size // SUBCLUSTERS if self.extended_l2 else self.cluster_size
        filled = align_up(end, part)
        if filled > end:
            self.tail = (end, filled - end)
        return filled

    def _reserve(self) -> int:
        """Allocate all data in one run, after new refcounts (``falloc``, ``full``); return its end in bytes."""
        clusters, total = self.clusters, self.data_clusters
        tables = ceil_div(total, self.l2_entries)
        start = clusters.new_table(clusters.used[-1][1], total + tables + 1, exact=True)
        if total:
            clusters.alloc_at(start, total)
            self._data.extend((start, total, 1))
            self.reserved = (start * self.cluster_size, total * self.cluster_size)
        self._place_all(tables)
        return (start + total) * self.cluster_size

    def _map_one_to_one(self, mode: str) -> int:
        """Allocate the tables for an external data file; return the length of that file in bytes."""
        total = self.data_clusters
        if total:
            self._data.extend((0, total, 1))
        self._place_all(ceil_div(total, self.l2_entries))
        end = self._end_of_disk(total)
        if total and mode != "metadata":
            self.reserved, self.tail = (0, end), None
        return end

    def _place_all(self, tables: int) -> None:
        """Allocate so many L2 tables, one after the other."""
        clusters = self.clusters
        while tables:
            first, count = clusters.alloc_rows(tables, 1)
            if not count:
                first, count = clusters.alloc(1), 1
            self._place(first, count, 1)
            tables -= count
