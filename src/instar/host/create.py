"""Make an image: judge every word first, look at the backing file in a cell, write in a cell, put in place.

Law: the target is not touched before everything has been checked, and then replaced only by a complete image.
"""

from __future__ import annotations

import os
import time

from instar.core import NEWEST
from instar.core.errors import OptionError, SandboxError
from instar.core.units import INT64_MAX, SECTOR, UINT64_MAX, align_up
from instar.core.wire import WireError, take, take_size
from instar.host.cells import call
from instar.host.files import host_error, set_extent_size_hint, set_nocow
from instar.host.names import strip_file_protocol
from instar.host.output import Output
from instar.host.request import EXTENT_SIZE_HINT, NOCOW, as_pairs, file_preallocation, judge, read_request, read_size
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from instar.core.options import Value
    from instar.core.wire import Wire
    from instar.host.request import Request
    from instar.host.space import Progress

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
        as_pairs(options),
        backing=backing,
        backing_format=backing_format,
        size=read_size(size),
        as_qemu=as_qemu,
    )
    if "backing_file" in request.settings.values:
        from instar.host.backing import look_at_backing

        look_at_backing(request, open_backing, isolation, generation)
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
    options_used = judge(request, as_qemu)
    with Output(strip_file_protocol(path)) as output:
        if request.backing is not None:
            from instar.host.backing import refuse_same_file

            refuse_same_file(request, output)
        output.begin()
        if request.row.name == "raw":
            result = _make_raw(request, output, options_used, progress)
        else:
            result = _make_in_cell(request, output, options_used, isolation, progress)
        output.commit()
        return result


def _prepare_file(request: Request, output: Output) -> None:
    if request.settings.flag(NOCOW):
        set_nocow(output.fd)
    hint = request.settings.number(EXTENT_SIZE_HINT)
    if hint and not output.is_device:
        set_extent_size_hint(output.fd, hint)


def _make_raw(request: Request, output: Output, options: dict[str, Value], progress: Progress | None) -> CreateResult:
    """Make a raw image: the host alone, there is nothing to interpret."""
    size = align_up(request.size, SECTOR)
    mode = file_preallocation(request.settings)
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
