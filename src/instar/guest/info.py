"""Describe an image: detect its format, parse it, say what it names. Files: 0 the image, then granted parts."""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.wire import take, take_optional
from instar.guest.detect import choose, module
from instar.guest.detect import preload as preload_formats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire
    from instar.guest.main import Ask


def preload(args: dict[str, Wire]) -> None:
    """Import the parsers a job may need."""
    preload_formats(take_optional(args, "format", str), ("parse",))


def parts_of(args: dict[str, Wire], files: Sequence[Reader]) -> list[Reader | None]:
    """Return the readers of the files that the image names, in its order; ``None`` for one not granted.

    ``args["parts"]`` holds a file number or ``None`` for each.
    """
    rows = args.get("parts")
    if not isinstance(rows, list):
        return []
    return [files[row] if isinstance(row, int) and 0 < row < len(files) else None for row in rows]


def generation_of(args: dict[str, Wire]) -> tuple[int, int]:
    """Return the qemu-img version whose behaviour is asked for."""
    return take(args, "major", int), take(args, "minor", int)


def run(args: dict[str, Wire], files: Sequence[Reader], ask: Ask) -> Wire:
    """Return ``ImageFacts`` as a wire value."""
    row = choose(files[0], take_optional(args, "format", str))
    try:
        facts = module(row.name, "parse").info(files[0], parts_of(args, files), generation=generation_of(args))
    except ImageError as error:
        error.format = error.format or row.name
        raise
    value: Wire = facts.to_wire()
    return value
