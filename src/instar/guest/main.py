"""The one door into a cell: a job comes in as bytes, a reply goes out as bytes, whatever happens in between.

Law: ``main`` never raises. What went wrong travels as facts; the host writes the words.
"""

from __future__ import annotations

import sys

from instar.core.errors import MAX_DETAIL, ImageError, OptionError
from instar.core.wire import WireError, decode, encode, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile

    Ask = Callable[[Wire], Wire]

#: Operation -> module. Each has ``preload(args)`` and ``run(args, files, ask) -> Wire``.
OPERATIONS = {
    "create": "instar.guest.create",
    "create-many": "instar.guest.create_many",
    "info": "instar.guest.info",
    "check": "instar.guest.check",
}

#: Options that need a library for encryption.
_HEAVY_OPTIONS = ("key-secret", "encrypt.format")

#: Said when there is no memory left to say anything else.
_NO_MEMORY = encode({"error": {"class": "limit", "detail": "the cell ran out of memory"}})


def _load(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def preload(job: bytes) -> None:
    """Import all that a job will need. Called before the walls close: inside, no file can be opened.

    Raises:
        WireError: the job is malformed (the host made it, so this is a fault of instar).
    """
    value = decode(job)
    args = take(value, "args", dict)
    _load(OPERATIONS[take(value, "op", str)]).preload(args)


def heavy_part(job: bytes) -> bytes | None:
    """Return a job whose ``preload`` imports what ``preload_all`` leaves out and ``job`` needs, ``None`` if nothing.

    That is for libraries that would make every cell larger. What is returned names nothing but options: no secret.

    Raises:
        WireError: as ``preload``.
    """
    value = decode(job)
    args = take(value, "args", dict)
    options = args.get("options")
    if take(value, "op", str) != "create" or not isinstance(options, dict):
        return None
    kept = {key: options[key] for key in _HEAVY_OPTIONS if options.get(key)}
    if not kept:
        return None
    return encode({"op": "create", "args": {"format": args.get("format"), "size": 0, "options": kept}})


def preload_all() -> None:
    """Import all that any job may need, but for ``heavy_part``. For who starts cells before the jobs are known."""
    for name in OPERATIONS.values():
        _load(name).preload({"format": None})


def main(job: bytes, files: Sequence[GrantedFile], ask: Ask) -> bytes:
    """Run one job and return its reply: ``{"ok": value}`` or ``{"error": facts}``, encoded."""
    try:
        return encode({"ok": _run(job, files, ask)})
    except MemoryError:
        return _NO_MEMORY
    except Exception as error:
        facts = facts_of(error)
    try:
        return encode({"error": facts})
    except MemoryError:
        return _NO_MEMORY


def facts_of(error: Exception) -> dict[str, Wire]:
    """Return what went wrong as values that the host makes words of."""
    if isinstance(error, ImageError):
        return _image_error(error)
    if isinstance(error, OptionError):  # a planner's last word on what was asked for
        values: dict[str, Wire] = {k: v for k, v in error.values.items() if isinstance(v, (int, str))}
        return {"class": "option", "code": error.code, "detail": _text(error.detail), "values": values}
    if isinstance(error, OSError):
        file = error.filename if isinstance(error.filename, int) else None  # see ``GrantedFile``
        return {"class": "os", "errno": error.errno or 0, "file": file}
    return {"class": "internal", "detail": _describe(error)}


def _run(job: bytes, files: Sequence[GrantedFile], ask: Ask) -> Wire:
    value = decode(job)
    operation = OPERATIONS.get(take(value, "op", str))
    if operation is None:
        raise WireError("no such operation")
    result: Wire = _load(operation).run(take(value, "args", dict), files, ask)
    return result


def _image_error(error: ImageError) -> dict[str, Wire]:
    def number(value: int | None) -> int | None:
        return value if value is None or -(1 << 63) <= value < 1 << 65 else None

    return {
        "class": "image",
        "kind": error.kind,
        "structure": _text(error.structure),
        "detail": _text(error.detail),
        "field": None if error.field is None else _text(error.field),
        "offset": number(error.offset),
        "value": number(error.value),
        "limit": number(error.limit),
        "expected": number(error.expected),
        "format": None if error.format is None else _text(error.format),
    }


def _describe(error: Exception) -> str:
    """Say what an unforeseen exception was and where, without modules that would open files."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace is not None else "?"
    return _text(f"{type(error).__name__}: {error} ({place})")


def _text(text: str) -> str:
    """Cap a text and make it one that can be encoded: a surrogate that stands for no byte becomes a ``?``."""
    return "".join("?" if "\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" else c for c in text[:MAX_DETAIL])
