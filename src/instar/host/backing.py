"""The backing file of a new image: judge its name, open it read-only, learn its size in a cell.

Law: only its own metadata is read, and no file that it names is opened, unless a target is there (see ``chain``).
"""

from __future__ import annotations

import os

from instar.core.errors import HostError, ImageError, OptionError, SandboxError, printable
from instar.core.looks import advice
from instar.core.plan import Backing
from instar.formats import find
from instar.host.chain import Behind
from instar.host.describe import describe, refusal
from instar.host.files import open_source
from instar.host.gate import Gate
from instar.host.locks import hold
from instar.host.names import combine, protocol_of, source_of, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from instar.core.wire import Wire
    from instar.host.names import Source
    from instar.host.output import Output
    from instar.host.outputs import Outputs
    from instar.host.request import Request
    from instar.sandbox.cell import Isolation

#: What QEMU does not open but shows shorter: the new image would end before the disk.
_SHORTER = ("access", "type")


def look_at_backing(
    request: Request,
    open_it: bool,
    isolation: Isolation,
    generation: tuple[int, int],
    *,
    probe: bool = False,
    as_qemu: bool = False,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Judge the backing file's name, open it, learn its size in a cell: steps 10 to 13 of qemu-img's order.

    With ``probe`` also learn what it looks like, whatever format it is said to have. ``warn`` is called with a size
    whose notation is discouraged, in a name that gives a window.
    """
    name = request.settings.values.get("backing_file")
    if name is None:
        return
    name = str(name)
    format = request.settings.values.get("backing_fmt")
    if format is None:  # a default has only a format whose parents are of its own kind
        format = next((row.default for row in request.rows if row.name == "backing_fmt"), None)
    format = None if format is None else str(format)
    if name == "":
        raise OptionError("backing-empty", "the name of the backing file is empty")
    if name == request.path:
        raise _same_file(request)
    # A VMDK records the content ID of its parent, so there the parent is opened whatever was asked for. So it is
    # with the others that take parents of their own kind only.
    if not open_it and format is None:
        raise OptionError("backing-format-missing", "the format of the backing file is missing; give it with -F")
    if not open_it and not request.row.backing:
        request.backing = Backing(name, format)
        return
    row = None if format is None else find(format, aliases=False)
    if format is not None and row is None:
        raise _unknown_format(format)
    try:
        typed = combine(strip_file_protocol(request.path), name)
        source = source_of(typed, format=None if row is None else row.name, generation=generation)
    except OptionError as error:
        error.role = "backing"
        raise
    full = source.path
    try:
        image = open_source(source, action="open the backing file")
    except HostError as error:
        error.role = "backing"
        if error.path == full:
            error.path = source.name
        raise
    except OptionError as error:
        error.role = "backing"
        raise
    finally:
        if warn is not None and source.view is not None:
            for text in source.view.warnings:
                warn(text)
    with image:
        if _identity(strip_file_protocol(request.path)) == image.identity:
            raise _same_file(request)
        modified = int(os.fstat(image.fd).st_mtime)
        if request.row.backing:
            # What these record of their parent changes when that is written to. Elsewhere only its size counts.
            image.locked = True
            try:
                hold(image.fd, full, False, False, read=True)
            except HostError as error:
                request.parent_in_use = error
        try:
            with describe(
                image,
                operation="info",
                format=source.format,
                isolation=isolation,
                gate=None,
                generation=generation,
                share=True,
                probe=probe,
                as_qemu=as_qemu,
                view=source.view,
            ) as found:
                facts = found.facts
                refused = refusal(facts)
                if refused is not None and refused.field in _SHORTER:
                    refused.path = full
                    raise refused
        except (ImageError, OptionError) as error:
            error.role = "backing"
            if probe and isinstance(error, ImageError) and error.kind == "invalid-format":
                hint = advice(_look_again(source, isolation, generation), "-F")
                error.detail += "" if hint is None else f"; {hint}"
            raise
    request.behind = Behind(Gate(image), full, facts.references, isolation, generation)
    if format is None:
        raise OptionError(
            "backing-format-missing",
            f"the format of the backing file is missing; it looks like {facts.format}:"
            f" if that is what it should be, give -F {facts.format}",
            detected=facts.format,
        )
    word = facts.extra.get("looks_like")
    request.backing_looks_like = word if isinstance(word, str) else None
    content_id = facts.extra.get("cid")
    known = facts.extra.get("identity")
    relative, absolute = _paths(strip_file_protocol(request.path), strip_file_protocol(name), full)
    request.backing = Backing(
        name,
        format,
        virtual_size=facts.virtual_size if open_it or known is not None else None,
        content_id=content_id if isinstance(content_id, int) else None,
        identity=known if isinstance(known, bytes) else None,
        modified=modified,
        relative=relative,
        absolute=absolute,
    )


def _look_again(source: Source, isolation: Isolation, generation: tuple[int, int]) -> Wire:
    """Return what a backing file looks like that is not what it was said to be; ``None`` if that cannot be said."""
    try:
        with describe(
            open_source(source),
            operation="info",
            format=None,
            isolation=isolation,
            gate=None,
            generation=generation,
            share=True,
            view=source.view,
        ) as found:
            return found.facts.extra.get("looks_like") if found.facts.format == "raw" else found.facts.format
    except (ImageError, HostError, OptionError, SandboxError):
        return None  # what is said is what was wrong first


def _unknown_format(format: str) -> OptionError:
    from instar.core.drivers import DRIVERS

    if format not in DRIVERS:
        return OptionError("unknown-backing-format", f"there is no format '{format}' for a backing file", format=format)
    error = OptionError("driver-unsupported", f"'{format}' is no format of images in plain files", driver=format)
    error.role = "backing"
    return error


def _paths(target: str, name: str, full: str) -> tuple[str, str]:
    """Return the backing file's path from the target's folder, as typed if it was typed so, and from the root."""
    folder = os.path.realpath(os.path.dirname(full))
    absolute = os.path.join(folder, os.path.basename(full))
    if not os.path.isabs(name):
        return name, absolute
    return os.path.relpath(absolute, os.path.realpath(os.path.dirname(target))), absolute


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None  # ``Output`` says what is wrong with the name, if it is that
    return status.st_dev, status.st_ino


def _same_file(request: Request) -> OptionError:
    return OptionError(
        "backing-same-file", f"{printable(request.path)} and its backing file are the same file", path=request.path
    )


def _refuse_same_file(request: Request, output: Output) -> None:
    """Compare the target's identity again, on what is about to be replaced; report a parent that is in use."""
    if request.backing is None or protocol_of(request.backing.name) not in (None, "file"):
        return
    full = strip_file_protocol(combine(strip_file_protocol(request.path), request.backing.name))
    if output.exists and _identity(full) == output.identity():
        raise _same_file(request)
    if request.parent_in_use is not None:
        raise request.parent_in_use


def refuse_loss(request: Request, outputs: Outputs) -> None:
    """Refuse to replace the backing file, or anything that it stands on; report a parent that is in use."""
    for output in outputs:
        _refuse_same_file(request, output)
    if request.behind is not None:
        request.behind.refuse_loss(outputs)
