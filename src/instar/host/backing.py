"""The backing file of a new image: judge its name, open it read-only, learn its size in a cell.

Law: only its own metadata is read; the chain behind it is not followed, and no file that it names is opened.
"""

from __future__ import annotations

import os

from instar.core.errors import HostError, ImageError, OptionError, printable
from instar.core.plan import Backing
from instar.formats import find
from instar.host.describe import describe
from instar.host.files import open_image
from instar.host.names import combine, protocol_of, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.host.output import Output
    from instar.host.request import Request
    from instar.sandbox.cell import Isolation


def look_at_backing(request: Request, open_it: bool, isolation: Isolation, generation: tuple[int, int]) -> None:
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
    row = None if format is None else find(format, aliases=False)
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


def refuse_same_file(request: Request, output: Output) -> None:
    """Compare the target's identity again, on what is about to be replaced."""
    if request.backing is None or protocol_of(request.backing.name) not in (None, "file"):
        return
    full = strip_file_protocol(combine(strip_file_protocol(request.path), request.backing.name))
    if output.exists and _identity(full) == output.identity():
        raise _same_file(request)
