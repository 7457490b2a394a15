"""A granted file as the code inside a cell sees it: a number, a size, and positional reads and writes.

Law: nothing here opens, closes, stats or seeks. The system calls are ``pread`` and ``pwrite``, no others. That a window
is kept to here saves honest code from its walls; the walls are elsewhere (``process.bounds``, ``kvm.calls``).
"""

from __future__ import annotations

import errno
import os

from instar.core.errors import SandboxError


class GrantedFile:
    """File ``number`` behind descriptor ``fd``; ``mode`` is ``r``, ``w`` or ``rw``; ``size`` as of the grant.

    Of a window ``start`` is its place in what ``fd`` reaches; it has ``size`` bytes and an end there.
    """

    __slots__ = ("_fd", "_start", "mode", "number", "size")

    def __init__(self, number: int, fd: int, mode: str, size: int, start: int | None = None) -> None:
        self.number = number
        self._fd = fd
        self._start = start
        self.mode = mode
        self.size = size

    def _place(self, offset: int, length: int) -> tuple[int, int]:
        """Return where ``offset`` is in what the descriptor reaches, and how much of ``length`` there is."""
        if self._start is None:
            return offset, length
        if offset < 0:
            raise OSError(errno.EINVAL, "an offset before the start of the file", self.number)
        return self._start + offset, max(0, min(length, self.size - offset))

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            OSError: as the system says; its ``filename`` is the file's number.
        """
        offset, length = self._place(offset, length)
        if not length:
            return b""
        try:
            data = os.pread(self._fd, length, offset)
            if len(data) < length:
                pieces = [data]
                got = len(data)
                while got < length and (more := os.pread(self._fd, length - got, offset + got)):
                    pieces.append(more)
                    got += len(more)
                data = b"".join(pieces)
        except OSError as error:
            error.filename = self.number
            raise
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            OSError: as the system says (``ENOSPC``, ``EIO`` …); its ``filename`` is the file's number.
            SandboxError: ``protocol``, the system wrote nothing without saying why.
        """
        offset, room = self._place(offset, len(data))
        if room < len(data):
            raise OSError(errno.EFBIG, "past the end of the window", self.number)
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                wrote = os.pwrite(self._fd, data[done:], offset + done)
                if wrote <= 0:
                    raise SandboxError("protocol", "a write made no progress")
                done += wrote
        except OSError as error:
            error.filename = self.number
            raise
