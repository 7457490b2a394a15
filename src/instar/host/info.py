"""Describe images: open, describe in a cell, add what the host alone knows (names, lengths, allocation)."""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import HostError, ImageError, InstarError, printable
from instar.core.units import SECTOR, align_up
from instar.host.describe import describe, info_budget
from instar.host.files import extent_size_hint, open_image
from instar.host.gate import Gate, blame
from instar.host.names import combine, strip_file_protocol
from instar.sandbox.cell import Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.host.budget import Budget
    from instar.host.describe import Described
    from instar.host.files import OpenFile

#: Longest backing chain that is followed; QEMU itself fails somewhere below that.
MAX_CHAIN = 200
#: Most snapshots, bitmaps, extents and files that are described of several images together: one image may have 65,536,
#: and each takes a kilobyte here, which an attacker has for nothing in a sparse file.
MAX_CHAIN_ROWS = 70_000


class Child:
    """A file an image consists of: QEMU's name for the node (``file``, ``extents.0`` …), length and allocation.

    ``protocol`` is what opens it in QEMU: ``file`` or ``host_device``.
    """

    __slots__ = ("allocated", "extent_size_hint", "filename", "length", "name", "protocol")

    def __init__(self, name: str, filename: str, file: OpenFile) -> None:
        self.name = name
        self.filename = filename
        self.protocol = "host_device" if file.is_device else "file"
        # QEMU's block layer counts a file in whole sectors.
        self.length = align_up(file.size, SECTOR)
        self.allocated = file.allocated
        #: bytes, 0 where the file system has none (only XFS has)
        self.extent_size_hint = extent_size_hint(file.fd)


class ImageInfo:
    """What is known of one image. Sizes are bytes.

    Attributes:
        filename: as asked for.
        format, virtual_size, cluster_size, encrypted, dirty, corrupt: as in the image.
        file_length, allocated: of the image file; ``actual_size`` sums the allocation of all its files.
        backing_filename: as stored in the image, ``None`` if there is none; ``backing_format`` likewise.
        full_backing_filename: the same as seen from here. Nothing says that it exists.
        snapshots, format_specific: in qemu-img's names.
        parent_fits: whether the backing file is the one that the image was made for, of formats that record that;
            ``None`` if they do not, or nobody looked (``info_chain`` does).
        references: every file the image names, opened or not.
        children: the files that it consists of, in QEMU's order (the last opened first).
        isolation: the weakest kind of cell that read it: ``kvm``, ``process`` or ``none``.
    """

    __slots__ = (
        "allocated",
        "backing_filename",
        "backing_format",
        "children",
        "cluster_size",
        "corrupt",
        "dirty",
        "encrypted",
        "extra",
        "file_length",
        "filename",
        "format",
        "format_specific",
        "full_backing_filename",
        "has_dirty_flag",
        "identity",
        "isolation",
        "parent_fits",
        "references",
        "snapshots",
        "virtual_size",
    )

    def __init__(self, filename: str, found: Described) -> None:
        facts, image = found.facts, found.image
        self.filename = filename
        self.isolation: str | None = None
        self.format = facts.format
        self.virtual_size = facts.virtual_size
        self.cluster_size = facts.cluster_size
        self.encrypted = facts.encrypted
        self.dirty = facts.dirty
        self.corrupt = facts.corrupt
        self.has_dirty_flag = facts.has_dirty_flag
        self.file_length = image.size
        self.allocated = image.allocated
        self.identity = image.identity
        self.snapshots: list[dict[str, Wire]] = facts.snapshots
        self.format_specific: dict[str, Wire] | None = facts.format_specific
        self.extra: dict[str, Wire] = facts.extra
        self.references = facts.references
        self.children = [Child("file", filename, image)]
        self.children += [Child(role, combine(filename, part.path), part) for role, part in found.parts]
        self._name_extents(facts.extra.get("extents"))
        self.children.reverse()
        backing = facts.backing
        self.parent_fits: bool | None = None
        self.backing_filename: str | None = None
        self.full_backing_filename: str | None = None
        self.backing_format: str | None = None
        if backing is not None:
            self.backing_filename = backing.name.decode("utf-8", "surrogateescape")
            self.full_backing_filename = combine(filename, self.backing_filename)
            self.backing_format = backing.format

    def _name_extents(self, roles: Wire) -> None:
        """Put the names by which extents were opened in the place of those that the image gives them."""
        data = (self.format_specific or {}).get("data")
        extents = data.get("extents") if isinstance(data, dict) else None
        names = {child.name: child.filename for child in self.children}
        if isinstance(extents, list) and isinstance(roles, list):
            for row, role in zip(extents, roles, strict=False):
                if isinstance(row, dict) and isinstance(role, str) and role in names:
                    row["filename"] = names[role]

    def call(self, name: str) -> None:
        """Show the image's own file by another name than that by which it was opened."""
        data = (self.format_specific or {}).get("data")
        extents = data.get("extents") if isinstance(data, dict) else None
        for row in extents if isinstance(extents, list) else ():
            if isinstance(row, dict) and row.get("filename") == self.filename:
                row["filename"] = name
        for child in self.children:
            if child.filename == self.filename:
                child.filename = name
        self.filename = name

    def count_rows(self) -> int:
        """Return how many snapshots, files, and rows of what the format has beside, there are to show."""
        data = (self.format_specific or {}).get("data")
        lists = data.values() if isinstance(data, dict) else ()
        return len(self.snapshots) + len(self.children) + sum(len(rows) for rows in lists if isinstance(rows, list))

    def seen_as_file(self) -> None:
        """Describe the file itself instead of a raw image in it: QEMU's driver ``file``."""
        self.format = "file"
        hint = self.children[-1].extent_size_hint
        self.children = []
        self.format_specific = {"type": "file", "data": {"extent-size-hint": hint} if hint else {}}

    @property
    def actual_size(self) -> int:
        """Bytes of storage that all files of the image use."""
        return sum(child.allocated for child in self.children) or self.allocated

    def __repr__(self) -> str:
        return f"ImageInfo({self.filename!r}, format={self.format!r}, virtual_size={self.virtual_size})"


