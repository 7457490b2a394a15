"""Run one operation in a cell and turn its reply into a value or the right error.

Law: the reply is decoded strictly, in the room that the operation has left, and nothing of it is used that has not
the shape declared in ``replies``. Whatever a cell answers, it is at fault itself or its image is, never instar.
"""

from __future__ import annotations

import os

from instar.core.errors import (
    HostError,
    ImageError,
    InstarError,
    OptionError,
    SandboxError,
    printable,
)
from instar.core.wire import TooMuch, WireError, encode
from instar.host.budget import Budget
from instar.host.replies import judge_reply, judge_request
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Serve

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
    limits: Limits | Budget,
    path: str,
    serve: Serve = refuse,
) -> Wire:
    """Run ``operation`` in a cell and return its value, whose shape has been checked (``replies``).

    ``path`` is the file that errors are about. ``limits`` are what this cell may use; an operation with several cells
    gives its budget.

    Raises:
        ImageError: the image's bytes are at fault.
        HostError: the system refused a read or a write.
        OptionError: a planner's last word on what was asked for, of an operation that has one.
        SandboxError: the cell is at fault.
    """

    def judged(asked: Wire) -> Wire:
        judge_request(operation, asked)
        return serve(asked)

    budget = limits if isinstance(limits, Budget) else Budget(limits)
    try:
        reply = budget.run(isolation, encode({"op": operation, "args": args}), files, judged)
        value = judge_reply(operation, budget.decode(reply))
        if "ok" in value:
            return value["ok"]  # type: ignore[no-any-return]
        error = error_of(value["error"], path, budget.question, files)
    except TooMuch as fault:
        raise SandboxError("limit", f"the cell's reply cannot be kept: {fault}", path=path) from None
    except WireError as fault:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {fault}", path=path) from None
    except SandboxError as fault:
        fault.path = fault.path or path
        isolation.account_for(fault)
        raise
    raise error


def error_of(facts: dict[str, Any], path: str, limits: Limits, files: Sequence[Grant] = ()) -> InstarError:
    """Rebuild an error from what a cell with these files says; its shape has been checked."""
    kind = facts["class"]
    if kind == "os":
        number, file = facts["errno"], facts.get("file")
        if file is None or file >= len(files):
            return HostError(number, path, "read or write it", os.strerror(number))
        grant = files[file]
        return HostError(number, grant.name or path, _ACTIONS[grant.mode], os.strerror(number))
    detail = facts["detail"]
    if kind == "limit":
        return SandboxError("limit", f"{detail} (limit {limits.memory >> 20} MiB)", path=path)
    if kind == "internal":
        # Of a cell that was not taken over, a fault of instar; but any cell can say so.
        return SandboxError("died", f"what ran in the cell failed, please report it: {detail}", path=path)
    if kind == "option":
        error = OptionError(facts["code"], detail)
        error.values = facts["values"]  # not as arguments: their names are the cell's
        return error
    return ImageError(
        facts["kind"],
        _word(facts["structure"]) or "",
        detail,
        field=_word(facts.get("field")),
        offset=facts.get("offset"),
        value=facts.get("value"),
        limit=facts.get("limit"),
        expected=facts.get("expected"),
        format=facts.get("format"),
        path=path,
    )


def _word(text: str | None) -> str | None:
    return None if text is None else printable(text, _MAX_WORD)
