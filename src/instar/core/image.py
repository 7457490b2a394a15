"""What a parser says about an image: plain facts, read from its bytes, that the host may show but never trusts.

Law: names inside are bytes as they stand in the image. Nothing here says that a named file exists.
"""

from __future__ import annotations

from instar.core.wire import WireError, take, take_optional, take_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.wire import Wire

#: Longest name of a referenced file that is reported (qcow2.rst, "Header": 1023; VMDK lines may be longer).
MAX_NAME = 4096
#: Most files one image may name (a VMDK of 2 GiB extents and 64 TiB has 32,768; QEMU opens each).
MAX_REFERENCES = 1024


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
    def from_wire(cls, value: Wire) -> ImageFacts:
        """Rebuild the facts from what a cell sent; every type and bound is checked.

        Raises:
            WireError: the value does not have the shape that ``to_wire`` makes.
        """
        references = []
        rows = take(value, "references", list)
        if len(rows) > MAX_REFERENCES:
            raise WireError("too many references")
        for row in rows:
            if not (isinstance(row, list) and len(row) == 4):
                raise WireError("a reference has another shape")
            role, name, format, required = row
            if not (
                isinstance(role, str)
                and isinstance(name, bytes)
                and len(name) <= MAX_NAME
                and isinstance(required, bool)
            ):
                raise WireError("a reference has another shape")
            if not (format is None or isinstance(format, str)):
                raise WireError("a reference has another shape")
            references.append(Reference(role, name, format=format, required=required))
        snapshots = take(value, "snapshots", list)
        if not all(isinstance(row, dict) for row in snapshots):
            raise WireError("a snapshot has another shape")
        return cls(
            take(value, "format", str),
            take_size(value, "virtual_size"),
            cluster_size=None
            if take_optional(value, "cluster_size", int) is None
            else take_size(value, "cluster_size"),
            encrypted=take(value, "encrypted", bool),
            dirty=take(value, "dirty", bool),
            corrupt=take(value, "corrupt", bool),
            references=references,
            snapshots=snapshots,
            format_specific=take_optional(value, "format_specific", dict),
            extra=take(value, "extra", dict),
            has_dirty_flag=take(value, "has_dirty_flag", bool),
        )
