"""What a cell may say of a VHD image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import data, flag, number, row, text
from instar.formats.vpc.ondisk import FORMAT, Identity

_ID = text(32)

SHAPE = shape(
    FORMAT,
    extra={
        "disk_type": text(16),
        "creator_app": text(4),
        "creator_os": text(4),
        "creator_version": number(),
        "unique_id": _ID,
        "timestamp": number(),
        "original_size": number(),
        "current_size": number(),
        "geometry": row(number(), number(), number()),
        "saved_state": flag,
        "identity": data(Identity.SIZE),
        "parent_identity": data(Identity.SIZE),
        "parent_unique_id": _ID,
        "parent_timestamp": number(),
    },
)
