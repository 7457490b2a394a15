"""Describe images: open, describe in a cell, add what the host alone knows (names, lengths, allocation)."""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import HostError, ImageError, InstarError, printable
from instar.core.units import SECTOR, align_up
from instar.host.arguments import flag_of, folders_of, generation_of, isolation_of, word_of
from instar.host.describe import describe, info_budget
from instar.host.files import extent_size_hint, open_source
from instar.host.gate import Gate, blame
from instar.host.names import as_source, combine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from instar.core.qjson import Json
    from instar.core.wire import Wire
    from instar.host.arguments import Fd, Path
    from instar.host.budget import Budget
    from instar.host.describe import Described
    from instar.host.files import OpenFile
    from instar.host.names import Source
    from instar.host.window import View, Window
    from instar.sandbox.cell import Isolation

#: Longest backing chain that is followed; QEMU itself fails somewhere below that.
MAX_CHAIN = 200
#: Most snapshots, bitmaps, extents and files that are described of several images together: one image may have 65,536,
#: and each takes a kilobyte here, which an attacker has for nothing in a sparse file.
MAX_CHAIN_ROWS = 70_000


class Child:
    """A file an image consists of, or a window into it: a node of QEMU's.

    Attributes:
        name: QEMU's word for what it is to the node above (``file``, ``extents.0`` …).
        filename: of the file.
        protocol: what opens it in QEMU: ``file`` or ``host_device``, or ``raw`` for a window.
        length, allocated: bytes; of a window the second is the file's.
        extent_size_hint: of a file, in bytes, 0 where the file system has none (only XFS has).
        options: ``offset`` and ``size`` of a window, as they were given.
        children: the one node that a window is in.
    """

    __slots__ = ("allocated", "children", "extent_size_hint", "filename", "length", "name", "options", "protocol")

    def __init__(self, name: str, filename: str, file: OpenFile) -> None:
        self.name = name
        self.filename = filename
        self.protocol = "host_device" if file.is_device else "file"
        # QEMU's block layer counts a file in whole sectors.
        self.length = align_up(file.whole, SECTOR)
        self.allocated = file.allocated
        self.extent_size_hint = extent_size_hint(file.fd)
        self.options: Mapping[str, Json] = {}
        self.children: list[Child] = []

    def windowed(self, options: Mapping[str, Json], length: int) -> Child:
        """Return the node of a window into this one, which takes its name."""
        window = object.__new__(Child)
        window.name, window.filename, window.protocol = self.name, self.filename, "raw"
        window.length, window.allocated, window.extent_size_hint = length, self.allocated, 0
        window.options, window.children = options, [self]
        return window


class ImageInfo:
    """What is known of one image. Sizes are bytes.

    Attributes:
        filename: as asked for.
        format, virtual_size, cluster_size, encrypted, dirty, corrupt: as in the image.
        file_length, allocated: of the image file; ``actual_size`` sums the allocation of all its files. Of an image in
            a window the length is the window's, the allocation the whole file's.
        backing_filename: as stored in the image, ``None`` if there is none; ``backing_format`` likewise.
        full_backing_filename: the same as seen from here. Nothing says that it exists.
        snapshots, format_specific: in qemu-img's names.
        parent_fits: whether the backing file is the one that the image was made for, of formats that record that;
            ``None`` if they do not, or nobody looked (``info_chain`` does).
        references: every file the image names, opened or not.
        children: the files that it consists of, in QEMU's order (the last opened first).
        isolation: the weakest kind of cell that read it: ``kvm``, ``process`` or ``none``.
        options: ``offset`` and ``size`` of a raw image that is a window itself, as they were given.
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
        "options",
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
        self.options = image.options
        own = Child("file", filename, image)
        for options, length in image.nodes:
            own = own.windowed(options, length)
        self.children = [own]
        self.children += [Child(role, combine(filename, part.path), part) for role, part in found.parts]
        self.name_extents()
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

    def name_extents(self) -> None:
        """Put the names by which extents were opened in the place of those that the image gives them."""
        roles = self.extra.get("extents")
        data = (self.format_specific or {}).get("data")
        extents = data.get("extents") if isinstance(data, dict) else None
        names = {child.name: child.filename for child in self.children}
        if isinstance(extents, list) and isinstance(roles, list):
            for row, role in zip(extents, roles, strict=False):
                if isinstance(row, dict) and isinstance(role, str) and role in names:
                    row["filename"] = names[role]

    def call(self, name: str) -> None:
        """Show the image's own file by another name than that by which it was opened."""
        nodes = list(self.children)
        for child in nodes:
            nodes += child.children
            if child.filename == self.filename:
                child.filename = name
        self.filename = name
        self.name_extents()

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
    path: Path | Fd | Window | Source,
    *,
    format: str | None = None,
    allow: Path | Iterable[Path] = (),
    isolation: Isolation | str | None = None,
    generation: tuple[int, int] = NEWEST,
    force_share: bool = False,
    as_qemu: bool = False,
) -> ImageInfo:
    """Describe one image; its backing file is named, never opened.

    Args:
        path: the image: a path (text, bytes, ``os.PathLike``), an ``Fd``, or a window into a file.
        format: its format; detected if ``None``. ``raw`` always means raw.
        allow: folders, or one, beside the image's own, from which files that the image names (extents) may be opened.
        isolation: the kind of cell, or its name; the strongest there is if ``None``.
        generation: the qemu-img version whose answers are wanted, where versions differ.
        force_share: look also at an image that another program has open for writing; without, that is a
            ``HostError`` with ``lock``.
        as_qemu: refuse what qemu-img does not open, such as a VMDK of a type that it does not know.

    Raises:
        ImageError, HostError, SandboxError: see ``instar.core.errors``.
        OptionError: an argument is of a type or a value that it cannot be; ``path`` is a window outside its file.
    """
    format = word_of(format, "format")
    folders, isolation = folders_of(allow), isolation_of(isolation)
    generation, force_share = generation_of(generation), flag_of(force_share, "force_share")
    source = as_source(path)
    image = _open(path, source)
    gate, format = Gate(image, folders), format or source.format
    return _one(image, format, gate, isolation, generation, force_share, as_qemu, view=source.view)


