"""What callers of the library give: judged here, once, before anything is opened or made.

Law: whatever is given, what comes out has the type that its name says, or an ``OptionError`` says what would be right.
"""

from __future__ import annotations

import os

from instar.core.errors import InstarError, OptionError, printable
from instar.host.names import Source, protocol_of
from instar.sandbox.cell import Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, Protocol, TypeAlias, TypeVar

    Function = TypeVar("Function")

    class HasFileno(Protocol):
        """An open file."""

        def fileno(self) -> int:
            """Return its descriptor."""
            ...

    from instar.core.plan import Companion

    #: A path of the library, as everywhere in Python.
    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    #: What an option of ``create`` may be set to.
    OptionValue: TypeAlias = str | int | bool | bytes | os.PathLike[str] | os.PathLike[bytes] | None
    Options: TypeAlias = Mapping[str, OptionValue] | Iterable[tuple[str, OptionValue]]

#: Larger parts of a version of qemu-img there are not.
_MOST_VERSION = 1000
#: Numbers beyond are no sizes; Python writes none of thousands of digits.
_MOST_NUMBER = 1 << 64


class Fd:
    """An open descriptor in the place of a path.

    It is the caller's: it is not closed, and its offset does not move. An image that is read must be open for reading;
    one that is made, an empty regular file open for writing. A descriptor has no folder, so of the files that an image
    names only those with absolute names can be opened, below folders that ``allow`` gives.

    Args:
        fd: its number, or an object with ``fileno()``, such as a file of Python's; that object must stay open.
        name: what errors and results call the file; ``descriptor 5`` without.

    Raises:
        OptionError: ``bad-descriptor``, it is none.
    """

    __slots__ = ("_owner", "fd", "name")

    def __init__(self, fd: int | HasFileno, name: Path | None = None) -> None:
        self._owner = fd
        if not isinstance(fd, int) and hasattr(fd, "fileno"):
            try:
                fd = fd.fileno()
            except Exception as error:  # io.UnsupportedOperation, and ValueError for a file that is closed
                raise OptionError(
                    "bad-descriptor", f"this file has no descriptor: {printable(str(error), 200)}"
                ) from None
        if not isinstance(fd, int) or isinstance(fd, bool) or not 0 <= fd < 1 << 31:
            raise OptionError("bad-descriptor", f"a descriptor is the number of an open file, not {_shown(fd)}")
        self.fd = int(fd)
        self.name = f"descriptor {self.fd}" if name is None else text_of(name, "name")

    def as_source(self) -> Source:
        """Return the file as the operations take it."""
        return Source(self.name, fd=self.fd)

    def __copy__(self) -> Fd:
        return Fd(self._owner, self.name)

    def __deepcopy__(self, memo: object) -> Fd:
        return self.__copy__()

    def __reduce__(self) -> str:
        raise TypeError("an instar.Fd cannot be pickled: its number means another file in another process")

    def __repr__(self) -> str:
        return f"Fd({self.fd}, {self.name!r})"


def text_of(path: object, name: str = "path") -> str:
    """Return a path as text. What is no text by itself is the name of a file, whatever protocol it looks like.

    Raises:
        OptionError: ``bad-path``, it is no path.
    """
    if type(path) is str:
        return path
    try:
        plain = os.fspath(path)  # type: ignore[call-overload]
        text = str.__str__(os.fsdecode(plain))
    except Exception:
        said = f"'{name}' is a path (text, bytes or an os.PathLike), not {_shown(path)}"
        if name == "path" and (isinstance(path, int) or hasattr(path, "fileno")):
            said += "; a file that is open is given as instar.Fd"
        raise OptionError("bad-path", said, key=name) from None
    if not isinstance(path, (str, bytes)) and protocol_of(text) is not None:
        return f"./{text}"
    return text


def folders_of(allow: object) -> tuple[str, ...]:
    """Return the folders of ``allow``: those of an iterable, or a single one.

    Raises:
        OptionError: ``bad-folder``, one is none.
    """
    if isinstance(allow, (str, bytes)) or hasattr(allow, "__fspath__"):
        allow = (allow,)
    try:
        folders = tuple(text_of(folder, "allow") for folder in allow)  # type: ignore[attr-defined]
    except OptionError:
        raise
    except Exception:
        raise OptionError("bad-folder", f"'allow' is a folder, or several, not {_shown(allow)}", key="allow") from None
    for folder in folders:
        if not folder or "\0" in folder:
            why = "has a NUL in it" if folder else "is empty; the working folder is '.'"
            raise OptionError("bad-folder", f"a folder of 'allow' {why}", key="allow")
    return folders


