"""Read a QED header and the name of the backing file.

Law: any bytes give facts or an ``ImageError``, in bounded time and memory. What QEMU opens is opened, what it
refuses is refused, in its order; but for tables of one cluster, which the specification allows.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts, Reference
from instar.core.reader import read_padded
from instar.core.units import SECTOR, align_up, is_power_of_two
from instar.formats.qed.ondisk import (
    F_BACKING_FILE,
    F_BACKING_FORMAT_NO_PROBE,
    F_NEED_CHECK,
    FEATURES_KNOWN,
    FORMAT,
    MAGIC,
    MAX_BACKING_NAME,
    MAX_CLUSTER,
    MAX_TABLE,
    MIN_CLUSTER,
    MIN_TABLE,
    Header,
    max_image_size,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader

_UINT32_MAX = (1 << 32) - 1


class Opened:
    """A QED image whose header is sound enough to be used.

    Attributes:
        header: as in the file.
        end: host offset behind the last whole cluster; nothing past it counts.
        first: host offset of the first regular cluster.
    """

    __slots__ = ("end", "first", "header")

    def __init__(self, header: Header, end: int) -> None:
        self.header = header
        self.end = end
        self.first = header.header_size * header.cluster_size

    def holds_cluster(self, offset: int) -> bool:
        """Tell whether a data cluster can be at a host offset: aligned, behind the header, inside the file."""
        return not offset % self.header.cluster_size and self.first <= offset < self.end

    def holds_table(self, offset: int) -> bool:
        """Tell whether a table can be at a host offset."""
        last = offset + (self.header.table_size - 1) * self.header.cluster_size
        return self.holds_cluster(offset) and self.holds_cluster(last)


def open_image(image: Reader) -> Opened:
    """Read and judge the header.

    Raises:
        ImageError: ``invalid-format``, not a QED image; ``unsupported-feature``, an unknown feature bit;
            ``corrupt``, a size that cannot be; ``too-large``, the virtual disk or the header; ``out-of-bounds``, the L1
            table is not inside the file.
    """
    header = Header.unpack(read_padded(image, 0, Header.SIZE))
    if header.magic != MAGIC:
        raise _refused("invalid-format", "magic", "this is not a QED image", header.magic, expected=MAGIC)
    unknown = header.features & ~FEATURES_KNOWN
    if unknown:
        raise _refused("unsupported-feature", "features", f"unknown feature bits {unknown:#x}", unknown)
    cluster_size, table_size = header.cluster_size, header.table_size
    if not (MIN_CLUSTER <= cluster_size <= MAX_CLUSTER and is_power_of_two(cluster_size)):
        raise _refused("corrupt", "cluster_size", "the cluster size is no power of two from 4096 to 2^26", cluster_size)
    if not (MIN_TABLE <= table_size <= MAX_TABLE and is_power_of_two(table_size)):
        raise _refused("corrupt", "table_size", "the table size is no power of two from 1 to 16", table_size)
    size, limit = header.image_size, max_image_size(cluster_size, table_size)
    if size % SECTOR:
        raise _refused("corrupt", "image_size", "the size of the disk is no multiple of 512", size)
    if size > limit:
        raise _refused("too-large", "image_size", "the disk is larger than the tables can map", size, limit=limit)
    # QEMU counts the file in whole sectors, then in whole clusters.
    opened = Opened(header, align_up(image.size, SECTOR) // cluster_size * cluster_size)
    if not opened.holds_table(header.l1_table_offset):
        raise _refused(
            "out-of-bounds",
            "l1_table_offset",
            "the L1 table is not aligned, or not between the header and the end of the file",
            header.l1_table_offset,
            limit=opened.end,
        )
    if header.header_size > _UINT32_MAX // cluster_size:
        raise _refused(
            "too-large",
            "header_size",
            "the header does not end below 4 GiB",
            header.header_size,
            limit=_UINT32_MAX // cluster_size,
        )
    return opened


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


def backing_name(image: Reader, opened: Opened) -> bytes | None:
    """Return the name of the backing file up to its first zero byte; ``None`` if the image has none.

    Raises:
        ImageError: ``corrupt``, it is not inside the header's clusters; ``too-large``, above ``MAX_BACKING_NAME``.
    """
    header = opened.header
    if not header.features & F_BACKING_FILE:
        return None
    start, length = header.backing_filename_offset, header.backing_filename_size
    if start + length > opened.first:
        raise _refused(
            "corrupt",
            "backing_filename_offset",
            "the name of the backing file is not inside the header",
            start,
            limit=opened.first,
        )
    if length > MAX_BACKING_NAME:
        raise _refused(
            "too-large",
            "backing_filename_size",
            "the name of the backing file is too long",
            length,
            limit=MAX_BACKING_NAME,
        )
    return read_padded(image, start, length).split(b"\0", 1)[0] or None


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a QED image as ``qemu-img info`` does; all generations describe it alike.

    Raises:
        ImageError: see ``open_image`` and ``backing_name``.
    """
    opened = open_image(image)
    header = opened.header
    references = []
    name = backing_name(image, opened)
    if name is not None:
        raw = header.features & F_BACKING_FORMAT_NO_PROBE
        references.append(Reference("backing", name, format="raw" if raw else None))
    return ImageFacts(
        FORMAT,
        header.image_size,
        cluster_size=header.cluster_size,
        # QEMU clears its own note of "needs a check" as soon as it has opened an image, so it never shows one as dirty.
        references=references,
        extra={
            "need_check": bool(header.features & F_NEED_CHECK),
            "table_size": header.table_size,
            "header_size": header.header_size,
            "compat_features": header.compat_features,
            "autoclear_features": header.autoclear_features,
        },
    )
