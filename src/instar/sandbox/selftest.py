"""Try the cells of this host: what each must be able to do, what it must not, and what must stop it.

Law: a trial is a row, and runs in a cell of its own. What a row imports is imported before the cell is made: an import
inside would be one more forbidden thing, and a trial could pass for the wrong reason. Nothing that a row tries would
do harm if it were allowed.
"""

from __future__ import annotations

import _ctypes
import _socket
import errno
import fcntl
import mmap
import os
import posix
import resource
import time

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant, Limits, find
from instar.sandbox.kernel import address_of, move, number_of, syscall
from instar.sandbox.process.policy import FD_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Cell, Guest
    from instar.sandbox.files import GrantedFile

    Ask = Callable[[Wire], Wire]
    Make = Callable[[Guest], Cell]

#: Kinds of cell in the order in which ``auto`` tries them.
KINDS = ("kvm", "process")

MiB = 1 << 20
#: How often an empty job is run to say how long that takes.
_LAUNCHES = 9
#: Granted for reading, for writing, and for both; the second and third are empty at first.
_READ, _WRITE, _BOTH = 0, 1, 2
_MODES = ("r", "w", "rw")
_CONTENT = bytes(range(256)) * 40
#: No cell of a trial may write past this.
_FILE_BYTES = 64 << 10
_OK = b"ok"
_QUESTION: Wire = {"question": 6}
_ANSWER: Wire = {"answer": 42}
_MFD_CLOEXEC, _MFD_NOEXEC_SEAL = 1, 8
_TIOCGWINSZ = 0x5413

#: A process that is not the cell, and memory that it shares with others.
_HOST = os.getpid()
_SHARED = mmap.mmap(-1, mmap.PAGESIZE)
#: Where the values of its environment lie, and what they are, with every bit turned: else they would be here too.
_TURNED = bytes(range(255, -1, -1))
_ENVIRONMENT = [(address_of(value), value.translate(_TURNED)) for value in posix.environ.values() if len(value) > 1]


class Trial:
    """One thing that is tried.

    Attributes:
        name: what a cell does if it passes, to follow "it".
        reason: why that matters.
        guest: what runs inside; its reply is ``ok`` if it got that far and all was right.
        ends: how the cell has to end: ``reply``, or the kind of a ``SandboxError``. words: what the error has to say.
        limits: of the cell. slow: takes long because it waits for a limit. written: what file 2 must hold afterwards.
    """

    __slots__ = ("ends", "guest", "limits", "name", "reason", "slow", "words", "written")

    def __init__(
        self,
        name: str,
        reason: str,
        guest: Guest,
        *,
        ends: str = "reply",
        words: str = "",
        limits: Limits | None = None,
        slow: bool = False,
        written: bytes = b"",
    ) -> None:
        self.name = name
        self.reason = reason
        self.guest = guest
        self.ends = ends
        self.words = words
        self.limits = limits or Limits(file_bytes=_FILE_BYTES, requests=1)
        self.slow = slow
        self.written = written


def _computed() -> int:
    """Compute something that takes a moment, memory, and most of what a processor has."""
    words = {f"{n:x}": n * n / 7 for n in range(2000)}
    total = sum(len(word) * int(value) for word, value in words.items())
    return total ^ hash(3.7) ^ pow(3, 10**4, (1 << 521) - 1)


_COMPUTED = _computed()


