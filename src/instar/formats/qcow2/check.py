"""Check the metadata of a qcow2 image: who uses which cluster, and do the refcounts say so.

Law: what qemu-img check counts as corruption, leak or error is counted here with the same numbers, in bounded
memory; what it does not look at is a warning, unless data can be lost and no number of QEMU's tells of it.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.finding import Report
from instar.formats.qcow2.bitmap import clusters_of, judge_table, read_bitmaps
from instar.formats.qcow2.clusters import Clusters
from instar.formats.qcow2.copied import CopiedFlags
from instar.formats.qcow2.header import bad, open_image, require_snapshot_table
from instar.formats.qcow2.luks import describe
from instar.formats.qcow2.ondisk import (
    BITMAP_TABLE_ENTRY_SIZE,
    L1_ENTRY_SIZE,
    MAX_CHECKED_CLUSTERS,
    MAX_L1_ENTRIES,
    MIN_SNAPSHOT_EXTRA_V3,
)
from instar.formats.qcow2.refcount import Comparison, Refcounts, check_blocks
from instar.formats.qcow2.references import References
from instar.formats.qcow2.snapshot import read_snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.formats.qcow2.bitmap import Bitmap
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.snapshot import Snapshot

#: Structures whose clusters nothing else may use are looked at again, so many of them.
_MAX_EXCLUSIVE = 4096
#: QEMU computes with signed offsets; what is negative for it is nowhere.
_INT64_MAX = (1 << 63) - 1


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Check the metadata of an image.

    No other file is needed, and no key of an encrypted image. The counters are those of
    ``qemu-img check``; ``generation`` is its version.

    Raises:
        ImageError: the image cannot be opened, its snapshot table cannot be read, or it passes a limit.
    """
    opened = open_image(image, checking=True)
    if opened.crypto is not None:
        describe(opened, opened.crypto, generation=generation)
    return _Check(opened).run()


