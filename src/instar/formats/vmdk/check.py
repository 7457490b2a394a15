"""Check a VMDK: header, descriptor, both grain directories, tables, grains, markers, lengths of extents.

Law: reads only, in bounded time and memory. qemu-img's check stops at the first grain that starts past the end of
its file, or that cannot be found; this one goes on, and looks at more. What stops qemu-img has a code.
"""

from __future__ import annotations

from itertools import pairwise

from instar.core.errors import ImageError, printable
from instar.core.finding import Report
from instar.core.image import Elsewhere
from instar.core.units import align_up, is_power_of_two
from instar.formats.vmdk import descriptor
from instar.formats.vmdk.claims import Tally
from instar.formats.vmdk.grains import Walk
from instar.formats.vmdk.ondisk import (
    COMPRESSION_DEFLATE,
    FLAG_COMPRESSED,
    FLAG_NEWLINES,
    GTES_PER_GT,
    NEWLINES,
    NO_CID,
    SECTOR,
    SESPARSE_GRAIN,
)
from instar.formats.vmdk.parse import Disk, open_disk
from instar.formats.vmdk.visits import PAST_END, Visits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.formats.vmdk.extent import Extent

#: Fields in which a footer repeats its header.
_REPEATED = (
    "version",
    "flags",
    "capacity",
    "grain_size",
    "descriptor_offset",
    "descriptor_size",
    "num_gtes_per_gt",
    "compress_algorithm",
)


def check(image: Reader, parts: Sequence[Reader | Elsewhere | None], *, generation: tuple[int, int]) -> Report:
    """Check a VMDK and those of the extents that it names which are here; ``parts`` as for ``parse.info``.

    The totals that qemu-img counts for other formats stay ``None``, as they do there.

    Raises:
        ImageError: the image cannot be opened; an extent was not granted; ``too-large``, the check would pass one
            of its limits.
    """
    disk = open_disk(image, parts)
    report = Report()
    elsewhere = any(isinstance(part, Elsewhere) for part in parts)
    # Of several cells the first judges the text.
    if not any(isinstance(part, Elsewhere) and part.facts is not None for part in parts):
        _descriptor(report, disk)
        report.mark_unseen()
    start = visit = 0
    for extent in disk.extents:
        visits = Visits(visit, start, extent)
        start, visit = start + extent.sectors, visits.behind()
        if extent.reader is None:
            if elsewhere or extent.layout == "zero":
                continue
            raise ImageError("denied", extent.role, f"the file '{printable(extent.name, 200)}' was not granted")
        tally = Tally(report, "" if disk.embedded else f"{extent.role}: ")
        if extent.said_sectors not in (None, extent.sectors):
            tally.hit("corruption", "descriptor", "the extent's length differs from its header's")
        if extent.layout == "flat":
            _flat(tally, extent, extent.reader, visits)
        else:
            _header(tally, extent)
            Walk(extent, extent.reader, tally, visits).run()
        tally.close()
    return report


def _flat(tally: Tally, extent: Extent, reader: Reader, visits: Visits) -> None:
    """Compare the length of a flat extent's file with what the descriptor says. QEMU looks at the start alone."""
    if extent.flat_start + extent.sectors * SECTOR <= reader.size:
        return
    seen = visits.sector_of(0) if extent.flat_start >= align_up(reader.size, SECTOR) else None
    detail = "the file is too short for the data" if seen is None else "the file ends before the data"
    tally.hit("corruption", "extent", detail, offset=reader.size, code=PAST_END, seen=seen)


def _descriptor(report: Report, disk: Disk) -> None:
    """Judge the text: identity, parent, type, extents."""
    if disk.cid == NO_CID:
        report.add("warning", "descriptor", "the CID is ffffffff, which stands for no disk")
    if not (disk.text.startswith(b"CID=") or b"\nCID=" in disk.text[: disk.text.find(b"CID") + 4]):
        report.add("warning", "descriptor", "the CID is not where the specification puts it; readers may disagree")
    if disk.parent is None and disk.parent_cid != NO_CID:
        report.add("corruption", "descriptor", "there is a parentCID, but no parentFileNameHint: the parent is lost")
    if disk.parent is not None and disk.parent_cid == NO_CID:
        report.add("warning", "descriptor", "there is a parentFileNameHint, but the parentCID says there is no parent")
    if disk.embedded:
        _embedded_descriptor(report, disk)
        return
    if any(line.after_blank for line in disk.lines):
        report.add("warning", "descriptor", "an extent stands after a blank line: QEMU would count it twice")
    spans: dict[bytes, list[tuple[int, int]]] = {}
    for line in disk.lines:
        length = line.sectors if line.kind in descriptor.FLAT_KINDS else 0
        spans.setdefault(line.name, []).append((line.offset, line.offset + length if length else 1 << 63))
    for name, ranges in spans.items():
        ranges.sort()
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                shown = printable(name, 80)
                report.add("corruption", "descriptor", f"two extents share a part of '{shown}'", offset=start * SECTOR)


def _embedded_descriptor(report: Report, disk: Disk) -> None:
    """Compare the descriptor of a disk of one file with its header. QEMU opens such a disk by the header alone."""
    extent = disk.extents[0]
    header = extent.header
    if header is None:
        return
    if not header.descriptor_offset or len(disk.text) > header.descriptor_size * SECTOR:
        report.add("corruption", "descriptor", "the descriptor is longer than the place that the header gives it")
    try:
        said = descriptor.create_type(disk.text)[0].decode("utf-8", "surrogateescape")
        lines = descriptor.extent_lines(disk.text)
    except ImageError as error:
        report.add("corruption", "descriptor", error.sentence())
        return
    if said != disk.create_type:
        wrong = "streamOptimized" in (said, disk.create_type)
        shown = printable(said, 40)
        report.add(
            "corruption" if wrong else "warning",
            "descriptor",
            f"createType is '{shown}', but the header is of a {disk.create_type} disk",
        )
    if extent.sectors or lines:
        if len(lines) != 1 or lines[0].kind not in descriptor.SPARSE_KINDS:
            report.add("corruption", "descriptor", "a disk of one file has one extent, which is SPARSE")
        elif lines[0].sectors != extent.sectors:
            report.add("corruption", "descriptor", "the extent's length differs from the header's capacity")


def _header(tally: Tally, extent: Extent) -> None:
    """Judge what the header of a sparse extent says of itself."""
    structure = "sparse extent header"
    if not is_power_of_two(extent.grain):
        tally.hit("corruption", structure, "the grain size is not a power of two")
    header = extent.footer or extent.header
    if header is None or extent.header is None:
        return
    if extent.grain <= SESPARSE_GRAIN:
        tally.hit("warning", structure, "the grain is smaller than the specification allows")
    if extent.gtes != GTES_PER_GT:
        tally.hit("warning", structure, "a grain table does not have 512 entries")
    if header.flags & FLAG_NEWLINES and header.newlines != NEWLINES:
        tally.hit("corruption", structure, "line ends were changed: the file went through a transfer in text mode")
    if header.compress_algorithm > COMPRESSION_DEFLATE:
        tally.hit("corruption", structure, "the compression is of no known kind")
    elif bool(header.flags & FLAG_COMPRESSED) != extent.compressed:
        tally.hit("corruption", structure, "the flag for compressed grains contradicts the compression")
    if extent.header.unclean_shutdown:
        tally.hit("warning", structure, "the disk was not closed cleanly")
    if extent.footer is not None:
        for name in _REPEATED:
            if getattr(extent.footer, name) != getattr(extent.header, name):
                tally.hit("corruption", "footer", f"its {name} differs from the header's")
