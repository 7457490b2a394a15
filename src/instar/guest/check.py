"""Check an image's metadata. Files: 0 the image, then granted parts."""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.looks import advice
from instar.core.wire import take_optional
from instar.guest.detect import looks_like, module
from instar.guest.detect import preload as preload_formats
from instar.guest.info import find_format, generation_of, parts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.reader import Reader
    from instar.core.wire import Wire
    from instar.guest.main import Ask


def preload(args: dict[str, Wire]) -> None:
    """Import the checkers a job may need."""
    preload_formats(take_optional(args, "format", str), ("parse", "check"))


def run(args: dict[str, Wire], files: Sequence[Reader], ask: Ask) -> Wire:
    """Return the format's name, what the image cannot be checked without, and the ``Report``, as a wire value.

    What a check finds may be what keeps an image from being described, so only an image that may consist of
    several files is described first; while those have not been granted there is no report. Nor is there one of an
    image that knows its parent (``lineage``), until the host has granted that or said that it will not.
    """
    row = find_format(args, files[0], ask)
    parts = parts_of(args, files)
    facts = ImageFacts(row.name, 0)
    try:
        if row.many_files:
            facts = module(row.name, "parse").info(files[0], parts, generation=generation_of(args))
            if not parts and any(r.required for r in facts.references):
                return {"facts": facts.to_wire(), "report": None}
        lineage = getattr(module(row.name, "parse"), "lineage", None)
        if lineage is not None and not parts:
            parent = lineage(files[0], generation=generation_of(args))
            if parent is not None:
                facts.references.append(parent)
                return {"facts": facts.to_wire(), "report": None}
        report = module(row.name, "check").check(files[0], parts, generation=generation_of(args))
    except ImageError as error:
        error.format = error.format or row.name
        if row.name == "raw" and args.get("format") is None:
            hint = advice(looks_like(files[0], row.name, generation_of(args)))
            error.detail += "" if hint is None else f"; {hint}"
        raise
    return {"facts": facts.to_wire(), "report": report.to_wire()}
