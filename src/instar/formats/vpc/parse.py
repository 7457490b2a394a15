"""Read a VHD: footer, dynamic disk header, BAT limits, the parent's name.

Law: any bytes give facts or an ``ImageError``, in bounded time and memory. What QEMU opens is opened, with
the size that QEMU of the asked generation gives it; what QEMU refuses is refused.
"""

from __future__ import annotations

from codecs import utf_16_be_decode, utf_16_le_decode

from instar.core.errors import ImageError
from instar.core.image import MAX_NAME, ImageFacts, Reference
from instar.core.reader import iter_table, read_padded
from instar.core.units import INT64_MAX, align_up, ceil_div, is_power_of_two
from instar.core.winpath import from_windows
from instar.formats.vpc.geometry import MAX_GEOMETRY_SECTORS, volume
from instar.formats.vpc.ondisk import (
    COOKIE,
    FOOTER_SIZE_SINCE,
    FORMAT,
    HEADER_COOKIE,
    LOCATORS,
    MAX_LOCATOR,
    MAX_SECTORS,
    MAX_TABLE_ENTRIES,
    MIN_READ_BLOCK,
    PLATFORM_MACX,
    PLATFORM_W2KU,
    PLATFORM_W2RU,
    SECTOR,
    SIZED_BY_FOOTER,
    SIZED_BY_GEOMETRY,
    TYPE_DIFFERENCING,
    TYPE_FIXED,
    TYPE_NAMES,
    UNUSED,
    Footer,
    Header,
    Identity,
    ParentLocator,
    bitmap_bytes,
    checksum_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire


class Opened:
    """A VHD whose footer and header are sound enough to be used.

    Attributes:
        footer: the one that counts: the copy at the start, or a fixed disk's at the end.
        header: the dynamic disk header; ``None`` if the footer was found at the end.
        virtual_size: bytes, a multiple of 512.
    """

    __slots__ = ("footer", "header", "virtual_size")

    def __init__(self, footer: Footer, header: Header | None, virtual_size: int) -> None:
        self.footer = footer
        self.header = header
        self.virtual_size = virtual_size

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Cylinders, heads, sectors per track, as the footer says."""
        return self.footer.cylinders, self.footer.heads, self.footer.sectors_per_track


def file_end(image: Reader) -> int:
    """Return the file's length rounded up to 512, as QEMU sees it: Virtual PC before 2004 cut the footer to 511."""
    return align_up(image.size, SECTOR)


def open_image(image: Reader, generation: tuple[int, int]) -> Opened:
    """Read and judge footer and header.

    Raises:
        ImageError: ``invalid-format``, not a VHD; ``corrupt``, a checksum, magic, block size or table size
            is wrong; ``too-large``, above 2040 GiB or ``MAX_TABLE_ENTRIES``; ``out-of-bounds``, the header lies
            where no file reaches.
    """
    footer = Footer.unpack(read_padded(image, 0, Footer.SIZE))
    at_start = footer.cookie == COOKIE
    offset = 0
    if not at_start:
        offset = file_end(image) - Footer.SIZE
        if offset < 0:
            raise ImageError(
                "invalid-format",
                "footer",
                "the file is too small for a VHD",
                field="file length",
                value=image.size,
                format=FORMAT,
            )
        footer = Footer.unpack(read_padded(image, offset, Footer.SIZE))
        if footer.cookie != COOKIE or footer.disk_type != TYPE_FIXED:
            raise ImageError(
                "invalid-format",
                "footer",
                "this is not a VHD: neither its first sector nor its last one is a footer",
                field="cookie",
                format=FORMAT,
            )
    expected = checksum_of(footer)
    if footer.checksum != expected:
        raise ImageError(
            "corrupt",
            "footer",
            "the checksum is wrong",
            field="checksum",
            value=footer.checksum,
            expected=expected,
            offset=offset + Footer.field("checksum").offset,
            format=FORMAT,
        )
    size = _virtual_size(footer, generation)
    header = _read_header(image, footer.data_offset, size) if at_start else None
    return Opened(footer, header, size)


def _virtual_size(footer: Footer, generation: tuple[int, int]) -> int:
    """Return the bytes of the virtual disk as QEMU of a generation sees them: by geometry or by the footer."""
    if generation >= FOOTER_SIZE_SINCE:
        by_geometry = footer.creator_app in SIZED_BY_GEOMETRY
    else:
        by_geometry = footer.creator_app not in SIZED_BY_FOOTER
    sectors = volume((footer.cylinders, footer.heads, footer.sectors_per_track))
    field = "geometry"
    if not by_geometry or sectors == MAX_GEOMETRY_SECTORS:
        sectors = footer.current_size // SECTOR
        field = "current_size"
    if sectors > MAX_SECTORS:
        raise ImageError(
            "too-large",
            "footer",
            "the disk is larger than 2040 GiB",
            field=field,
            value=sectors * SECTOR,
            limit=MAX_SECTORS * SECTOR,
            format=FORMAT,
        )
    return sectors * SECTOR


def _read_header(image: Reader, offset: int, virtual_size: int) -> Header:
    """Read the dynamic disk header and judge what a reader relies on, in QEMU's order."""
    if offset > INT64_MAX - Header.SIZE:
        raise ImageError(
            "out-of-bounds",
            "footer",
            "the dynamic disk header lies past the end of any file",
            field="data_offset",
            value=offset,
            limit=image.size,
            format=FORMAT,
        )
    header = Header.unpack(read_padded(image, offset, Header.SIZE))
    if header.cookie != HEADER_COOKIE:
        raise ImageError(
            "corrupt",
            "dynamic disk header",
            "it does not start with 'cxsparse'",
            field="cookie",
            value=int.from_bytes(header.cookie, "big"),
            expected=int.from_bytes(HEADER_COOKIE, "big"),
            offset=offset,
            format=FORMAT,
        )
    block_size = header.block_size
    if not is_power_of_two(block_size) or block_size < MIN_READ_BLOCK:
        raise ImageError(
            "corrupt",
            "dynamic disk header",
            "the block size is no power of two of at least 512",
            field="block_size",
            value=block_size,
            offset=offset + Header.field("block_size").offset,
            format=FORMAT,
        )
    entries = header.max_table_entries
    place = offset + Header.field("max_table_entries").offset
    if entries * block_size < virtual_size:
        raise ImageError(
            "corrupt",
            "dynamic disk header",
            "the BAT has too few entries for the disk",
            field="max_table_entries",
            value=entries,
            limit=ceil_div(virtual_size, block_size),
            offset=place,
            format=FORMAT,
        )
    if entries > MAX_TABLE_ENTRIES:
        raise ImageError(
            "too-large",
            "dynamic disk header",
            "the BAT has more entries than a disk of 2040 GiB in blocks of 64 KiB",
            field="max_table_entries",
            value=entries,
            limit=MAX_TABLE_ENTRIES,
            offset=place,
            format=FORMAT,
        )
    return header


def bat_end(header: Header) -> int:
    """Return the host offset behind the BAT, without its padding."""
    return header.table_offset + 4 * header.max_table_entries


def used(entries: array[int]) -> list[int]:
    """Return those of some BAT entries that point to a block."""
    if entries.count(UNUSED) == len(entries):
        return []
    return [entry for entry in entries if entry != UNUSED]


def require_bat(image: Reader, header: Header) -> None:
    """Make sure that the BAT lies inside the file.

    Raises:
        ImageError: ``out-of-bounds``.
    """
    if align_up(bat_end(header), SECTOR) > file_end(image):
        raise ImageError(
            "out-of-bounds",
            "BAT",
            "the table reaches past the end of the file",
            # QEMU has two sentences: for an offset that no file can have, and for one past this file's end.
            field="end" if bat_end(header) <= INT64_MAX else "table_offset",
            value=bat_end(header),
            limit=image.size,
            offset=header.table_offset,
            format=FORMAT,
        )


class _Padded:
    """A file that reads as zeros up to the next sector, so that a table in its last part can be read."""

    __slots__ = ("image", "number", "size")

    def __init__(self, image: Reader) -> None:
        self.image = image
        self.number = image.number
        self.size = file_end(image)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``."""
        return read_padded(self.image, offset, length)


def padded(image: Reader) -> Reader:
    """Return ``image`` as QEMU reads it: zeros follow its end up to the next sector."""
    return _Padded(image) if image.size % SECTOR else image


def _require_blocks(image: Reader, header: Header) -> None:
    """Make sure that every block lies inside the file, as QEMU does before it opens an image."""
    require_bat(image, header)
    span = bitmap_bytes(header.block_size) + header.block_size
    end = file_end(image)
    for first, entries in iter_table(padded(image), header.table_offset, header.max_table_entries, "I", ">", "BAT"):
        last = max(used(entries), default=-1)
        if last >= 0 and last * SECTOR + span > end:
            index = first + entries.index(last)
            raise ImageError(
                "out-of-bounds",
                "BAT",
                f"block {index} reaches past the end of the file, which has been cut off",
                field="end of block",
                value=last * SECTOR + span,
                limit=image.size,
                offset=header.table_offset + 4 * index,
                format=FORMAT,
            )


def locators(header: Header) -> list[ParentLocator]:
    """Return the eight parent locators."""
    return [ParentLocator.unpack(header.parent_locators, i * ParentLocator.SIZE) for i in range(LOCATORS)]


def parent_name(image: Reader, header: Header) -> bytes | None:
    """Return the name of the parent as UTF-8, or ``None`` if the image has none that can be used.

    Windows' separators become ours, see ``from_windows``. The relative name is taken first, for that is the one which
    stays right when both files move; then the absolute one, the file URL, and last the name in the header, which has
    no folder.
    """
    entries = locators(header)
    for platform in (PLATFORM_W2RU, PLATFORM_W2KU, PLATFORM_MACX):
        for entry in entries:
            if entry.platform_code != platform:
                continue
            if not 0 < entry.data_length <= MAX_LOCATOR or entry.data_offset > image.size - entry.data_length:
                continue
            data = image.read(entry.data_offset, entry.data_length)
            name = _utf8(data, wide=platform != PLATFORM_MACX, big=False)
            if name:
                return name if platform == PLATFORM_MACX else from_windows(name)
    name = _utf8(header.parent_name, wide=True, big=True)
    return None if name is None else from_windows(name)


def lineage(image: Reader, *, generation: tuple[int, int]) -> Reference | None:
    """Return whom a differencing disk names as its parent, ``None`` for another disk or without a name.

    Raises:
        ImageError: see ``open_image``.
    """
    opened = open_image(image, generation)
    return _parent(image, opened)


def _parent(image: Reader, opened: Opened) -> Reference | None:
    if opened.header is None or opened.footer.disk_type != TYPE_DIFFERENCING:
        return None
    name = parent_name(image, opened.header)
    return None if name is None else Reference("backing", name, format=FORMAT)


def _utf8(data: bytes, *, wide: bool, big: bool) -> bytes | None:
    """Return a name up to its first zero as UTF-8 (a lone surrogate keeps its three bytes), or ``None``."""
    if wide:
        # The functions behind the codecs: a codec's name would be looked up on disk, which a cell cannot do.
        decode = utf_16_be_decode if big else utf_16_le_decode
        text, _ = decode(data[: len(data) & ~1], "surrogatepass", True)
        data = text.encode("utf-8", "surrogatepass")
    name = data.split(b"\0", 1)[0]
    return name if 0 < len(name) <= MAX_NAME else None


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a VHD as ``qemu-img info`` of a generation does, and name a differencing disk's parent.

    QEMU opens a differencing disk as if it had no parent, and shows none.

    Raises:
        ImageError: see ``open_image``; ``out-of-bounds`` too if the BAT or a block lies outside the file.
    """
    opened = open_image(image, generation)
    footer, header = opened.footer, opened.header
    if header is not None:
        _require_blocks(image, header)
    parent = _parent(image, opened)
    # QEMU looks at the type, not at where the footer was: a fixed disk has no cluster size.
    cluster_size = header.block_size if header is not None and footer.disk_type != TYPE_FIXED else None
    return ImageFacts(
        FORMAT,
        opened.virtual_size,
        cluster_size=cluster_size,
        references=[] if parent is None else [parent],
        extra=_extra(opened),
    )


def _extra(opened: Opened) -> dict[str, Wire]:
    """Return what else a VHD says about itself."""
    footer, header = opened.footer, opened.header
    extra: dict[str, Wire] = {
        "disk_type": TYPE_NAMES.get(footer.disk_type, str(footer.disk_type)),
        "creator_app": footer.creator_app.decode("latin-1"),
        "creator_os": footer.creator_os.decode("latin-1"),
        "creator_version": footer.creator_version,
        "unique_id": footer.unique_id.hex(),
        "timestamp": footer.timestamp,
        "original_size": footer.original_size,
        "current_size": footer.current_size,
        "geometry": list(opened.geometry),
        "saved_state": bool(footer.saved_state),
    }
    if footer.disk_type in TYPE_NAMES:
        extra["identity"] = Identity(
            unique_id=footer.unique_id,
            current_size=footer.current_size,
            cylinders=footer.cylinders,
            heads=footer.heads,
            sectors_per_track=footer.sectors_per_track,
        ).pack()
    if header is not None and footer.disk_type == TYPE_DIFFERENCING:
        extra["parent_identity"] = header.parent_unique_id
        extra["parent_unique_id"] = header.parent_unique_id.hex()
        extra["parent_timestamp"] = header.parent_timestamp
    return extra
