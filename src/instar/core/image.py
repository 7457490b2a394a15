"""What a parser says about an image: plain facts, read from its bytes, that the host may show but never trusts.

Law: names inside are bytes as they stand in the image. Nothing here says that a named file exists. What a cell sends
has the declared shape to the last key, or is refused; texts in it are still those of the image.
"""

from __future__ import annotations

from instar.core.looks import WORDS
from instar.core.schema import (
    NUMBER64,
    choice,
    data,
    flag,
    nothing,
    number,
    optional,
    record,
    row,
    rows,
    text,
    word,
)
from instar.core.wire import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from instar.core.schema import Check
    from instar.core.wire import Wire

#: Longest name of a referenced file that is reported (qcow2.rst, "Header": 1023; VMDK lines may be longer).
MAX_NAME = 4096
#: Most files one image may name (a VMDK of 2 GiB extents and 64 TiB has 32,768; QEMU opens each).
MAX_REFERENCES = 1024
#: Most snapshots of an image (a qcow2 may have as many).
MAX_SNAPSHOTS = 65536
#: Longest text of QEMU's fields, in characters: a snapshot's ID and name; longest name of a format out of an image.
_MAX_ID, _MAX_TAG, _MAX_FORMAT = 127, 255, 255
_EXTENT = "extents."

#: QEMU's ``SnapshotInfo``, as it is in JSON.
_SNAPSHOT = record(
    {
        "id": text(_MAX_ID),
        "name": text(_MAX_TAG),
        "vm-state-size": NUMBER64,
        "date-sec": number((1 << 32) - 1),
        "date-nsec": number((1 << 32) - 1),
        "vm-clock-sec": number(),
        "vm-clock-nsec": number(999_999_999),
    },
    {"icount": NUMBER64},
)


def role(value: Wire) -> None:
    """Check for the role of a file: ``backing``, ``data-file``, or ``extents.N``."""
    if type(value) is str and value.startswith(_EXTENT):
        digits = value[len(_EXTENT) :]
        if digits.isascii() and digits.isdecimal() and len(digits) <= 5:
            return
    elif value in ("backing", "data-file"):
        return
    raise WireError("it is no role of a file")


def _reference(value: Wire) -> None:
    _REFERENCE(value)
    # What an image cannot be described without is opened for it, and that is said of extents alone.
    if isinstance(value, list) and value[3] and not str(value[0]).startswith(_EXTENT):
        raise WireError("it must not be required")


_REFERENCE = row(role, data(MAX_NAME), optional(text(_MAX_FORMAT)), flag)


#: What any image may look like beside what it was read as.
_LOOKS_LIKE = choice(*WORDS)


def shape(
    name: str, *, specific: Check = nothing, extra: Mapping[str, Check] | None = None, snapshots: int = 0
) -> Check:
    """Return the check for facts of a format.

    Args:
        name: the format's.
        specific: the check for QEMU's ``data``, where the format has one.
        extra: what the format may have in ``extra``.
        snapshots: how many it may have.
    """
    format = choice(name)
    within = nothing if specific is nothing else optional(record({"type": format, "data": specific}))
    return _members(format, within, record({}, {"looks_like": _LOOKS_LIKE, **(extra or {})}), snapshots)


def _members(format: Check, specific: Check, extra: Check, snapshots: int) -> Check:
    return record(
        {
            "format": format,
            "virtual_size": number(),
            "cluster_size": optional(number()),
            "encrypted": flag,
            "dirty": flag,
            "corrupt": flag,
            "references": rows(_reference, MAX_REFERENCES),
            "snapshots": rows(_SNAPSHOT, snapshots),
            "format_specific": specific,
            "extra": extra,
            "has_dirty_flag": flag,
        }
    )


def _any_dict(value: Wire) -> None:
    if type(value) is not dict:
        raise WireError("it is no record")


#: What facts of all formats have in common.
COMMON = _members(word(), optional(_any_dict), _any_dict, MAX_SNAPSHOTS)


