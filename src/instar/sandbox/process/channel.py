"""Frames between a host and its cell: a length, a tag, a body. The host's side never trusts a length.

Tags: ``S`` the cell is sealed, or ``X`` why it could not be; then ``J`` the job, ``Q`` a request of the cell,
``A`` its answer, ``R`` the reply. The first comes before any guest code runs, so no guest can claim the second.
"""

from __future__ import annotations

import os
import select
import struct
import time

from instar.core.errors import SandboxError
from instar.core.wire import WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from instar.core.wire import Wire
    from instar.sandbox.cell import Limits, Serve

    class Running(Protocol):
        """A cell that has been started."""

        up: int
        down: int

        def end(self) -> int | None:
            """Kill the cell if it still runs, reap it, and return its wait status (``None`` if unknown)."""
            ...


_HEAD = struct.Struct("=Ic")
#: Requests are small; a cell that asks more often than this is looping.
MAX_REQUESTS = 1_000_000
_CHUNK = 1 << 16

#: Exit codes of a cell that gives no reply.
CODE_UNSEALED = 2
CODE_HOST_GONE = 3
CODE_FAULT = 4
CODE_NO_MEMORY = 5


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
            piece = os.read(self._down, min(size, _CHUNK))
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
                view = view[os.write(self._up, view) :]

    def ask(self, request: Wire) -> Wire:
        """Make a request of the host and return its answer."""
        self.send(b"Q", encode(request))
        return decode(self.receive(b"A"))


class _HostChannel:
    """The host's side: nothing blocks past the deadline, no frame is longer than the limit."""

    __slots__ = ("_buffer", "_deadline", "_limits", "_running")

    def __init__(self, running: Running, limits: Limits) -> None:
        self._running = running
        self._limits = limits
        self._deadline = time.monotonic() + limits.wall_seconds
        self._buffer = bytearray()

    def _wait(self, fd: int, events: int) -> bool:
        """Wait until ``fd`` is ready; tell whether it is (and not just the cell gone)."""
        poll = select.poll()
        poll.register(fd, events)
        poll.register(self._running.up, events if fd == self._running.up else 0)
        # Look once even when the time is over: the host may have been stopped, and the answer be there.
        ready = poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000)
        if not ready:
            raise SandboxError("limit", f"the cell did not answer within {self._limits.wall_seconds:g} s")
        return any(which == fd for which, _ in ready)

    def send(self, tag: bytes, body: bytes) -> None:
        """Send one frame; nothing comes of it if the cell is gone, which reading will tell."""
        view = memoryview(_HEAD.pack(len(body), tag) + body)
        while view:
            if not self._wait(self._running.down, select.POLLOUT):
                return
            try:
                view = view[os.write(self._running.down, view[:_CHUNK]) :]
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
        if size > self._limits.reply_bytes:
            raise SandboxError(
                "limit", f"the cell sent a message of {size} bytes, the limit is {self._limits.reply_bytes}"
            )
        body = self._take(size)
        return None if body is None else (tag, body)

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            self._wait(self._running.up, select.POLLIN)
            piece = os.read(self._running.up, _CHUNK)
            if not piece:
                return None
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def pause(self, seconds: float) -> None:
        """Move the deadline: time that the host itself spent serving does not count against the cell."""
        self._deadline += seconds


def converse(running: Running, job: bytes, limits: Limits, serve: Serve) -> bytes:
    """Hand a job to a started cell, serve its requests, and return its reply. The cell is gone afterwards.

    Raises:
        SandboxError: ``unavailable`` if it could not be sealed, else ``died``, ``protocol`` or ``limit``.
    """
    try:
        return _converse(_HostChannel(running, limits), running, job, limits, serve)
    except WireError as error:
        raise SandboxError("protocol", f"the cell's request cannot be read: {error}") from None
    finally:
        try:
            running.end()
        except BaseException:  # a second Ctrl-C
            running.end()
            raise


def _converse(channel: _HostChannel, running: Running, job: bytes, limits: Limits, serve: Serve) -> bytes:
    channel.send(b"J", job)  # waits in the pipe until the cell is sealed
    frame = channel.receive()
    if frame is None:
        raise _how_it_ended(running.end(), limits, sealed=False)
    tag, body = frame
    if tag == b"X":
        raise SandboxError("unavailable", "the process could not be sealed: " + body.decode("utf-8", "replace"))
    if tag != b"S":
        raise SandboxError("protocol", "the cell sent a frame of an unknown kind")
    for _ in range(MAX_REQUESTS):
        frame = channel.receive()
        if frame is None:
            raise _how_it_ended(running.end(), limits, sealed=True)
        tag, body = frame
        if tag == b"R":
            return body
        if tag != b"Q":
            raise SandboxError("protocol", "the cell sent a frame of an unknown kind")
        started = time.monotonic()
        answer = serve(decode(body))
        channel.pause(time.monotonic() - started)
        channel.send(b"A", encode(answer))
    raise SandboxError("limit", f"the cell made more than {MAX_REQUESTS} requests")


_SIGNALS = {
    4: "the cell crashed (SIGILL)",
    6: "the cell crashed (SIGABRT)",
    7: "the cell crashed (SIGBUS)",
    8: "the cell crashed (SIGFPE)",
    9: "the cell was killed from outside (SIGKILL), perhaps because the machine ran out of memory",
    11: "the cell crashed (SIGSEGV)",
    31: "the cell was killed: it made a system call that no cell may make (SIGSYS)",
}
_SIGXCPU = 24


def _how_it_ended(status: int | None, limits: Limits, *, sealed: bool) -> SandboxError:
    """Say in words what a wait status means for a cell that gave no reply."""
    if status is None:
        # A cell whose end nobody saw: the fork server went, and took it along.
        kind = "died" if sealed else "unavailable"
        return SandboxError(kind, "the cell ended without an answer, and nobody saw how")
    code = os.waitstatus_to_exitcode(status)
    if code == -_SIGXCPU:
        return SandboxError("limit", f"the cell used more than {limits.cpu_seconds} s of processor time")
    if code == CODE_NO_MEMORY:
        return SandboxError("limit", f"the cell ran out of memory (limit {limits.memory >> 20} MiB)")
    if code < 0:
        return SandboxError("died", _SIGNALS.get(-code, f"the cell was killed by signal {-code}"))
    return SandboxError("died", f"the cell ended with code {code} and no answer")
