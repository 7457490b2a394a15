"""Read a qcow header of version 1 and the name of the backing file.

Law: any bytes give facts or an ``ImageError``, in bounded time and memory. What QEMU opens is opened, what it
refuses is refused, in its order.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts, Reference
from instar.core.reader import read_padded
from instar.core.units import SECTOR, UINT64_MAX, ceil_div
from instar.formats.qcow.ondisk import (
    CRYPT_AES,
    ENTRY_SIZE,
    FORMAT,
    MAGIC,
    MAX_BACKING_NAME,
    MAX_CLUSTER_BITS,
    MAX_L1_ENTRIES,
    MAX_L2_BITS,
    MAX_LENGTH,
    MIN_CLUSTER_BITS,
    MIN_L2_BITS,
    MIN_SIZE,
    VERSION,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader


class Opened:
    """A qcow image whose header is sound enough to be used.

    Attributes:
        header: as in the file.
        l1_entries: what the disk needs; the L1 table may reach past the end of the file, and reads as zeros there.
        backing: name of the backing file up to its first zero byte, ``None`` if there is none.
    """

    __slots__ = ("backing", "header", "l1_entries")

    def __init__(self, header: Header, l1_entries: int, backing: bytes | None) -> None:
        self.header = header
        self.l1_entries = l1_entries
        self.backing = backing


def open_image(image: Reader) -> Opened:
    """Read and judge the header.

    Raises:
        ImageError: ``invalid-format``, not a qcow image; ``unsupported-feature``, another version or cipher;
            ``corrupt``, a size that cannot be; ``too-large``, the L1 table or the backing file's name;
            ``out-of-bounds``, either of them lies where no file reaches.
    """
    header = Header.unpack(read_padded(image, 0, Header.SIZE))
    if header.magic != MAGIC:
        raise _refused("invalid-format", "magic", "this is not a qcow image", header.magic, expected=MAGIC)
    if header.version != VERSION:
        newer = header.version in (2, 3)
        raise ImageError(
            "unsupported-feature",
            "header",
            "this is a qcow2 image" if newer else "there is no such version",
            field="version of qcow2" if newer else "version",
            value=header.version,
            expected=VERSION,
            offset=Header.field("version").offset,
            format=FORMAT,
        )
    if header.size < MIN_SIZE:
        raise _refused("corrupt", "size", "the disk has less than 2 bytes", header.size)
    if not MIN_CLUSTER_BITS <= header.cluster_bits <= MAX_CLUSTER_BITS:
        raise _refused("corrupt", "cluster_bits", "clusters have 2^9 to 2^16 bytes", header.cluster_bits)
    if not MIN_L2_BITS <= header.l2_bits <= MAX_L2_BITS:
        raise _refused("corrupt", "l2_bits", "L2 tables have 2^6 to 2^13 entries", header.l2_bits)
    if header.crypt_method > CRYPT_AES:
        raise _refused("unsupported-feature", "crypt_method", "there is no such cipher", header.crypt_method)
    span = 1 << (header.cluster_bits + header.l2_bits)
    entries = ceil_div(header.size, span)
    if header.size > UINT64_MAX - span or entries > MAX_L1_ENTRIES:
        raise _refused("too-large", "size", "the L1 table would be too large", header.size, limit=MAX_L1_ENTRIES * span)
    if header.l1_table_offset > MAX_LENGTH - entries * ENTRY_SIZE:
        raise _refused(
            "out-of-bounds",
            "l1_table_offset",
            "the L1 table lies past the end of any file",
            header.l1_table_offset,
            limit=image.size,
        )
    return Opened(header, entries, _backing_name(image, header))


def _refused(
    kind: str, field: str, detail: str, value: int, *, limit: int | None = None, expected: int | None = None
) -> ImageError:
    return ImageError(
        kind,
        "header",
        detail,
        field=field,
        value=value,
        limit=limit,
        expected=expected,
        offset=Header.field(field).offset,
        format=FORMAT,
    )


def _backing_name(image: Reader, header: Header) -> bytes | None:
    """Return the name of the backing file up to its first zero byte."""
    offset, length = header.backing_file_offset, header.backing_file_size
    if not offset:
        return None
    if length > MAX_BACKING_NAME:
        raise _refused(
            "too-large",
            "backing_file_size",
            "the name of the backing file is too long",
            length,
            limit=MAX_BACKING_NAME,
        )
    if offset > MAX_LENGTH - length:
        raise _refused(
            "out-of-bounds",
            "backing_file_offset",
            "the name of the backing file lies past the end of any file",
            offset,
            limit=image.size,
        )
    return read_padded(image, offset, length).split(b"\0", 1)[0] or None


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a qcow image as ``qemu-img info`` does; all generations describe it alike.

    Raises:
        ImageError: see ``open_image``.
    """
    opened = open_image(image)
    header = opened.header
    references = [] if opened.backing is None else [Reference("backing", opened.backing)]
    return ImageFacts(
        FORMAT,
        # QEMU counts whole sectors.
        header.size // SECTOR * SECTOR,
        cluster_size=1 << header.cluster_bits,
        encrypted=bool(header.crypt_method),
        references=references,
        extra={"l2_bits": header.l2_bits, "mtime": header.mtime},
    )
