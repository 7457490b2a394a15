"""What one run of the program was told before its command: dialect, version to be like, kind of cell, verbosity.

Law: only this module and ``main`` read the environment; only ``say`` and ``complain`` print. What they print is lines:
whatever else a terminal would act on is escaped here once more, whoever forgot it. What the operator of the machine has
decided (``CONFIGURATION``) neither the environment nor a switch weakens.
"""

from __future__ import annotations

import os
import sys

from instar.core import NEWEST, version_of
from instar.core.errors import OptionError
from instar.core.text import escaped_lines
from instar.sandbox.cell import Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from instar.host.configuration import Configuration

#: Full version numbers that qemu-img's own ``--version`` gives, for the generations that instar knows.
QEMU_RELEASES = {(5, 2): "5.2.0", (7, 2): "7.2.22", (10, 0): "10.0.13", (11, 1): "11.1.2"}

#: Nothing but a test puts another path here.
CONFIGURATION = "/etc/instar.toml"
#: Characters that are printed at once of what is long.
_AT_ONCE = 1 << 16


#: Said before anything is done without a cell, in both dialects.
NO_WALLS = "instar: warning: isolation 'none': nothing stands between this process and the image's bytes"


class Session:
    """The surroundings of a command.

    Attributes:
        as_qemu: speak as qemu-img does. generation: the version whose words and layout are wanted.
        isolation: kind of cell. verbose: say why, too. allow: folders opened to images' references.
        configuration: what the operator of the machine has decided, ``None`` if nothing.
        secrets: passphrases by the names of their ``--object``.
    """

    __slots__ = ("allow", "as_qemu", "configuration", "generation", "isolation", "secrets", "verbose")

    def __init__(self, *, as_qemu: bool) -> None:
        """Take what the environment and the configuration say.

        Raises:
            OptionError: one of them cannot be understood, or the environment asks for less than the other allows.
        """
        self.as_qemu = as_qemu
        self.configuration = _configuration()
        self.generation = read_version(os.environ.get("INSTAR_QEMU_VERSION") or None)
        self.allow = [folder for folder in os.environ.get("INSTAR_ALLOW_PATH", "").split(":") if folder]
        floor = None
        if self.configuration is not None:
            floor = self.configuration.minimum_isolation
            self.allow += self.configuration.allow
            if self.configuration.generation is not None and not os.environ.get("INSTAR_QEMU_VERSION"):
                self.generation = self.configuration.generation
        # The command line is a process of its own: it has one thread, and nothing secret in its memory but for what
        # ``--object`` defines, which takes this back.
        self.isolation = Isolation(_isolation_of_environment(), single_threaded=True, floor=floor)
        self.verbose = False
        self.secrets: dict[str, bytes] = {}

    def set(self, name: str, value: str) -> None:
        """Take one of the switches that all commands share.

        Raises:
            OptionError: its value is none of those it takes.
        """
        if name == "dialect":
            self.as_qemu = read_dialect(value)
        elif name == "isolation":
            self.isolation = Isolation(value, single_threaded=not self.secrets, floor=self.isolation.floor)
        elif name == "qemu-version":
            self.generation = read_version(value)
        elif name == "allow-path":
            self.allow.append(value)
        elif name == "verbose":
            self.verbose = True

    def warn(self) -> None:
        """Say that there is no cell, if there is to be none."""
        if self.isolation.name == "none":
            complain(NO_WALLS)

    def explain(self) -> None:
        """Under ``-v``: say why a stronger cell was passed over."""
        if self.verbose:
            for reason in self.isolation.said:
                complain(f"instar: isolation: {reason}")


def _configuration() -> Configuration | None:
    """Return what the operator of the machine has decided. Where there is nothing, nothing is loaded to read it."""
    try:
        os.lstat(CONFIGURATION)
    except FileNotFoundError:
        return None
    except OSError:
        pass  # the reader says what is wrong
    from instar.host.configuration import read_configuration

    return read_configuration(CONFIGURATION)


def _isolation_of_environment() -> str:
    """Return the isolation that the environment asks for. Who may set one variable does not take away all walls.

    Raises:
        OptionError: it asks for none, and does not say that this is meant.
    """
    name = os.environ.get("INSTAR_ISOLATION") or "auto"
    if name == "none" and os.environ.get("INSTAR_ACCEPT_NO_ISOLATION") != "1":
        raise OptionError(
            "bad-isolation",
            "INSTAR_ISOLATION=none counts only together with INSTAR_ACCEPT_NO_ISOLATION=1; or say --isolation=none",
            value=name,
        )
    return name


def read_dialect(name: str) -> bool:
    """Return whether a dialect is qemu-img's.

    Raises:
        OptionError: there is no such dialect.
    """
    if name not in ("instar", "qemu-img"):
        raise OptionError("bad-dialect", f"there is no dialect '{name}'; it is instar or qemu-img", value=name)
    return name == "qemu-img"


def read_version(text: str | None) -> tuple[int, int]:
    """Read a qemu-img version such as ``7.2`` or ``10.0.13``; ``None`` is the newest known.

    Raises:
        OptionError: it is no version.
    """
    if text is None:
        return NEWEST
    version = version_of(text)
    if version is None:
        known = ", ".join(".".join(map(str, v)) for v in QEMU_RELEASES)
        raise OptionError("bad-qemu-version", f"'{text}' is no version of qemu-img; {known} are known", value=text)
    return version


def release(generation: tuple[int, int]) -> str:
    """Return the full version number that goes with a generation."""
    return QEMU_RELEASES.get(generation, f"{generation[0]}.{generation[1]}.0")


def version_text(session: Session) -> str:
    """Return the line that ``--version`` prints, without its end."""
    from instar import __version__

    if session.as_qemu:
        return f"qemu-img version {release(session.generation)} (instar {__version__})"
    return f"instar {__version__}"


def say(text: str) -> None:
    """Print to standard output."""
    _write(sys.stdout, (text,))


def say_all(pieces: Iterable[str]) -> None:
    """Print to standard output what is too long to be one text."""
    _write(sys.stdout, pieces)


def complain(text: str) -> None:
    """Print a line or lines to standard error."""
    _write(sys.stderr, (text if text.endswith("\n") else text + "\n",))


def _write(stream: object, pieces: Iterable[str]) -> None:
    if stream is None:  # the caller closed it: there is nobody to tell
        return
    buffer = getattr(stream, "buffer", None)
    write = stream.write if buffer is None else buffer.write  # type: ignore[attr-defined]
    if buffer is not None:
        stream.flush()  # type: ignore[attr-defined]
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _AT_ONCE:
            _pass(write, waiting, text=buffer is None)
            size = 0
    _pass(write, waiting, text=buffer is None)
    if buffer is not None:
        buffer.flush()


def _pass(write: Callable[..., object], pieces: list[str], *, text: bool) -> None:
    lines = escaped_lines("".join(pieces))
    pieces.clear()
    write(lines if text else lines.encode("utf-8"))
