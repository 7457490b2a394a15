"""Files of the host: opened once, judged by ``fstat`` on the descriptor, never by path twice.

Law: no function here looks at what is in a file. Every error of the system becomes a ``HostError``.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.sandbox.cell import Grant
from instar.sandbox.posix import above_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import struct
    from typing import Self

#: linux/fs.h: set when the file is not to be copied on write (btrfs).
FS_NOCOW_FL = 0x00800000
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FS_XFLAG_EXTSIZE = 0x00000800


def host_error(error: OSError, path: str, action: str, *, hint: str = "") -> HostError:
    """Turn an ``OSError`` into a ``HostError`` that names the file and what was tried."""
    number = error.errno or 0
    return HostError(number, path, action, os.strerror(number) if number else str(error), hint=hint)


class OpenFile:
    """A regular file or block device, opened for reading.

    Attributes:
        path: as given by whoever asked for it.
        fd: descriptor; closed by ``close`` or at the end of a ``with`` block.
        locked: image locks were asked for on it (see ``locks``); ``close`` gives them up.
        size: length in bytes (of a block device, its capacity).
        allocated: bytes of storage in use (``st_blocks``), 0 for a device.
        identity: device and inode, which two names of one file share.
    """

    __slots__ = ("allocated", "fd", "identity", "is_device", "locked", "path", "size")

    def __init__(self, path: str, fd: int, status: os.stat_result) -> None:
        self.path = path
        self.fd = fd
        self.locked = False
        self.is_device = stat.S_ISBLK(status.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END) if self.is_device else status.st_size
        self.allocated = status.st_blocks * 512
        self.identity = (status.st_dev, status.st_ino)

    def grant(self, mode: str = "r") -> Grant:
        """Return the file as a cell is given it."""
        return Grant(self.fd, mode, self.size, self.path)

    def close(self) -> None:
        """Close the descriptor; harmless when done twice."""
        if self.fd >= 0:
            if self.locked:
                # A cell that is slow to die may have a copy of the descriptor, and the lock belongs to both.
                from instar.host.locks import release

                release(self.fd)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(path: str, *, action: str = "open", reopen: int | None = None) -> OpenFile:
    """Open a file for reading, without blocking on a pipe or a device that is not there.

    ``reopen`` is a descriptor (``O_PATH``) of the file itself, which ``path`` then only names in errors.

    Raises:
        HostError: it cannot be opened, or is neither a regular file nor a block device.
    """
    name = path if reopen is None else f"/proc/self/fd/{reopen}"
    try:
        fd = above_stdio(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError as error:
        raise host_error(error, path, action) from None
    except ValueError as error:
        raise bad_name(error, path, action) from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise HostError(errno.EISDIR, path, action, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise HostError(errno.EINVAL, path, action, "it is neither a regular file nor a block device")
        return OpenFile(path, fd, status)
    except OSError as error:
        os.close(fd)
        raise host_error(error, path, action) from None
    except BaseException:
        os.close(fd)
        raise


def bad_name(error: ValueError, path: str, action: str) -> HostError:
    """Turn Python's refusal of a file name (a NUL in it, characters that the locale lacks) into a ``HostError``."""
    why = "it has a NUL byte in it" if "\0" in path else str(error)
    return HostError(errno.EINVAL, path, action, f"this cannot be a file name: {why}")


def set_nocow(fd: int) -> None:
    """Turn off copy on write for a new file; file systems without the flag are left as they are."""
    import fcntl
    import struct

    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)))[0]
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", flags | FS_NOCOW_FL))
    except OSError:
        pass


def _fsxattr() -> struct.Struct:
    """Return the layout of ``struct fsxattr`` (linux/fs.h): flags, extent size, extents, project, CoW size."""
    import struct

    return struct.Struct("=IIIII8x")


def extent_size_hint(fd: int) -> int:
    """Return the step in which the file system allocates for this file; 0 where there is no such thing."""
    import fcntl

    try:
        return int(_fsxattr().unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(28)))[1])
    except OSError:
        return 0


def set_extent_size_hint(fd: int, size: int) -> int:
    """Ask the file system to allocate in steps of ``size`` bytes (XFS); return 0, or the errno of its refusal."""
    import fcntl

    layout = _fsxattr()
    try:
        flags, _, extents, project, cow = layout.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(28)))
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, layout.pack(flags | _FS_XFLAG_EXTSIZE, size, extents, project, cow))
    except OSError as error:
        return error.errno or 0
    return 0
