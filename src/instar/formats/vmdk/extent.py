"""One extent as a reader sees it: what its header says, judged against the limits.

Law: everything a walk over the tables relies on (sizes not 0, offsets below 2^63) is established here.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.reader import read_padded
from instar.core.units import INT64_MAX, ceil_div
from instar.formats.vmdk.ondisk import (
    COMPRESSION_DEFLATE,
    COWD_GTES_PER_GT,
    COWD_MAGIC,
    FLAG_MARKERS,
    FLAG_REDUNDANT,
    FLAG_ZEROED_GRAIN,
    FOOTER_BYTES,
    GD_AT_END,
    MAGIC,
    MARKER_END_OF_STREAM,
    MARKER_FOOTER,
    MAX_GD_ENTRIES,
    MAX_GRAIN_SECTORS,
    MAX_GTES_PER_GT,
    MAX_VERSION,
    SECTOR,
    SESPARSE_GRAIN,
    SESPARSE_MAGIC,
    SESPARSE_TABLE,
    SESPARSE_VERSION,
    SESPARSE_VOLATILE_MAGIC,
    CowdHeader,
    Marker,
    SeSparseHeader,
    SeSparseVolatileHeader,
    SparseExtentHeader,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.reader import Reader


class Extent:
    """One extent of a disk.

    Attributes:
        role: QEMU's word for the file: ``file`` (the image itself) or ``extents.N``; empty if there is none.
        name: the file's name in the descriptor; empty for the image itself.
        kind: the descriptor's word, such as ``SPARSE``; empty for a disk of one file.
        layout: ``flat``, ``hosted``, ``cowd``, ``sesparse`` or ``zero``.
        reader: the file; ``None`` before it is granted, and where there is none.
        sectors: virtual length. ``said_sectors``: what the descriptor says, or ``None``.
        flat_start: byte at which the data of a flat extent starts.
        grain: sectors of a grain. ``gtes``: entries of a grain table. ``entry_size``: bytes of an entry.
        gd_offset, rgd_offset: byte of the directories; ``rgd_offset`` is 0 if there is no second one.
        gd_entries: entries of a directory.
        compressed, markers, zeroed: as the header's flags.
        header, footer: a hosted extent's; the footer is ``None`` unless the directory is at the end.
        tables_base, grains_base: sectors that a seSparse extent's entries count from.
    """

    __slots__ = (
        "compressed",
        "entry_size",
        "flat_start",
        "footer",
        "gd_entries",
        "gd_offset",
        "grain",
        "grains_base",
        "gtes",
        "header",
        "kind",
        "layout",
        "markers",
        "name",
        "reader",
        "rgd_offset",
        "role",
        "said_sectors",
        "sectors",
        "tables_base",
        "zeroed",
    )

    def __init__(self, layout: str, sectors: int, reader: Reader | None) -> None:
        self.layout = layout
        self.sectors = sectors
        self.reader = reader
        self.role = "file"
        self.name = b""
        self.kind = ""
        self.said_sectors: int | None = None
        self.flat_start = 0
        self.grain = 0
        self.gtes = 0
        self.entry_size = 4
        self.gd_offset = 0
        self.rgd_offset = 0
        self.gd_entries = 0
        self.compressed = False
        self.markers = False
        self.zeroed = False
        self.header: SparseExtentHeader | None = None
        self.footer: SparseExtentHeader | None = None
        self.tables_base = 0
        self.grains_base = 0

    @property
    def grains(self) -> int:
        """How many grains the extent has."""
        return ceil_div(self.sectors, self.grain) if self.grain else 0


def _bad(
    kind: str,
    detail: str,
    *,
    field: str | None = None,
    value: int | None = None,
    limit: int | None = None,
    expected: int | None = None,
) -> ImageError:
    return ImageError(kind, "sparse extent header", detail, field=field, value=value, limit=limit, expected=expected)


def _judge_tables(extent: Extent) -> Extent:
    """Refuse sizes and offsets that QEMU refuses, or wraps."""
    if not extent.grain or not extent.gtes:
        raise _bad("corrupt", "the grain or the grain table has no size", field="grainSize", value=extent.grain)
    if extent.grain > MAX_GRAIN_SECTORS:
        raise _bad(
            "too-large", "the grain is too large", field="grainSize", value=extent.grain, limit=MAX_GRAIN_SECTORS
        )
    if extent.gd_entries > MAX_GD_ENTRIES:
        raise _bad(
            "too-large",
            "the grain directory is too large",
            field="grain directory entries",
            value=extent.gd_entries,
            limit=MAX_GD_ENTRIES,
        )
    if extent.sectors > INT64_MAX // SECTOR:
        raise _bad("too-large", "the disk is too large", field="capacity", value=extent.sectors)
    for field, offset in (("gdOffset", extent.gd_offset), ("rgdOffset", extent.rgd_offset)):
        if offset + extent.gd_entries * extent.entry_size > INT64_MAX:
            raise _bad("out-of-bounds", "a grain directory lies outside any file", field=field, value=offset // SECTOR)
    return extent


def open_sparse(reader: Reader) -> Extent:
    """Read the header of a hosted or COWD extent.

    Raises:
        ImageError: what ``open_hosted`` raises; ``invalid-format``, the file is neither.
    """
    magic = read_padded(reader, 0, 4)
    if reader.size < len(magic):
        detail = "the file is too small"
        raise ImageError("invalid-format", "extent", detail, field="file length", value=reader.size, limit=len(magic))
    if magic == MAGIC:
        return open_hosted(reader)
    if magic == COWD_MAGIC:
        return open_cowd(reader)
    raise ImageError(
        "invalid-format", "extent", "the file does not start as a sparse extent does", field="magic", offset=0
    )


def open_hosted(reader: Reader) -> Extent:
    """Read the header, or the footer that replaces it, of a hosted sparse extent.

    Raises:
        ImageError: ``unsupported-feature``, a version above 3; ``too-large``, ``corrupt``, ``out-of-bounds``: a
            size or offset is outside the limits, the footer is missing, the file ends before its first grain.
    """
    first = SparseExtentHeader.unpack(read_padded(reader, 0, SparseExtentHeader.SIZE))
    footer = _footer(reader) if first.gd_offset == GD_AT_END else None
    header = footer or first
    if header.version > MAX_VERSION:
        raise _bad(
            "unsupported-feature",
            "this version of the format is not known",
            field="version",
            value=header.version,
            limit=MAX_VERSION,
        )
    if header.num_gtes_per_gt > MAX_GTES_PER_GT:
        raise _bad(
            "too-large",
            "the grain tables are too large",
            field="numGTEsPerGT",
            value=header.num_gtes_per_gt,
            limit=MAX_GTES_PER_GT,
        )
    if ceil_div(reader.size, SECTOR) < header.overhead:
        raise _bad(
            "out-of-bounds",
            "the file ends before its first grain",
            field="bytes expected",
            value=header.overhead * SECTOR,
            limit=reader.size,
        )
    extent = Extent("hosted", header.capacity, reader)
    extent.header, extent.footer = first, footer
    extent.grain = header.grain_size
    extent.gtes = header.num_gtes_per_gt
    extent.gd_entries = ceil_div(header.capacity, max(1, header.grain_size * header.num_gtes_per_gt))
    extent.gd_offset = header.gd_offset * SECTOR
    extent.rgd_offset = header.rgd_offset * SECTOR if header.flags & FLAG_REDUNDANT else 0
    extent.compressed = header.compress_algorithm == COMPRESSION_DEFLATE
    extent.markers = bool(header.flags & FLAG_MARKERS)
    extent.zeroed = bool(header.flags & FLAG_ZEROED_GRAIN)
    return _judge_tables(extent)


def _footer(reader: Reader) -> SparseExtentHeader:
    """Read the footer of a stream; it stands between its marker and the end-of-stream marker."""
    start = ceil_div(reader.size, SECTOR) * SECTOR - FOOTER_BYTES
    if start < 0:
        raise ImageError(
            "corrupt", "footer", "the file is too short for the footer that its header promises", field="footer"
        )
    data = read_padded(reader, start, FOOTER_BYTES)
    marker, footer = Marker.unpack(data), SparseExtentHeader.unpack(data, SECTOR)
    end = Marker.unpack(data, 2 * SECTOR)
    if (
        (marker.size, marker.type) != (0, MARKER_FOOTER)
        or footer.magic != MAGIC
        or (end.sectors, end.size, end.type) != (0, 0, MARKER_END_OF_STREAM)
    ):
        raise ImageError("corrupt", "footer", "the file does not end with a footer", field="footer", offset=start)
    if footer.gd_offset == GD_AT_END:
        raise ImageError(
            "corrupt", "footer", "the footer does not say where the grain directory is", field="gdOffset", offset=start
        )
    return footer


def open_cowd(reader: Reader) -> Extent:
    """Read the header of an ESX Server sparse extent.

    Raises:
        ImageError: ``corrupt``, ``too-large``: a size is outside the limits.
    """
    header = CowdHeader.unpack(read_padded(reader, 0, CowdHeader.SIZE))
    extent = Extent("cowd", header.num_sectors, reader)
    extent.grain = header.grain_size
    extent.gtes = COWD_GTES_PER_GT
    extent.gd_entries = header.num_gd_entries
    extent.gd_offset = header.gd_offset * SECTOR
    return _judge_tables(extent)


def open_sesparse(reader: Reader) -> Extent:
    """Read the headers of a seSparse extent, as strictly as QEMU does: the format is not published.

    Raises:
        ImageError: ``invalid-format``, ``unsupported-feature``: anything but the one known layout, or a journal
            to replay; ``too-large``, ``out-of-bounds``.
    """
    header = SeSparseHeader.unpack(read_padded(reader, 0, SeSparseHeader.SIZE))
    if header.magic != SESPARSE_MAGIC:
        raise ImageError(
            "invalid-format",
            "extent",
            "the file does not start as a seSparse extent does",
            field="constant magic",
            value=header.magic,
            expected=SESPARSE_MAGIC,
            offset=0,
        )
    known = {
        "version": SESPARSE_VERSION,
        "grain_size": SESPARSE_GRAIN,
        "grain_table_size": SESPARSE_TABLE,
        "flags": 0,
        "reserved1": 0,
        "reserved2": 0,
        "reserved3": 0,
        "reserved4": 0,
    }
    for name, expected in known.items():
        value: int = getattr(header, name)
        if value != expected:
            detail = "this kind of seSparse is not known"
            raise _bad("unsupported-feature", detail, field=name, value=value, expected=expected)
    if header.pad.strip(b"\0"):
        raise _bad("unsupported-feature", "this kind of seSparse is not known", field="pad")
    start = header.volatile_header_offset * SECTOR
    volatile = SeSparseVolatileHeader.unpack(read_padded(reader, start, SeSparseVolatileHeader.SIZE))
    if volatile.magic != SESPARSE_VOLATILE_MAGIC or volatile.pad.strip(b"\0"):
        raise _bad("invalid-format", "the volatile header is not there", field="volatile_header_offset")
    if volatile.replay_journal:
        raise _bad("unsupported-feature", "the extent was not closed: its journal must be replayed by VMware first")
    extent = Extent("sesparse", header.capacity, reader)
    extent.grain = header.grain_size
    extent.entry_size = 8
    extent.gtes = SESPARSE_TABLE * SECTOR // 8
    extent.gd_entries = header.grain_dir_size * SECTOR // 8
    extent.gd_offset = header.grain_dir_offset * SECTOR
    extent.tables_base, extent.grains_base = header.grain_tables_offset, header.grains_offset
    return _judge_tables(extent)
