"""Frames between a host and its cell: a length, a tag, a body. The host's side never trusts a length.

Tags: ``S`` the cell is sealed, or ``X`` why it cannot be had here, or ``F`` how its start failed; then ``J`` the job,
``Q`` a request of the cell, ``A`` its answer, ``R`` the reply; ``D`` where the cell was when it died, for people,
without any other effect.
``S``, ``X`` and ``F`` come before any guest code reads its job, so no guest can claim the others.
"""

from __future__ import annotations

import os
import posix
import struct
import time

from instar.core.errors import SandboxError, printable
from instar.core.wire import Room, WireError, decode, encode, take
from instar.sandbox.process.waiting import READ, WRITE, wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant, Limits, Serve

    class Running(Protocol):
        """A cell that has been started."""

        up: int
        down: int

        def end(self) -> int | None:
            """Kill the cell if it still runs, reap it, and return its wait status (``None`` if unknown)."""
            ...


_HEAD = struct.Struct("=Ic")
#: Longest frame that is no reply.
_MAX_SHORT = 4096
#: What a request may have: values, and bytes of memory.
_MAX_VALUES = 32
_MAX_MEMORY = 8 * _MAX_SHORT
_CHUNK = 1 << 16

#: Exit codes of a cell that gives no reply.
CODE_UNSEALED = 2
CODE_HOST_GONE = 3
CODE_FAULT = 4
CODE_NO_MEMORY = 5
#: How the guest of a virtual machine ended, as said by its monitor: first code, and what follows in order.
CODE_CAUSES = 200
CAUSES = ("call", "exception", "instruction", "division", "machine", "processor-time", "time")
#: Longest story of a death, and how many there may be: one that a guest makes up, and the monitor's.
_MAX_STORY = 1000
_MOST_STORIES = 2


def pack_job(job: bytes, files: Sequence[Grant], *, monitored: bool = False) -> bytes:
    """Return what a cell is told: its job, and what its files are.

    A window begins where it is in the file; behind a monitor, which adds that to each offset, it begins at zero.
    """
    starts = [g.offset and (0 if monitored else g.offset) for g in files]
    return encode({"files": [[g.mode, g.size, at] for g, at in zip(files, starts, strict=True)], "job": job})


def unpack_job(body: bytes) -> tuple[bytes, list[tuple[str, int, int | None]]]:
    """Return the job, and mode, size and start (of a window) of each file.

    Raises:
        WireError: it is none.
    """
    value = decode(body)
    return take(value, "job", bytes), [(mode, size, start) for mode, size, start in take(value, "files", list)]


class StartFailed(SandboxError):
    """The cell did not come to its first step, for no reason that holds for this host: the next one may."""


class StartFault(Exception):
    """What becomes a ``StartFailed`` on the host's side, met by the process that was to be the cell."""


class ServerGone(SandboxError):
    """The fork server went before the cell was sealed: nothing was done, so the same may be ordered again."""


