"""Check a LUKS volume without its key: the parts that a header names must be there, and some key must fit.

Law: bounded: 592 bytes are read. qemu-img has no check for this format. That a passphrase opens a key slot can only be
found out by trying (``keys.unlock``).
"""

from __future__ import annotations

from instar.core.finding import Report
from instar.core.units import align_up
from instar.formats.luks.header import read_header
from instar.formats.luks.ondisk import (
    KEY_ENABLED,
    KEY_SLOTS,
    MIN_ITERATIONS,
    SECTOR,
    STRIPES,
    Header,
    KeySlot,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Look at header and key slots.

    Raises:
        ImageError: QEMU would not read the header.
    """
    volume = read_header(image, 0, generation=generation)
    report = Report()
    end = align_up(image.size, SECTOR)
    active = 0
    for index, slot in enumerate(volume.slots):
        if slot.active != KEY_ENABLED:
            continue
        active += 1
        place = Header.SIZE + KeySlot.SIZE * index
        material_end = slot.key_material_offset * SECTOR + volume.header.key_bytes * STRIPES
        if material_end > end:
            detail = f"the key material of slot {index} ends at byte {material_end}, behind the end of the file"
            report.add("corruption", "LUKS key slot", detail, offset=place)
        if slot.iterations < MIN_ITERATIONS:
            detail = f"key slot {index} derives its key with {slot.iterations} iterations, which are quickly tried"
            report.add("warning", "LUKS key slot", detail, offset=place)
    if not active:
        detail = f"none of the {KEY_SLOTS} key slots is in use, so no passphrase opens the volume"
        report.add("warning", "LUKS header", detail, offset=Header.SIZE)
    if volume.payload_offset > end:
        detail = f"the encrypted data would start at byte {volume.payload_offset}, behind the end of the file"
        report.add("corruption", "LUKS header", detail, offset=Header.field("payload_offset").offset)
    return report
