"""Read a VDI: the header, and what it says of itself.

Law: any bytes give facts or an ``ImageError``, in bounded time and memory. What QEMU opens is opened, what QEMU
refuses is refused, and of two faults the same one is named.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.reader import read_padded
from instar.core.units import align_up
from instar.formats.vdi.ondisk import (
    BLOCK,
    FORMAT,
    MAX_BLOCKS,
    MAX_SIZE,
    NO_UUID,
    SECTOR,
    SIGNATURE,
    TYPE_NAMES,
    VERSION,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader


def _refusal(
    kind: str, field: str, detail: str, value: int | None, limit: int | None = None, *, expected: int | None = None
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


def open_image(image: Reader) -> tuple[Header, int]:
    """Read and judge the header, in QEMU's order; return it and the bytes of the virtual disk, whole sectors.

    Raises:
        ImageError: ``invalid-format``, not a VDI; ``too-large``, above ``MAX_SIZE`` or ``MAX_BLOCKS``;
            ``unsupported-feature``, another version, unaligned parts, other sectors or blocks, a differencing
            image; ``corrupt``, the block map is too short.
    """
    header = Header.unpack(read_padded(image, 0, Header.SIZE))
    if header.disk_size > MAX_SIZE:
        raise _refusal("too-large", "disk_size", "the disk is too large", header.disk_size, MAX_SIZE)
    size = align_up(header.disk_size, SECTOR)
    if header.signature != SIGNATURE:
        raise _refusal("invalid-format", "signature", "this is not a VDI", header.signature, expected=SIGNATURE)
    if header.version != VERSION:
        raise _refusal(
            "unsupported-feature",
            "version",
            f"version {header.version >> 16}.{header.version & 0xFFFF} of the format is not 1.1",
            header.version,
            expected=VERSION,
        )
    if header.offset_bmap % SECTOR:
        raise _refusal(
            "unsupported-feature", "offset_bmap", "the block map is not at a multiple of 512", header.offset_bmap
        )
    if header.offset_data % SECTOR:
        raise _refusal("unsupported-feature", "offset_data", "the data is not at a multiple of 512", header.offset_data)
    if header.sector_size != SECTOR:
        raise _refusal(
            "unsupported-feature", "sector_size", "sectors do not have 512 bytes", header.sector_size, expected=SECTOR
        )
    if header.block_size != BLOCK:
        raise _refusal(
            "unsupported-feature", "block_size", "blocks do not have 1 MiB", header.block_size, expected=BLOCK
        )
    room = header.blocks_in_image * BLOCK
    if size > room:
        raise ImageError(
            "corrupt",
            "header",
            "the block map has too few entries for the disk",
            field="disk_size",
            value=size,
            limit=room,
            offset=Header.field("blocks_in_image").offset,
            format=FORMAT,
        )
    for field in ("uuid_link", "uuid_parent"):
        if getattr(header, field) != NO_UUID:
            raise _refusal(
                "unsupported-feature",
                field,
                "this is a differencing image, whose parent is named by an identifier only",
                None,
            )
    if header.blocks_in_image > MAX_BLOCKS:
        raise _refusal("too-large", "blocks_in_image", "the block map is too long", header.blocks_in_image, MAX_BLOCKS)
    return header, size


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a VDI as ``qemu-img info`` does; the same for all generations.

    Raises:
        ImageError: see ``open_image``.
    """
    header, size = open_image(image)
    return ImageFacts(
        FORMAT,
        size,
        cluster_size=BLOCK,
        extra={
            "image_type": TYPE_NAMES.get(header.image_type, str(header.image_type)),
            "text": _text(header.text),
            "description": _text(header.description),
            "uuid_image": header.uuid_image.hex(),
            "uuid_last_snap": header.uuid_last_snap.hex(),
            "blocks_in_image": header.blocks_in_image,
            "blocks_allocated": header.blocks_allocated,
        },
    )


def _text(field: bytes) -> str:
    """Return a text of the header up to its first zero."""
    return field.split(b"\0", 1)[0].rstrip(b"\n").decode("latin-1")