class CellChannel:
    """The cell's side: blocking reads and writes on two descriptors."""

    __slots__ = ("_down", "_up")

    def __init__(self, up: int, down: int) -> None:
        self._up = up
        self._down = down

    def receive(self, tag: bytes) -> bytes:
        """Return the body of the next frame, which must carry ``tag``; the cell ends if the host is gone."""
        size, got = _HEAD.unpack(self._read(_HEAD.size))
        if got != tag:
            os._exit(CODE_HOST_GONE)
        return self._read(size)

    def _read(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = posix.read(self._down, min(size, _CHUNK))
            if not piece:
                os._exit(CODE_HOST_GONE)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def send(self, tag: bytes, body: bytes) -> None:
        """Send one frame."""
        head = _HEAD.pack(len(body), tag)
        for piece in (head + body,) if len(body) < _CHUNK else (head, body):
            view = memoryview(piece)
            while view:
                view = view[posix.write(self._up, view) :]

    def tell_story(self, text: str) -> None:
        """Say how the guest died; there is nothing more to come."""
        self.send(b"D", text.encode("utf-8", "replace")[:_MAX_STORY])

    def ask(self, request: Wire) -> Wire:
        """Make a request of the host and return its answer."""
        self.send(b"Q", encode(request))
        return decode(self.receive(b"A"))


class _HostChannel:
    """The host's side: nothing blocks past the deadline, no frame is longer than its kind may be.

    The clock of the cell runs until its reply is there. It stops only while the host serves a request, and there for
    no longer than the limits say, so that a cell cannot buy time by asking.
    """

    __slots__ = ("_buffer", "_deadline", "_free", "_limits", "_requests", "_running")

    def __init__(self, running: Running, limits: Limits) -> None:
        self._running = running
        self._limits = limits
        self._deadline = time.monotonic() + limits.wall_seconds
        #: Seconds of serving that do not count yet.
        self._free = limits.serving_seconds
        self._requests = 0
        self._buffer = bytearray()

    def _wait(self, fd: int, events: int) -> bool:
        """Wait until ``fd`` is ready; tell whether it is (and not just the cell gone)."""
        up = self._running.up
        # It looks once even when the time is over: the host may have been stopped, and the answer be there.
        ready = wait_for([(fd, events)] if fd == up else [(fd, events), (up, 0)], self._deadline - time.monotonic())
        if not ready:
            raise SandboxError("limit", no_answer_within(self._limits))
        return fd in ready

    def send(self, tag: bytes, body: bytes) -> None:
        """Send one frame; nothing comes of it if the cell is gone, which reading will tell."""
        view = memoryview(_HEAD.pack(len(body), tag) + body)
        while view:
            if not self._wait(self._running.down, WRITE):
                return
            try:
                view = view[posix.write(self._running.down, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def receive(self) -> tuple[bytes, bytes] | None:
        """Return ``(tag, body)``, or ``None`` if the cell closed its end."""
        head = self._take(_HEAD.size)
        if head is None:
            return None
        size, tag = _HEAD.unpack(head)
        limit = self._limits.reply_bytes if tag == b"R" else _MAX_SHORT
        if size > limit:
            raise SandboxError("limit", f"the cell sent a message of {size} bytes, the limit is {limit}")
        body = self._take(size)
        return None if body is None else (tag, body)

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            self._wait(self._running.up, READ)
            piece = posix.read(self._running.up, _CHUNK)
            if not piece:
                return None
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def answer(self, body: bytes, serve: Serve) -> None:
        """Serve a request.

        Raises:
            WireError: it is none.
            SandboxError: ``limit``, it is one too many, or too late.
        """
        self._requests += 1
        if self._requests > self._limits.requests:
            raise SandboxError("limit", too_many_requests(self._limits))
        request = decode(body, Room(values=_MAX_VALUES, memory=_MAX_MEMORY))
        started = time.monotonic()
        if started >= self._deadline:
            raise SandboxError("limit", no_answer_within(self._limits))
        answer = serve(request)
        free = min(time.monotonic() - started, self._free)
        self._free -= free
        self._deadline += free
        self.send(b"A", encode(answer))


def too_many_requests(limits: Limits) -> str:
    """Say that the cell asked once more than it may."""
    return f"the cell made more than {limits.requests} requests" if limits.requests else "the cell made a request"


def no_answer_within(limits: Limits) -> str:
    """Say that the time is up."""
    return f"the cell did not answer within {limits.wall_seconds:g} s"


def converse(
    running: Running,
    job: bytes,
    limits: Limits,
    serve: Serve,
    files: Sequence[Grant] = (),
    *,
    monitored: bool = False,
) -> bytes:
    """Hand a job on ``files`` to a started cell, serve its requests, and return its reply. The cell is gone afterwards.

    ``monitored`` is true where a virtual machine's monitor chooses the code that the cell ends with.

    Raises:
        SandboxError: ``unavailable`` if it could not be sealed, else ``died``, ``protocol`` or ``limit``.
    """
    try:
        return _converse(
            _HostChannel(running, limits),
            running,
            pack_job(job, files, monitored=monitored),
            limits,
            serve,
            monitored=monitored,
        )
    except WireError as error:
        raise SandboxError("protocol", f"the cell's request cannot be read: {error}") from None
    finally:
        try:
            running.end()
        except BaseException:  # a second Ctrl-C
            running.end()
            raise


def _converse(
    channel: _HostChannel, running: Running, job: bytes, limits: Limits, serve: Serve, *, monitored: bool
) -> bytes:
    channel.send(b"J", job)  # waits in the pipe until the cell is sealed
    frame = channel.receive()
    if frame is None:
        raise _how_it_ended(running.end(), limits, sealed=False)
    tag, body = frame
    if tag == b"X":
        raise SandboxError("unavailable", f"the cell could not be made: {printable(body, _MAX_STORY)}")
    if tag == b"F":
        raise StartFailed("unavailable", f"the cell did not start: {printable(body, _MAX_STORY)}")
    if tag != b"S":
        raise SandboxError("protocol", "the cell sent a frame of an unknown kind")
    story, stories = "", 0
    while True:
        frame = channel.receive()
        if frame is None:
            raise _how_it_ended(running.end(), limits, sealed=True, story=story, monitored=monitored)
        tag, body = frame
        if tag == b"R":
            return body
        if tag == b"D" and stories < _MOST_STORIES:
            story = printable(body[:_MAX_STORY], _MAX_STORY)
            stories += 1
            continue
        if tag != b"Q":
            raise SandboxError("protocol", "the cell sent a frame of an unknown kind")
        channel.answer(body, serve)


_CRASHED = "the cell crashed: it used memory or an instruction that it may not use"
_NO_CALL = "the cell was killed: it made a system call that no cell may make"
_UNDEFINED = "the cell crashed: it ran an instruction that there is not"
_DIVISION = "the cell crashed: it divided by zero"
_SIGNALS = {
    4: f"{_UNDEFINED} (SIGILL)",
    5: f"{_CRASHED} (SIGTRAP)",
    6: "the cell crashed (SIGABRT)",
    7: f"{_CRASHED} (SIGBUS)",
    8: f"{_DIVISION} (SIGFPE)",
    9: "the cell was killed from outside (SIGKILL), perhaps because the machine ran out of memory",
    11: f"{_CRASHED} (SIGSEGV)",
    31: f"{_NO_CALL} (SIGSYS)",
}
_SIGXCPU = 24


def _how_it_ended(
    status: int | None, limits: Limits, *, sealed: bool, story: str = "", monitored: bool = False
) -> SandboxError:
    """Say in words what a wait status means for a cell that gave no reply."""
    if status is None:
        # A cell whose end nobody saw: the fork server went, and took it along.
        kind, said = "died", "the cell ended without an answer, and nobody saw how"
        return SandboxError(kind, said) if sealed else ServerGone("unavailable", said)
    code = os.waitstatus_to_exitcode(status)
    cause = CAUSES[code - CODE_CAUSES] if monitored and CODE_CAUSES <= code < CODE_CAUSES + len(CAUSES) else ""
    if sealed and (code == -_SIGXCPU or cause == "processor-time"):
        return _too_long(limits, story)
    if cause == "time":
        kind, said = "limit", no_answer_within(limits)
    elif code == CODE_NO_MEMORY:
        kind, said = "limit", f"the cell ran out of memory (limit {limits.memory >> 20} MiB)"
    elif cause:
        kind, said = "died", _BY_CAUSE[cause]
    elif code < 0:
        kind, said = "died", _SIGNALS.get(-code, f"the cell was killed by signal {-code}")
    else:
        kind, said = "died", f"the cell ended with code {code} and no answer"
    if not sealed:  # no job was read: it was never started
        return StartFailed("unavailable", said)
    return SandboxError(kind, said, story=story or None)


def _too_long(limits: Limits, story: str) -> SandboxError:
    """Say whose limit of processor time a cell passed: its own, or the lower one of this program, which it inherits."""
    import resource

    own = min((limit for limit in resource.getrlimit(resource.RLIMIT_CPU) if limit >= 0), default=limits.cpu_seconds)
    if own >= limits.cpu_seconds:
        said = f"the cell used more than {limits.cpu_seconds} s of processor time"
        return SandboxError("limit", said, story=story or None)
    said = f"the cell used as much processor time as this program may, {own} s (ulimit -t)"
    error = SandboxError("limit", said, story=story or None)
    error.inherited = True
    return error


_BY_CAUSE = {
    "call": _NO_CALL,
    "exception": _CRASHED,
    "instruction": _UNDEFINED,
    "division": _DIVISION,
    "machine": "the cell's virtual machine stopped",
}
