"""Make an image: run the format's planner and write its plan. The host does what needs more rights.

A cell has only so many files. Of an image of more, each of several jobs, with the same seed and so the same plan,
writes some: ``files`` are the numbers that the plan has for those that were granted.

Requests made of the host: ``{"do": "allocate", "file", "offset", "length", "mode"}``, once for a range.
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
            planner = f"instar.formats.{row.name}.plan"
            __import__(planner)
            # What a planner imports only for some options.
            if isinstance(options, dict) and (wish := getattr(sys.modules[planner], "preload", None)):
                wish(options)


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
            identity=take_optional(named, "identity", bytes),
            modified=take(named, "modified", int),
            relative=take(named, "relative", str),
            absolute=take(named, "absolute", str),
        )
    return Seed(
        entropy=take(args, "entropy", bytes),
        time=take(args, "time", int),
        file_name=take(args, "file_name", str),
        backing=backing,
        secret=take_optional(args, "secret", bytes),
        pbkdf_rate=take(args, "pbkdf_rate", int),
    )


def plan_of(args: dict[str, Wire], seed: Seed) -> Plan:
    """Return the plan that a job asks for.

    Raises:
        OptionError: as the planner says. ImageError: ``too-large``, a file would be longer than the host allows.
    """
    planner = sys.modules[f"instar.formats.{take(args, 'format', str)}.plan"]
    plan: Plan = planner.create(take_size(args, "size"), take(args, "options", dict), seed)
    for size, limit in zip(plan.sizes, take(args, "file_bytes", list), strict=True):
        if size > limit:
            raise ImageError("too-large", "image", "the image file would be too large", value=size, limit=limit)
    return plan


def totals(plan: Plan, written: int) -> dict[str, Wire]:
    """Return what a host is told of an image whose planned bytes have been ``written``."""
    return {
        "virtual_size": plan.virtual_size,
        "unit": plan.unit,
        "sizes": list(plan.sizes),
        "metadata_bytes": written,
    }


def run(args: dict[str, Wire], files: Sequence[GrantedFile], ask: Ask) -> Wire:
    """Write the image; return its totals."""
    plan = plan_of(args, seed_of(args))
    targets = dict(zip(take(args, "files", list), files, strict=True))
    written = 0
    for item in plan.items:
        target = targets.get(item.file)
        if target is None:
            continue
        if not isinstance(item, Allocate):
            for offset, data in item.pieces():
                target.write(offset, data)
                written += len(data)
        elif item.length:
            ask({"do": "allocate", "file": item.file, "offset": item.offset, "length": item.length, "mode": item.mode})
    return totals(plan, written)
