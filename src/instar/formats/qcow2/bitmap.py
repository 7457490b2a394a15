"""Persistent dirty bitmaps: the directory, and the table of each bitmap.

Law: a directory or table is refused exactly where QEMU refuses it on opening (specification, "Bitmaps"). The
bits themselves are never looked at.
"""

from __future__ import annotations

from instar.core.reader import MAX_READ, read_padded, table
from instar.core.units import align_up, ceil_div
from instar.formats.qcow2.bulk import any_bits
from instar.formats.qcow2.header import bad, require_readable, text
from instar.formats.qcow2.ondisk import (
    BITMAP_AUTO,
    BITMAP_ENTRY_ALIGNMENT,
    BITMAP_IN_USE,
    BITMAP_TABLE_ALL_ONES,
    BITMAP_TABLE_ENTRY_SIZE,
    BITMAP_TABLE_OFFSET_MASK,
    BITMAP_TABLE_RESERVED_MASK,
    BITMAP_TYPE_DIRTY_TRACKING,
    MAX_BITMAP_BYTES,
    MAX_BITMAP_GRANULARITY_BITS,
    MAX_BITMAP_NAME,
    MAX_BITMAP_TABLE_BYTES,
    MAX_BITMAP_TABLE_ENTRIES,
    MIN_BITMAP_GRANULARITY_BITS,
    BitmapDirectoryEntry,
)
from instar.formats.qcow2.window import Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.errors import ImageError
    from instar.core.wire import Wire
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.ondisk import BitmapsExtension

_DIRECTORY = "Bitmap directory"
_TABLE = "Bitmap table"
#: QEMU keeps a bitmap as 64-bit words; the bits on disk fill whole words too.
_WORD_BITS = 64


class Bitmap:
    """One entry of the directory: name up to its first NUL, place and entries of its table, flags, granularity."""

    __slots__ = ("flags", "granularity_bits", "name", "table_offset", "table_size")

    def __init__(self, row: BitmapDirectoryEntry, name: bytes) -> None:
        self.name = name
        self.table_offset = row.bitmap_table_offset
        self.table_size = row.bitmap_table_size
        self.flags = row.flags
        self.granularity_bits = row.granularity_bits

    @property
    def in_use(self) -> bool:
        """The bitmap was not saved after its last use; what stands in the image is stale."""
        return bool(self.flags & BITMAP_IN_USE)

    def facts(self) -> dict[str, Wire]:
        """Return the fields of QEMU's ``Qcow2BitmapInfo``, in its order."""
        flags: list[Wire] = []
        if self.flags & BITMAP_IN_USE:
            flags.append("in-use")
        if self.flags & BITMAP_AUTO:
            flags.append("auto")
        name = self.name.decode("utf-8", "surrogateescape")
        return {"flags": flags, "name": name, "granularity": 1 << self.granularity_bits}


