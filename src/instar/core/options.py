"""Options, declared once: the rows that drive parsing, validation, help, JSON and documentation.

Law: a row is data. Reading what a person typed happens in two steps, as in qemu-img: first the syntax of
each value by its row's type (here), then the format's own rules between values (``formats/*/options.py``).
"""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import OptionError
from instar.core.keyval import take_key, take_value
from instar.core.units import INT64_MAX, UINT64_MAX, parse_size, warns_of_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Value = int | bool | str

#: The closed list of option types. ``choice`` is a ``str`` whose values are named.
TYPES = ("size", "num", "bool", "str", "choice")
_TYPE_WORDS = {"size": "size", "num": "num", "bool": "bool (on/off)", "str": "str", "choice": "str"}
#: What can be taken of an image's space in advance.
PREALLOCATION = ("off", "metadata", "falloc", "full")
#: More digits than any number has.
_MOST_DIGITS = 400
#: The C library of this version of qemu-img, and of those after it, also reads binary numbers.
_BINARY = (10, 0)
_TRUE = ("on", "yes", "true", "y")
_FALSE = ("off", "no", "false", "n")


class Option:
    """One creation option.

    Attributes:
        name: the key a person types.
        type: one of ``TYPES``.
        help: one line, in qemu-img's own words where it has the option (``-o help`` prints it).
        default: the value used when the option is not given; ``None`` if there is none.
        shown: the default as qemu-img prints it in its ``Formatting`` line even when not given, or ``None``.
        choices: accepted values of a ``choice``, the canonical ones first.
        aliases: other spellings of a choice, mapped to the canonical one.
        qapi: the name qemu-img uses in messages about a bad choice, if it differs from ``name``.
        since: first qemu-img version that has it, ``(major, minor)``.
        extension: an option of ours that qemu-img does not have.
        note: range and meaning, for the reference page.
    """

    __slots__ = ("aliases", "choices", "default", "extension", "help", "name", "note", "qapi", "shown", "since", "type")

    def __init__(
        self,
        name: str,
        type: str,
        help: str,
        *,
        default: Value | None = None,
        shown: str | None = None,
        choices: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        qapi: str | None = None,
        since: tuple[int, int] = (0, 0),
        extension: bool = False,
        note: str = "",
    ) -> None:
        self.name = name
        self.type = type
        self.help = help
        self.default = default
        self.shown = shown
        self.choices = tuple(choices)
        self.aliases = dict(aliases or {})
        self.qapi = qapi or name
        self.since = since
        self.extension = extension
        self.note = note

    def parse(self, text: str, generation: tuple[int, int] = NEWEST) -> Value:
        """Read a value as typed. Choices are not judged here, see ``pick``.

        ``generation`` is the qemu-img version whose notation of numbers is wanted.

        Raises:
            OptionError: ``bad-size``, ``size-out-of-range``, ``bad-number``, ``number-too-large``, ``bad-bool``.
        """
        if self.type == "bool":
            if text in _TRUE:
                return True
            if text in _FALSE:
                return False
            raise OptionError("bad-bool", f"option '{self.name}' is on or off, not '{text}'", key=self.name, value=text)
        if self.type == "size":
            try:
                size = parse_size(text, generation)
            except ValueError:
                raise OptionError(
                    "bad-size",
                    f"option '{self.name}': '{text}' is not a size;"
                    " write a number with an optional suffix b, k, M, G, T, P or E",
                    key=self.name,
                    value=text,
                ) from None
            if not 0 <= size <= UINT64_MAX:
                raise OptionError(
                    "size-out-of-range", f"option '{self.name}': {text} is out of range", key=self.name, value=text
                )
            return size
        if self.type == "num":
            try:
                number = _c_integer(text, binary=generation >= _BINARY)
            except ValueError:
                raise OptionError(
                    "bad-number", f"option '{self.name}': '{text}' is not a whole number", key=self.name, value=text
                ) from None
            if abs(number) > UINT64_MAX:
                raise OptionError(
                    "number-too-large", f"option '{self.name}': {text} is too large", key=self.name, value=text
                )
            return number & UINT64_MAX
        return text

    def pick(self, value: Value | None) -> str:
        """Return the canonical choice for ``value`` (``None`` gives the default).

        Raises:
            OptionError: ``bad-choice``; names what is accepted.
        """
        if value is None:
            value = self.default
        value = self.aliases.get(str(value), str(value))
        if value not in self.choices:
            raise OptionError(
                "bad-choice",
                f"option '{self.name}' does not accept '{value}'; it takes {', '.join([*self.choices, *self.aliases])}",
                key=self.name,
                qapi=self.qapi,
                value=value,
            )
        return value

    def help_line(self) -> str:
        """Return the row as qemu-img's ``-o help`` prints it, without the line's end."""
        return f"{f'  {self.name}=<{_TYPE_WORDS[self.type]}>':<24} - {self.help}"

    def describe(self) -> dict[str, object]:
        """Return the row as JSON-able values."""
        row: dict[str, object] = {"name": self.name, "type": self.type, "help": self.help, "default": self.default}
        if self.choices:
            row["choices"] = [*self.choices, *self.aliases]
        if self.note:
            row["note"] = self.note
        row["extension"] = self.extension
        return row