def isolation_of(isolation: object) -> Isolation:
    """Return how cells are to be made: an ``Isolation``, or its name, or by default the strongest that there is.

    Raises:
        OptionError: ``bad-isolation``.
    """
    if isinstance(isolation, Isolation):
        return isolation
    if isolation is None:
        return Isolation()
    if type(isolation) is str:
        return Isolation(isolation)
    raise OptionError("bad-isolation", f"'isolation' is an instar.Isolation or its name, not {_shown(isolation)}")


def generation_of(generation: object) -> tuple[int, int]:
    """Return a version of qemu-img.

    Raises:
        OptionError: ``bad-generation``.
    """
    if isinstance(generation, (tuple, list)) and len(generation) == 2:
        major, minor = generation
        if all(type(part) is int and 0 <= part < _MOST_VERSION for part in (major, minor)):
            return major, minor
    said = f"'generation' is a version of qemu-img as two numbers, such as (7, 2), not {_shown(generation)}"
    raise OptionError("bad-generation", said)


def word_of(value: object, name: str) -> str | None:
    """Return a word, such as the name of a format, or ``None``.

    Raises:
        OptionError: ``bad-argument``, it is no text, or one that nothing can be called.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            pass
        else:
            return text
    raise OptionError("bad-argument", f"'{name}' is a text, not {_shown(value)}", key=name)


def format_of(value: object) -> str:
    """Return the name of a format.

    Raises:
        OptionError: ``bad-argument``.
    """
    format = word_of(value, "format")
    if format is None:
        raise OptionError("bad-argument", "'format' is the name of a format; None is none", key="format")
    return format


def flag_of(value: object, name: str) -> bool:
    """Return what is true or false.

    Raises:
        OptionError: ``bad-argument``.
    """
    if type(value) is bool:
        return value
    raise OptionError("bad-argument", f"'{name}' is True or False, not {_shown(value)}", key=name)


def count_of(value: object, name: str) -> int:
    """Return a number of things, one at least.

    Raises:
        OptionError: ``bad-argument``.
    """
    number = _number(value)
    if number is None or number < 1:
        raise OptionError("bad-argument", f"'{name}' is a whole number from 1 on, not {_shown(value)}", key=name)
    return number


def all_of(values: Iterable[Any], name: str) -> Iterator[Any]:
    """Return an iterator.

    Raises:
        OptionError: ``bad-argument``.
    """
    try:
        return iter(values)
    except Exception:
        raise OptionError("bad-argument", f"'{name}' is an iterable, not {_shown(values)}", key=name) from None


def function_of(value: Function, name: str) -> Function:
    """Return what can be called, or ``None``.

    Raises:
        OptionError: ``bad-argument``.
    """
    if value is None or callable(value):
        return value
    raise OptionError("bad-argument", f"'{name}' is a function, not {_shown(value)}", key=name)


def size_of(size: object) -> int | str | None:
    """Return a size: a whole number, a text that is yet to be read, or ``None``.

    Raises:
        OptionError: ``bad-image-size``, ``image-size-out-of-range``.
    """
    if size is None:
        return None
    if isinstance(size, str):
        return str.__str__(size)
    number = _number(size)
    if number is None:
        said = f"a size is a whole number of bytes, or a text such as '10G', not {_shown(size)}"
        raise OptionError("bad-image-size", said, value=_shown(size))
    if abs(number) > _MOST_NUMBER:
        raise OptionError("image-size-out-of-range", "the size is out of range: it has more than 64 bits", value=None)
    return number


def options_of(options: object) -> list[tuple[str, str | None]]:
    """Return creation options as pairs as typed: of a mapping, or of pairs, whose value is ``None`` for a bare name.

    Raises:
        OptionError: ``bad-options``.
    """
    items: Callable[[], Iterable[object]] | None = getattr(options, "items", None)
    pairs: list[Any]
    try:
        pairs = list(items() if items is not None else options)  # type: ignore[call-overload]
    except Exception:
        pairs = [options]
    if isinstance(options, (str, bytes)):
        pairs = [options]
    found: list[tuple[str, str | None]] = []
    for pair in pairs:
        key, value = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (None, None)
        if not isinstance(key, str):
            raise OptionError(
                "bad-options",
                f"'options' is a mapping, or pairs, of names and values, not {_shown(pair)}",
                key="options",
            )
        bare = value is None and items is None
        found.append((str.__str__(key), None if bare else _option_text(key, value)))
    return found


def _option_text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return str.__str__(value)
    number = _number(value)
    if number is not None and abs(number) <= _MOST_NUMBER:
        return str(number)
    if isinstance(value, bytes) or hasattr(value, "__fspath__"):
        return text_of(value, key)
    said = (
        f"the value of option '{printable(key, 80)}' is a text, a whole number, a bool or a path, not {_shown(value)}"
    )
    raise OptionError("bad-options", said, key=key)


def secrets_of(secrets: object) -> dict[str, bytes] | None:
    """Return passphrases by name. No error shows one.

    Raises:
        OptionError: ``bad-secrets``.
    """
    if secrets is None:
        return None
    try:
        rows = dict(secrets)  # type: ignore[call-overload]
    except Exception:
        rows = {None: None}
    if all(isinstance(name, str) and isinstance(value, (bytes, bytearray)) for name, value in rows.items()):
        return {str.__str__(name): bytes(value) for name, value in rows.items()}
    raise OptionError("bad-secrets", "'secrets' is a mapping of names to passphrases in bytes", key="secrets")


def backing_of(backing: object) -> str | None:
    """Return the name of a backing file that is to be recorded.

    Raises:
        OptionError: ``bad-path``, it is no name.
    """
    if backing is None:
        return None
    if isinstance(backing, Fd):
        raise OptionError("bad-path", "'backing' is a name that is recorded; a descriptor has none", key="backing")
    as_name: Callable[[], str] | None = getattr(backing, "as_name", None)
    return text_of(backing, "backing") if as_name is None else as_name()


class Target:
    """What an image is to be made of: ``path`` to open, ``shown`` to people; whether it is a descriptor's file."""

    __slots__ = ("is_descriptor", "path", "shown")

    def __init__(self, path: object) -> None:
        """Judge it.

        Raises:
            OptionError: ``bad-path``, ``bad-descriptor``.
        """
        self.is_descriptor = isinstance(path, Fd)
        if not isinstance(path, Fd):
            if hasattr(path, "as_source") or isinstance(path, Source):
                raise OptionError("bad-path", "an image is made in a file of its own", key="path")
            self.path = self.shown = text_of(path)
            return
        import stat

        status = os.fstat(check_descriptor(path.fd, path.name, writing=True))
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            said = f"{printable(path.name)} is not an empty regular file; only such a one is filled by descriptor"
            raise OptionError("bad-descriptor", said)
        # The system opens it once more, so offset and locks of the caller's are its own.
        self.path, self.shown = f"/proc/self/fd/{path.fd}", path.name

    def judge_backing(self, name: str | None) -> None:
        """Refuse a name that would be seen from the folder of a descriptor.

        Raises:
            OptionError: ``bad-descriptor``.
        """
        if self.is_descriptor and name and not name.startswith("/") and protocol_of(name) is None:
            raise self._no_folder(f"'{printable(name, 200)}'")

    def judge_companions(self, companions: Iterable[Companion]) -> None:
        """Refuse further files whose names would be.

        Raises:
            OptionError: ``bad-descriptor``.
        """
        for companion in companions if self.is_descriptor else ():
            if not companion.from_cwd and not companion.name.startswith("/"):
                raise self._no_folder(f"further files ('{printable(companion.name, 200)}')")

    def _no_folder(self, what: str) -> OptionError:
        return OptionError("bad-descriptor", f"{printable(self.shown)} has no folder for {what}; give a path instead")

    def call(self, error: InstarError) -> None:
        """Have an error name the file as the caller does."""
        if self.is_descriptor and getattr(error, "path", None) == self.path:
            error.path = self.shown  # type: ignore[attr-defined]


