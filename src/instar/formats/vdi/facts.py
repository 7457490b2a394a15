"""What a cell may say of a VDI image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import number, text
from instar.formats.vdi.ondisk import FORMAT

_UUID = text(32)

SHAPE = shape(
    FORMAT,
    extra={
        "image_type": text(16),
        "text": text(64),
        "description": text(256),
        "uuid_image": _UUID,
        "uuid_last_snap": _UUID,
        "blocks_in_image": number(),
        "blocks_allocated": number(),
    },
)
