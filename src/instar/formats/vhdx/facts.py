"""What a cell may say of a VHDX image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import choice, data, number, text
from instar.formats.vhdx.ondisk import FORMAT, Identity

SHAPE = shape(
    FORMAT,
    extra={
        "subformat": choice("differencing", "fixed", "dynamic"),
        "creator": text(256),
        "log_size": number(),
        "logical_sector_size": number(),
        "physical_sector_size": number(),
        "virtual_disk_id": text(36),
        "identity": data(Identity.SIZE),
        "parent_linkage": text(64),
        "parent_identity": data(Identity.SIZE),
    },
)