def check_descriptor(fd: int, name: str, *, writing: bool) -> int:
    """Return a descriptor that is open, and open for this.

    Raises:
        OptionError: ``bad-descriptor``.
    """
    import fcntl

    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        raise OptionError("bad-descriptor", f"{printable(name)} is closed: {fd} is no open descriptor") from None
    what = "writing" if writing else "reading"
    if flags & os.O_PATH:
        raise OptionError("bad-descriptor", f"{printable(name)} was opened with O_PATH; open it for {what}")
    if flags & os.O_ACCMODE not in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        raise OptionError("bad-descriptor", f"{printable(name)} is not open for {what}")
    return fd


def _number(value: object) -> int | None:
    """Return a whole number, also of a type that stands for one (as numpy's); a bool is none."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return int(value.__index__())  # type: ignore[attr-defined]
    except Exception:
        return None


def _shown(value: object) -> str:
    """Show what was given, in few words; an object of a type that is not common by its type alone."""
    kind = type(value)
    if value is None or kind in (bool, float) or (kind is int and abs(value) <= _MOST_NUMBER):  # type: ignore[arg-type]
        return str(value)
    if kind in (str, bytes) and len(value) <= 40:  # type: ignore[arg-type]
        return printable(repr(value))
    return f"an object of type {printable(kind.__name__, 80)}"
