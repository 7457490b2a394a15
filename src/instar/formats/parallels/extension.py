"""The Format Extension of a Parallels image: one cluster of features, of which there is one kind, dirty bitmaps.

Law: as QEMU judges it when it opens an image to read. The cluster is read in pieces; its length, and that of each
table in it, are compared with a limit first. Source: spec, "Format Extension" and "Dirty bitmaps feature".
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.reader import MAX_READ, read_padded, table
from instar.core.units import INT64_MAX, MiB, align_up, ceil_div, is_power_of_two
from instar.formats.parallels.md5 import md5
from instar.formats.parallels.ondisk import (
    EXTENSION_MAGIC,
    FEATURE_BITMAP,
    FEATURE_END,
    FORMAT,
    MAX_BITMAPS,
    MAX_EXT_OFF,
    SECTOR,
    STRICT_SINCE,
    Bitmap,
    Extension,
    Feature,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.reader import Reader
    from instar.core.wire import Wire

#: Largest extension that is read: its checksum is computed step by step. Clusters have 1 MiB or less as a rule.
MAX_EXTENSION = 16 * MiB


def _refusal(
    kind: str,
    field: str,
    detail: str,
    offset: int,
    value: int | None = None,
    limit: int | None = None,
    *,
    expected: int | None = None,
) -> ImageError:
    return ImageError(
        kind,
        "format extension",
        detail,
        field=field,
        offset=offset,
        value=value,
        limit=limit,
        expected=expected,
        format=FORMAT,
    )


def judge_offset(header: Header, generation: tuple[int, int]) -> None:
    """Refuse an extension where no file reaches.

    Raises:
        ImageError: ``out-of-bounds``.
    """
    if header.ext_off >= MAX_EXT_OFF and generation >= STRICT_SINCE:
        raise ImageError(
            "out-of-bounds",
            "header",
            "the format extension lies where no file reaches",
            field="ext_off",
            value=header.ext_off,
            limit=MAX_EXT_OFF,
            offset=Header.field("ext_off").offset,
            format=FORMAT,
        )


def read(image: Reader, header: Header, sectors: int) -> list[dict[str, Wire]]:
    """Read the extension that ``header.ext_off`` points to; return its bitmaps: id, granularity (bytes), clusters.

    ``sectors`` is the length of the virtual disk.

    Raises:
        ImageError: ``corrupt``, a magic, checksum, size or granularity is wrong; ``out-of-bounds``, a part reaches
            out of the whole; ``unsupported-feature``, an unknown feature or flag; ``too-large``.
    """
    start, size = header.ext_off * SECTOR, header.tracks * SECTOR
    if start + size > INT64_MAX:
        raise _refusal("out-of-bounds", "ext_off end", "it lies where no file reaches", start)
    head = Extension.unpack(read_padded(image, start, Extension.SIZE))
    if head.magic != EXTENSION_MAGIC:
        raise _refusal("corrupt", "magic", "its magic is wrong", start, head.magic, expected=EXTENSION_MAGIC)
    if size > MAX_EXTENSION:
        raise _refusal("too-large", "size", "it is larger than 16 MiB", start, size, MAX_EXTENSION)
    if md5(_pieces(image, start + Extension.SIZE, size - Extension.SIZE)) != head.checksum:
        raise _refusal("corrupt", "m_CheckSum", "its checksum is wrong", start + 8)
    bitmaps: list[dict[str, Wire]] = []
    seen: set[bytes] = set()
    at = Extension.SIZE
    while True:
        if size - at < Feature.SIZE:
            raise _refusal(
                "corrupt", "features", "it ends before the end of its features", start + at, size - at, Feature.SIZE
            )
        feature = Feature.unpack(read_padded(image, start + at, Feature.SIZE))
        place = start + at
        at += Feature.SIZE
        if feature.flags:
            raise _refusal("unsupported-feature", "flags", "a feature has flags", place + 8, feature.flags)
        if feature.data_size > size - at:
            raise _refusal(
                "out-of-bounds", "data_size", "a feature reaches past its end", place + 16, feature.data_size, size - at
            )
        if feature.magic == FEATURE_END:
            return bitmaps
        if feature.magic != FEATURE_BITMAP:
            raise _refusal("unsupported-feature", "magic", "it has an unknown feature", place, feature.magic)
        bitmap = _bitmap(image, header, sectors, start + at, feature.data_size)
        if bitmap.id in seen:
            raise _refusal("corrupt", "id", f"bitmap {bitmap.id.hex()} is there twice", place)
        if len(seen) == MAX_BITMAPS:
            raise _refusal("too-large", "bitmaps", "it has too many bitmaps", place, MAX_BITMAPS + 1, MAX_BITMAPS)
        seen.add(bitmap.id)
        bitmaps.append({"id": bitmap.id.hex(), "granularity": bitmap.granularity * SECTOR, "clusters": bitmap.l1_size})
        at = align_up(at + feature.data_size, 8)


def _pieces(image: Reader, offset: int, length: int) -> Iterator[bytes]:
    """Yield a range in pieces whose lengths are multiples of 64, but for the last."""
    for start in range(0, length, MAX_READ):
        yield read_padded(image, offset + start, min(MAX_READ, length - start))


def _bitmap(image: Reader, header: Header, sectors: int, offset: int, length: int) -> Bitmap:
    """Judge one bitmap whose data has ``length`` bytes at host offset ``offset``."""
    if length < Bitmap.SIZE:
        raise _refusal("corrupt", "bitmap", "a bitmap is cut short", offset, length, Bitmap.SIZE)
    bitmap = Bitmap.unpack(read_padded(image, offset, Bitmap.SIZE))
    if bitmap.size != sectors:
        raise _refusal(
            "corrupt", "size", "a bitmap is for a disk of another size", offset, bitmap.size, expected=sectors
        )
    if 8 * bitmap.l1_size > length - Bitmap.SIZE:
        raise _refusal(
            "out-of-bounds",
            "l1_size",
            "the table of a bitmap reaches past its feature",
            offset + 28,
            8 * bitmap.l1_size,
            length - Bitmap.SIZE,
        )
    granularity = bitmap.granularity * SECTOR & 0xFFFFFFFF
    if not is_power_of_two(granularity):
        raise _refusal(
            "corrupt", "granularity", "the granularity of a bitmap is no power of two", offset + 24, bitmap.granularity
        )
    # Bits are kept in words of 64.
    words = ceil_div(ceil_div(sectors * SECTOR, granularity), 64)
    expected = ceil_div(8 * words, header.tracks * SECTOR)
    if bitmap.l1_size != expected:
        raise _refusal(
            "corrupt",
            "l1_size",
            "the table of a bitmap has another length",
            offset + 28,
            bitmap.l1_size,
            expected=expected,
        )
    entries = table(read_padded(image, offset + Bitmap.SIZE, 8 * bitmap.l1_size), "Q", "<")
    # 0 and 1 stand for clusters of nothing but such bits.
    for index, entry in enumerate(entries):
        if entry > 1 and (entry + header.tracks) * SECTOR > INT64_MAX:
            raise _refusal(
                "out-of-bounds",
                "l1 entry",
                "a bitmap lies where no file reaches",
                offset + Bitmap.SIZE + 8 * index,
                entry,
            )
    return bitmap
