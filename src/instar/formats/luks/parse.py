"""Read a LUKS volume: its header, and how long its disk is.

Law: nothing is decrypted and no key is asked for. What QEMU refuses to open is refused.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.units import align_up
from instar.formats.luks.header import facts, read_header
from instar.formats.luks.ondisk import FORMAT, SECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.formats.luks.header import Volume


def open_image(image: Reader, generation: tuple[int, int]) -> tuple[Volume, int]:
    """Return the header and the bytes of the disk, which is what the file has behind it, rounded up to 512.

    Raises:
        ImageError: what ``header.read_header`` raises; ``out-of-bounds``, the file ends before the disk starts.
    """
    volume = read_header(image, 0, generation=generation)
    size = align_up(image.size, SECTOR) - volume.payload_offset
    if size < 0:
        raise ImageError(
            "out-of-bounds",
            "LUKS header",
            "the encrypted data would start behind the end of the file",
            field="end",
            value=volume.payload_offset,
            limit=image.size,
        )
    return volume, size


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Read what an image says about itself; ``generation`` is the qemu-img version whose fields are shown.

    Raises:
        ImageError: QEMU would not open the image.
    """
    volume, size = open_image(image, generation)
    shown = facts(volume, generation=generation)
    del shown["format"]
    return ImageFacts(FORMAT, size, encrypted=True, format_specific={"type": FORMAT, "data": shown})
