"""Errors by whose fault they are, with facts as fields. The one place that turns facts into a sentence.

Law: nothing but these classes leaves the library. What crossed from a cell is hostile text: it is capped
and escaped here before anybody prints it.
"""

from __future__ import annotations

from instar.core.text import escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: The closed list of what can be wrong with an image.
IMAGE_KINDS = (
    "invalid-format",
    "unsupported-feature",
    "corrupt",
    "out-of-bounds",
    "too-large",
    "not-found",
    "denied",
)
SANDBOX_KINDS = ("unavailable", "died", "protocol", "limit")

EXIT_FAILURE = 1
EXIT_SANDBOX = 70
EXIT_INTERNAL = 71

#: What formats call the bytes by which they are known.
_MAGIC_FIELDS = ("magic", "signature", "cookie")

#: Longest text of a detail that may come out of a cell.
MAX_DETAIL = 400

#: Set in the flags of classes that are written in Python (CPython, Py_TPFLAGS_HEAPTYPE).
_HEAP_TYPE = 1 << 9
#: So deep are lists and dicts looked into, item by item, for what cannot be pickled.
_DEEPEST = 20
#: What no shell reads as anything but itself.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-")


def printable(text: str | bytes, limit: int = 4096) -> str:
    r"""Escape what must not reach a terminal, and undecodable bytes, and cap the length; ``core.text`` has the table.

    >>> print(printable(b"a\x1b[2Jb"))
    a\x1b[2Jb
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "surrogateescape")
    return escaped(text) if len(text) <= limit else escaped(text[:limit]) + "…"


def shell_word(text: str) -> str | None:
    r"""Return a text as a shell reads it back, for a command to be typed; ``None`` if it cannot be shown as it is.

    Hints repeat names that strangers chose, and are copied into shells.

    >>> print(shell_word("/a/b"), shell_word("/tmp/$(x)"), shell_word("it's"), shell_word("a\x1bb"))
    /a/b '/tmp/$(x)' 'it'"'"'s' None
    """
    if not text.isprintable() or printable(text) != text:
        return None
    return text if text and _PLAIN.issuperset(text) else _quoted(text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def plain_file_hint(name: str) -> str:
    """Return how a file is named whose own name looks like a protocol's, for the end of a sentence; or nothing."""
    return "" if shell_word(name) is None else f"; for a file of that name write {_quoted(f'./{name}')}"


class InstarError(Exception):
    """What every error of the library is. ``str(error)`` is one line and safe to print."""

    exit_code = EXIT_FAILURE
    kind = "error"
    #: Which file of the operation it is about, where that is not the main one: ``backing``.
    role: str | None = None
    #: The image at fault, where that is not the one asked for or not the file that the error is about.
    image: str | None = None
    #: What an operation on a chain had described before: the ``ImageInfo`` of each image, the topmost first.
    described: Sequence[Any] = ()
    #: The image that names the file at fault as its backing file, where that was opened as an image of its own.
    named_by: str | None = None

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def sentence(self) -> str:
        """Say what is wrong in one line."""
        return printable(self.detail)

    def facts(self) -> dict[str, object]:
        """Return the fields as JSON-able values, for scripts."""
        return {"class": type(self).__name__, "kind": self.kind, "message": self.sentence()}

    def __str__(self) -> str:
        if self.named_by is None:
            return self.sentence()
        return f"{self.sentence()}; it is the backing file of {printable(self.named_by)}"

    # Python would call the class again with ``args``, which are not what constructors here take: whoever waits for the
    # result of another process would get a ``TypeError`` instead, or wait for ever.

    def __reduce__(self) -> tuple[object, ...]:
        args, *state = _state_of(self)
        return _blank, (type(self), _portable(args)), _portable(state)

    def __setstate__(self, state: Sequence[dict[str, object]]) -> None:  # type: ignore[override]
        fields, members = state
        self.__dict__.update(fields)
        for name, value in members.items():
            try:
                object.__setattr__(self, name, value)
            except (AttributeError, TypeError):
                continue  # it may not be set, or not to this: a base class looks after it

    def __copy__(self) -> InstarError:
        args, *state = _state_of(self)
        new = _blank(type(self), args)
        new.__setstate__(state)
        return new

    def __deepcopy__(self, memo: dict[int, object]) -> InstarError:
        from copy import deepcopy

        def copied(value: object) -> object:
            try:
                return deepcopy(value, memo)
            except Exception:  # what cannot be copied, such as a lock, is shared
                return value

        args, *state = _state_of(self)
        new = memo[id(self)] = _blank(type(self), tuple(map(copied, args)))
        new.__setstate__([{name: copied(value) for name, value in part.items()} for part in state])
        return new


