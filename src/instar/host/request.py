"""The words of a ``create``: which options there are, and what a caller asked for. Opens nothing.

Law: the order in which faults are found is qemu-img's. Whatever is wrong with the words is an ``OptionError``.
"""

from __future__ import annotations

import sys

from instar.core.errors import OptionError, printable
from instar.core.options import Option, Settings, read_settings
from instar.core.units import INT64_MAX, parse_size
from instar.formats import creatable, find
from instar.host.names import protocol_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from instar.core.options import Value
    from instar.core.plan import Backing
    from instar.formats import Format

_MiB = 1 << 20

#: What every format takes besides its own options: how the file itself is made.
FILE_OPTIONS = (
    Option(
        "nocow",
        "bool",
        "Turn off copy-on-write (valid only on btrfs)",
        note="sets FS_NOCOW_FL; without effect elsewhere",
    ),
    Option(
        "preallocation",
        "choice",
        "Preallocation mode (allowed values: off, falloc, full)",
        default="off",
        choices=("off", "falloc", "full"),
        note="falloc reserves space; full reserves it and makes it zero",
    ),
    Option(
        "extent_size_hint",
        "size",
        "Extent size hint for the image file, 0 to disable",
        default=_MiB,
        note="below 4 GiB; XFS allocates in steps of this size",
    ),
)
NOCOW, _PREALLOCATION, EXTENT_SIZE_HINT = FILE_OPTIONS


class Request:
    """A ``create`` whose words have been read: what to make, not yet judged by the format's own rules.

    Attributes:
        path: the target as typed.
        row: the format. ``rows``: its options and the file's.
        settings: what was given, backing file included. ``size``: bytes asked for.
        backing: what is known of the backing file, ``None`` without one.
    """

    __slots__ = ("backing", "path", "row", "rows", "settings", "size")

    def __init__(self, path: str, row: Format, rows: tuple[Option, ...], settings: Settings) -> None:
        self.path = path
        self.row = row
        self.rows = rows
        self.settings = settings
        self.size = 0
        self.backing: Backing | None = None


def option_rows(format_name: str, *, with_file: bool = True) -> tuple[Option, ...]:
    """Return the options that a format takes, in qemu-img's order, with those of the file itself behind them."""
    own: tuple[Option, ...] = _options_module(format_name).CREATE
    if not with_file:
        return own
    names = {row.name for row in own}
    return own + tuple(row for row in FILE_OPTIONS if row.name not in names)


def _options_module(format_name: str) -> ModuleType:
    name = f"instar.formats.{format_name}.options"
    __import__(name)
    return sys.modules[name]


def find_creatable(name: str, *, aliases: bool = True) -> Format:
    """Return the row of a format that can be created.

    Raises:
        OptionError: ``unknown-format``, ``format-not-creatable``; names those that can.
    """
    row = find(name, aliases=aliases)
    known = ", ".join(sorted(n for f in creatable() for n in (f.name, *(f.aliases if aliases else ()))))
    if row is None:
        raise OptionError("unknown-format", f"there is no format '{name}'; instar creates {known}", format=name)
    if not row.creatable:
        raise OptionError(
            "format-not-creatable", f"format '{name}' cannot be created; instar creates {known}", format=name
        )
    return row


def read_request(
    path: str,
    format: str,
    pairs: Iterable[tuple[str, str | None]],
    *,
    backing: str | None,
    backing_format: str | None,
    size: int | None,
    as_qemu: bool,
) -> Request:
    """Read the words of a ``create``: steps 4 to 9 of qemu-img's order. Opens nothing.

    Raises:
        OptionError: what is wrong with the words.
    """
    row = find_creatable(format, aliases=not as_qemu)
    protocol = protocol_of(path)
    if protocol not in (None, "file"):
        raise OptionError(
            "unknown-protocol",
            f"'{printable(path)}' names protocol '{protocol}', and instar makes plain files;"
            f" for a file of that name write './{printable(path)}'",
            protocol=protocol,
        )
    rows = tuple(r for r in option_rows(row.name) if not (as_qemu and r.extension))
    settings = read_settings(rows, pairs, format=row.name, no_is_off=as_qemu)
    table = {r.name: r for r in rows}
    if size is not None:
        if "size" in settings.values:
            raise OptionError("size-twice", "the size is given twice, as SIZE and as -o size=; give it once")
        settings.raw["size"], settings.values["size"] = str(size), size
    if backing is not None:
        if "backing_file" not in table:
            those = ", ".join(f.name for f in creatable() if f.backing is not None)
            raise OptionError(
                "no-backing",
                f"format {row.name} has no backing files; those that have: {those}",
                format=row.name,
            )
        settings.set(table["backing_file"], backing)
    if backing_format is not None:
        other = find(backing_format, aliases=not as_qemu)
        # An image records the name that qemu-img knows.
        backing_format = backing_format if other is None else other.name
        if "backing_fmt" not in table:
            raise OptionError("no-backing-format", f"format {row.name} records no backing format", format=row.name)
        settings.set(table["backing_fmt"], backing_format)
    return Request(path, row, rows, settings)


def judge(request: Request, as_qemu: bool) -> dict[str, Value]:
    """Apply the format's own rules, and those of the file."""
    settings = request.settings
    own = {r.name for r in option_rows(request.row.name, with_file=False)}
    if "preallocation" not in own:
        value = settings.values.get("preallocation")
        if value == "metadata":
            raise OptionError(
                "unsupported-preallocation", "preallocation=metadata has no meaning for this format", value=value
            )
        mode = file_preallocation(settings)
        if mode != "off" and request.row.name != "raw" and not as_qemu:
            raise OptionError(
                "preallocation-without-effect",
                f"preallocation={mode} has no effect on format {request.row.name}, so it is refused; leave it out",
                format=request.row.name,
                value=mode,
            )
    if settings.number(EXTENT_SIZE_HINT) > 0xFFFFFFFF:
        raise OptionError("extent-size-hint-too-large", "extent_size_hint is too large; it must be below 4 GiB")
    resolve = _options_module(request.row.name).resolve
    options: dict[str, Value] = resolve(request.size, settings, request.backing)
    return options


def file_preallocation(settings: Settings) -> str:
    """Return the mode in which the file itself is to be preallocated.

    Raises:
        OptionError: ``bad-file-choice``.
    """
    try:
        return _PREALLOCATION.pick(settings.values.get("preallocation"))
    except OptionError as error:
        raise OptionError("bad-file-choice", error.detail, **error.values) from None


def as_pairs(options: Mapping[str, object] | Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Turn a caller's options into pairs as typed."""
    items = getattr(options, "items", None)
    if items is None:
        return list(options)  # type: ignore[arg-type]
    return [(key, ("on" if value else "off") if isinstance(value, bool) else str(value)) for key, value in items()]


def read_size(size: int | str | None) -> int | None:
    """Return a size in bytes, from a number or from text with a suffix.

    Raises:
        OptionError: ``bad-image-size``, ``image-size-out-of-range``.
    """
    if size is None:
        return None
    try:
        value = parse_size(size) if isinstance(size, str) else int(size)
    except ValueError:
        raise OptionError(
            "bad-image-size",
            f"'{size}' is not a size; write a number with an optional suffix b, k, M, G, T, P or E",
            value=size,
        ) from None
    if not 0 <= value <= INT64_MAX:
        raise OptionError(
            "image-size-out-of-range",
            f"size {size} is out of range; it is at least 0 and at most {INT64_MAX}",
            value=str(size),
        )
    return value