def _do_nothing(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    return _OK


def _compute(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    return _OK if _computed() == _COMPUTED and job == _CONTENT else b"something else"


def _copy(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    data = files[_READ].read(0, len(_CONTENT) + 1)
    files[_BOTH].write(0, data[::-1])
    return _OK if data == _CONTENT and files[_BOTH].read(1, 2) == data[-2:-4:-1] else b"other bytes"


def _ask(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    return _OK if ask(_QUESTION) == _ANSWER else b"another answer"


def _look_at_environment(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    for place, turned in _ENVIRONMENT:
        seen = bytes(len(turned))
        move(address_of(seen), place, len(turned))
        if seen.translate(_TURNED) == turned:
            return b"it is there"
    return b"it is there" if os.environ else _OK


def _write_far(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    try:
        files[_BOTH].write(_FILE_BYTES, b"x")
    except OSError as error:
        return _OK if error.errno == errno.EFBIG else b"another error"
    return b"it was written"


def _fill_memory(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    blocks: list[bytes] = []
    while len(blocks) < 128:
        blocks.append(bytes(MiB))
    return b"it got 128 MiB"


def _compute_for_ever(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    while True:
        pass


def _talk_much(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    return bytes(MiB)


NOTHING = Trial("starts", "without that there is no cell", _do_nothing)

WORKS = (
    NOTHING,
    Trial("computes", "a guest is an ordinary program, with the same results inside as outside", _compute),
    Trial("reads and writes its files", "that is what cells are for", _copy, written=_CONTENT[::-1]),
    Trial("asks its host", "the host answers what a cell may ask, and only that", _ask),
    Trial("has no environment", "tokens and keys of other programs stand there", _look_at_environment),
)


def _does(act: Callable[[], object]) -> Guest:
    """Return a guest that does one thing. Its reply says that nobody stopped it."""

    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        try:
            act()
        except OSError as error:
            return f"it got {errno.errorcode.get(error.errno or 0, '?')}".encode()
        return b"it was allowed"

    return guest


def _can_be_called(name: str) -> bool:
    """Tell whether a system call's number is known on this machine."""
    try:
        return number_of(name) >= 0
    except KeyError:
        return False


def _touch_memory() -> object:
    return syscall("process_vm_writev", _HOST, 0, 0, 0, 0, 0)


#: What a guest that has been taken over would try: name, why not, and how.
_FORBIDDEN: tuple[tuple[str, str, Callable[[], object]], ...] = (
    ("open a file", "it would read what was not granted", lambda: os.open("/etc/passwd", os.O_RDONLY)),
    ("open /dev/kvm", "only its monitor uses KVM", lambda: os.open("/dev/kvm", os.O_RDWR)),
    ("remove a file", "it would destroy what is not its own", lambda: os.unlink("/nonexistent/instar")),
    ("read a file granted for writing", "a grant has a direction", lambda: os.pread(FD_FILES + _WRITE, 1, 0)),
    ("write a file granted for reading", "a grant has a direction", lambda: os.pwrite(FD_FILES + _READ, b"x", 0)),
    ("read what was not granted", "it might be its host's", lambda: os.pread(FD_FILES + len(_MODES), 1, 0)),
    ("truncate a file", "no guest needs to", lambda: os.ftruncate(FD_FILES + _BOTH, 0)),
    ("use ioctl", "it is a door to every driver", lambda: fcntl.ioctl(FD_FILES + _READ, _TIOCGWINSZ, bytes(8))),
    ("make a socket", "it would send what it has read", lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)),
    ("start a process", "limits hold for one process", os.fork),
    # One that is not there: a real one would die of the same cause, and hide that it could be started.
    ("run a program", "a program is bound by nothing of this", lambda: os.execv("/nonexistent/instar", ["instar"])),
    ("signal another process", "it would end its host or a neighbour", lambda: os.kill(_HOST, 0)),
    *(
        (("touch another process's memory", "its host has rights", _touch_memory),)
        if _can_be_called("process_vm_writev")
        else ()
    ),
    ("map executable memory", "it would bring code of its own", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_EXEC)),
    ("map shared memory", "no limit counts what is behind it", lambda: mmap.mmap(-1, 4096)),
    ("watch another process", "a clock would tell when it works", lambda: time.clock_gettime(~_HOST << 3 | 2)),
    ("change its limits", "limits would be none", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
)

FORBIDDEN = (
    *(
        Trial(f"cannot {name}", reason, _does(act), ends="died", words="system call")
        for name, reason, act in _FORBIDDEN
    ),
    Trial(
        "cannot write memory that its host shares",
        "it would change the host, and whoever else has it",
        _does(lambda: _SHARED.write_byte(1)),
        ends="died",
        words="crashed",
    ),
    Trial(
        "ends at a wrong pointer",
        "what it may not touch is not there",
        _does(lambda: _ctypes.PyObj_FromPtr(8)),
        ends="died",
        words="crashed",
    ),
)

LIMITED = (
    Trial("cannot write past its limit", "no image fills the disk", _write_far),
    Trial(
        "cannot say more than its limit",
        "no reply fills the host's memory",
        _talk_much,
        ends="limit",
        words="message of",
        limits=Limits(reply_bytes=64 << 10),
    ),
    Trial(
        "is stopped at its limit of memory",
        "no image fills the memory",
        _fill_memory,
        ends="limit",
        words="ran out of memory",
        limits=Limits(memory=64 * MiB),
    ),
    Trial(
        "is stopped after 0.3 s without an answer",
        "no image keeps its host waiting",
        _compute_for_ever,
        ends="limit",
        words="did not answer within 0.3 s",
        limits=Limits(wall_seconds=0.3),
        slow=True,
    ),
    Trial(
        "is stopped after 1 s of processor time",
        "no image keeps a processor busy",
        _compute_for_ever,
        ends="limit",
        words="more than 1 s of processor time",
        limits=Limits(cpu_seconds=1),
        slow=True,
    ),
)

TRIALS = (*WORKS, *FORBIDDEN, *LIMITED)


def self_test(kinds: Sequence[str] = KINDS, *, quick: bool = False) -> list[dict[str, Wire]]:
    """Try cells of each kind, made from this process, which must have one thread; return a row for each.

    A row has ``kind``; ``reason`` why it cannot be started, or ``None``; ``trials``, each with ``name``, ``reason``,
    ``passed``, ``microseconds``, ``said`` and ``story``; and ``launch``, the microseconds from launch to result.
    ``quick`` leaves out the trials that wait for a limit.

    Raises:
        OSError: there is no memory for the files that are granted.
    """
    rows: list[dict[str, Wire]] = []
    for kind in kinds:
        make, reason = _maker(kind)
        row = examine(make, quick=quick) if reason is None else {"reason": reason, "trials": [], "launch": None}
        rows.append({"kind": kind, **row})
    return rows


def _maker(kind: str) -> tuple[Make, str | None]:
    """Return what makes a cell of a kind, and why it cannot be had here."""
    cell, reason = find(kind)
    return (lambda guest: cell(direct=True, guest=guest)), reason


def examine(make: Make, *, quick: bool = False, trials: Sequence[Trial] = TRIALS) -> dict[str, Wire]:
    """Try the cells that ``make`` gives. See ``self_test``."""
    times: list[int] = []
    for _ in range(_LAUNCHES):
        cell = make(_do_nothing)
        began = time.perf_counter_ns()
        try:
            cell.run(b"", (), Limits(), _serve)
        except SandboxError as error:
            if error.kind == "unavailable":
                return {"reason": error.detail, "trials": [], "launch": None}
            # It starts, and then cannot do even that: nothing else needs to be tried.
            return {"reason": None, "trials": [run_trial(make, NOTHING)], "launch": None}
        times.append((time.perf_counter_ns() - began) // 1000)
    results: list[Wire] = []
    for trial in trials:
        if not (quick and trial.slow):
            row = run_trial(make, trial)
            results.append(row)
            if trial is NOTHING and not row["passed"]:
                break
    return {"reason": None, "trials": results, "launch": sorted(times)[_LAUNCHES // 2]}


def run_trial(make: Make, trial: Trial) -> dict[str, Wire]:
    """Run one trial in a cell of its own and return its row. See ``self_test``."""
    fds: list[int] = []
    try:
        for content in (_CONTENT, b"", b""):
            fds.append(_file_in_memory())
            os.pwrite(fds[-1], content, 0)
        grants = [Grant(fd, mode, os.fstat(fd).st_size) for fd, mode in zip(fds, _MODES, strict=True)]
        began = time.perf_counter_ns()
        story = None
        try:
            reply = make(trial.guest).run(_CONTENT, grants, trial.limits, _serve)
            ended, said = "reply", reply[:80].decode("utf-8", "replace")
        except SandboxError as error:
            ended, said, story = error.kind, error.detail, error.story
        took = (time.perf_counter_ns() - began) // 1000
        passed = ended == trial.ends and (said == "ok" if ended == "reply" else trial.words in said)
        if [os.pread(fd, _FILE_BYTES, 0) for fd in fds] != [_CONTENT, b"", trial.written]:
            passed, said = False, f"its files hold something else afterwards ({said})"
        if _SHARED[0]:
            passed, said = False, f"it has written into its host's memory ({said})"
            _SHARED[0] = 0
    finally:
        for fd in fds:
            os.close(fd)
    return {
        "name": trial.name,
        "reason": trial.reason,
        "passed": passed,
        "microseconds": took,
        "said": said,
        "story": story,
    }


def _serve(request: Wire) -> Wire:
    return _ANSWER if request == _QUESTION else None


def _file_in_memory() -> int:
    try:
        return os.memfd_create("instar", _MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux before 6.3
            raise
        return os.memfd_create("instar", _MFD_CLOEXEC)
