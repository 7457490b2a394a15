"""What a cell may say of a qcow2 image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import by_key, choice, flag, number, optional, record, rows, text
from instar.formats.luks.facts import HEADER, MORE
from instar.formats.qcow2.ondisk import (
    FORMAT,
    MAX_BITMAP_GRANULARITY_BITS,
    MAX_BITMAP_NAME,
    MAX_BITMAPS,
    MAX_SNAPSHOTS,
)

_BITMAP = record(
    {
        "flags": rows(choice("in-use", "auto"), 2),
        "name": text(MAX_BITMAP_NAME),
        "granularity": number(1 << MAX_BITMAP_GRANULARITY_BITS),
    }
)
_ENCRYPT = by_key(
    "format",
    {"aes": record({"format": choice("aes")}), "luks": record({"format": choice("luks"), **HEADER}, MORE)},
)
#: QEMU's ``ImageInfoSpecificQCow2``; a data file's name has whatever length its extension has.
_SPECIFIC = record(
    {"compat": choice("0.10", "1.1"), "refcount-bits": number(64)},
    {
        "compression-type": choice("zlib", "zstd"),
        "lazy-refcounts": flag,
        "bitmaps": rows(_BITMAP, MAX_BITMAPS),
        "data-file": optional(text(1 << 21)),
        "encrypt": _ENCRYPT,
        "data-file-raw": flag,
        "corrupt": flag,
        "extended-l2": flag,
    },
)

SHAPE = shape(
    FORMAT,
    specific=_SPECIFIC,
    extra={"version": number(3), "inconsistent_bitmaps": flag},
    snapshots=MAX_SNAPSHOTS,
)