class _Check:
    """One check; the steps in QEMU's order."""

    __slots__ = ("_bitmaps", "_clusters", "_exclusive", "_image", "_references", "_report", "_suspects")

    def __init__(self, image: Image) -> None:
        self._image = image
        self._bitmaps: list[Bitmap] = read_bitmaps(image)
        self._report = Report()
        self._warnings()
        require_snapshot_table(image, image)
        self._references = References(image, self._report)
        self._clusters = Clusters(image, self._references, self._report)
        #: Structure, first cluster, clusters: of what must not share them.
        self._exclusive: list[tuple[str, int, int]] = []
        #: Structure, cluster, references: of what shares one after all.
        self._suspects: list[tuple[str, int, int]] = []

    def run(self) -> Report:
        image, report, references = self._image, self._report, self._references
        if references.clusters > MAX_CHECKED_CLUSTERS:
            detail = "the file has too many clusters"
            raise bad("too-large", "Image file", detail, value=references.clusters, limit=MAX_CHECKED_CLUSTERS)
        report.total_clusters = -(-image.virtual_size // image.cluster_size)
        self._region("Header", 0, image.cluster_size)
        self._tables()
        refcounts = Refcounts(image)
        size = image.refcount_table_clusters * image.cluster_size
        self._region("Refcount table", image.refcount_table_offset, size)
        if image.crypto is not None:
            self._region("Encryption header", image.crypto.offset, image.crypto.length)
        self._count_bitmaps()
        check_blocks(image, refcounts, references, report)
        self._find_overlaps()
        comparison = Comparison(image, refcounts, references, report)
        comparison.run()
        CopiedFlags(image, self._clusters, refcounts, references, report).run()
        self._judge_overlaps()
        report.image_end_offset = comparison.end * image.cluster_size
        report.allocated_clusters = self._clusters.allocated
        report.fragmented_clusters = self._clusters.fragmented
        report.compressed_clusters = self._clusters.compressed
        return report

    def _warnings(self) -> None:
        """Say what the header says that a reader should know."""
        image, report = self._image, self._report
        if image.dirty:
            report.add("warning", "Header", "the image was not closed: lazy refcounts may be out of date")
        if image.corrupt:
            report.add("warning", "Header", "a program found the image damaged and marked it as corrupt")
        if image.inconsistent_bitmaps:
            detail = (
                "a program that does not know bitmaps wrote to the image: its bitmaps are stale, their clusters lost"
            )
            code = "qcow2-bitmaps-stale" if image.version == 3 else "qcow2-bitmaps-in-version-2"
            report.add("warning", "Bitmaps extension", detail, code=code)

    def _region(self, structure: str, offset: int, size: int) -> None:
        """Count a structure that must have its clusters for itself."""
        if offset > _INT64_MAX:
            self._report.add("error", structure, "the structure lies where no file can reach", offset=offset)
        elif self._references.region(structure, offset, size):
            self._exclude(structure, offset, size)

    def _exclude(self, structure: str, offset: int, size: int) -> None:
        bits = self._image.cluster_bits
        if size and len(self._exclusive) < _MAX_EXCLUSIVE:
            first = offset >> bits
            self._exclusive.append((structure, first, (offset + size - 1 >> bits) - first + 1))

    def _tables(self) -> None:
        """Count L1 and L2 tables, those of the snapshots too, and the snapshot table."""
        image, report = self._image, self._report
        end = image.snapshots_offset
        for row in read_snapshots(image):
            end = row.end
            if image.version >= 3 and row.extra_data_size < MIN_SNAPSHOT_EXTRA_V3:
                detail = f"snapshot {row.index} lacks extra data that version 3 demands"
                code = "qcow2-snapshot-incomplete"
                report.add("corruption", "Snapshot table", detail, code=code, values=(row.index,))
        self._walk("Active L1 table", image.l1_table_offset, image.l1_size, active=True)
        if image.has_data_file and image.nb_snapshots:
            detail, code = "an image with a data file has snapshots", "qcow2-snapshots-data-file"
            report.add("corruption", "Snapshot table", detail, code=code, values=(image.nb_snapshots,))
        for row in read_snapshots(image):
            self._snapshot(row)
        self._clusters.finish()
        self._region("Snapshot table", image.snapshots_offset, end - image.snapshots_offset)

    def _snapshot(self, row: Snapshot) -> None:
        structure = f"L1 table of snapshot {row.index}"
        if row.l1_table_offset % self._image.cluster_size:
            detail = f"the table does not start at a multiple of the cluster size ({row.l1_table_offset:#x})"
            self._report.add("corruption", structure, detail)
        elif row.l1_size > MAX_L1_ENTRIES:
            self._report.add("corruption", structure, f"the table is too large ({row.l1_size} entries)")
        else:
            self._walk(structure, row.l1_table_offset, row.l1_size, active=False)

    def _walk(self, structure: str, offset: int, size: int, *, active: bool) -> None:
        if self._clusters.walk(structure, offset, size, active=active):
            self._exclude(structure, offset, size * L1_ENTRY_SIZE)

    def _count_bitmaps(self) -> None:
        image = self._image
        if image.bitmaps is None:
            return
        where = image.bitmaps
        self._region("Bitmap directory", where.bitmap_directory_offset, where.bitmap_directory_size)
        for bitmap in self._bitmaps:
            self._region("Bitmap table", bitmap.table_offset, bitmap.table_size * BITMAP_TABLE_ENTRY_SIZE)
            try:
                judge_table(image, bitmap)
            except ImageError as error:
                # Only a bitmap that is in use gets here; others were judged when the image was opened.
                self._report.add("error", error.structure, error.detail, offset=error.offset)
                continue
            for offset in clusters_of(image, bitmap):
                self._references.region("Bitmap", offset, image.cluster_size)

    def _find_overlaps(self) -> None:
        """Find clusters of metadata that something else uses too, while references are still counted."""
        references = self._references
        for structure, first, count in self._exclusive:
            for cluster in references.others(first, count):
                self._suspect(structure, cluster)
        twice = set(self._clusters.twice)
        for cluster in twice:
            self._suspect("L2 table", cluster)
        for cluster in self._clusters.active_tables():
            if references.get(cluster) > self._clusters.expected(cluster) and cluster not in twice:
                self._suspect("L2 table", cluster)

    def _suspect(self, structure: str, cluster: int) -> None:
        if len(self._suspects) < _MAX_EXCLUSIVE:
            self._suspects.append((structure, cluster, self._references.get(cluster)))

    def _judge_overlaps(self) -> None:
        """Report shared metadata: as corruption if nothing else is one, since then QEMU does not tell of it."""
        severity = "warning" if self._report.corruptions else "corruption"
        for structure, cluster, count in self._suspects:
            if count > 1:
                detail = f"something else uses cluster {cluster} of the structure too"
                self._report.add(severity, structure, detail, offset=cluster << self._image.cluster_bits)
