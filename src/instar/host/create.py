"""Make an image: judge every word first, look at the backing file in a cell, write in a cell, put in place.

Law: the target is not touched before everything has been checked, and then replaced only by a complete image.
The order in which faults are found is qemu-img's.
"""

from __future__ import annotations

import os
import sys
import time

from instar.core import NEWEST
from instar.core.errors import HostError, ImageError, OptionError, SandboxError, printable
from instar.core.options import Option, Settings, read_settings
from instar.core.plan import Backing
from instar.core.units import INT64_MAX, SECTOR, UINT64_MAX, align_up, parse_size
from instar.core.wire import WireError, take, take_size
from instar.formats import creatable, find
from instar.host.cells import call
from instar.host.files import host_error, open_image, set_extent_size_hint, set_nocow
from instar.host.names import combine, protocol_of, strip_file_protocol
from instar.host.output import Output
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from instar.core.options import Value
    from instar.core.wire import Wire
    from instar.formats import Format
    from instar.host.space import Progress

_EFBIG = 27
_MiB = 1 << 20

#: What every format takes besides its own options: how the file itself is made.
FILE_OPTIONS = (
    Option(
        "nocow",
        "bool",
        "Turn off copy-on-write (valid only on btrfs)",
        note="sets FS_NOCOW_FL; without effect elsewhere",
    ),
    Option(
        "preallocation",
        "choice",
        "Preallocation mode (allowed values: off, falloc, full)",
        default="off",
        choices=("off", "falloc", "full"),
        note="falloc reserves space; full reserves it and makes it zero",
    ),
    Option(
        "extent_size_hint",
        "size",
        "Extent size hint for the image file, 0 to disable",
        default=_MiB,
        note="below 4 GiB; XFS allocates in steps of this size",
    ),
)
_NOCOW, _PREALLOCATION, _EXTENT_SIZE_HINT = FILE_OPTIONS

#: QEMU writes the first 4 KiB of a file that it extends from nothing, so as to learn the alignment of direct I/O.
_FIRST_BLOCK = 4096
_SEED_BYTES = 64


class CreateResult:
    """What was made.

    Attributes:
        filename, format: as asked for; format by its own name.
        virtual_size: bytes of the virtual disk, after the format's rounding.
        unit_name, unit: the format's word for its unit of allocation and its bytes; 0 if it has none.
        metadata_bytes: bytes written; file_size: length of the new file.
        backing_filename: as recorded, ``None`` if there is none.
        options: every option of the format with the value used.
        in_place: why the target was written in place instead of being replaced, or ``None``.
    """

    __slots__ = (
        "backing_filename",
        "file_size",
        "filename",
        "format",
        "in_place",
        "metadata_bytes",
        "options",
        "unit",
        "unit_name",
        "virtual_size",
    )

    def __init__(
        self,
        filename: str,
        format: str,
        *,
        virtual_size: int,
        unit_name: str,
        unit: int,
        metadata_bytes: int,
        file_size: int,
        backing_filename: str | None,
        options: Mapping[str, Value],
        in_place: str | None,
    ) -> None:
        self.filename = filename
        self.format = format
        self.virtual_size = virtual_size
        self.unit_name = unit_name
        self.unit = unit
        self.metadata_bytes = metadata_bytes
        self.file_size = file_size
        self.backing_filename = backing_filename
        self.options = options
        self.in_place = in_place

    def __repr__(self) -> str:
        return f"CreateResult({self.filename!r}, format={self.format!r}, virtual_size={self.virtual_size})"


class Request:
    """A ``create`` whose words have been read: what to make, not yet judged by the format's own rules.

    Attributes:
        path: the target as typed.
        row: the format. ``rows``: its options and the file's.
        settings: what was given, backing file included. ``size``: bytes asked for.
        backing: what is known of the backing file, ``None`` without one.
    """

    __slots__ = ("backing", "path", "row", "rows", "settings", "size")

    def __init__(self, path: str, row: Format, rows: tuple[Option, ...], settings: Settings) -> None:
        self.path = path
        self.row = row
        self.rows = rows
        self.settings = settings
        self.size = 0
        self.backing: Backing | None = None


def option_rows(format_name: str, *, with_file: bool = True) -> tuple[Option, ...]:
    """Return the options that a format takes, in qemu-img's order, with those of the file itself behind them."""
    own: tuple[Option, ...] = _options_module(format_name).CREATE
    if not with_file:
        return own
    names = {row.name for row in own}
    return own + tuple(row for row in FILE_OPTIONS if row.name not in names)


def _options_module(format_name: str) -> ModuleType:
    name = f"instar.formats.{format_name}.options"
    __import__(name)
    return sys.modules[name]


