"""Test the cells of this host: which can be started, and whether each does what it must and nothing else.

Law: cells of the self-test are forked from a process with one thread: this one if its owner promised that, else a
fresh one of the same interpreter.
"""

from __future__ import annotations

import os
import posix
import stat
import sys

from instar.core.errors import EXIT_SANDBOX, HostError, InternalError, OptionError, SandboxError
from instar.core.wire import WireError, decode, encode, take, take_optional, take_size
from instar.host.arguments import flag_of, isolation_of
from instar.sandbox.kvm.device import DEVICE
from instar.sandbox.posix import safe_pipe
from instar.sandbox.selftest import KINDS
from instar.sandbox.selftest import self_test as try_cells

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from instar.core.wire import Wire
    from instar.sandbox.cell import Isolation

_SIGKILL = 9
_CHUNK = 1 << 16


class TrialResult:
    """What came of one trial.

    Attributes:
        name: what the cell does if it passed: ``cannot open a file``. reason: why that matters.
        passed: whether it did. seconds: from launch to result.
        said: ``ok``, or how the cell ended: most trials are meant to end it. story: where in its program, if known.
    """

    __slots__ = ("name", "passed", "reason", "said", "seconds", "story")

    def __init__(self, row: Wire) -> None:
        self.name = take(row, "name", str)
        self.reason = take(row, "reason", str)
        self.passed = take(row, "passed", bool)
        self.seconds = take_size(row, "microseconds") / 1e6
        self.said = take(row, "said", str)
        self.story = take_optional(row, "story", str)

    def __repr__(self) -> str:
        return f"TrialResult({self.name!r}, passed={self.passed})"


class CellResult:
    """What came of one kind of cell.

    Attributes:
        kind: ``kvm`` or ``process``. reason: why it cannot be started, or ``None``. hint: what may help, or ``None``.
        trials: in the order tried. launch_seconds: median from launch to result of a job that does nothing.
    """

    __slots__ = ("hint", "kind", "launch_seconds", "reason", "trials")

    def __init__(self, row: Wire) -> None:
        self.kind = take(row, "kind", str)
        self.reason = take_optional(row, "reason", str)
        self.hint = None if self.reason is None else _hint(self.reason)
        self.trials = [TrialResult(trial) for trial in take(row, "trials", list)]
        launch = take_optional(row, "launch", int)
        self.launch_seconds = None if launch is None else launch / 1e6

    @property
    def available(self) -> bool:
        """It can be started."""
        return self.reason is None

    @property
    def passed(self) -> bool:
        """It can be started, and every trial passed."""
        return self.available and all(trial.passed for trial in self.trials)

    def __repr__(self) -> str:
        return f"CellResult({self.kind!r}, available={self.available}, passed={self.passed})"


class SelfTestResult:
    """What a self-test found.

    Attributes:
        isolation: what was asked for. cells: the kinds that this covers, the strongest first.
    """

    __slots__ = ("cells", "isolation")

    def __init__(self, isolation: str, rows: list[Wire]) -> None:
        self.isolation = isolation
        self.cells = [CellResult(row) for row in rows]

    @property
    def taken(self) -> str | None:
        """The kind that this isolation takes on this host; ``None`` if there is none."""
        return next((cell.kind for cell in self.cells if cell.available), None)

    @property
    def passed(self) -> bool:
        """There is a cell, and those that can be started passed every trial."""
        return self.taken is not None and all(cell.passed for cell in self.cells if cell.available)

    @property
    def exit_code(self) -> int:
        """0 passed, 70 not."""
        return 0 if self.passed else EXIT_SANDBOX

    def __repr__(self) -> str:
        return f"SelfTestResult({self.isolation!r}, taken={self.taken!r}, passed={self.passed})"


