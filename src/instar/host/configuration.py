"""What the operator of a machine has decided for all who run instar there: ``/etc/instar.toml``.

Law: a file that others could have written, or that says anything this module does not understand, is an error and
never passed over. It is opened once, judged by its descriptor, and read once. The text is a small part of TOML, read
here because ``tomllib`` takes as long to import as all the rest of a command.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core import version_of
from instar.core.errors import OptionError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PATH = "/etc/instar.toml"
#: Longest file that is read.
MAX_BYTES = 64 << 10
#: Longest name of a folder (linux/limits.h, PATH_MAX, with its end).
_MAX_FOLDER = 4095
_KEYS = ("allow-path", "minimum-isolation", "qemu-version")
#: What the least may be. There is no point in asking for ``none``.
_FLOORS = ("process", "kvm")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_BLANKS = " \t"


class Configuration:
    """What the file says.

    Attributes:
        path: the file.
        allow: folders, absolute, from which images may name files besides their own.
        minimum_isolation: the weakest cell that may be used, ``process`` or ``kvm``; ``None`` if the file has no say.
        generation: the version of qemu-img to be like, ``None`` likewise.
    """

    __slots__ = ("allow", "generation", "minimum_isolation", "path")

    def __init__(
        self,
        path: str,
        *,
        allow: tuple[str, ...] = (),
        minimum_isolation: str | None = None,
        generation: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self.allow = allow
        self.minimum_isolation = minimum_isolation
        self.generation = generation

    def __repr__(self) -> str:
        return (
            f"Configuration({self.path!r}, allow={self.allow!r}, minimum_isolation={self.minimum_isolation!r},"
            f" generation={self.generation!r})"
        )


def read_configuration(path: str = PATH) -> Configuration | None:
    """Read the configuration of this machine; ``None`` if it has none.

    The command line does this by itself. The library never does: a program that wants its operator's decisions to hold
    asks for them, and hands them on.

    Raises:
        OptionError: ``bad-configuration``; the file is not root's alone to write, or cannot be understood.
    """
    data = _read(path)
    if data is None:
        return None
    try:
        return _judged(path, parse(data))
    except _Refusal as refusal:
        raise _error(path, str(refusal), refusal.line) from None


class _Refusal(ValueError):
    """A line cannot be taken."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(detail)
        self.line = line


def _error(path: str, detail: str, line: int | None = None) -> OptionError:
    place = path if line is None else f"{path}, line {line}"
    return OptionError("bad-configuration", f"{printable(place)}: {detail}", path=path, line=line)


