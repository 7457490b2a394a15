"""The header of a qcow2 image and its extensions: what an image says about itself before any table is read.

Law: an image is refused here exactly where QEMU refuses to open it, in QEMU's order, with the field at fault.
What lies past the end of the file reads as zeros, as in QEMU: a cut image is judged by what it then says.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import MAX_NAME
from instar.core.reader import read_padded
from instar.formats.qcow2.ondisk import (
    AUTOCLEAR_BITMAPS,
    AUTOCLEAR_DATA_FILE_RAW,
    COMPRESSION_NAMES,
    COMPRESSION_ZLIB,
    CRYPT_LUKS,
    EXTENSION_ALIGNMENT,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_BITMAPS,
    EXTENSION_CRYPTO_HEADER,
    EXTENSION_DATA_FILE,
    EXTENSION_END,
    EXTENSION_FEATURE_NAMES,
    FEATURE_INCOMPATIBLE,
    FORMAT,
    HEADER_ADDITIONAL_OFFSET,
    HEADER_V2_LENGTH,
    HEADER_V3_LENGTH,
    HEADER_V3_OFFSET,
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2,
    INCOMPATIBLE_KNOWN,
    L1_ENTRY_SIZE,
    L2_ENTRY_SIZE,
    L2_ENTRY_SIZE_EXTENDED,
    MAGIC,
    MAX_BACKING_FORMAT,
    MAX_BACKING_NAME,
    MAX_BITMAP_DIRECTORY_SIZE,
    MAX_BITMAPS,
    MAX_CLUSTER_BITS,
    MAX_L1_ENTRIES,
    MAX_LENGTH,
    MAX_REFCOUNT_ORDER,
    MAX_REFCOUNT_TABLE_SIZE,
    MAX_SNAPSHOTS,
    MIN_CLUSTER_BITS,
    MIN_CLUSTER_BITS_EXTENDED_L2,
    REFCOUNT_ORDER_V2,
    VERSIONS,
    BitmapsExtension,
    CryptoHeaderExtension,
    Extension,
    FeatureName,
    Header,
    HeaderAdditional,
    HeaderV3,
    SnapshotEntry,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.reader import Reader

_INT31_MAX = (1 << 31) - 1
_INT64_MAX = (1 << 63) - 1
_UINT64_MAX = (1 << 64) - 1
#: Which header field holds the offset of the table that another one counts.
_PLACES = {
    "l1_size": "l1_table_offset",
    "refcount_table_clusters": "refcount_table_offset",
    "nb_snapshots": "snapshots_offset",
}


class Image:
    """What the header and the extensions of one image say, judged.

    Attributes:
        version: 2 or 3.
        cluster_bits, cluster_size: of a cluster.
        virtual_size: bytes of the disk, rounded **down** to 512 as QEMU does on opening.
        incompatible, compatible, autoclear: the feature bitmaps; zero in version 2.
        refcount_bits: width of a refcount.
        compression: ``zlib`` or ``zstd``.
        crypt_method: none, aes, luks.
        l1_table_offset, l1_size; refcount_table_offset, refcount_table_clusters; snapshots_offset, nb_snapshots:
            as in the header.
        backing_name, backing_format, data_file: names up to their first NUL, or ``None``.
        crypto, bitmaps: the data of these extensions, or ``None``.
        inconsistent_bitmaps: there are bitmaps, but a program that does not know them wrote to the image.
        entry_size: bytes of an L2 entry; ``entries``: how many make an L2 table.
        file_end: length of the file rounded up to 512, which is how QEMU sees it.
    """

    __slots__ = (
        "autoclear",
        "backing_format",
        "backing_name",
        "bitmaps",
        "cluster_bits",
        "cluster_size",
        "compatible",
        "compression",
        "crypt_method",
        "crypto",
        "data_file",
        "entries",
        "entry_size",
        "extended_l2",
        "file_end",
        "has_data_file",
        "incompatible",
        "inconsistent_bitmaps",
        "l1_size",
        "l1_table_offset",
        "nb_snapshots",
        "reader",
        "refcount_bits",
        "refcount_table_clusters",
        "refcount_table_offset",
        "snapshots_offset",
        "version",
        "virtual_size",
    )

    def __init__(self, reader: Reader, header: Header, v3: HeaderV3, compression: str) -> None:
        self.reader = reader
        self.file_end = -(-reader.size // 512) * 512
        self.version = header.version
        self.cluster_bits = header.cluster_bits
        self.cluster_size = 1 << header.cluster_bits
        self.virtual_size = header.size & ~511
        self.incompatible = v3.incompatible_features
        self.compatible = v3.compatible_features
        self.autoclear = v3.autoclear_features
        # Judged later; a shift by what the image says would ask for up to 512 MiB.
        self.refcount_bits = 1 << min(v3.refcount_order, MAX_REFCOUNT_ORDER)
        self.compression = compression
        self.crypt_method = header.crypt_method
        self.l1_table_offset = header.l1_table_offset
        self.l1_size = header.l1_size
        self.refcount_table_offset = header.refcount_table_offset
        self.refcount_table_clusters = header.refcount_table_clusters
        self.snapshots_offset = header.snapshots_offset
        self.nb_snapshots = header.nb_snapshots
        self.backing_name: bytes | None = None
        self.backing_format: bytes | None = None
        self.data_file: bytes | None = None
        self.bitmaps: BitmapsExtension | None = None
        self.crypto: CryptoHeaderExtension | None = None
        self.inconsistent_bitmaps = False
        self.has_data_file = bool(self.incompatible & INCOMPATIBLE_DATA_FILE)
        self.extended_l2 = bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2)
        self.entry_size = L2_ENTRY_SIZE_EXTENDED if self.extended_l2 else L2_ENTRY_SIZE
        self.entries = self.cluster_size // self.entry_size

    @property
    def dirty(self) -> bool:
        """Refcounts may be stale: lazy refcounts, and the image was not closed."""
        return bool(self.incompatible & INCOMPATIBLE_DIRTY)

    @property
    def corrupt(self) -> bool:
        """A program found the image damaged and marked it."""
        return bool(self.incompatible & INCOMPATIBLE_CORRUPT)

    @property
    def data_file_raw(self) -> bool:
        """The external data file can be read as a raw image."""
        return bool(self.autoclear & AUTOCLEAR_DATA_FILE_RAW)


def open_image(reader: Reader, *, checking: bool = False) -> Image:
    """Read and judge header and extensions.

    ``checking`` lets pass what a check must be able to look at: a missing refcount table, and a broken pointer
    to the snapshot table.

    Raises:
        ImageError: QEMU would not open the image.
    """
    head = read_padded(reader, 0, HEADER_V3_OFFSET + HeaderV3.SIZE + HeaderAdditional.SIZE)
    header = Header.unpack(head)
    if header.magic != MAGIC:
        raise _header("invalid-format", "this is not a qcow2 image", "magic", header.magic, expected=MAGIC)
    if header.version not in VERSIONS:
        raise _header("unsupported-feature", "the version is neither 2 nor 3", "version", header.version)
    if not MIN_CLUSTER_BITS <= header.cluster_bits <= MAX_CLUSTER_BITS:
        detail = f"a cluster must be 2^{MIN_CLUSTER_BITS} to 2^{MAX_CLUSTER_BITS} bytes"
        raise _header("unsupported-feature", detail, "cluster_bits", header.cluster_bits, MAX_CLUSTER_BITS)
    v3, length = _version_three(header, head)
    cluster_size = 1 << header.cluster_bits
    if length > cluster_size:
        raise _header("too-large", "the header is longer than a cluster", "header_length", length, cluster_size)
    if header.backing_file_offset > cluster_size:
        detail = "the backing file name is not in the first cluster"
        raise _header("corrupt", detail, "backing_file_offset", header.backing_file_offset, cluster_size)
    compression = _compression(v3, head, length)
    image = Image(reader, header, v3, compression)
    end = header.backing_file_offset or cluster_size
    if image.incompatible & ~INCOMPATIBLE_KNOWN:
        raise _unknown_features(image, length, end)
    _judge(image, header, v3, checking)
    _read_extensions(image, length, end)
    if checking and image.has_data_file and not image.data_file:
        raise bad("corrupt", "Header", "the image has a data file, but does not name it", field="data_file")
    if image.has_data_file and image.data_file and len(image.data_file) > MAX_NAME:
        detail, size = "the name of the data file is too long", len(image.data_file)
        raise bad("too-large", "Header extension", detail, field="data_file", value=size, limit=MAX_NAME)
    if checking and image.data_file_raw and not image.has_data_file:
        detail = "the data file is said to be raw, but there is none"
        raise _header("corrupt", detail, "autoclear_features", image.autoclear)
    if header.backing_file_offset:
        image.backing_name = _backing_name(reader, header, cluster_size)
    if image.virtual_size > MAX_LENGTH:
        raise _header("out-of-bounds", "the virtual size is too large", "size", image.virtual_size, MAX_LENGTH)
    return image


def _version_three(header: Header, head: bytes) -> tuple[HeaderV3, int]:
    if header.version == 2:
        return HeaderV3(refcount_order=REFCOUNT_ORDER_V2, header_length=HEADER_V2_LENGTH), HEADER_V2_LENGTH
    v3 = HeaderV3.unpack(head, HEADER_V3_OFFSET)
    if v3.header_length < HEADER_V3_LENGTH:
        detail = "the header is too short for version 3"
        raise _header("corrupt", detail, "header_length", v3.header_length, HEADER_V3_LENGTH)
    return v3, v3.header_length


def _compression(v3: HeaderV3, head: bytes, length: int) -> str:
    offset = HEADER_ADDITIONAL_OFFSET
    value = head[offset] if length > offset else COMPRESSION_ZLIB
    if value >= len(COMPRESSION_NAMES):
        detail = "the compression type is unknown"
        raise _header("unsupported-feature", detail, "compression_type", value)
    flag = bool(v3.incompatible_features & INCOMPATIBLE_COMPRESSION)
    if flag and value == COMPRESSION_ZLIB:
        detail = "the compression is zlib, but the feature bit for another one is set"
        raise _header("corrupt", detail, "incompatible_features", v3.incompatible_features)
    if not flag and value != COMPRESSION_ZLIB:
        detail = "the compression is not zlib, but the feature bit for that is not set"
        raise _header("corrupt", detail, "compression_type", value)
    return COMPRESSION_NAMES[value]


def _judge(image: Image, header: Header, v3: HeaderV3, checking: bool) -> None:
    """Compare every number of the header with its limit, in QEMU's order."""
    if image.extended_l2 and image.cluster_bits < MIN_CLUSTER_BITS_EXTENDED_L2:
        detail = "extended L2 entries need clusters of at least 16 KiB"
        raise _header("corrupt", detail, "cluster_bits", image.cluster_bits, MIN_CLUSTER_BITS_EXTENDED_L2)
    if v3.refcount_order > MAX_REFCOUNT_ORDER:
        detail = "refcounts are wider than 64 bits"
        raise _header("corrupt", detail, "refcount_order", v3.refcount_order, MAX_REFCOUNT_ORDER)
    if not image.refcount_table_clusters and not checking:
        raise _header("corrupt", "the image has no refcount table", "refcount_table_clusters", 0)
    clusters = MAX_REFCOUNT_TABLE_SIZE // image.cluster_size
    _table(image, header, "Refcount table", "refcount_table_clusters", image.cluster_size, clusters)
    if not checking:
        require_snapshot_table(image, header)
    _table(image, header, "Active L1 table", "l1_size", L1_ENTRY_SIZE, MAX_L1_ENTRIES)
    span = image.cluster_size * image.entries
    # QEMU adds in 64 bits, so that a size just below 2^64 needs no entries here and is refused later.
    needed = (header.size + span - 1 & _UINT64_MAX) // span
    if needed > _INT31_MAX:
        raise _header("too-large", "the virtual size is too large", "size", header.size, _INT31_MAX * span)
    if image.l1_size < needed:
        detail = "the L1 table is too small for the virtual size"
        raise _header("corrupt", detail, "l1_size", image.l1_size, needed)
    require_readable("Active L1 table", image.l1_table_offset, image.l1_size * L1_ENTRY_SIZE)
    if image.crypt_method > CRYPT_LUKS:
        detail = "the encryption method is unknown"
        raise _header("unsupported-feature", detail, "crypt_method", image.crypt_method, CRYPT_LUKS)
    size = image.refcount_table_clusters * image.cluster_size
    require_readable("Refcount table", image.refcount_table_offset, size)


