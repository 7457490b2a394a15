"""The shape of what a cell may say, declared once: what does not have it, down to the last key and type, is refused.

Law: a check is a function that returns nothing or raises ``WireError``, in time linear in the value. A dict has the
declared keys and no other, and a type is that type alone: ``True`` is no number. What passed needs no second look.

>>> reply = record({"size": number(), "name": text(80)}, {"tags": rows(text(16), 4)})
>>> reply({"size": 512, "name": "disk"})
>>> reply({"size": True, "name": "disk"})
Traceback (most recent call last):
instar.core.wire.WireError: size: it is no number
"""

from __future__ import annotations

from instar.core.units import INT64_MAX, UINT64_MAX
from instar.core.wire import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from instar.core.wire import Wire

    Check = Callable[[Wire], None]

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_WORD = _LOWER | frozenset("0123456789-_.")


def number(most: int = UINT64_MAX, *, least: int = 0) -> Check:
    """Return a check for a number from ``least`` to ``most``."""

    def check(value: Wire) -> None:
        if type(value) is not int:
            raise WireError("it is no number")
        if not least <= value <= most:
            raise WireError("it is out of range")

    return check


def text(most: int) -> Check:
    """Return a check for a text of at most ``most`` characters, of whatever kind: it has to be escaped when shown."""

    def check(value: Wire) -> None:
        if type(value) is not str:
            raise WireError("it is no text")
        if len(value) > most:
            raise WireError("it is too long")

    return check


def data(most: int, *, least: int = 0) -> Check:
    """Return a check for ``least`` to ``most`` bytes."""

    def check(value: Wire) -> None:
        if type(value) is not bytes:
            raise WireError("it is no bytes")
        if not least <= len(value) <= most:
            raise WireError("it is too short or too long")

    return check


def flag(value: Wire) -> None:
    """Check for ``True`` or ``False``."""
    if type(value) is not bool:
        raise WireError("it is neither true nor false")


def choice(*texts: str) -> Check:
    """Return a check for one of some texts."""
    known = frozenset(texts)

    def check(value: Wire) -> None:
        if type(value) is not str or value not in known:
            raise WireError("it is none of what it may be")

    return check


def word(most: int = 80) -> Check:
    """Return a check for a name of instar's own: a lower-case letter, then also digits and ``-_.``, safe anywhere."""

    def check(value: Wire) -> None:
        if type(value) is not str or not 0 < len(value) <= most:
            raise WireError("it is no name")
        if value[0] not in _LOWER or not _WORD.issuperset(value):
            raise WireError("it is no name")

    return check


def nothing(value: Wire) -> None:
    """Check for ``None``."""
    if value is not None:
        raise WireError("it is there")


def optional(inner: Check) -> Check:
    """Return a check for ``None``, or what ``inner`` accepts."""

    def check(value: Wire) -> None:
        if value is not None:
            inner(value)

    return check


def rows(inner: Check, most: int, *, least: int = 0) -> Check:
    """Return a check for a list of ``least`` to ``most`` members."""

    def check(value: Wire) -> None:
        if type(value) is not list:
            raise WireError("it is no list")
        if not least <= len(value) <= most:
            raise WireError("it has too few members or too many")
        for member in value:
            inner(member)

    return check


def row(*inner: Check) -> Check:
    """Return a check for a list of just these members."""

    def check(value: Wire) -> None:
        if type(value) is not list or len(value) != len(inner):
            raise WireError("it is no list of the right length")
        for index, test in enumerate(inner):
            test(value[index])

    return check


def record(required: Mapping[str, Check], more: Mapping[str, Check] | None = None) -> Check:
    """Return a check for a dict with all keys of ``required``, any of ``more``, and no other."""
    known = {**required, **(more or {})}
    must = tuple(required)

    def check(value: Wire) -> None:
        if type(value) is not dict:
            raise WireError("it is no record")
        for key, member in value.items():
            test = known.get(key)
            if test is None:
                raise WireError("it has a key that there is not")
            try:
                test(member)
            except WireError as error:
                raise WireError(f"{key}: {error}") from None
        for key in must:
            if key not in value:
                raise WireError(f"'{key}' is missing")

    return check


def mapping(key: Check, inner: Check, most: int) -> Check:
    """Return a check for a dict of at most ``most`` members, whose keys are not known beforehand."""

    def check(value: Wire) -> None:
        if type(value) is not dict:
            raise WireError("it is no record")
        if len(value) > most:
            raise WireError("it has too many members")
        for name, member in value.items():
            key(name)
            inner(member)

    return check


def by_key(key: str, kinds: Mapping[str, Check]) -> Check:
    """Return a check for a dict of several kinds, of which member ``key`` says which it is."""

    def check(value: Wire) -> None:
        kind = value.get(key) if type(value) is dict else None
        test = kinds.get(kind) if type(kind) is str else None
        if test is None:
            raise WireError(f"'{key}' is none of what it may be")
        test(value)

    return check


#: A number that QEMU keeps in 64 bits, shown with a sign or without.
NUMBER64 = number(UINT64_MAX, least=-INT64_MAX - 1)
