"""What a cell may answer and ask, by operation; all that comes out of one is compared with this before it is used.

Law: nothing unknown passes, so code behind this door may take values for what they are declared to be. Texts are still
those of an image: they are escaped where they are shown.
"""

from __future__ import annotations

import sys

from instar.core.errors import IMAGE_KINDS, MAX_DETAIL
from instar.core.schema import by_key, choice, data, flag, mapping, number, optional, record, row, rows, text, word
from instar.core.units import INT64_MAX
from instar.core.wire import WireError
from instar.formats import TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from instar.core.schema import Check
    from instar.core.wire import Wire

#: linux/err.h
_MAX_ERRNO = 4095
#: Longest text that is the caller's own, come back: an option's value.
_MAX_OPTION = 1 << 16
#: Most files of one new image, writes of one image among many, and images of one reply; longest write.
_MAX_PARTS, _MAX_WRITES, _MAX_ROWS, _MAX_WRITE = 1 << 16, 1 << 16, 1 << 16, 1 << 20

#: The format of an image or of a fault: one that there is, also if it is known by sight alone.
_FORMAT = choice(*(known.name for known in TABLE))
_READABLE = choice(*(known.name for known in TABLE if known.readable))

# --- errors ---------------------------------------------------------------------------------------------------------

_NUMBER = optional(number((1 << 65) - 1, least=-(1 << 63)))
_DETAIL = text(MAX_DETAIL)
_WORD = optional(_DETAIL)
_KINDS: dict[str, Check] = {
    "os": record({"class": word(), "errno": number(_MAX_ERRNO, least=1)}, {"file": optional(number())}),
    "limit": record({"class": word(), "detail": _DETAIL}),
    "internal": record({"class": word(), "detail": _DETAIL}),
    "image": record(
        {"class": word(), "kind": choice(*IMAGE_KINDS), "structure": _DETAIL, "detail": _DETAIL},
        {
            "field": _WORD,
            "offset": _NUMBER,
            "value": _NUMBER,
            "limit": _NUMBER,
            "expected": _NUMBER,
            "format": optional(_FORMAT),
        },
    ),
}


def _option_value(value: Wire) -> None:
    if type(value) not in (bool, int):
        _OPTION_TEXT(value)


_OPTION_TEXT = text(_MAX_OPTION)
#: What is wrong with what the caller asked for, which a planner alone can tell.
_OPTION = record({"class": word(), "code": word(), "detail": _DETAIL, "values": mapping(word(), _option_value, 16)})
_ERROR = by_key("class", _KINDS)
_PLANNER_ERROR = by_key("class", {**_KINDS, "option": _OPTION})

# --- values ---------------------------------------------------------------------------------------------------------


def facts(value: Wire) -> None:
    """Check the facts of an image, as its format declares them (``formats.F.facts``)."""
    name = value.get("format") if isinstance(value, dict) else None
    _READABLE(name)
    module = f"instar.formats.{name!s}.facts"
    __import__(module)
    sys.modules[module].SHAPE(value)


_LENGTH = number(INT64_MAX)
_CREATED = record(
    {
        "virtual_size": _LENGTH,
        "unit": _LENGTH,
        "sizes": rows(_LENGTH, _MAX_PARTS, least=1),
        "metadata_bytes": _LENGTH,
    }
)
_WRITE = row(number(_MAX_PARTS), _LENGTH, number(_MAX_WRITE, least=1), data(_MAX_WRITE))


def _planned(value: Wire) -> None:
    """Check one image of many."""
    kind = next(iter(value)) if isinstance(value, dict) and value else None
    _PLANNED.get(kind, _NO_PLAN)(value)  # type: ignore[arg-type]


_NO_PLAN = choice()
_PLANNED: dict[str, Check] = {
    "ok": record({"ok": _CREATED, "writes": rows(_WRITE, _MAX_WRITES)}),
    "alone": record({"alone": flag}),
    "same": record({"same": flag}),
}


def _checked(value: Wire) -> None:
    """Check the facts of an image and what was found in it."""
    from instar.core.finding import REPORT  # which no other operation has

    record({"facts": facts, "report": optional(REPORT)})(value)


_VALUES: dict[str, Check] = {
    "info": facts,
    "check": _checked,
    "create": _CREATED,
    "create-many": rows(_planned, _MAX_ROWS),
}

# --- requests -------------------------------------------------------------------------------------------------------

_ANNOUNCE = by_key("do", {"format": record({"do": word(), "format": _READABLE})})
_REQUESTS: dict[str, Check] = {
    "info": _ANNOUNCE,
    "check": _ANNOUNCE,
    "create": by_key(
        "do",
        {
            "allocate": record(
                {
                    "do": word(),
                    "file": number(_MAX_PARTS),
                    "offset": _LENGTH,
                    "length": number(INT64_MAX, least=1),
                    "mode": choice("falloc", "full"),
                }
            ),
        },
    ),
}


def judge_reply(operation: str, value: Wire) -> dict[str, Any]:
    """Return a cell's reply, which has ``ok`` or ``error``, and nothing else.

    Raises:
        WireError: it is no reply to this operation.
    """
    error = _PLANNER_ERROR if operation == "create" else _ERROR
    if isinstance(value, dict) and len(value) == 1:
        if "ok" in value:
            _VALUES[operation](value["ok"])
            return value
        if "error" in value:
            error(value["error"])
            return value
    raise WireError("the reply is neither a value nor an error")


def judge_request(operation: str, asked: Wire) -> None:
    """Check what a cell asks for.

    Raises:
        WireError: it is nothing that a cell of this operation asks for.
    """
    check = _REQUESTS.get(operation)
    if check is None:
        raise WireError("a request that this operation does not serve")
    check(asked)