def _read(path: str) -> bytes | None:
    """Return the bytes of a file that is root's alone to write; ``None`` if it is not there."""
    try:
        # Non-blocking, so that a pipe in its place is no trap.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _error(path, "it is a symbolic link; put the file itself there") from None
        mend = "; chmod a+r lets everybody read it" if error.errno == errno.EACCES else ""
        raise _error(path, f"it cannot be opened: {os.strerror(error.errno or 0)}{mend}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _error(path, "it is not a regular file")
        if status.st_uid != 0:
            raise _error(path, f"it belongs to user {status.st_uid}, not to root; chown root makes it root's")
        if status.st_mode & _OTHERS_WRITE:
            raise _error(path, "others than root may write to it; chmod go-w takes that away")
        data = b""
        while len(data) <= MAX_BYTES and (piece := os.read(fd, MAX_BYTES + 1 - len(data))):
            data += piece
    except OSError as error:
        raise _error(path, f"it cannot be read: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise _error(path, f"it is longer than {MAX_BYTES} bytes")
    return data


def _judged(path: str, found: Mapping[str, tuple[int, str | list[str]]]) -> Configuration:
    """Judge the values by what they are for.

    Raises:
        _Refusal: there is no such key, or it has another value than it can have.
    """
    for key, (line, value) in found.items():
        if key not in _KEYS:
            raise _Refusal(line, f"there is no '{printable(key, 80)}'; it may say {', '.join(_KEYS)}")
        if isinstance(value, list) != (key == "allow-path"):
            raise _Refusal(line, f"{key} is {'a list of texts' if key == 'allow-path' else 'one text'}")
    out = Configuration(path)
    for key, (line, value) in found.items():
        if isinstance(value, list):
            for folder in value:
                if not folder.startswith("/") or len(os.fsencode(folder)) > _MAX_FOLDER:
                    raise _Refusal(line, f"'{printable(folder, 80)}' is not the whole path of a folder, from / on")
            out.allow = tuple(value)
        elif key == "minimum-isolation":
            if value not in _FLOORS:
                raise _Refusal(line, f"{key} is {' or '.join(_FLOORS)}, not '{printable(value, 80)}'")
            out.minimum_isolation = value
        else:
            out.generation = version_of(value)
            if out.generation is None:
                raise _Refusal(line, f"'{printable(value, 80)}' is no version of qemu-img; one is 10.0")
    return out


def parse(data: bytes) -> dict[str, tuple[int, str | list[str]]]:
    """Read a text of lines ``key = "text"`` and ``key = ["text", …]``, with comments; return ``{key: (line, value)}``.

    A list may go over many lines. Whatever else TOML has (tables, dotted and quoted keys, numbers, escapes, other
    quotes) is refused, so what is read means the same to every reader of TOML.

    Raises:
        ValueError: with the ``line``.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refusal(1 + data.count(b"\n", 0, error.start), "it is not UTF-8") from None
    reader = _Reader(text.replace("\r\n", "\n"))
    found: dict[str, tuple[int, str | list[str]]] = {}
    while not reader.ended():
        reader.skip_line_ends()
        if reader.ended():
            break
        line, key = reader.line, reader.key()
        if key in found:
            raise _Refusal(line, f"'{key}' is there twice")
        found[key] = line, reader.value()
        reader.end_line()
    return found


class _Reader:
    """A place in a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.line = 1

    def ended(self) -> bool:
        return self._at == len(self._text)

    def _next(self) -> str:
        """Return the next character, ``""`` at the end."""
        return self._text[self._at : self._at + 1]

    def _refuse(self, wanted: str) -> _Refusal:
        char = self._next()
        found = "the end" if not char else "the end of the line" if char == "\n" else f"'{printable(char)}'"
        return _Refusal(self.line, f"{wanted} is missing before {found}")

    def _skip_blanks(self) -> None:
        while self._next() and self._next() in _BLANKS:
            self._at += 1

    def _skip_comment(self) -> None:
        self._skip_blanks()
        if self._next() != "#":
            return
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        self._judge(self._text[self._at : end])
        self._at = end

    def _judge(self, text: str) -> None:
        for char in text:
            if (char < " " and char != "\t") or char == "\x7f":
                raise _Refusal(self.line, f"'{printable(char)}' is a control character")

    def skip_line_ends(self) -> None:
        """Go to the next character that is neither blank, nor comment, nor the end of a line."""
        self._skip_comment()
        while self._next() == "\n":
            self._at += 1
            self.line += 1
            self._skip_comment()

    def end_line(self) -> None:
        """Go past the rest of a line, on which nothing but a comment may stand."""
        self._skip_comment()
        if self._next() not in ("", "\n"):
            raise self._refuse("the end of the line")

    def key(self) -> str:
        """Return a bare key, and go past its sign of equality."""
        start = self._at
        while (char := self._next()) and ((char.isascii() and char.isalnum()) or char in "-_"):
            self._at += 1
        key = self._text[start : self._at]
        if not key:
            raise self._refuse("a key")
        self._skip_blanks()
        if self._next() != "=":
            raise self._refuse("'='")
        self._at += 1
        self._skip_blanks()
        return key

    def value(self) -> str | list[str]:
        """Return a text, or a list of texts."""
        if self._next() != "[":
            return self._string()
        self._at += 1
        values = []
        self.skip_line_ends()
        while self._next() != "]":
            values.append(self._string())
            self.skip_line_ends()
            if self._next() == ",":
                self._at += 1
                self.skip_line_ends()
            elif self._next() != "]":
                raise self._refuse("',' or ']'")
        self._at += 1
        return values

    def _string(self) -> str:
        if self._next() != '"':
            raise self._refuse("a text in double quotes")
        self._at += 1
        end = self._text.find('"', self._at)
        text = self._text[self._at : end] if end >= 0 else self._text[self._at :]
        if end < 0 or "\n" in text:
            raise _Refusal(self.line, "the closing quote is missing")
        if "\\" in text:
            raise _Refusal(self.line, "backslashes are not read; write the text without")
        self._judge(text)
        self._at = end + 1
        return text
