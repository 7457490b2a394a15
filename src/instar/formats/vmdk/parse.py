"""Read what a VMDK says about itself: header and descriptor, or a descriptor and the extents that it names.

Law: any bytes give facts or an ``ImageError``. Files are named to the host by role and never opened here;
an extent is read only through the reader that the host passes back.
"""

from __future__ import annotations

from instar.core.errors import ImageError, printable
from instar.core.image import Elsewhere, ImageFacts, Reference
from instar.core.reader import read_exact, read_padded
from instar.core.units import INT64_MAX
from instar.core.wire import take, take_size
from instar.formats.vmdk import descriptor
from instar.formats.vmdk.extent import Extent, open_cowd, open_hosted, open_sesparse, open_sparse
from instar.formats.vmdk.ondisk import (
    COWD_MAGIC,
    DESCRIPTOR_BYTES,
    DESCRIPTOR_OFFSET,
    DEVICE_TYPES,
    EMBEDDED_TYPES,
    FORMAT,
    FURTHER_TYPES,
    MAGIC,
    MAX_DESCRIPTOR_FILE,
    QEMU_TYPES,
    SECTOR,
    SESPARSE_MAGIC,
    SparseExtentHeader,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire


class Disk:
    """A VMDK as a whole.

    Attributes:
        extents: in order of the virtual disk.
        create_type: as QEMU shows it.
        text: the descriptor, up to its first NUL.
        lines: its extent lines if the descriptor decides which files there are, else empty.
        cid, parent_cid: 32 bits each.
        parent: name of the backing file, or ``None``.
        complete: every extent's file is there.
        refusal: what QEMU says where it does not open the disk, or shows a shorter one; else ``None``.
        embedded: one file, header and descriptor in it.
    """

    __slots__ = (
        "cid",
        "complete",
        "create_type",
        "embedded",
        "extents",
        "lines",
        "parent",
        "parent_cid",
        "refusal",
        "text",
    )

    def __init__(self, text: bytes, identity: bytes) -> None:
        self.text = text
        self.cid, refusal = descriptor.identity(identity)
        self.parent_cid, other = descriptor.identity(identity, parent=True)
        self.refusal: ImageError | None = refusal or other
        self.parent = descriptor.parent_name(text)
        self.extents: list[Extent] = []
        self.lines: list[descriptor.ExtentLine] = []
        self.create_type = ""
        self.complete = True
        self.embedded = True


def is_descriptor(head: bytes) -> bool:
    """Tell whether a file that starts with ``head`` is a text descriptor, as QEMU's probe does (512 bytes of it)."""
    return descriptor.is_text_descriptor(head)


def open_disk(image: Reader, parts: Sequence[Reader | Elsewhere | None]) -> Disk:
    """Read header, descriptor and extents; see ``info``.

    Raises:
        ImageError: any kind.
    """
    magic = read_padded(image, 0, 4)
    if image.size < len(magic):
        raise ImageError(
            "invalid-format", "image", "the file is too small", field="file length", value=image.size, limit=len(magic)
        )
    if magic == MAGIC:
        header = SparseExtentHeader.unpack(read_padded(image, 0, SparseExtentHeader.SIZE))
        if header.descriptor_offset * SECTOR not in (0, DESCRIPTOR_OFFSET):
            raise ImageError(
                "unsupported-feature",
                "sparse extent header",
                "the descriptor is not in the second sector, the only place where QEMU reads it",
                field="descriptorOffset",
                value=header.descriptor_offset,
            )
        if header.capacity == 0 and header.descriptor_offset:
            return _from_embedded_text(image, parts)
        return _embedded(image, open_hosted(image))
    if magic == COWD_MAGIC:
        return _embedded(image, open_cowd(image))
    if magic == SESPARSE_MAGIC.to_bytes(8, "little")[:4]:
        raise ImageError(
            "unsupported-feature",
            "image",
            "this is one extent (seSparse) of a disk; open the descriptor file that names it",
        )
    text = descriptor.c_text(read_exact(image, 0, min(image.size, MAX_DESCRIPTOR_FILE), "descriptor"))
    return _named(text, parts)


def _embedded_text(image: Reader) -> bytes:
    """Return the descriptor in the second sector and the 19 after it."""
    return descriptor.window(read_padded(image, DESCRIPTOR_OFFSET, DESCRIPTOR_BYTES))


def _embedded(image: Reader, extent: Extent) -> Disk:
    """Describe a disk of one file."""
    text = _embedded_text(image)
    if not text:
        raise ImageError(
            "invalid-format",
            "descriptor",
            "the file has no descriptor; an extent of a larger disk is opened through the disk's descriptor file",
            offset=DESCRIPTOR_OFFSET,
        )
    disk = Disk(text, text)
    disk.extents = [extent]
    if extent.compressed:
        disk.create_type = "streamOptimized"
    elif extent.layout == "hosted":
        disk.create_type = "monolithicSparse"
    return disk


def _from_embedded_text(image: Reader, parts: Sequence[Reader | Elsewhere | None]) -> Disk:
    """Describe a file whose header says 0 sectors: only its descriptor counts.

    qemu-img makes such a file for a disk of 0 bytes, and cannot open it; here it is an empty disk.
    """
    data = read_padded(image, DESCRIPTOR_OFFSET, min(image.size, MAX_DESCRIPTOR_FILE))
    text = descriptor.c_text(data)
    if _text(descriptor.create_type(text)[0]) in EMBEDDED_TYPES:
        return _embedded(image, open_hosted(image))
    return _named(text, parts)


def _judge_type(create_type: str) -> None:
    """Refuse a disk whose data is on a device, or of an unknown type.

    Raises:
        ImageError: ``unsupported-feature``.
    """
    lower = create_type.lower()
    shown = printable(create_type, 127)
    detail = f"disks of type '{shown}' are not known"
    for name, device in DEVICE_TYPES.items():
        if name.lower() == lower:
            detail = f"a disk of type '{shown}' is {device}; there is no file to read it from"
    if all(lower != name.lower() for name in (*QEMU_TYPES, *FURTHER_TYPES)):
        raise ImageError("unsupported-feature", "descriptor", detail, field="createType")


def _named(text: bytes, parts: Sequence[Reader | Elsewhere | None]) -> Disk:
    """Describe a disk whose descriptor names its extents."""
    written, refusal = descriptor.create_type(text)
    create_type = _text(written)
    _judge_type(create_type)
    if create_type not in QEMU_TYPES:
        refusal = refusal or descriptor.type_refusal(written)
    lines = descriptor.extent_lines(text)
    disk = Disk(text, descriptor.window(text))
    for line in lines:
        refusal = refusal or line.refusal
    disk.refusal = refusal or disk.refusal
    disk.create_type = create_type
    disk.embedded = False
    disk.lines = lines
    # QEMU makes a descriptor without extents for a disk of 0 bytes (and fails an assertion of its own on it).
    disk.complete = bool(parts) or all(line.kind == descriptor.ZERO for line in lines)
    number = 0
    for line in lines:
        if line.kind == descriptor.ZERO:
            extent = Extent("zero", line.sectors, None)
            extent.role = ""
        else:
            extent = _named_extent(line, number, parts, disk.complete)
            number += 1
        extent.name = line.name
        extent.kind = line.kind.decode()
        extent.said_sectors = line.sectors
        disk.extents.append(extent)
        if extent.compressed:
            disk.create_type = "streamOptimized"
    return disk


def _named_extent(
    line: descriptor.ExtentLine, number: int, parts: Sequence[Reader | Elsewhere | None], complete: bool
) -> Extent:
    """Read the extent that is in a file of its own, the image's part ``number``."""
    part = parts[number] if number < len(parts) else None
    if part is None and complete:
        raise ImageError(
            "denied",
            f"extents.{number}",
            f"the extent file '{printable(line.name, 200)}' was not granted:"
            " it is not there, or the policy for files that images name does not allow it",
        )
    extent = _known(line, part.facts) if isinstance(part, Elsewhere) else _open_part(line, part)
    extent.role = f"extents.{number}"
    return extent


def _known(line: descriptor.ExtentLine, facts: Wire) -> Extent:
    """Return an extent as it was seen in another cell, or, before that, as its line has it."""
    if facts is None:
        return _open_part(line, None)
    extent = Extent(take(facts, "layout", str), take_size(facts, "sectors"), None)
    extent.grain = take_size(facts, "grain")
    extent.compressed = take(facts, "compressed", bool)
    return extent


def _facts_of(extent: Extent) -> Wire:
    """Return what ``_known`` needs; ``None`` for an extent that was not seen."""
    if extent.reader is None:
        return None
    return {
        "layout": extent.layout,
        "sectors": extent.sectors,
        "grain": extent.grain,
        "compressed": extent.compressed,
    }


def _open_part(line: descriptor.ExtentLine, reader: Reader | None) -> Extent:
    """Read the extent that a line describes; what is not yet granted is believed to be as long as said."""
    if line.kind in descriptor.FLAT_KINDS or reader is None:
        extent = Extent("flat", line.sectors, reader)
        extent.flat_start = line.offset * SECTOR
        return extent
    try:
        if line.kind in descriptor.SESPARSE_KINDS:
            return open_sesparse(reader)
        if read_padded(reader, 0, 4) == MAGIC:
            header = SparseExtentHeader.unpack(read_padded(reader, 0, SparseExtentHeader.SIZE))
            if header.capacity == 0 and header.descriptor_offset:
                raise ImageError("unsupported-feature", "extent", "the extent is itself a disk with extents")
        return open_sparse(reader)
    except ImageError as error:
        error.structure = f"{error.structure} of '{printable(line.name, 60)}'"
        raise


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _specific(disk: Disk) -> dict[str, Wire]:
    """Return QEMU's format-specific information. ``filename`` is the name in the descriptor, not yet a path."""
    extents: list[Wire] = []
    for extent in disk.extents:
        row: dict[str, Wire] = {"compressed": True} if extent.compressed else {}
        row["virtual-size"] = extent.sectors * SECTOR
        row["filename"] = _text(extent.name)
        if extent.grain:
            row["cluster-size"] = extent.grain * SECTOR
        row["format"] = extent.kind
        extents.append(row)
    data: dict[str, Wire] = {
        "cid": disk.cid,
        "parent-cid": disk.parent_cid,
        "create-type": disk.create_type,
        "extents": extents,
    }
    return {"type": FORMAT, "data": data}


def info(image: Reader, parts: Sequence[Reader | Elsewhere | None], *, generation: tuple[int, int]) -> ImageFacts:
    """Describe a VMDK. Nothing shown depends on ``generation``.

    The extents that a descriptor names are required references ``extents.0``, ``extents.1`` …; on the first
    pass (``parts`` is empty) sizes are the descriptor's and ``format_specific`` is ``None``. In
    ``format_specific`` the ``filename`` of an extent is the name as written in the descriptor, empty for the
    image itself: the host, which knows paths, puts them in. ``extra["extents"]`` holds the role of each.
    ``extra["cid"]`` is the CID that a child of this disk records. ``extra["parts"]`` is what ``Elsewhere`` hands on.
    ``extra["refusal"]``, if there is one: kind, field and text of what QEMU says of a disk that it does not open.

    Raises:
        ImageError: any kind; ``denied``, an extent was not granted.
    """
    disk = open_disk(image, parts)
    kinds = {(extent.layout in ("flat", "zero"), extent.compressed, extent.grain) for extent in disk.extents}
    grain = disk.extents[0].grain if len(kinds) == 1 else 0
    sectors = sum(extent.sectors for extent in disk.extents)
    if sectors > INT64_MAX // SECTOR:
        raise ImageError("too-large", "descriptor", "the extents together are too long", value=sectors)
    references = [
        Reference(
            extent.role,
            extent.name,
            format="raw" if extent.kind.encode() in descriptor.FLAT_KINDS else None,
            required=True,
        )
        for extent in disk.extents
        if extent.role not in ("", "file")
    ]
    if disk.parent is not None:
        references.append(Reference("backing", disk.parent, format=FORMAT))
    extra: dict[str, Wire] = {
        "cid": disk.cid,
        "parent_cid": disk.parent_cid,
        "extents": [extent.role for extent in disk.extents],
        "parts": [] if disk.embedded else [_facts_of(extent) for extent in disk.extents if extent.role],
    }
    if disk.refusal is not None:
        extra["refusal"] = [disk.refusal.kind, disk.refusal.field, disk.refusal.detail]
    return ImageFacts(
        FORMAT,
        sectors * SECTOR,
        cluster_size=grain * SECTOR or None,
        references=references,
        format_specific=_specific(disk) if disk.complete else None,
        extra=extra,
        # QEMU has no dirty flag to show when the extents are of different kinds.
        has_dirty_flag=len(kinds) <= 1,
    )