class Settings:
    """What a person asked for: per key the text as typed and the value read from it, in table order."""

    __slots__ = ("raw", "values")

    def __init__(self) -> None:
        self.raw: dict[str, str] = {}
        self.values: dict[str, Value] = {}

    def set(self, option: Option, text: str, generation: tuple[int, int] = NEWEST) -> None:
        """Take a value as typed; the last one of a key counts."""
        self.values[option.name] = option.parse(text, generation)
        self.raw[option.name] = text

    def get(self, option: Option) -> Value | None:
        """Return the value given, else the row's default."""
        return self.values.get(option.name, option.default)

    def number(self, option: Option) -> int:
        """Return a ``size`` or ``num`` option's value or default, which must exist.

        Raises:
            OptionError: ``bad-integer``, a ``num`` is larger than formats have room for (2^63 - 1).
        """
        value = self.get(option)
        if not isinstance(value, int):
            raise TypeError(option.name)
        if option.type == "num" and option.name in self.raw and not _fits_int64(self.raw[option.name], value):
            qapi = option.qapi if option.qapi != option.name else option.name.replace("_", "-")
            raise OptionError(
                "bad-integer", f"option '{option.name}': {value} is too large", key=option.name, qapi=qapi
            )
        return int(value)

    def flag(self, option: Option) -> bool:
        """Return a ``bool`` option's value or default (none counts as off)."""
        return bool(self.get(option))

    def text(self, option: Option) -> str | None:
        """Return a ``str`` option's value or default."""
        value = self.get(option)
        return None if value is None else str(value)


def _fits_int64(text: str, value: int) -> bool:
    """Tell whether a number, before it was taken modulo 2^64, is a signed one of 64 bits."""
    if "-" not in text:
        return value <= INT64_MAX
    try:
        return _c_integer(text, binary=True) >= -INT64_MAX - 1
    except ValueError:
        return False


def _c_integer(text: str, *, binary: bool) -> int:
    """Read an integer as C's ``strtoull(…, 0)``: decimal, ``0x`` hexadecimal, ``0`` octal; newer: ``0b``."""
    body = text.lstrip(" \t\n\v\f\r")
    sign = -1 if body.startswith("-") else 1
    body = body[1:] if body[:1] in ("+", "-") else body
    if not (body.isascii() and body.isalnum()) or len(body) > _MOST_DIGITS:
        raise ValueError(text)
    if body[:2].lower() == "0x":
        return sign * int(body[2:], 16)
    if body[:2].lower() == "0b" and binary:
        return sign * int(body[2:], 2)
    if body[0] == "0" and len(body) > 1:
        return sign * int(body[1:], 8)
    return sign * int(body, 10)


