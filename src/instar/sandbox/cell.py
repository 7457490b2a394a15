"""The seam: one class per back end, one method, bytes both ways, a few granted files and one callback.

Law: a job either gives the bytes of one reply, or a ``SandboxError``; in bounded time, and nobody
retries it elsewhere. Only *starting* a cell may fall over to the next back end, and never to ``none``.
"""

from __future__ import annotations

from instar.core.errors import OptionError, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile

    Serve = Callable[[Wire], Wire]
    #: What runs inside: a job, the granted files, and how to ask the host; gives the reply.
    Guest = Callable[[bytes, list[GrantedFile], Callable[[Wire], Wire]], bytes]

    class Cell(Protocol):
        """Somewhere that guest code runs without rights."""

        name: str

        def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
            """Run one job against the granted files and return its reply.

            ``serve`` answers the requests that the guest may make of its host; what it raises ends the cell.

            Raises:
                SandboxError: the cell could not be started, died, broke the protocol or passed a limit.
            """
            ...


MiB = 1 << 20

#: Largest end that a window can have: that of the largest file.
MAX_END = (1 << 63) - 1
#: Most files that one cell is granted.
MAX_FILES = 200
#: What ``--isolation`` takes, the strongest first.
NAMES = ("auto", "kvm", "process", "none")
#: Kinds of cell, the weakest first.
_STRENGTH = ("none", "process", "kvm")


class Grant:
    """An open descriptor that a cell may use.

    Attributes:
        fd: the descriptor.
        mode: ``r``, ``w`` or ``rw``.
        size: length in bytes.
        name: for errors that are about this file. No cell learns it.
        offset: where a window begins, in bytes, ``None`` for the whole file. Of a window the cell has the ``size``
            bytes from there and no others; it counts from the window's start.

    Raises:
        ValueError: no file has such a window.
    """

    __slots__ = ("fd", "mode", "name", "offset", "size")

    def __init__(self, fd: int, mode: str, size: int, name: str = "", *, offset: int | None = None) -> None:
        if offset is not None and (min(offset, size) < 0 or offset + size > MAX_END):
            raise ValueError(f"a window of {size} bytes at {offset}")
        self.fd = fd
        self.mode = mode
        self.size = size
        self.name = name
        self.offset = offset


class Limits:
    """What one cell may use.

    Attributes:
        memory: bytes of address space beyond what the interpreter has when the job starts.
        cpu_seconds, wall_seconds: whole seconds of processor time; seconds until an answer must be there.
        reply_bytes: longest reply that a cell may send.
        file_bytes: largest offset that a cell may write up to.
        requests: how many it may make of its host.
        serving_seconds: how much of the time in which the host serves them, all together, is not the cell's. What
            goes beyond it counts against ``wall_seconds``, and so does reading requests.
    """

    __slots__ = (
        "cpu_seconds",
        "file_bytes",
        "memory",
        "reply_bytes",
        "requests",
        "serving_seconds",
        "wall_seconds",
    )

    def __init__(
        self,
        *,
        memory: int = 256 * MiB,
        cpu_seconds: int = 20,
        wall_seconds: float = 60,
        reply_bytes: int = 8 * MiB,
        file_bytes: int = 0,
        requests: int = 0,
        serving_seconds: float = 0,
    ) -> None:
        self.memory = memory
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.reply_bytes = reply_bytes
        self.file_bytes = file_bytes
        self.requests = requests
        self.serving_seconds = serving_seconds

    def but(self, **others: float) -> Limits:
        """Return the same limits, but for those given."""
        new = Limits()
        for name in self.__slots__:
            setattr(new, name, others.get(name, getattr(self, name)))
        return new