class Reference:
    """A file that an image names.

    Attributes:
        role: what it is for, in QEMU's word for the child node: ``backing``, ``data-file``, ``extents.0`` …
        name: as written in the image.
        format: the format the image says it has, or ``None``.
        required: the image cannot be described without it; the host is asked to grant it.
    """

    __slots__ = ("format", "name", "required", "role")

    def __init__(self, role: str, name: bytes, *, format: str | None = None, required: bool = False) -> None:
        self.role = role
        self.name = name
        self.format = format
        self.required = required


class Elsewhere:
    """A file of the image that a cell is not given, because one cell has only so many.

    Attributes:
        facts: what the parser said of it in another cell (in ``extra["parts"]``); ``None`` if a later one will see it.
    """

    __slots__ = ("facts",)

    def __init__(self, facts: Wire) -> None:
        self.facts = facts


class ImageFacts:
    """What one image says about itself.

    Attributes:
        format: name of the format that read it.
        virtual_size: bytes, rounded up to 512 as QEMU shows it.
        cluster_size: bytes of the unit of allocation as QEMU shows it, or ``None``.
        encrypted, dirty, corrupt: as the image says.
        references: files it names; ``backing`` last.
        snapshots: rows in the order of the table; keys as in QEMU's ``SnapshotInfo``.
        format_specific: values in QEMU's names and order, or ``None``.
        extra: further facts for instar's own use (not shown as QEMU's), such as a VMDK's ``cid``. Formats whose
            images know their parent by more than its name give ``parent_identity``, and ``identity``, which starts
            with what children of the image record there; both are bytes without a meaning to others.
        has_dirty_flag: QEMU prints the dirty flag for this format.
    """

    __slots__ = (
        "cluster_size",
        "corrupt",
        "dirty",
        "encrypted",
        "extra",
        "format",
        "format_specific",
        "has_dirty_flag",
        "references",
        "snapshots",
        "virtual_size",
    )

    def __init__(
        self,
        format: str,
        virtual_size: int,
        *,
        cluster_size: int | None = None,
        encrypted: bool = False,
        dirty: bool = False,
        corrupt: bool = False,
        references: list[Reference] | None = None,
        snapshots: list[dict[str, Wire]] | None = None,
        format_specific: dict[str, Wire] | None = None,
        extra: dict[str, Wire] | None = None,
        has_dirty_flag: bool = True,
    ) -> None:
        self.format = format
        self.virtual_size = virtual_size
        self.cluster_size = cluster_size
        self.encrypted = encrypted
        self.dirty = dirty
        self.corrupt = corrupt
        self.references = references or []
        self.snapshots = snapshots or []
        self.format_specific = format_specific
        self.extra = extra or {}
        self.has_dirty_flag = has_dirty_flag

    @property
    def backing(self) -> Reference | None:
        """The backing file that the image names, or ``None``."""
        return next((r for r in self.references if r.role == "backing"), None)

    def to_wire(self) -> dict[str, Wire]:
        """Return the facts as values that cross the seam."""
        return {
            "format": self.format,
            "virtual_size": self.virtual_size,
            "cluster_size": self.cluster_size,
            "encrypted": self.encrypted,
            "dirty": self.dirty,
            "corrupt": self.corrupt,
            "references": [[r.role, r.name, r.format, r.required] for r in self.references],
            "snapshots": list(self.snapshots),
            "format_specific": self.format_specific,
            "extra": self.extra,
            "has_dirty_flag": self.has_dirty_flag,
        }

    @classmethod
    def from_wire(cls, value: Wire, check: Check = COMMON) -> ImageFacts:
        """Rebuild the facts from what a cell sent.

        Raises:
            WireError: it does not have the shape that ``check`` wants; ``shape`` makes one for each format.
        """
        check(value)
        return cls.from_checked(value)  # type: ignore[arg-type]

    @classmethod
    def from_checked(cls, value: Mapping[str, Any]) -> ImageFacts:
        """Rebuild the facts from values whose shape is known to be right."""
        members = dict(value)
        members["references"] = [Reference(r, n, format=f, required=q) for r, n, f, q in members["references"]]
        return cls(**members)