def read_bitmaps(image: Image) -> list[Bitmap]:
    """Return the bitmaps of an image, directory and tables judged as on opening.

    Raises:
        ImageError: the directory is damaged, or the table of a bitmap that is not in use is.
    """
    if image.bitmaps is None:
        return []
    bitmaps = list(_directory(image, image.bitmaps))
    names = set()
    budget = MAX_BITMAP_TABLE_BYTES
    for bitmap in bitmaps:
        if bitmap.name in names:
            if bitmap.in_use:
                continue
            shown = bitmap.name.decode("utf-8", "surrogateescape")
            raise bad("corrupt", _DIRECTORY, f"there are two bitmaps with the name {shown!r}")
        names.add(bitmap.name)
        if bitmap.in_use:
            continue
        budget -= bitmap.table_size * BITMAP_TABLE_ENTRY_SIZE
        if budget < 0:
            raise bad("too-large", _TABLE, "all tables together are too large", limit=MAX_BITMAP_TABLE_BYTES)
        bits = ceil_div(image.virtual_size, 1 << bitmap.granularity_bits)
        needed = ceil_div(align_up(bits, _WORD_BITS) // 8, image.cluster_size)
        if bitmap.table_size != needed:
            detail = "the table does not fit the size of the disk"
            raise bad("corrupt", _TABLE, detail, field="bitmap_table_size", value=bitmap.table_size, expected=needed)
        judge_table(image, bitmap)
    return bitmaps


def _directory(image: Image, where: BitmapsExtension) -> Iterator[Bitmap]:
    size, start = where.bitmap_directory_size, where.bitmap_directory_offset
    if not size:
        raise bad("corrupt", _DIRECTORY, "the directory is empty", field="bitmap_directory_size", value=0)
    require_readable(_DIRECTORY, start, size)
    window = Window(image.reader, _DIRECTORY)
    position = count = 0
    while position < size:
        if position + BitmapDirectoryEntry.SIZE > size:
            raise bad("corrupt", _DIRECTORY, "the last entry is cut short", offset=start + position)
        count += 1
        if count > where.nb_bitmaps:
            detail = "there are more bitmaps than the extension says"
            raise bad("corrupt", _DIRECTORY, detail, field="nb_bitmaps", value=count, expected=where.nb_bitmaps)
        row = BitmapDirectoryEntry.unpack(window.read(start + position, BitmapDirectoryEntry.SIZE))
        length = BitmapDirectoryEntry.SIZE + row.name_size + row.extra_data_size
        length = align_up(length, BITMAP_ENTRY_ALIGNMENT)
        if position + length > size:
            raise bad("corrupt", _DIRECTORY, "an entry reaches past the end", offset=start + position)
        if row.extra_data_size:
            kind, detail = "unsupported-feature", "a bitmap with extra data is not supported"
            raise _bad(detail, "extra_data_size", row, start + position, None, expected=0, kind=kind)
        _judge(image, row, start + position)
        name = window.read(start + position + BitmapDirectoryEntry.SIZE, row.name_size)
        yield Bitmap(row, text(name))
        position += length
    if count != where.nb_bitmaps:
        detail = "there are fewer bitmaps than the extension says"
        raise bad("corrupt", _DIRECTORY, detail, field="nb_bitmaps", value=count, expected=where.nb_bitmaps)


def _judge(image: Image, row: BitmapDirectoryEntry, offset: int) -> None:
    """Compare the fields of an entry with their limits."""
    cluster_size = image.cluster_size
    if not 0 < row.bitmap_table_size <= MAX_BITMAP_TABLE_ENTRIES:
        detail = "a bitmap's table is empty or too large"
        raise _bad(detail, "bitmap_table_size", row, offset, MAX_BITMAP_TABLE_ENTRIES)
    if not row.bitmap_table_offset or row.bitmap_table_offset % cluster_size:
        detail = "a bitmap's table does not start at a multiple of the cluster size"
        raise _bad(detail, "bitmap_table_offset", row, offset, None)
    if not MIN_BITMAP_GRANULARITY_BITS <= row.granularity_bits <= MAX_BITMAP_GRANULARITY_BITS:
        detail = "a bitmap's granularity is too small or too large"
        raise _bad(detail, "granularity_bits", row, offset, MAX_BITMAP_GRANULARITY_BITS)
    if row.flags & ~(BITMAP_IN_USE | BITMAP_AUTO):
        raise _bad("a bitmap has unknown flags", "flags", row, offset, None)
    if row.name_size > MAX_BITMAP_NAME:
        raise _bad("a bitmap's name is too long", "name_size", row, offset, MAX_BITMAP_NAME)
    if row.type != BITMAP_TYPE_DIRTY_TRACKING:
        detail = "a bitmap has an unknown type"
        raise _bad(detail, "type", row, offset, None, expected=BITMAP_TYPE_DIRTY_TRACKING)
    size = row.bitmap_table_size * cluster_size
    if size > MAX_BITMAP_BYTES:
        detail = "a bitmap's table is too large"
        raise _bad(detail, "bitmap_table_size", row, offset, MAX_BITMAP_BYTES // cluster_size)
    if not row.flags & BITMAP_IN_USE and image.virtual_size > size * 8 << row.granularity_bits:
        detail = "a bitmap's table is too small for the disk"
        raise _bad(detail, "bitmap_table_size", row, offset, None)


def judge_table(image: Image, bitmap: Bitmap) -> None:
    """Judge the entries of a bitmap's table.

    Raises:
        ImageError: an entry has reserved bits, or an offset that is not a multiple of the cluster size.
    """
    size = bitmap.table_size * BITMAP_TABLE_ENTRY_SIZE
    require_readable(_TABLE, bitmap.table_offset, size)
    forbidden = BITMAP_TABLE_RESERVED_MASK | (image.cluster_size - 1 & BITMAP_TABLE_OFFSET_MASK)
    for offset, data in _pieces(image, bitmap):
        if any_bits(data, forbidden):
            raise bad("corrupt", _TABLE, "an entry has reserved bits or an unaligned offset", offset=offset)
        if any_bits(data, BITMAP_TABLE_ALL_ONES):
            for entry in table(data, "Q", ">"):
                if entry & BITMAP_TABLE_ALL_ONES and entry & BITMAP_TABLE_OFFSET_MASK:
                    detail = "an entry has an offset, and says that there is none"
                    raise bad("corrupt", _TABLE, detail, value=entry, offset=offset)


def clusters_of(image: Image, bitmap: Bitmap) -> Iterator[int]:
    """Yield the host offset of each cluster of bits; the table must have been judged."""
    for _, data in _pieces(image, bitmap):
        for entry in table(data, "Q", ">"):
            if entry & BITMAP_TABLE_OFFSET_MASK:
                yield entry & BITMAP_TABLE_OFFSET_MASK


def _pieces(image: Image, bitmap: Bitmap) -> Iterator[tuple[int, bytes]]:
    """Yield the table in pieces of at most 1 MiB, without those that are all zeros."""
    start = bitmap.table_offset
    end = min(start + bitmap.table_size * BITMAP_TABLE_ENTRY_SIZE, align_up(image.reader.size, BITMAP_TABLE_ENTRY_SIZE))
    for offset in range(start, end, MAX_READ):
        data = read_padded(image.reader, offset, min(MAX_READ, end - offset))
        if data != bytes(len(data)):
            yield offset, data


def _bad(
    detail: str,
    field: str,
    row: BitmapDirectoryEntry,
    offset: int,
    limit: int | None,
    *,
    expected: int | None = None,
    kind: str = "corrupt",
) -> ImageError:
    value: int = getattr(row, field)
    where = offset + BitmapDirectoryEntry.field(field).offset
    return bad(kind, _DIRECTORY, detail, field=field, value=value, limit=limit, expected=expected, offset=where)
