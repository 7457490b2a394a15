"""Describe an image: detect its format, parse it, say what it names. Files: 0 the image, then granted parts."""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import Elsewhere
from instar.core.wire import take, take_optional
from instar.guest.detect import choose, looks_like, module
from instar.guest.detect import preload as preload_formats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire
    from instar.formats import Format
    from instar.guest.main import Ask


def preload(args: dict[str, Wire]) -> None:
    """Import the parsers a job may need."""
    preload_formats(take_optional(args, "format", str), ("parse",))


def parts_of(args: dict[str, Wire], files: Sequence[Reader]) -> list[Reader | Elsewhere | None]:
    """Return the readers of the files that the image names, in its order; ``None`` for one not granted.

    ``args["parts"]`` holds for each a file number, ``None``, or a list of one member, which is ``Elsewhere.facts``.
    """
    rows = args.get("parts")
    if not isinstance(rows, list):
        return []
    found: list[Reader | Elsewhere | None] = []
    for row in rows:
        if isinstance(row, list):
            found.append(Elsewhere(row[0] if row else None))
        else:
            found.append(files[row] if isinstance(row, int) and 0 < row < len(files) else None)
    return found


def generation_of(args: dict[str, Wire]) -> tuple[int, int]:
    """Return the qemu-img version whose behaviour is asked for."""
    return take(args, "major", int), take(args, "minor", int)


def find_format(args: dict[str, Wire], image: Reader, ask: Ask) -> Format:
    """Return the row of the image's format; where the host wants to lock the image first, say it and wait.

    Raises:
        ImageError: as ``choose``.
    """
    row = choose(image, take_optional(args, "format", str), generation_of(args))
    if args.get("announce"):
        ask({"do": "format", "format": row.name})
    return row


def run(args: dict[str, Wire], files: Sequence[Reader], ask: Ask) -> Wire:
    """Return ``ImageFacts`` as a wire value.

    What was taken for raw because it is nothing else may still look like something, and so may, if the job asks to
    ``probe``, what is read in the format that it was said to have: ``extra["looks_like"]``.
    """
    row = find_format(args, files[0], ask)
    try:
        facts = module(row.name, "parse").info(files[0], parts_of(args, files), generation=generation_of(args))
    except ImageError as error:
        error.format = error.format or row.name
        raise
    if args.get("probe") or (row.name == "raw" and args.get("format") is None):
        word = looks_like(files[0], row.name, generation_of(args))
        if word is not None:
            facts.extra["looks_like"] = word
    value: Wire = facts.to_wire()
    return value
