"""What a cell may say of a Parallels image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import number, record, rows, text
from instar.formats.parallels.ondisk import FORMAT, MAX_BITMAPS

_BITMAP = record({"id": text(32), "granularity": number(), "clusters": number()})

SHAPE = shape(
    FORMAT,
    extra={
        "magic": text(16),
        "cluster_size": number(),
        "bat_entries": number(),
        "data_offset": number(),
        "flags": number(),
        "bitmaps": rows(_BITMAP, MAX_BITMAPS),
    },
)