def find_creatable(name: str, *, aliases: bool = True) -> Format:
    """Return the row of a format that can be created.

    Raises:
        OptionError: ``unknown-format``, ``format-not-creatable``; names those that can.
    """
    row = find(name, aliases=aliases)
    known = ", ".join(sorted(n for f in creatable() for n in (f.name, *(f.aliases if aliases else ()))))
    if row is None:
        raise OptionError("unknown-format", f"there is no format '{name}'; instar creates {known}", format=name)
    if not row.creatable:
        raise OptionError(
            "format-not-creatable", f"format '{name}' cannot be created; instar creates {known}", format=name
        )
    return row


def read_request(
    path: str,
    format: str,
    pairs: Iterable[tuple[str, str | None]],
    *,
    backing: str | None,
    backing_format: str | None,
    size: int | None,
    as_qemu: bool,
) -> Request:
    """Read the words of a ``create``: steps 4 to 9 of qemu-img's order. Opens nothing.

    Raises:
        OptionError: what is wrong with the words.
    """
    row = find_creatable(format, aliases=not as_qemu)
    protocol = protocol_of(path)
    if protocol not in (None, "file"):
        raise OptionError(
            "unknown-protocol",
            f"'{printable(path)}' names protocol '{protocol}', and instar makes plain files;"
            f" for a file of that name write './{printable(path)}'",
            protocol=protocol,
        )
    rows = tuple(r for r in option_rows(row.name) if not (as_qemu and r.extension))
    settings = read_settings(rows, pairs, format=row.name, no_is_off=as_qemu)
    table = {r.name: r for r in rows}
    if size is not None:
        if "size" in settings.values:
            raise OptionError("size-twice", "the size is given twice, as SIZE and as -o size=; give it once")
        settings.raw["size"], settings.values["size"] = str(size), size
    if backing is not None:
        if "backing_file" not in table:
            those = ", ".join(f.name for f in creatable() if f.backing is not None)
            raise OptionError(
                "no-backing",
                f"format {row.name} has no backing files; those that have: {those}",
                format=row.name,
            )
        settings.set(table["backing_file"], backing)
    if backing_format is not None:
        if "backing_fmt" not in table:
            raise OptionError("no-backing-format", f"format {row.name} records no backing format", format=row.name)
        settings.set(table["backing_fmt"], backing_format)
    return Request(path, row, rows, settings)


def create(
    path: str,
    size: int | str | None = None,
    *,
    format: str = "raw",
    options: Mapping[str, object] | Iterable[tuple[str, str | None]] = (),
    backing: str | None = None,
    backing_format: str | None = None,
    open_backing: bool = True,
    isolation: Isolation | None = None,
    generation: tuple[int, int] = NEWEST,
    as_qemu: bool = False,
    announce: Callable[[Request], None] | None = None,
    progress: Progress | None = None,
) -> CreateResult:
    """Create an image.

    Args:
        path: the file to make. An existing one is replaced, and only by a complete image.
        size: of the virtual disk in bytes, or text with a suffix; the backing file's if ``None``.
        format: a name of ``instar.formats``.
        options: creation options, by name (values may be ``str``, ``int`` or ``bool``), or pairs as typed.
        backing: name of the backing file, recorded as it is, looked up from the folder of ``path``.
        backing_format: its format; required with ``backing``.
        open_backing: look at the backing file (in a cell). Without that, ``size`` is required.
        isolation: the kind of cell; the strongest there is if ``None``.
        generation: the qemu-img version whose rules are wanted, where versions differ.
        as_qemu: accept exactly the names and options that qemu-img has, also those without effect.
        announce: called once, when all words have been read and before anything is made.
        progress: called with bytes done and in all while space is reserved or zeroed.

    Raises:
        OptionError, ImageError, HostError, SandboxError: see ``instar.core.errors``. The target is then as it was.
    """
    isolation = isolation or Isolation()
    request = read_request(
        path,
        format,
        _pairs(options),
        backing=backing,
        backing_format=backing_format,
        size=_read_size(size),
        as_qemu=as_qemu,
    )
    _look_at_backing(request, open_backing, isolation, generation)
    given = request.settings.values.get("size")
    # 2^64 - 1 is how QEMU's option tables say "no size".
    if given is None or given == UINT64_MAX:
        if request.backing is None or request.backing.virtual_size is None:
            raise OptionError("size-missing", "the size is missing; give it after the file name, as in 'disk.img 10G'")
        given = request.backing.virtual_size
        request.settings.raw["size"], request.settings.values["size"] = str(given), given
    request.size = int(given)
    if announce is not None:
        announce(request)
    options_used = _judge(request, as_qemu)
    with Output(strip_file_protocol(path)) as output:
        _refuse_same_file(request, output)
        output.begin()
        if request.row.name == "raw":
            result = _make_raw(request, output, options_used, progress)
        else:
            result = _make_in_cell(request, output, options_used, isolation, progress)
        output.commit()
        return result