def self_test(*, isolation: Isolation | str | None = None, quick: bool = False) -> SelfTestResult:
    """Start cells of each kind that ``isolation`` may take, and try what they must do and must not do.

    Some thirty cells of each kind, one after another: seconds; ``quick`` leaves out the two trials that wait for a
    limit. A cell that cannot be had or fails is in the result, and no error.

    Raises:
        OptionError: ``bad-isolation``; there is nothing to try in ``none``.
        HostError: there is no memory for the files that the cells are granted.
        SandboxError: ``unavailable``; no process can be started for it.
    """
    asked, quick = isolation_of(isolation), flag_of(quick, "quick")
    if asked.name == "none":
        raise OptionError(
            "bad-isolation",
            "isolation 'none' has no cell that could be tested; ask for auto, kvm or process",
            value="none",
        )
    kinds = KINDS if asked.name == "auto" else (asked.name,)
    try:
        rows = _tried(kinds, quick=quick) if asked.single_threaded else _tried_elsewhere(kinds, quick=quick)
        return SelfTestResult(asked.name, rows)
    except WireError as error:
        raise InternalError(f"the self-test gave something else: {error}") from None


def _tried(kinds: Sequence[str], *, quick: bool) -> list[Wire]:
    try:
        return list(try_cells(kinds, quick=quick))
    except OSError as error:
        raise _no_files(error.errno or 0) from None


def _no_files(number: int) -> HostError:
    return HostError(number, "a file in memory", "make it", os.strerror(number))


def _tried_elsewhere(kinds: Sequence[str], *, quick: bool) -> list[Wire]:
    """Do the same in a fresh process of this interpreter."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise SandboxError(
            "unavailable",
            "this program has no Python interpreter of its own to start a self-test with;"
            " if it has one thread, say so with Isolation(single_threaded=True)",
        )
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import sys; sys.path.insert(0, {package!r}); from instar.host.sandbox import answer;"
        f" answer({tuple(kinds)!r}, quick={quick!r})"
    )
    try:
        value = decode(_output_of(code))
    except OSError as error:
        raise SandboxError("unavailable", f"no process can be started: {error.strerror}") from None
    if isinstance(value, int):
        raise _no_files(value)
    return take({"rows": value}, "rows", list)


def _output_of(code: str) -> bytes:
    """Run code in a fresh interpreter and return what it writes."""
    argv = [sys.executable, "-I", "-S", *(["-B"] if sys.dont_write_bytecode else []), "-c", code]
    environment = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    read, write = safe_pipe()
    pid = 0
    try:
        try:
            pid = os.posix_spawn(
                argv[0],
                argv,
                {"LC_ALL": "C.UTF-8", **environment},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
        finally:
            os.close(write)
        pieces = []
        while piece := os.read(read, _CHUNK):
            pieces.append(piece)
        return b"".join(pieces)
    except BaseException:
        if pid:
            os.kill(pid, _SIGKILL)  # its cells go with it
        raise
    finally:
        os.close(read)
        if pid:
            try:
                posix.waitpid(pid, 0)
            except ChildProcessError:
                pass  # the caller's program reaps children behind our back


def answer(kinds: Sequence[str], *, quick: bool) -> NoReturn:
    """Be the fresh process: write the rows, or the number of an error of the system."""
    try:
        out: Wire = list(try_cells(kinds, quick=quick))
    except OSError as error:
        out = error.errno
    data = encode(out)
    while data:
        data = data[os.write(1, data) :]
    os._exit(0)


def _hint(reason: str) -> str | None:
    """Say what may help against the reason for which a cell cannot be started."""
    if not reason.startswith(DEVICE):
        return None
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            "is virtualisation on in the firmware, and kvm_intel or kvm_amd loaded?"
            f" A container needs --device {DEVICE}, a virtual machine nested virtualisation"
        )
    except PermissionError:
        return _how_to_open(os.stat(DEVICE))
    except OSError:
        return None
    return None


def _how_to_open(device: os.stat_result) -> str:
    if os.geteuid() == 0:
        return f"not even root may open it here: a container needs --device {DEVICE}"
    import grp

    try:
        group = grp.getgrgid(device.st_gid).gr_name
    except KeyError:
        group = str(device.st_gid)
    may = stat.S_IRGRP | stat.S_IWGRP
    if device.st_gid and device.st_mode & may == may:
        return f"is the user in group {group}? 'usermod -aG {group} USER', then log in again"
    return f"only root may open it; on most systems group kvm may, too: 'chgrp kvm {DEVICE}; chmod 660 {DEVICE}'"
