"""Write a new image into its open files: raw by the host alone, every other format by a cell that plans it.

Law: what a cell answers or asks is judged by type and range before anything is done with it.
"""

from __future__ import annotations

import os
import time

from instar.core.errors import OptionError, SandboxError, printable
from instar.core.units import INT64_MAX, SECTOR, align_up
from instar.host.cells import call
from instar.host.files import host_error, set_extent_size_hint, set_nocow
from instar.host.names import strip_file_protocol
from instar.host.request import EXTENT_SIZE_HINT, NOCOW, bounds_of, file_preallocation
from instar.host.reserve import Reservations, reserve
from instar.sandbox.cell import MAX_FILES, Grant, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from instar.core.options import Value
    from instar.core.plan import Bound
    from instar.core.wire import Wire
    from instar.host.output import Output
    from instar.host.outputs import Outputs
    from instar.host.request import Request
    from instar.host.space import Progress
    from instar.sandbox.cell import Isolation

#: QEMU writes the first 4 KiB of a file that it extends from nothing, so as to learn the alignment of direct I/O.
_FIRST_BLOCK = 4096
SEED_BYTES = 64
#: So much of a device is cleared first. Planners leave out zeros, which a new file has by itself: VHDX has checksums
#: over such in its header section, the first MiB; elsewhere no more than old signatures go.
_DEVICE_HEAD = 1 << 20
#: Longest reply of a cell that makes one image: its totals, or an error.
REPLY_BYTES = 64 << 10


class CreateResult:
    """What was made.

    Attributes:
        filename, format: as asked for; format by its own name.
        virtual_size: bytes of the virtual disk, after the format's rounding.
        unit_name, unit: the format's word for its unit of allocation and its bytes; 0 if it has none.
        metadata_bytes: bytes written; file_size: length of the new file.
        files: name and length in bytes of every file of the image, itself first.
        backing_filename: as recorded, ``None`` if there is none.
        backing_looks_like: a word of ``core.looks`` if the backing file looks like another format than it was said
            to have, else ``None``.
        options: every option of the format with the value used.
        in_place: why a target was written in place instead of being replaced, or ``None``.
        warnings: option and reason of what the file system refused, though the image is made.
        isolation: the weakest kind of cell that took part (``kvm``, ``process`` or ``none``); ``None`` for a raw image
            without a backing file, which needs none.
    """

    __slots__ = (
        "backing_filename",
        "backing_looks_like",
        "file_size",
        "filename",
        "files",
        "format",
        "in_place",
        "isolation",
        "metadata_bytes",
        "options",
        "unit",
        "unit_name",
        "virtual_size",
        "warnings",
    )

    def __init__(
        self,
        request: Request,
        outputs: Outputs,
        sizes: list[int],
        options: Mapping[str, Value],
        *,
        virtual_size: int,
        unit_name: str,
        unit: int,
        metadata_bytes: int,
        warnings: list[tuple[str, str]],
    ) -> None:
        self.filename = request.path
        self.format = request.row.name
        self.virtual_size = virtual_size
        self.unit_name = unit_name
        self.unit = unit
        self.metadata_bytes = metadata_bytes
        self.file_size = sizes[0]
        names = [request.path, *(output.path for output in outputs if output is not outputs.image)]
        self.files = list(zip(names, sizes, strict=True))
        self.backing_filename = None if request.backing is None else request.backing.name
        self.backing_looks_like = request.backing_looks_like
        self.options = options
        self.in_place = outputs.in_place
        self.isolation: str | None = None
        self.warnings = warnings

    def __repr__(self) -> str:
        return f"CreateResult({self.filename!r}, format={self.format!r}, virtual_size={self.virtual_size})"


def prepare_files(request: Request, outputs: Outputs) -> list[tuple[str, str]]:
    """Do what the options of the files themselves ask for; return what was refused (see ``CreateResult``)."""
    warnings = [warning for output in outputs for warning in _prepare_file(request, output)]
    for output in outputs:
        if output.is_device and not output.keep:
            reserve(output, 0, min(_DEVICE_HEAD, output.size), "full")
    return warnings


def _prepare_file(request: Request, output: Output) -> list[tuple[str, str]]:
    """Do what the file's own options ask for; return what was asked for and refused (see ``CreateResult``)."""
    if output.keep:
        return []
    if output.is_device and request.settings.values.get("preallocation") == "falloc":
        raise OptionError(
            "raw-device-preallocation" if request.row.name == "raw" else "device-preallocation",
            f"{printable(output.path)} is a device, which has no space to reserve; preallocation=full fills it",
            value="falloc",
        )
    if request.settings.flag(NOCOW):
        set_nocow(output.fd)
    hint = request.settings.number(EXTENT_SIZE_HINT)
    refused = set_extent_size_hint(output.fd, hint) if hint and not output.is_device else 0
    if not refused or EXTENT_SIZE_HINT.name not in request.settings.values:
        return []
    return [(EXTENT_SIZE_HINT.name, os.strerror(refused))]