class Isolation:
    """How cells are to be made: the ``name`` asked for, and whether this process may fork directly.

    ``single_threaded`` is a promise by the caller that no other thread runs or ever ran, that its memory holds no
    secret, and that nothing but instar's own code is run by a fork; without it cells are forked from a helper
    process (see ``process.server``). Memory here is what the program's objects and libraries have for themselves: a
    cell gets a copy. What the program shares with others, and its environment, is taken away from a cell in any case
    (see ``process.inherited``).
    ``floor`` is the weakest kind that may be used (``process`` or ``kvm``): with it ``auto`` steps down no further.
    ``said`` collects why a back end was passed over, for ``-v``; ``used`` the kinds of cell that were taken.
    """

    __slots__ = ("floor", "name", "said", "single_threaded", "used")

    def __init__(self, name: str = "auto", *, single_threaded: bool = False, floor: str | None = None) -> None:
        if name not in NAMES:
            raise OptionError(
                "bad-isolation", f"there is no isolation '{name}'; it is one of {', '.join(NAMES)}", value=name
            )
        if floor is not None and NAMES.index(name) > NAMES.index(floor):
            raise OptionError(
                "isolation-below-floor",
                f"isolation '{name}' is weaker than this host's minimum-isolation, which is {floor}",
                value=name,
                floor=floor,
            )
        # Nothing is left to choose from.
        self.name = "kvm" if floor == "kvm" else name
        self.floor = floor
        self.single_threaded = single_threaded
        self.said: list[str] = []
        self.used: set[str] = set()

    def for_operation(self) -> Isolation:
        """Return the same for one operation, of which ``weakest`` then tells."""
        same = self.apart(single_threaded=self.single_threaded)
        same.used = set()
        return same

    def apart(self, *, single_threaded: bool) -> Isolation:
        """Return the same with another promise; what is said and used is told by both."""
        same = Isolation(self.name, single_threaded=single_threaded, floor=self.floor)
        same.said, same.used = self.said, self.used
        return same

    @property
    def weakest(self) -> str | None:
        """The weakest kind of cell that was taken: ``kvm``, ``process`` or ``none``; ``None`` if there was no cell."""
        return next((kind for kind in _STRENGTH if kind in self.used), None)

    def open(self) -> Cell:
        """Return a cell of the kind asked for; ``auto`` gives the strongest that this host can start.

        Raises:
            SandboxError: ``unavailable``; says what was tried and how to ask for less.
        """
        if self.name == "none":
            from instar.sandbox.inline import InlineCell

            return InlineCell(accept_no_isolation=True)
        kinds = ("kvm", "process") if self.name == "auto" else (self.name,)
        reasons = []
        cells: list[Cell] = []
        for kind in kinds:
            make, reason = find(kind)
            if reason is None:
                cells.append(make(direct=self.single_threaded))
            else:
                reasons.append(f"{kind}: {reason}")
        if not cells:
            self.said += reasons
            weaker = (
                "--isolation=process may work" if self.name == "kvm" else "--isolation=none works without protection"
            )
            advice = f"; {weaker}" if self.floor is None else ""
            raise SandboxError("unavailable", f"no cell can be made here ({'; '.join(reasons)}){advice}")
        self._say(reasons)
        return cells[0] if len(cells) == 1 else _Strongest(cells, self._say)

    def account_for(self, error: SandboxError) -> None:
        """Have an error say why no weaker cell was tried, if there was none."""
        if error.kind == "unavailable" and self.floor is not None:
            error.detail += f"; this host's minimum-isolation, {self.floor}, allows nothing weaker"

    def _say(self, reasons: list[str]) -> None:
        self.said += [reason for reason in reasons if reason not in self.said]


class _Strongest:
    """The first of several cells that this host can start.

    One that has been started is not given up for another. Nor is one whose start failed for no reason that holds for
    the host: whoever can bring that about would choose the cell. ``name`` is the kind that is tried first.
    """

    def __init__(self, cells: list[Cell], say: Callable[[list[str]], None]) -> None:
        self._cells = cells
        self._say = say
        self.name = cells[0].name

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        """See ``Cell.run``."""
        started = False

        def serve_started(request: Wire) -> Wire:
            nonlocal started
            started = True  # only a running guest asks, so what is raised from here on is no failed start
            return serve(request)

        while True:
            cell = self._cells[0]
            try:
                return cell.run(job, files, limits, serve_started)
            except SandboxError as error:
                if started or error.kind != "unavailable" or len(self._cells) == 1:
                    raise
                from instar.sandbox.process.channel import StartFailed

                if isinstance(error, StartFailed):
                    raise
                self._say([f"{cell.name}: {error.detail}"])
                del self._cells[0]
                self.name = self._cells[0].name


def find(kind: str) -> tuple[Callable[..., Cell], str | None]:
    """Return what makes cells of a kind, and why it cannot be had here."""
    try:
        return _load(kind)
    except ImportError as error:  # a module in C that an isolated subinterpreter may not have
        return _never, f"this interpreter cannot: {error}"


def _never(**_: object) -> Cell:
    raise SandboxError("unavailable", "this interpreter cannot")


def _load(kind: str) -> tuple[Callable[..., Cell], str | None]:
    if kind == "kvm":
        from instar.sandbox.kvm.cell import KvmCell, why_unavailable

        return KvmCell, why_unavailable()
    from instar.sandbox.process.cell import ProcessCell
    from instar.sandbox.process.cell import why_unavailable as why_no_process

    return ProcessCell, why_no_process()