def require_snapshot_table(image: Image, header: Header | Image) -> None:
    """Judge place and count of the snapshot table.

    Raises:
        ImageError: ``too-large``, ``out-of-bounds``.
    """
    _table(image, header, "Snapshot table", "nb_snapshots", SnapshotEntry.SIZE, MAX_SNAPSHOTS)


def _table(image: Image, header: Header | Image, structure: str, counter: str, size: int, limit: int) -> None:
    """Judge a table that the header counts in ``counter``, of entries of ``size`` bytes."""
    count: int = getattr(header, counter)
    offset: int = getattr(header, _PLACES[counter])
    if count > limit:
        raise bad(
            "too-large",
            structure,
            "the table is too large",
            field=counter,
            value=count,
            limit=limit,
            offset=at(counter),
        )
    place = _PLACES[counter]
    if offset & image.cluster_size - 1:
        detail = "the table does not start at a multiple of the cluster size"
        raise bad("corrupt", structure, detail, field=place, value=offset, offset=at(place))
    if offset > _INT64_MAX - count * size:
        detail = "the table lies beyond the largest possible file"
        raise bad("out-of-bounds", structure, detail, field=place, value=offset, limit=MAX_LENGTH, offset=at(place))


def require_readable(structure: str, offset: int, length: int) -> None:
    """Refuse a range that lies where no file can reach (QEMU answers "Input/output error").

    Raises:
        ImageError: ``out-of-bounds``.
    """
    if length and offset + length > MAX_LENGTH:
        detail = "the structure lies beyond the largest possible file"
        raise bad("out-of-bounds", structure, detail, field="end", value=offset + length, limit=MAX_LENGTH)


