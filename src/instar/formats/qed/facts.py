"""What a cell may say of a QED image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import flag, number
from instar.formats.qed.ondisk import FORMAT

SHAPE = shape(
    FORMAT,
    extra={
        "need_check": flag,
        "table_size": number(),
        "header_size": number(),
        "compat_features": number(),
        "autoclear_features": number(),
    },
)