class _SlotOwner:
    __slots__ = ("slot",)


def _state_of(error: InstarError) -> tuple[tuple[object, ...], dict[str, object], dict[str, object]]:
    """Return what an error consists of: its ``args``, its fields, and the members that are no fields.

    Those are the slots of a subclass, and what other bases (``OSError``) keep.
    """
    member = type(_SlotOwner.__dict__["slot"])
    members = {}
    for base in type(error).__mro__:
        for name, found in vars(base).items():
            if type(found) is member and not name.startswith("__"):
                try:
                    members[name] = found.__get__(error)
                except AttributeError:
                    continue
    return error.args, dict(vars(error)), members


def _blank(kind: type[InstarError], args: tuple[object, ...]) -> InstarError:
    """Make an error without its constructor, and without its fields."""
    # The class below all that is written in Python knows no constructor of a subclass.
    built_in = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    error: InstarError = built_in.__new__(kind)  # type: ignore[call-overload]
    error.args = args
    return error


def _portable(value: object, depth: int = 0) -> object:
    """Return a value that can be pickled: itself, or with texts in the place of what cannot.

    What a program puts into an error may be anything; to lose the error over it would be worse.
    """
    kind = type(value)
    if value is None or kind in (str, bytes, int, bool, float) or isinstance(value, InstarError):
        return value  # an error looks after itself
    if depth < _DEEPEST and isinstance(value, dict) and kind is dict:
        pairs = {_portable(key, depth + 1): _portable(item, depth + 1) for key, item in value.items()}
        return value if all(value.get(key) is item for key, item in pairs.items()) else pairs
    if depth < _DEEPEST and isinstance(value, (list, tuple)) and kind in (list, tuple):
        items = [_portable(item, depth + 1) for item in value]
        return value if all(map(_is, items, value)) else kind(items)
    from pickle import dumps

    try:
        dumps(value)
    except Exception:
        return _shown(value)
    return value


def _is(one: object, other: object) -> bool:
    return one is other


def _shown(value: object) -> str:
    try:
        return printable(repr(value), MAX_DETAIL)
    except Exception:
        return f"<{type(value).__name__}>"


class OptionError(InstarError):
    """The caller's words are wrong.

    Attributes:
        code: stable identifier of the rule that was broken, such as ``unknown-option`` or
            ``qcow2-cluster-size``; other wordings of the same verdict are looked up by it.
        values: what the sentence is about (``key``, ``value``, ``accepted`` …).
    """

    kind = "option"

    def __init__(self, code: str, detail: str, **facts: object) -> None:
        super().__init__(detail)
        self.code = code
        self.values: Mapping[str, object] = facts

    def facts(self) -> dict[str, object]:
        """Return the fields as JSON-able values, for scripts."""
        fixed: dict[str, object] = {**super().facts(), "code": self.code}
        # The names of the values may have been given by a cell.
        return {**fixed, **{k: v for k, v in self.values.items() if v is not None and k not in fixed}}


