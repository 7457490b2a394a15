"""Notes that help people on: what a file may be, what others will not take. Of the ``instar`` dialect alone.

Law: a note is one line, changes no exit code, and says nothing that an image says.
"""

from __future__ import annotations

from instar.core.errors import printable
from instar.core.looks import advice
from instar.core.units import MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.host.create import CreateResult
    from instar.host.info import ImageInfo

_AZURE = "Azure takes only fixed VHDs of whole MiB, and this one has"


def of_image(image: ImageInfo) -> list[str]:
    """Return the notes on an image that has been described."""
    shown = printable(image.filename)
    notes = []
    hint = advice(image.extra.get("looks_like")) if image.format == "raw" else None
    if hint is not None:
        notes.append(f"{shown} is read as raw, but {hint}")
    if image.format == "vpc" and image.extra.get("disk_type") == "fixed" and image.virtual_size % MiB:
        notes.append(f"{shown}: {_AZURE} {image.virtual_size} bytes")
    return notes


def of_creation(result: CreateResult) -> list[str]:
    """Return the notes on an image that has been made."""
    notes = []
    hint = advice(result.backing_looks_like, "-F")
    if hint is not None:
        notes.append(f"backing file {printable(result.backing_filename or '')}: {hint}")
    if result.format == "vpc" and result.virtual_size % MiB:
        forced = result.options.get("force_size") is True
        mend = "give a size in MiB" if forced else "-o force_size=on keeps the size that was asked for"
        notes.append(f"{_AZURE} {result.virtual_size} bytes; {mend}")
    return notes
