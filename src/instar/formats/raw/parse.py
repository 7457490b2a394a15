"""Describe a raw image. There is nothing to parse: every byte belongs to the guest.

Law: no byte of the image is read.
"""

from __future__ import annotations

from instar.core.image import ImageFacts
from instar.core.units import SECTOR, align_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader


def info(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe the image: its virtual size is the file's length, rounded up to 512 bytes as in QEMU.

    QEMU prints the dirty flag (always false) and no cluster size. It needs no parts and never fails.
    """
    return ImageFacts("raw", align_up(image.size, SECTOR))