class ImageError(InstarError):
    """The bytes of an image are wrong, or ask for what is not given.

    Attributes:
        kind: one of ``IMAGE_KINDS``.
        structure, field: the names the format's specification uses.
        offset: host offset in bytes of the structure or field, where known.
        value: what was read. limit: the most, or the least, that it may be. expected: the only thing that it may be.
        format: name of the format.
        path: the file, filled in by the host.
        name: of another file, as the image gives it, where the error is about that.
        errno: why that file cannot be opened, where the system has a number for it.
    """

    errno: int | None = None

    def __init__(
        self,
        kind: str,
        structure: str,
        detail: str,
        *,
        field: str | None = None,
        offset: int | None = None,
        value: int | None = None,
        limit: int | None = None,
        expected: int | None = None,
        format: str | None = None,
        path: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.name = name
        self.structure = structure
        self.field = field
        self.offset = offset
        self.value = value
        self.limit = limit
        self.expected = expected
        self.format = format
        self.path = path

    def sentence(self) -> str:
        """Say what is wrong in one line: file, format, structure, what, and the numbers."""
        parts = []
        if self.path is not None:
            parts.append(printable(self.path))
        subject = " ".join(printable(p, 80) for p in (self.format, self.structure) if p)
        if subject:
            parts.append(subject)
        line = ": ".join([*parts, printable(self.detail, MAX_DETAIL)])
        numbers = []
        if self.value is not None:
            numbers.append(f"{printable(self.field or 'value', 80)} = {self._shown(self.value)}")
        elif self.field is not None:
            numbers.append(printable(self.field, 80))
        if self.limit is not None:
            numbers.append(f"limit {self.limit}")
        if self.expected is not None:
            numbers.append(f"expected {self._shown(self.expected)}")
        if self.offset is not None:
            numbers.append(f"at byte {self.offset}")
        return f"{line} ({', '.join(numbers)})" if numbers else line

    def _shown(self, number: int) -> str:
        """Return a number as its field has it: a magic is known by its digits to the base of 16."""
        if self.expected is None or self.field is None or not self.field.endswith(_MAGIC_FIELDS):
            return str(number)
        digits = -(-self.expected.bit_length() // 8) * 2
        return f"{number:#0{digits + 2}x}"

    def facts(self) -> dict[str, object]:
        """Return the fields as JSON-able values, for scripts."""
        named = {
            "format": self.format,
            "structure": self.structure,
            "field": self.field,
            "offset": self.offset,
            "value": self.value,
            "limit": self.limit,
            "expected": self.expected,
            "path": self.path,
            "name": self.name,
        }
        return {**super().facts(), **{k: v for k, v in named.items() if v is not None}}


class HostError(InstarError):
    """The operating system refused: ``errno``, ``path``, and what was tried (``action``).

    ``lock`` names the image lock that another program is in the way of, as QEMU does; ``None`` for other errors.
    """

    kind = "host"
    lock: str | None = None

    def __init__(self, errno: int, path: str, action: str, strerror: str, *, hint: str = "") -> None:
        super().__init__(hint)
        self.errno = errno
        self.path = path
        self.action = action
        self.strerror = strerror

    def sentence(self) -> str:
        """Say what could not be done with which file, and why."""
        line = f"{printable(self.path)}: cannot {self.action}: {self.strerror}"
        if self.image is not None and self.image != self.path:
            shown = printable(self.path)
            line = f"{printable(self.image)}: cannot {self.action} '{shown}', which it names: {self.strerror}"
        return f"{line}; {printable(self.detail)}" if self.detail else line

    def facts(self) -> dict[str, object]:
        """Return the fields as JSON-able values, for scripts."""
        named = {"errno": self.errno, "path": self.path, "action": self.action}
        return {**super().facts(), **named, **({} if self.lock is None else {"lock": self.lock})}


class SandboxError(InstarError):
    """The cell failed: it could not be had, died, broke the protocol or passed a limit.

    ``story`` says where in its program a cell was when it died, for those who look for the reason. ``inherited``: the
    limit that it passed is not instar's but one that whoever started this program set for it (``RLIMIT_CPU``).
    """

    exit_code = EXIT_SANDBOX
    inherited = False

    def __init__(self, kind: str, detail: str, *, path: str | None = None, story: str | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.path = path
        self.story = story

    def sentence(self) -> str:
        """Say what became of the cell."""
        line = f"sandbox {self.kind}: {printable(self.detail, MAX_DETAIL)}"
        return f"{printable(self.path)}: {line}" if self.path else line

    def facts(self) -> dict[str, object]:
        """Return the fields as JSON-able values, for scripts."""
        named = {"path": self.path, "story": self.story}
        return {**super().facts(), **{k: v for k, v in named.items() if v is not None}}


class InternalError(InstarError):
    """A fault of instar itself. Never the fault of an image or a caller."""

    kind = "internal"
    exit_code = EXIT_INTERNAL

    def sentence(self) -> str:
        """Ask for a report."""
        return f"internal error, please report it: {printable(self.detail, MAX_DETAIL)}"