def make_raw(
    request: Request, outputs: Outputs, options: Mapping[str, Value], progress: Progress | None
) -> CreateResult:
    """Make a raw image: the host alone, there is nothing to interpret."""
    output = outputs.image
    size = align_up(request.size, SECTOR)
    mode = file_preallocation(request.settings)
    warnings = _prepare_file(request, output)
    if size > INT64_MAX:
        raise OptionError(
            "image-too-large", f"a raw image has at most {INT64_MAX} bytes", format="raw", value=request.size
        )
    output.resize(size)
    written = 0
    try:
        if mode != "off":
            from instar.host.space import allocate

            allocate(output.fd, 0, size, mode, device=output.is_device, progress=progress or _quiet)
        if mode != "full":
            # On a device QEMU clears no more than what tells a format.
            written = min(SECTOR if output.is_device or size < _FIRST_BLOCK else _FIRST_BLOCK, size)
            os.pwrite(output.fd, bytes(written), 0)
    except OSError as error:
        raise host_error(error, request.path, f"give it {size} bytes of storage") from None
    used = {**options, "preallocation": mode}
    return CreateResult(
        request,
        outputs,
        [size],
        used,
        virtual_size=size,
        unit_name="cluster",
        unit=0,
        metadata_bytes=0,
        warnings=warnings,
    )


def make_in_cell(
    request: Request,
    outputs: Outputs,
    options: Mapping[str, Value],
    isolation: Isolation,
    progress: Progress | None,
    *,
    secret: bytes | None,
    pbkdf_rate: int,
) -> CreateResult:
    """Let a cell plan and write the image; carry out what needs the host's rights."""
    warnings = prepare_files(request, outputs)
    args = job_of(request, options, secret=secret, pbkdf_rate=pbkdf_rate)
    bounds = bounds_of(request, options)
    reservations = Reservations(list(outputs), bounds, progress)
    # No cell touches a file that is kept.
    numbers = [number for number, output in enumerate(outputs) if not output.keep]
    # A cell has only so many files; every job has the same seed and with it the same plan.
    replies = [
        _run_cell(request, outputs, args, bounds, reservations, numbers[first : first + MAX_FILES], isolation)
        for first in range(0, len(numbers), MAX_FILES)
    ]
    return finish(request, outputs, options, replies, bounds, warnings)


def _run_cell(
    request: Request,
    outputs: Outputs,
    args: dict[str, Wire],
    bounds: list[Bound],
    reservations: Reservations,
    numbers: list[int],
    isolation: Isolation,
) -> dict[str, Any]:
    """Let a cell write the files ``numbers``; return its reply."""
    reply: Any = call(
        "create",
        {**args, "files": list(numbers)},
        [Grant(outputs[n].fd, "w", 0, outputs[n].path) for n in numbers],
        isolation=isolation,
        limits=Limits(
            cpu_seconds=600,
            wall_seconds=1800,
            reply_bytes=REPLY_BYTES,
            file_bytes=max(bounds[n].length for n in numbers),
            requests=reservations.requests(numbers),
            serving_seconds=reservations.seconds(numbers),
        ),
        path=request.path,
        serve=lambda asked: reservations.serve(asked, numbers),
    )
    totals: dict[str, Any] = reply
    return totals


def what_of(request: Request, options: Mapping[str, Value]) -> dict[str, Wire]:
    """Return the part of a job that images have in common which differ in nothing but names and chance."""
    return {
        "format": request.row.name,
        "size": request.size,
        "options": dict(options),
        "file_bytes": [bound.length for bound in bounds_of(request, options)],
    }


def job_of(
    request: Request, options: Mapping[str, Value], *, secret: bytes | None = None, pbkdf_rate: int = 0
) -> dict[str, Wire]:
    """Return what a cell is told of an image to be made."""
    return {
        **what_of(request, options),
        "entropy": os.urandom(SEED_BYTES),
        "time": int(time.time()),
        "file_name": base_name(request),
        "backing": _backing(request),
        "secret": secret,
        "pbkdf_rate": pbkdf_rate,
    }


def base_name(request: Request) -> str:
    """Return the image's own name, which some formats write into it."""
    return os.path.basename(strip_file_protocol(request.path))


def finish(
    request: Request,
    outputs: Outputs,
    options: Mapping[str, Value],
    replies: list[dict[str, Any]],
    bounds: list[Bound],
    warnings: list[tuple[str, str]],
) -> CreateResult:
    """Give the files the lengths that a cell says they have, none above its bound, and return what was made.

    Raises:
        SandboxError: ``protocol``, the reply is none.
    """
    first = replies[0]
    sizes: list[int] = first["sizes"]
    if len(sizes) != len(bounds) or any(size > bound.length for size, bound in zip(sizes, bounds, strict=True)):
        detail = "the cell's reply cannot be used: a file size out of bounds"
        raise SandboxError("protocol", detail, path=request.path)
    result = CreateResult(
        request,
        outputs,
        sizes,
        options,
        virtual_size=first["virtual_size"],
        unit_name=request.row.unit_name,
        unit=first["unit"],
        metadata_bytes=sum(reply["metadata_bytes"] for reply in replies),
        warnings=warnings,
    )
    for output, (_, size) in zip(outputs, result.files, strict=True):
        output.resize(size)
    return result


def _backing(request: Request) -> Wire:
    backing = request.backing
    return None if backing is None else {name: getattr(backing, name) for name in backing.__slots__}


def _quiet(done: int, total: int) -> None:
    pass