def _pairs(options: Mapping[str, object] | Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Turn a caller's options into pairs as typed."""
    items = getattr(options, "items", None)
    if items is None:
        return list(options)  # type: ignore[arg-type]
    return [(key, ("on" if value else "off") if isinstance(value, bool) else str(value)) for key, value in items()]


def _read_size(size: int | str | None) -> int | None:
    if size is None:
        return None
    try:
        value = parse_size(size) if isinstance(size, str) else int(size)
    except ValueError:
        raise OptionError(
            "bad-image-size",
            f"'{size}' is not a size; write a number with an optional suffix b, k, M, G, T, P or E",
            value=size,
        ) from None
    if not 0 <= value <= INT64_MAX:
        raise OptionError(
            "image-size-out-of-range",
            f"size {size} is out of range; it is at least 0 and at most {INT64_MAX}",
            value=str(size),
        )
    return value


# --- the backing file -----------------------------------------------------------------------------------------------


def _look_at_backing(request: Request, open_it: bool, isolation: Isolation, generation: tuple[int, int]) -> None:
    """Judge the backing file's name, open it, learn its size in a cell: steps 10 to 13 of qemu-img's order."""
    name = request.settings.values.get("backing_file")
    if name is None:
        return
    name = str(name)
    format = request.settings.values.get("backing_fmt")
    format = None if format is None else str(format)
    if name == "":
        raise OptionError("backing-empty", "the name of the backing file is empty")
    if name == request.path:
        raise _same_file(request)
    # A VMDK records the content ID of its parent, so there the parent is opened whatever was asked for.
    if not open_it and request.row.name != "vmdk":
        if format is None:
            raise OptionError("backing-format-missing", "the format of the backing file is missing; give it with -F")
        request.backing = Backing(name, format)
        return
    row = None if format is None else find(format)
    if format is not None and row is None:
        raise OptionError("unknown-backing-format", f"there is no format '{format}' for a backing file", format=format)
    full = strip_file_protocol(combine(strip_file_protocol(request.path), name))
    protocol = protocol_of(full)
    if protocol is not None:
        raise OptionError(
            "backing-protocol",
            f"backing file '{printable(name)}' is of the kind '{protocol}:', which is not opened; -u records it unseen",
            protocol=protocol,
        )
    from instar.host.describe import describe

    try:
        image = open_image(full, action="open the backing file")
    except HostError as error:
        error.role = "backing"
        raise
    with image:
        if (identity := _identity(strip_file_protocol(request.path))) is not None and identity == image.identity:
            raise _same_file(request)
        try:
            with describe(
                image,
                operation="info",
                format=None if row is None else row.name,
                isolation=isolation,
                gate=None,
                generation=generation,
            ) as found:
                facts = found.facts
        except ImageError as error:
            error.role = "backing"
            raise
    if format is None:
        raise OptionError(
            "backing-format-missing",
            f"the format of the backing file is missing; it looks like {facts.format}:"
            f" if that is what it should be, give -F {facts.format}",
            detected=facts.format,
        )
    content_id = facts.extra.get("cid")
    request.backing = Backing(
        name,
        format,
        virtual_size=facts.virtual_size if open_it else None,
        content_id=content_id if isinstance(content_id, int) else None,
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _same_file(request: Request) -> OptionError:
    return OptionError(
        "backing-same-file", f"{printable(request.path)} and its backing file are the same file", path=request.path
    )


def _refuse_same_file(request: Request, output: Output) -> None:
    """Compare the target's identity again, on what is about to be replaced."""
    if request.backing is None or protocol_of(request.backing.name) not in (None, "file"):
        return
    full = strip_file_protocol(combine(strip_file_protocol(request.path), request.backing.name))
    if output.exists and _identity(full) == output.identity():
        raise _same_file(request)


# --- making it ------------------------------------------------------------------------------------------------------


def _judge(request: Request, as_qemu: bool) -> dict[str, Value]:
    """Apply the format's own rules, and those of the file."""
    settings = request.settings
    own = {r.name for r in option_rows(request.row.name, with_file=False)}
    if "preallocation" not in own:
        value = settings.values.get("preallocation")
        if value == "metadata":
            raise OptionError(
                "unsupported-preallocation", "preallocation=metadata has no meaning for this format", value=value
            )
        mode = _file_preallocation(settings)
        if mode != "off" and request.row.name != "raw" and not as_qemu:
            raise OptionError(
                "preallocation-without-effect",
                f"preallocation={mode} has no effect on format {request.row.name}, so it is refused; leave it out",
                format=request.row.name,
                value=mode,
            )
    if settings.number(_EXTENT_SIZE_HINT) > 0xFFFFFFFF:
        raise OptionError("extent-size-hint-too-large", "extent_size_hint is too large; it must be below 4 GiB")
    resolve = _options_module(request.row.name).resolve
    options: dict[str, Value] = resolve(request.size, settings, request.backing)
    return options


def _file_preallocation(settings: Settings) -> str:
    """Return the mode in which the file itself is to be preallocated.

    Raises:
        OptionError: ``bad-file-choice``.
    """
    try:
        return _PREALLOCATION.pick(settings.values.get("preallocation"))
    except OptionError as error:
        raise OptionError("bad-file-choice", error.detail, **error.values) from None


def _prepare_file(request: Request, output: Output) -> None:
    if request.settings.flag(_NOCOW):
        set_nocow(output.fd)
    hint = request.settings.number(_EXTENT_SIZE_HINT)
    if hint and not output.is_device:
        set_extent_size_hint(output.fd, hint)


def _make_raw(request: Request, output: Output, options: dict[str, Value], progress: Progress | None) -> CreateResult:
    """Make a raw image: the host alone, there is nothing to interpret."""
    size = align_up(request.size, SECTOR)
    mode = _file_preallocation(request.settings)
    _prepare_file(request, output)
    if size > INT64_MAX:
        raise OptionError(
            "image-too-large", f"a raw image has at most {INT64_MAX} bytes", format="raw", value=request.size
        )
    output.resize(size)
    written = 0
    try:
        if mode != "off" and not output.is_device:
            from instar.host.space import allocate

            allocate(output.fd, 0, size, mode, progress=progress or _quiet)
        if mode != "full" and not output.is_device:
            written = min(_FIRST_BLOCK if size >= _FIRST_BLOCK else SECTOR, size)
            os.pwrite(output.fd, bytes(written), 0)
    except OSError as error:
        raise host_error(error, request.path, f"give it {size} bytes of storage") from None
    return CreateResult(
        request.path,
        "raw",
        virtual_size=size,
        unit_name="cluster",
        unit=0,
        metadata_bytes=0,
        file_size=size,
        backing_filename=None,
        options={**options, "preallocation": mode},
        in_place=output.in_place,
    )


def _make_in_cell(
    request: Request, output: Output, options: dict[str, Value], isolation: Isolation, progress: Progress | None
) -> CreateResult:
    """Let a cell plan and write the image; carry out what needs the host's rights."""
    _prepare_file(request, output)
    # No format's metadata is larger than the disk it describes, save for fixed parts of at most 4 GiB (a VHDX log).
    file_bytes = min(INT64_MAX, 3 * request.size + (16 << 30))
    backing: Wire = None
    if request.backing is not None:
        backing = {
            "name": request.backing.name,
            "format": request.backing.format,
            "virtual_size": request.backing.virtual_size,
            "content_id": request.backing.content_id,
        }
    plain = strip_file_protocol(request.path)
    args: dict[str, Wire] = {
        "format": request.row.name,
        "size": request.size,
        "options": dict(options),
        "entropy": os.urandom(_SEED_BYTES),
        "time": int(time.time()),
        "file_name": os.path.basename(plain),
        "backing": backing,
        "file_bytes": file_bytes,
    }

    def serve(asked: Wire) -> Wire:
        what = take(asked, "do", str)
        if what == "progress":
            return None
        if what != "allocate" or take_size(asked, "file") != 0:
            raise WireError("a request that create does not serve")
        mode = take(asked, "mode", str)
        offset, length = take_size(asked, "offset", limit=file_bytes), take_size(asked, "length", limit=file_bytes)
        if mode not in ("falloc", "full") or offset + length > file_bytes:
            raise WireError("an allocation out of bounds")
        from instar.host.space import allocate

        try:
            allocate(output.fd, offset, length, mode, progress=progress or _quiet)
        except OSError as error:
            raise host_error(error, request.path, f"give it {length} bytes of storage") from None
        return None

    limits = Limits(cpu_seconds=600, wall_seconds=1800, file_bytes=file_bytes)
    from instar.sandbox.cell import Grant

    grants = [Grant(output.fd, "w", 0)]
    value = call("create", args, grants, isolation=isolation, limits=limits, path=request.path, serve=serve)
    try:
        sizes = take(value, "sizes", list)
        if len(sizes) != 1 or type(sizes[0]) is not int or not 0 <= sizes[0] <= file_bytes:
            raise WireError("a file size out of bounds")
        result = CreateResult(
            request.path,
            request.row.name,
            virtual_size=take_size(value, "virtual_size"),
            unit_name=request.row.unit_name,
            unit=take_size(value, "unit"),
            metadata_bytes=take_size(value, "metadata_bytes"),
            file_size=sizes[0],
            backing_filename=None if request.backing is None else request.backing.name,
            options=options,
            in_place=output.in_place,
        )
    except WireError as error:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {error}", path=request.path) from None
    output.resize(result.file_size)
    return result


def _quiet(done: int, total: int) -> None:
    pass
