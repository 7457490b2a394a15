"""Make an image: run the format's planner and write its plan to file 0. The host does what needs more rights.

Requests made of the host: ``{"do": "allocate", "offset", "length", "mode"}`` and ``{"do": "progress", …}``.
"""

from __future__ import annotations

import sys

from instar.core.errors import ImageError
from instar.core.plan import Allocate, Backing, Seed
from instar.core.wire import take, take_optional, take_size
from instar.formats import creatable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.plan import Plan
    from instar.core.wire import Wire
    from instar.guest.main import Ask
    from instar.sandbox.files import GrantedFile

#: From this size on a disk's tables are long enough that faster packing pays for its import.
_LARGE = 64 << 30

#: Bytes between two progress requests.
PROGRESS_STEP = 16 << 20


def preload(args: dict[str, Wire]) -> None:
    """Import the planner a job needs, or all of them."""
    name = take_optional(args, "format", str)
    options = args.get("options")
    if (
        not isinstance(options, dict)
        or options.get("preallocation", "off") != "off"
        or take_size(args, "size") >= _LARGE
    ):
        __import__("array")
    for row in creatable():
        if row.name != "raw" and name in (None, row.name):
            __import__(f"instar.formats.{row.name}.plan")


def seed_of(args: dict[str, Wire]) -> Seed:
    """Rebuild the planner's seed from a job."""
    named = args.get("backing")
    backing = None
    if isinstance(named, dict):
        backing = Backing(
            take(named, "name", str),
            take_optional(named, "format", str),
            virtual_size=take_optional(named, "virtual_size", int),
            content_id=take_optional(named, "content_id", int),
        )
    return Seed(
        entropy=take(args, "entropy", bytes),
        time=take(args, "time", int),
        file_name=take(args, "file_name", str),
        backing=backing,
    )


def run(args: dict[str, Wire], files: Sequence[GrantedFile], ask: Ask) -> Wire:
    """Write the image; return its totals."""
    planner = sys.modules[f"instar.formats.{take(args, 'format', str)}.plan"]
    plan: Plan = planner.create(take_size(args, "size"), take(args, "options", dict), seed_of(args))
    file_bytes = take_size(args, "file_bytes")
    if any(size > file_bytes for size in plan.sizes):
        raise ImageError(
            "too-large", "image", "the image file would be too large", value=max(plan.sizes), limit=file_bytes
        )
    written = 0
    told = 0
    for item in plan.items:
        if isinstance(item, Allocate):
            ask({"do": "allocate", "file": item.file, "offset": item.offset, "length": item.length, "mode": item.mode})
            continue
        target = files[item.file]
        for offset, data in item.pieces():
            target.write(offset, data)
            written += len(data)
            if written - told >= PROGRESS_STEP:
                told = written
                ask({"do": "progress", "done": written})
    return {
        "virtual_size": plan.virtual_size,
        "unit": plan.unit,
        "unit_name": plan.unit_name,
        "sizes": list(plan.sizes),
        "metadata_bytes": written,
    }