def _backing_name(reader: Reader, header: Header, cluster_size: int) -> bytes | None:
    room = min(MAX_BACKING_NAME, cluster_size - header.backing_file_offset)
    if header.backing_file_size > room:
        detail = "the backing file name is too long"
        raise _header("corrupt", detail, "backing_file_size", header.backing_file_size, room)
    return text(read_padded(reader, header.backing_file_offset, header.backing_file_size)) or None


def _extensions(reader: Reader, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(type, offset of the data, length)`` of each extension between ``offset`` and ``end``."""
    size = end - offset
    area = read_padded(reader, offset, max(0, size) + Extension.SIZE)
    position = 0
    while position < size:
        kind, length = Extension.STRUCT.unpack_from(area, position)
        position += Extension.SIZE
        if position > size or length > size - position:
            detail = "a header extension is too long"
            where, limit = offset + position - 4, max(0, size - position)
            raise bad("corrupt", "Header extension", detail, field="length", value=length, limit=limit, offset=where)
        if kind == EXTENSION_END:
            return
        yield kind, offset + position, length
        position += -(-length // EXTENSION_ALIGNMENT) * EXTENSION_ALIGNMENT


def _read_extensions(image: Image, offset: int, end: int) -> None:
    reader = image.reader
    for kind, start, length in _extensions(reader, offset, end):
        if kind == EXTENSION_BACKING_FORMAT:
            if length > MAX_BACKING_FORMAT:
                detail = "the name of the backing format is too long"
                limit = MAX_BACKING_FORMAT
                raise bad("corrupt", "Backing file format name", detail, value=length, limit=limit, offset=start)
            image.backing_format = text(read_padded(reader, start, length)) or None
        elif kind == EXTENSION_DATA_FILE:
            image.data_file = text(read_padded(reader, start, length))
        elif kind == EXTENSION_CRYPTO_HEADER:
            image.crypto = _crypto(image, start, length)
        elif kind == EXTENSION_BITMAPS:
            _bitmaps(image, start, length)


def _crypto(image: Image, start: int, length: int) -> CryptoHeaderExtension:
    structure = "Full disk encryption header pointer"
    if image.crypt_method != CRYPT_LUKS:
        detail = "only an image with LUKS encryption may have this extension"
        raise bad(
            "invalid-format",
            structure,
            detail,
            field="crypt_method",
            value=image.crypt_method,
            expected=CRYPT_LUKS,
            offset=start,
        )
    if length != CryptoHeaderExtension.SIZE:
        detail, expected = "the extension has the wrong length", CryptoHeaderExtension.SIZE
        raise bad("corrupt", structure, detail, value=length, expected=expected, offset=start)
    row = CryptoHeaderExtension.unpack(read_padded(image.reader, start, length))
    if row.offset & image.cluster_size - 1:
        detail = "the encryption header does not start at a multiple of the cluster size"
        raise bad("corrupt", structure, detail, field="offset", value=row.offset)
    return row


def _bitmaps(image: Image, start: int, length: int) -> None:
    structure = "Bitmaps extension"
    if length != BitmapsExtension.SIZE:
        detail, expected = "the extension has the wrong length", BitmapsExtension.SIZE
        raise bad("corrupt", structure, detail, value=length, expected=expected, offset=start)
    if not image.autoclear & AUTOCLEAR_BITMAPS:
        image.inconsistent_bitmaps = True
        return
    row = BitmapsExtension.unpack(read_padded(image.reader, start, length))
    if row.reserved:
        raise bad(
            "corrupt", structure, "a reserved field is not zero", field="reserved", value=row.reserved, expected=0
        )
    if row.nb_bitmaps > MAX_BITMAPS:
        detail = "there are too many bitmaps"
        raise bad("too-large", structure, detail, field="nb_bitmaps", value=row.nb_bitmaps, limit=MAX_BITMAPS)
    if not row.nb_bitmaps:
        raise bad("corrupt", structure, "the extension says that there are no bitmaps", field="nb_bitmaps", value=0)
    offset = row.bitmap_directory_offset
    if offset & image.cluster_size - 1:
        detail = "the bitmap directory does not start at a multiple of the cluster size"
        raise bad("corrupt", structure, detail, field="bitmap_directory_offset", value=offset)
    if row.bitmap_directory_size > MAX_BITMAP_DIRECTORY_SIZE:
        detail = "the bitmap directory is too large"
        value, limit = row.bitmap_directory_size, MAX_BITMAP_DIRECTORY_SIZE
        raise bad("too-large", structure, detail, field="bitmap_directory_size", value=value, limit=limit)
    image.bitmaps = row


def _unknown_features(image: Image, offset: int, end: int) -> ImageError:
    """Name the incompatible features that are not known, as far as the image's own table does."""
    unknown = image.incompatible & ~INCOMPATIBLE_KNOWN
    names = []
    table = b""
    try:
        for kind, start, length in _extensions(image.reader, offset, end):
            if kind == EXTENSION_FEATURE_NAMES:
                table = read_padded(image.reader, start, length) + bytes(FeatureName.SIZE)
    except ImageError:
        pass  # the table may stand before the fault
    for position in range(0, len(table) - FeatureName.SIZE + 1, FeatureName.SIZE):
        row = FeatureName.unpack(table, position)
        name = text(row.name)
        if not name:
            break
        if row.type == FEATURE_INCOMPATIBLE and row.bit < 64 and unknown >> row.bit & 1:
            names.append(name.decode("utf-8", "surrogateescape"))
            unknown &= ~(1 << row.bit)
    if unknown:
        names.append(f"Unknown incompatible feature: {unknown:x}")
    detail = f"Unsupported qcow2 feature(s): {', '.join(names)}"
    return _header("unsupported-feature", detail, "incompatible_features", image.incompatible)


def bad(
    kind: str,
    structure: str,
    detail: str,
    *,
    field: str | None = None,
    value: int | None = None,
    limit: int | None = None,
    expected: int | None = None,
    offset: int | None = None,
) -> ImageError:
    """Make an ``ImageError`` about a qcow2 image."""
    return ImageError(
        kind,
        structure,
        detail,
        field=field,
        offset=offset,
        value=value,
        limit=limit,
        expected=expected,
        format=FORMAT,
    )


def at(field: str) -> int:
    """Return the host offset of a header field."""
    for record, base in ((Header, 0), (HeaderV3, HEADER_V3_OFFSET), (HeaderAdditional, HEADER_ADDITIONAL_OFFSET)):
        for row in record.FIELDS:
            if row.name == field:
                return base + row.offset
    raise KeyError(field)


def _header(
    kind: str, detail: str, field: str, value: int, limit: int | None = None, *, expected: int | None = None
) -> ImageError:
    """Make an error about one field of the header."""
    offset = at(field)
    return bad(kind, "Header", detail, field=field, value=value, limit=limit, expected=expected, offset=offset)


def text(name: bytes) -> bytes:
    """Cut a name at its first NUL, where QEMU stops reading it."""
    return name.partition(b"\0")[0]
