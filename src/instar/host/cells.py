"""Run one operation in a cell and turn its reply into a value or the right error.

Law: the reply is decoded strictly and every fact in it is type-checked before use.
"""

from __future__ import annotations

import os

from instar.core.errors import (
    IMAGE_KINDS,
    MAX_DETAIL,
    HostError,
    ImageError,
    InstarError,
    InternalError,
    OptionError,
    SandboxError,
    printable,
)
from instar.core.wire import WireError, decode, encode, take, take_optional
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Serve

#: linux/err.h
_MAX_ERRNO = 4095
_ACTIONS = {"r": "read it", "w": "write it", "rw": "read or write it"}
#: Longest name of a structure, field or format.
_MAX_WORD = 80


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
        error = error_of(take(value, "error", dict), path, limits, files)
    except WireError as fault:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {fault}", path=path) from None
    except SandboxError as fault:
        fault.path = fault.path or path
        isolation.account_for(fault)
        raise
    raise error


def error_of(facts: dict[str, Wire], path: str, limits: Limits, files: Sequence[Grant] = ()) -> InstarError:
    """Rebuild an error from what a cell with these files says. Texts are capped: they may be as long as a reply.

    Raises:
        WireError: it says nothing that can be understood.
    """
    kind = take(facts, "class", str)
    if kind == "os":
        number = take(facts, "errno", int)
        if not 0 < number <= _MAX_ERRNO:
            raise WireError("an unknown error of the system")
        file = take_optional(facts, "file", int)
        if file is None or not 0 <= file < len(files):
            return HostError(number, path, "read or write it", os.strerror(number))
        grant = files[file]
        return HostError(number, grant.name or path, _ACTIONS[grant.mode], os.strerror(number))
    detail = take(facts, "detail", str)[:MAX_DETAIL]
    if kind == "limit":
        return SandboxError("limit", f"{detail} (limit {limits.memory >> 20} MiB)", path=path)
    if kind == "internal":
        return InternalError(detail)
    if kind == "option":
        error = OptionError(take(facts, "code", str), detail)
        error.values = take(facts, "values", dict)  # not as arguments: their names are the cell's
        return error
    reason = take(facts, "kind", str)
    if kind != "image" or reason not in IMAGE_KINDS:
        raise WireError("an unknown kind of error")
    return ImageError(
        reason,
        _word(take(facts, "structure", str)) or "",
        detail,
        field=_word(take_optional(facts, "field", str)),
        offset=take_optional(facts, "offset", int),
        value=take_optional(facts, "value", int),
        limit=take_optional(facts, "limit", int),
        format=_word(take_optional(facts, "format", str)),
        path=path,
    )


def _word(text: str | None) -> str | None:
    return None if text is None else printable(text, _MAX_WORD)