def info(
    path: str,
    *,
    format: str | None = None,
    allow: Sequence[str] = (),
    isolation: Isolation | None = None,
    generation: tuple[int, int] = NEWEST,
    force_share: bool = False,
    as_qemu: bool = False,
) -> ImageInfo:
    """Describe one image; its backing file is named, never opened.

    Args:
        path: the image.
        format: its format; detected if ``None``. ``raw`` always means raw.
        allow: folders, beside the image's own, from which files that the image names (extents) may be opened.
        isolation: the kind of cell; the strongest there is if ``None``.
        generation: the qemu-img version whose answers are wanted, where versions differ.
        force_share: look also at an image that another program has open for writing; without, that is a
            ``HostError`` with ``lock``.
        as_qemu: refuse what qemu-img does not open, such as a VMDK of a type that it does not know.

    Raises:
        ImageError, HostError, SandboxError: see ``instar.core.errors``.
    """
    image = open_image(strip_file_protocol(path))
    image.path = path
    return _one(image, format, Gate(image, tuple(allow)), isolation or Isolation(), generation, force_share, as_qemu)


def _one(
    image: OpenFile,
    format: str | None,
    gate: Gate,
    isolation: Isolation,
    generation: tuple[int, int],
    force_share: bool,
    as_qemu: bool,
    *,
    budget: Budget | None = None,
) -> ImageInfo:
    """Describe an image that has been opened, and close it."""
    isolation = isolation.for_operation()
    with (
        image,
        describe(
            image,
            operation="info",
            format=format,
            isolation=isolation,
            gate=gate,
            generation=generation,
            share=force_share,
            budget=budget,
            as_qemu=as_qemu,
        ) as found,
    ):
        result = ImageInfo(image.path, found)
        result.isolation = isolation.weakest
        return result


def info_chain(
    path: str,
    *,
    format: str | None = None,
    allow: Sequence[str] = (),
    isolation: Isolation | None = None,
    generation: tuple[int, int] = NEWEST,
    force_share: bool = False,
    as_qemu: bool = False,
) -> list[ImageInfo]:
    """Describe an image and the chain of backing files behind it, each opened only if the gate lets it pass.

    Arguments and errors are those of ``info``; besides, ``ImageError`` ``denied``, ``not-found``, and ``corrupt``
    for a chain that loops, ``too-large`` for one longer than ``MAX_CHAIN`` or with more than ``MAX_CHAIN_ROWS``.
    The images above the one at fault are in ``error.described``.
    """
    chain: list[ImageInfo] = []
    try:
        _follow(chain, path, format, tuple(allow), isolation or Isolation(), generation, force_share, as_qemu)
    except InstarError as error:
        error.described = tuple(chain)
        raise
    return chain


def _follow(
    chain: list[ImageInfo],
    path: str,
    format: str | None,
    allow: tuple[str, ...],
    isolation: Isolation,
    generation: tuple[int, int],
    force_share: bool,
    as_qemu: bool,
) -> None:
    """Describe an image and what is behind it, and append each to ``chain``."""
    image = open_image(strip_file_protocol(path))
    image.path = path
    gate = Gate(image, allow)
    budget = info_budget()
    chain.append(_one(image, format, gate, isolation, generation, force_share, as_qemu, budget=budget))
    seen = {chain[0].identity}
    rows = chain[0].count_rows()
    while (top := chain[-1]).backing_filename is not None and top.full_backing_filename is not None:
        backing = next(r for r in top.references if r.role == "backing")
        if len(chain) >= MAX_CHAIN:
            raise ImageError("too-large", "backing chain", f"the chain is longer than {MAX_CHAIN} images", path=path)
        try:
            try:
                image = gate.open(backing.name, relative_to=image.home)
            except (ImageError, HostError) as error:
                blame(error, top.filename, backing)
                raise
            image.path = top.full_backing_filename
            layer = _one(image, backing.format, gate, isolation, generation, force_share, as_qemu, budget=budget)
        except (ImageError, HostError) as error:
            error.path = error.path or top.filename
            error.image = error.image or error.path
            error.named_by = None if error.image == top.filename else top.filename
            raise
        if layer.identity in seen:
            raise ImageError(
                "corrupt",
                "backing chain",
                f"backing file '{printable(layer.filename, 200)}' is already part of the chain: it loops",
                path=path,
            )
        seen.add(layer.identity)
        rows += layer.count_rows()
        if rows > MAX_CHAIN_ROWS:
            raise ImageError(
                "too-large",
                "backing chain",
                "its images together have too many snapshots, bitmaps and files to be described",
                value=rows,
                limit=MAX_CHAIN_ROWS,
                path=path,
            )
        wanted, given = top.extra.get("parent_identity"), layer.extra.get("identity")
        if isinstance(wanted, bytes):
            top.parent_fits = isinstance(given, bytes) and given.startswith(wanted)
        chain.append(layer)
