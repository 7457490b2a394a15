"""Run one operation in a cell and turn its reply into a value or the right error.

Law: the reply is decoded strictly and every fact in it is type-checked before use.
"""

from __future__ import annotations

import os

from instar.core.errors import IMAGE_KINDS, HostError, ImageError, InternalError, SandboxError
from instar.core.wire import WireError, decode, encode, take, take_optional
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Serve


def refuse(request: Wire) -> Wire:
    """Serve nothing: the answer to any request of a cell that has none to make."""
    raise SandboxError("protocol", "the cell made a request that this operation does not serve")


def call(
    operation: str,
    args: dict[str, Wire],
    files: Sequence[Grant],
    *,
    isolation: Isolation,
    limits: Limits,
    path: str,
    serve: Serve = refuse,
) -> Wire:
    """Run ``operation`` in a cell and return its value. ``path`` is the file that errors are about.

    Raises:
        ImageError: the image's bytes are at fault.
        HostError: the system refused a read or a write.
        SandboxError: the cell is at fault.
        InternalError: instar is at fault.
    """
    try:
        reply = isolation.open().run(encode({"op": operation, "args": args}), files, limits, serve)
        value = decode(reply)
        if not isinstance(value, dict) or ("ok" in value) == ("error" in value):
            raise WireError("the reply is neither a value nor an error")
        if "ok" in value:
            return value["ok"]
        error = _error(take(value, "error", dict), path, limits)
    except WireError as fault:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {fault}", path=path) from None
    except SandboxError as fault:
        fault.path = fault.path or path
        raise
    raise error


def _error(facts: dict[str, Wire], path: str, limits: Limits) -> Exception:
    kind = take(facts, "class", str)
    if kind == "image":
        reason = take(facts, "kind", str)
        if reason not in IMAGE_KINDS:
            raise WireError("an unknown kind of error")
        return ImageError(
            reason,
            take(facts, "structure", str),
            take(facts, "detail", str),
            field=take_optional(facts, "field", str),
            offset=take_optional(facts, "offset", int),
            value=take_optional(facts, "value", int),
            limit=take_optional(facts, "limit", int),
            format=take_optional(facts, "format", str),
            path=path,
        )
    if kind == "os":
        number = take(facts, "errno", int)
        return HostError(number, path, "read or write it", os.strerror(number))
    if kind == "limit":
        megabytes = limits.memory >> 20
        return SandboxError("limit", f"{take(facts, 'detail', str)} (limit {megabytes} MiB)", path=path)
    return InternalError(take(facts, "detail", str))
