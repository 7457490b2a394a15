"""A granted file as the code inside a cell sees it: a number, a size, and positional reads and writes.

Law: nothing here opens, closes, stats or seeks. The system calls are ``pread`` and ``pwrite``, no others.
"""

from __future__ import annotations

import os

from instar.core.errors import SandboxError


class GrantedFile:
    """File ``number`` behind descriptor ``fd``; ``mode`` is ``r``, ``w`` or ``rw``; ``size`` as of the grant."""

    __slots__ = ("_fd", "mode", "number", "size")

    def __init__(self, number: int, fd: int, mode: str, size: int) -> None:
        self.number = number
        self._fd = fd
        self.mode = mode
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            OSError: as the system says; its ``filename`` is the file's number.
        """
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