def _open(path: object, source: Source) -> OpenFile:
    image = open_source(source)
    image.path = path if isinstance(path, str) else source.path
    return image


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
    view: View | None = None,
) -> ImageInfo:
    """Describe an image that has been opened, and close it. ``view`` is that by which it was opened."""
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
            view=view,
        ) as found,
    ):
        result = ImageInfo(image.path, found)
        result.isolation = isolation.weakest
        return result


def info_chain(
    path: Path | Fd | Window | Source,
    *,
    format: str | None = None,
    allow: Path | Iterable[Path] = (),
    isolation: Isolation | str | None = None,
    generation: tuple[int, int] = NEWEST,
    force_share: bool = False,
    as_qemu: bool = False,
) -> list[ImageInfo]:
    """Describe an image and the chain of backing files behind it, each opened only if the gate lets it pass.

    Arguments and errors are those of ``info``; besides, ``ImageError`` ``denied``, ``not-found``, and ``corrupt``
    for a chain that loops, ``too-large`` for one longer than ``MAX_CHAIN`` or with more than ``MAX_CHAIN_ROWS``.
    The images above the one at fault are in ``error.described``.
    """
    format = word_of(format, "format")
    folders, isolation = folders_of(allow), isolation_of(isolation)
    generation, force_share = generation_of(generation), flag_of(force_share, "force_share")
    chain: list[ImageInfo] = []
    try:
        _follow(chain, path, format, folders, isolation, generation, force_share, as_qemu)
    except InstarError as error:
        error.described = tuple(chain)
        raise
    return chain


def _follow(
    chain: list[ImageInfo],
    path: Path | Fd | Window | Source,
    format: str | None,
    folders: tuple[str, ...],
    isolation: Isolation,
    generation: tuple[int, int],
    force_share: bool,
    as_qemu: bool,
) -> None:
    """Describe an image and what is behind it, and append each to ``chain``."""
    source = as_source(path)
    image = _open(path, source)
    gate, format = Gate(image, folders), format or source.format
    budget = info_budget()
    chain.append(
        _one(image, format, gate, isolation, generation, force_share, as_qemu, budget=budget, view=source.view)
    )
    seen = {chain[0].identity}
    rows = chain[0].count_rows()
    while (top := chain[-1]).backing_filename is not None and top.full_backing_filename is not None:
        backing = next(r for r in top.references if r.role == "backing")
        if len(chain) >= MAX_CHAIN:
            raise ImageError(
                "too-large", "backing chain", f"the chain is longer than {MAX_CHAIN} images", path=chain[0].filename
            )
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
                path=chain[0].filename,
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
                path=chain[0].filename,
            )
        wanted, given = top.extra.get("parent_identity"), layer.extra.get("identity")
        if isinstance(wanted, bytes):
            top.parent_fits = isinstance(given, bytes) and given.startswith(wanted)
        chain.append(layer)
