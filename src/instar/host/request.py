"""The words of a ``create``: which options there are, and what a caller asked for. Opens nothing.

Law: the order in which faults are found is qemu-img's. Whatever is wrong with the words is an ``OptionError``.
"""

from __future__ import annotations

import sys

from instar.core import NEWEST
from instar.core.errors import OptionError, plain_file_hint, printable
from instar.core.options import Option, Settings, read_settings
from instar.core.units import INT64_MAX, parse_size
from instar.formats import creatable, find
from instar.host.arguments import options_of, size_of
from instar.host.names import protocol_of, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from instar.core.errors import HostError
    from instar.core.options import Value
    from instar.core.plan import Backing, Bound, Companion
    from instar.formats import Format
    from instar.host.arguments import Options
    from instar.host.chain import Behind

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
        backing: what is known of the backing file, ``None`` without one. behind: what that names, if it was opened.
        backing_looks_like: what it looks like if not the format that it was said to have, a word of ``core.looks``.
        parent_in_use: why its content ID cannot be relied on; qemu-img finds that out when it writes the image.
    """

    __slots__ = ("backing", "backing_looks_like", "behind", "parent_in_use", "path", "row", "rows", "settings", "size")

    def __init__(self, path: str, row: Format, rows: tuple[Option, ...], settings: Settings) -> None:
        self.path = path
        self.row = row
        self.rows = rows
        self.settings = settings
        self.size = 0
        self.backing: Backing | None = None
        self.behind: Behind | None = None
        self.backing_looks_like: str | None = None
        self.parent_in_use: HostError | None = None


def option_rows(format_name: str, *, with_file: bool = True, as_qemu: bool = False) -> tuple[Option, ...]:
    """Return the options that a format takes, in qemu-img's order, with those of the file itself behind them.

    With ``as_qemu`` only those that qemu-img has: an extension may bear the name of an option of the file, which it
    gives a meaning for the format.
    """
    own: tuple[Option, ...] = _options_module(format_name).CREATE
    if as_qemu:
        own = tuple(row for row in own if not row.extension)
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
        from instar.core.drivers import CANNOT_CREATE

        if name in CANNOT_CREATE:
            raise OptionError("format-not-creatable", f"'{name}' is no format of images", format=name)
        raise OptionError("unknown-format", f"there is no format '{name}'; instar creates {known}", format=name)
    if not row.creatable:
        raise OptionError(
            "format-not-creatable", f"format '{name}' cannot be created; instar creates {known}", format=name
        )
    return row


def refuse_protocol(path: str) -> None:
    """Judge the name of the target.

    Raises:
        OptionError: ``unknown-protocol``, ``protocol-unsupported``, ``protocol-not-creatable``.
    """
    protocol = protocol_of(path)
    if protocol not in (None, "file"):
        from instar.core.drivers import CANNOT_CREATE, PROTOCOLS

        driver = PROTOCOLS.get(protocol)
        code = "unknown-protocol"
        if driver is not None:
            code = "protocol-not-creatable" if driver in CANNOT_CREATE else "protocol-unsupported"
        raise OptionError(
            code,
            f"'{printable(path)}' names protocol '{protocol}', and instar makes plain files" + plain_file_hint(path),
            protocol=driver or protocol,
        )


def read_request(
    path: str,
    format: str,
    pairs: Iterable[tuple[str, str | None]],
    *,
    backing: str | None,
    backing_format: str | None,
    size: int | None,
    as_qemu: bool,
    generation: tuple[int, int] = NEWEST,
    warn: Callable[[str], None] | None = None,
) -> Request:
    """Read the words of a ``create``: steps 4 to 9 of qemu-img's order. Opens nothing.

    Raises:
        OptionError: what is wrong with the words.
    """
    row = find_creatable(format, aliases=not as_qemu)
    refuse_protocol(path)
    rows = tuple(r for r in option_rows(row.name, as_qemu=as_qemu) if not as_qemu or r.since <= generation)
    settings = read_settings(
        rows,
        pairs,
        format=row.name,
        no_is_off=as_qemu,
        generation=generation if as_qemu else NEWEST,
        warn=warn if as_qemu else None,
    )
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
    own = {r.name for r in option_rows(request.row.name, with_file=False, as_qemu=as_qemu)}
    # LUKS gives the file's own row an effect.
    if "preallocation" not in own and not getattr(_options_module(request.row.name), "JUDGES_PREALLOCATION", False):
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
        # What is the file's is not the format's.
        settings = _without(settings, "preallocation")
    if settings.number(EXTENT_SIZE_HINT) > 0xFFFFFFFF:
        raise OptionError("extent-size-hint-too-large", "extent_size_hint is too large; it must be below 4 GiB")
    resolve = _options_module(request.row.name).resolve
    options: dict[str, Value] = resolve(request.size, settings, request.backing)
    return options


def needs_size(request: Request) -> bool:
    """Tell whether the image has a disk at all (a detached header has none)."""
    ask = getattr(_options_module(request.row.name), "needs_size", None)
    return ask is None or bool(ask(request.settings))


def _without(settings: Settings, name: str) -> Settings:
    left = Settings()
    left.raw = {key: text for key, text in settings.raw.items() if key != name}
    left.values = {key: value for key, value in settings.values.items() if key != name}
    return left


def companions_of(request: Request, options: Mapping[str, Value]) -> tuple[Companion, ...]:
    """Return the files that the image consists of besides its own; ``options`` are ``judge``'s."""
    find_them = getattr(_options_module(request.row.name), "companions", None)
    if find_them is None:
        return ()
    name = strip_file_protocol(request.path).rpartition("/")[2]
    found: tuple[Companion, ...] = find_them(request.size, options, name)
    return found


def bounds_of(request: Request, options: Mapping[str, Value]) -> list[Bound]:
    """Return what each file of the image can need at most, itself first; ``options`` are ``judge``'s."""
    find_them = _options_module(request.row.name).bounds
    found: list[Bound] = list(find_them(request.size, options, request.backing))
    for bound in found:
        bound.length = min(bound.length, INT64_MAX)
    return found


def file_preallocation(settings: Settings) -> str:
    """Return the mode in which the file itself is to be preallocated.

    Raises:
        OptionError: ``bad-file-choice``.
    """
    try:
        return _PREALLOCATION.pick(settings.values.get("preallocation"))
    except OptionError as error:
        raise OptionError("bad-file-choice", error.detail, **error.values) from None


def as_pairs(options: Options | Mapping[str, object]) -> list[tuple[str, str | None]]:
    """Turn a caller's options into pairs as typed.

    Raises:
        OptionError: ``bad-options``; ``option-text``, a value has characters that no file and no image can hold (lone
            surrogates).
    """
    pairs = options_of(options)
    for key, text in pairs:
        try:
            (text or "").encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            shown = printable(text or "", 200)
            detail = f"the value of option '{printable(key)}' cannot be written as UTF-8: '{shown}'"
            raise OptionError("option-text", detail, key=key, value=text) from None
    return pairs


def read_size(size: int | str | None, generation: tuple[int, int] = NEWEST) -> int | None:
    """Return a size in bytes, from a number or from text with a suffix, as that version of qemu-img reads it.

    Raises:
        OptionError: ``bad-image-size``, ``image-size-out-of-range``.
    """
    size = size_of(size)
    if size is None:
        return None
    try:
        value = parse_size(size, generation) if isinstance(size, str) else size
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
