"""What a cell may say of a VMDK image: the shape of its facts."""

from __future__ import annotations

from instar.core.errors import IMAGE_KINDS, MAX_DETAIL
from instar.core.image import role, shape
from instar.core.schema import choice, flag, number, optional, record, row, rows, text
from instar.formats.vmdk.ondisk import FORMAT, MAX_EXTENT_NAME, MAX_EXTENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.wire import Wire

_MAX_WORD = 127
_CID = number((1 << 32) - 1)
#: QEMU's ``VmdkExtentInfo``.
_EXTENT = record(
    {"virtual-size": number(), "filename": text(MAX_EXTENT_NAME), "format": text(_MAX_WORD)},
    {"compressed": flag, "cluster-size": number()},
)
_PART = record(
    {"layout": choice("flat", "hosted", "cowd", "sesparse"), "sectors": number(), "grain": number(), "compressed": flag}
)


def _role(value: Wire) -> None:
    """Check for a role, or that of an extent in the image's own file, or in none."""
    if value not in ("", "file"):
        role(value)


SHAPE = shape(
    FORMAT,
    specific=record(
        {
            "cid": _CID,
            "parent-cid": _CID,
            "create-type": text(_MAX_WORD),
            "extents": rows(_EXTENT, MAX_EXTENTS),
        }
    ),
    extra={
        "cid": _CID,
        "parent_cid": _CID,
        "extents": rows(_role, MAX_EXTENTS),
        "parts": rows(optional(_PART), MAX_EXTENTS),
        "refusal": row(choice(*IMAGE_KINDS), optional(text(_MAX_WORD)), text(MAX_DETAIL)),
    },
)
