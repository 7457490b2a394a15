"""The LUKS1 header inside an encrypted qcow2 image.

Law: nothing is decrypted and no key is asked for; a header is refused exactly where ``formats.luks`` refuses it.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.formats.luks.header import facts, read_header
from instar.formats.luks.ondisk import HEADER_SIZE
from instar.formats.qcow2.header import bad, require_readable
from instar.formats.qcow2.ondisk import FORMAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.wire import Wire
    from instar.formats.qcow2.header import Image
    from instar.formats.qcow2.ondisk import CryptoHeaderExtension


def describe(image: Image, where: CryptoHeaderExtension, *, generation: tuple[int, int]) -> dict[str, Wire]:
    """Return what QEMU calls ``encrypt``, its keys in QEMU's order.

    Raises:
        ImageError: the header is damaged, or asks for what QEMU does not know.
    """
    if where.length < HEADER_SIZE:
        detail = "the encryption header is longer than the place reserved for it"
        raise bad("out-of-bounds", "LUKS header", detail, field="length", value=HEADER_SIZE, limit=where.length)
    require_readable("LUKS header", where.offset, HEADER_SIZE)
    try:
        return facts(read_header(image.reader, where.offset, generation=generation), generation=generation)
    except ImageError as error:
        error.format = FORMAT
        raise