def split_list(text: str) -> list[tuple[str, str | None]]:
    """Split one ``-o`` argument into ``(key, value)``; a bare key has the value ``None``.

    ``,,`` inside a value stands for one comma; in a key it does not.

    Raises:
        OptionError: ``bad-option-list``, the list is empty or has an empty member at an end.
    """
    judge_list(text)
    return split_pairs(text)


def judge_list(text: str) -> None:
    """Judge the shape of one ``-o`` argument.

    Raises:
        OptionError: ``bad-option-list``.
    """
    trailing = len(text) - len(text.rstrip(","))
    if not text or text.startswith(",") or trailing % 2:
        raise OptionError("bad-option-list", f"'{text}' is not a list of KEY=VALUE, separated by commas", value=text)


def split_pairs(text: str) -> list[tuple[str, str | None]]:
    """Split one or several lists, joined by commas, whose shape has been judged."""
    pairs: list[tuple[str, str | None]] = []
    at = 0
    while at < len(text):
        key, at = take_key(text, at)
        value: str | None = None
        if text[at : at + 1] == "=":
            value, at = take_value(text, at + 1)
        pairs.append((key, value))
        at += 1
    return pairs


def asks_help(pairs: Iterable[tuple[str, str | None]]) -> bool:
    """Tell whether ``help`` or ``?`` stands alone anywhere in the list."""
    return any(value is None and key in ("help", "?") for key, value in pairs)


def read_settings(
    rows: Sequence[Option],
    pairs: Iterable[tuple[str, str | None]],
    *,
    format: str,
    no_is_off: bool = False,
    generation: tuple[int, int] = NEWEST,
    warn: Callable[[str], None] | None = None,
) -> Settings:
    """Read ``(key, value)`` pairs by the rows of a format.

    ``key`` alone means ``key=on``, ``nokey`` alone ``key=off``; ``id=…`` is ignored, as qemu-img does.
    ``no_is_off`` also takes ``nocow`` for ``cow=off``, as qemu-img does although there is a key of that name.
    ``warn`` is called with a value whose notation that version of qemu-img warns of.

    Raises:
        OptionError: ``unknown-option`` (names the accepted ones), or what ``Option.parse`` raises.
    """
    table = {row.name: row for row in rows}
    settings = Settings()
    for given, text in pairs:
        key = given
        if text is None:
            if key.startswith("no") and (no_is_off or key not in table):
                key, text = key[2:], "off"
            else:
                text = "on"
        if key == "id":
            continue
        row = table.get(key)
        if row is None:
            raise OptionError(
                "unknown-option",
                f"format {format} has no option '{key}'; it takes {', '.join(sorted(table))}",
                key=key,
                format=format,
                accepted=sorted(table),
            )
        warns = warn is not None and row.type == "size" and warns_of_size(text, generation)
        if warn is not None and warns:
            warn(text)
        settings.set(row, text, generation)
        if warn is not None and warns:
            warn(text)  # qemu-img reads a good one a second time
    return settings


def preallocation(note: str, *, modes: tuple[str, ...] = PREALLOCATION, extension: bool = True) -> Option:
    """Return the option that has an image's space taken in advance, for a format that can carry ``modes``."""
    help = f"Preallocation mode (allowed values: {', '.join(modes)})"
    return Option("preallocation", "choice", help, default="off", choices=modes, extension=extension, note=note)


def reserved(options: Mapping[str, Value], length: int) -> dict[str, int]:
    """Return for ``core.plan.Bound`` that ``length`` bytes may be reserved, in the mode that ``options`` ask for."""
    mode = str(options.get("preallocation"))
    return {mode: length} if mode in ("falloc", "full") else {}


def parent(format: str, note: str) -> tuple[Option, Option]:
    """Return the options of differencing disks, whose parents are of their own ``format``."""
    return (
        Option("backing_file", "str", "File name of the parent of a differencing disk", extension=True, note=note),
        Option("backing_fmt", "str", f"Must be '{format}' if present", default=format, extension=True),
    )
