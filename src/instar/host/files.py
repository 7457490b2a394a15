"""Files of the host: judged before they are opened, and what was judged is what is opened.

Law: a name is looked up once, by ``Pinned``, which opens nothing, so no pipe's writer and no device notices. No
function here looks at what is in a file. Every error of the system becomes a ``HostError``.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.core.units import SECTOR, align_up
from instar.sandbox.cell import Grant
from instar.sandbox.posix import above_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import struct
    from collections.abc import Mapping
    from typing import Self

    from instar.core.qjson import Json
    from instar.host.names import Source

#: linux/fs.h: set when the file is not to be copied on write (btrfs).
FS_NOCOW_FL = 0x00800000
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FS_XFLAG_EXTSIZE = 0x00000800
#: Character devices without a length that opening does nothing to (Documentation/admin-guide/devices.txt): null, zero,
#: full, random, urandom.
_EMPTY_DEVICES = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))
#: Major numbers of terminals (the same source); number 2 of the second makes a new one for whoever opens it.
_TERMINALS = (4, 5, *range(136, 144))
_PTMX = os.makedev(5, 2)
_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def host_error(error: OSError, path: str, action: str, *, hint: str = "") -> HostError:
    """Turn an ``OSError`` into a ``HostError`` that names the file and what was tried."""
    number = error.errno or 0
    return HostError(number, path, action, os.strerror(number) if number else str(error), hint=hint)


class Pinned:
    """A file that has been looked up but not opened (``O_PATH``). What becomes of its name does not matter any more.

    Attributes:
        fd: descriptor; closed by ``close`` or at the end of a ``with`` block.
        status: what the file is.
    """

    __slots__ = ("_folder", "_follow", "_name", "fd", "status")

    def __init__(self, name: str, folder: int | None = None, *, follow: bool = True) -> None:
        """Look up ``name``, seen from the folder that a descriptor stands for; without ``follow`` a link itself.

        Raises:
            OSError, ValueError: it is not there, or no name.
        """
        self._name = name
        self._folder = folder
        self._follow = 0 if follow else os.O_NOFOLLOW
        self.fd = os.open(name, os.O_PATH | os.O_CLOEXEC | self._follow, dir_fd=folder)
        self.status = os.fstat(self.fd)

    def open(self, flags: int) -> int:
        """Open the file and return the descriptor, which is none of the standard streams'.

        Raises:
            OSError: as the system says; ``ESTALE`` if there is no /proc and the name has become another file's.
        """
        try:
            return above_stdio(os.open(f"/proc/self/fd/{self.fd}", flags))
        except (FileNotFoundError, NotADirectoryError):
            if os.access("/proc/self/fd", os.X_OK):
                raise
        fd = above_stdio(os.open(self._name, flags | self._follow, dir_fd=self._folder))
        if os.path.samestat(os.fstat(fd), self.status):
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def close(self) -> None:
        """Close the descriptor; harmless when done twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_empty_device(status: os.stat_result) -> bool:
    """Tell whether it is /dev/null, or another character device that is like an empty file."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev in _EMPTY_DEVICES


def refuse_no_file(status: os.stat_result, path: str, action: str) -> None:
    """Refuse what can be no image, before it is opened.

    Raises:
        HostError: it is neither a regular file nor a block device, nor like /dev/null.
    """
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode) or is_empty_device(status):
        return
    for is_kind, number in ((stat.S_ISDIR, errno.EISDIR), (stat.S_ISSOCK, errno.ENXIO), (stat.S_ISLNK, errno.ELOOP)):
        if is_kind(mode):
            raise HostError(number, path, action, os.strerror(number))
    raise HostError(errno.EINVAL, path, action, "it is neither a regular file nor a block device")


class OpenFile:
    """A regular file or block device (or one like /dev/null, which is empty), opened for reading.

    Attributes:
        path: what errors call it.
        home: the name by which it was opened; names in it are seen from the folder of that. ``None`` if it was opened
            by no name: then there is no such folder.
        fd: descriptor; closed by ``close`` or at the end of a ``with`` block.
        locked: image locks were asked for on it (see ``locks``); ``close`` gives them up.
        size: length in bytes (of a block device, its capacity); of a window, what there is of it.
        whole: the same of the file that a window lies in.
        length: ``size`` in whole sectors, as QEMU counts; of a window, what it was said to have.
        start: where a window begins in the file, ``None`` if this is no window.
        nodes: options and length of each window but the image's own, from the file up; ``options``: of that one.
        allocated: bytes of storage in use (``st_blocks``), 0 for a device.
        identity: device and inode, which two names of one file share.
        is_device: it is no regular file.
    """

    __slots__ = (
        "allocated",
        "fd",
        "home",
        "identity",
        "is_device",
        "length",
        "locked",
        "nodes",
        "options",
        "path",
        "size",
        "start",
        "whole",
    )

    #: The open file is shared with the caller of the library, whose image locks they would be.
    is_shared = False

    def __init__(self, path: str, fd: int, *, home: str | None) -> None:
        status = os.fstat(fd)
        self.path = path
        self.home = home
        self.fd = fd
        self.locked = False
        self.is_device = not stat.S_ISREG(status.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size
        self.whole = self.size
        self.length = align_up(self.size, SECTOR)
        self.start: int | None = None
        self.nodes: list[tuple[Mapping[str, Json], int]] = []
        self.options: Mapping[str, Json] = {}
        self.allocated = status.st_blocks * 512
        self.identity = (status.st_dev, status.st_ino)

    def grant(self, mode: str = "r") -> Grant:
        """Return the file as a cell is given it."""
        return Grant(self.fd, mode, self.size, self.path, offset=self.start)

    def narrow(self, offset: int, length: int) -> None:
        """Make this a window of what it was. Its last sectors may lie past the end, where they read as zeros."""
        self.start = min((self.start or 0) + offset, self.whole)
        self.length = align_up(length, SECTOR)
        # Parsers round the size up, and shall find as many sectors as QEMU does.
        self.size = max(min(length, self.size - offset), self.length - SECTOR + 1, 0) if length else 0

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


def open_image(path: str, *, action: str = "open") -> OpenFile:
    """Open a file for reading, if it is one.

    Raises:
        HostError: it cannot be opened, or is neither a regular file nor a block device.
    """
    try:
        with Pinned(path) as pinned:
            return open_pinned(pinned, path, home=path, action=action)
    except OSError as error:
        raise host_error(error, path, action) from None
    except ValueError as error:
        raise bad_name(error, path, action) from None


def open_pinned(pinned: Pinned, path: str, *, home: str | None, action: str = "open") -> OpenFile:
    """Open a file that has been looked up. For ``path`` and ``home`` see ``OpenFile``.

    Raises:
        HostError: it is no file that can be an image. OSError: it cannot be opened.
    """
    refuse_no_file(pinned.status, path, action)
    fd = pinned.open(_TO_READ)
    try:
        return OpenFile(path, fd, home=home)
    except BaseException:
        os.close(fd)
        raise


class SharedFile(OpenFile):
    """The file of a descriptor that could only be copied."""

    __slots__ = ()
    is_shared = True


def open_source(source: Source, *, action: str = "open") -> OpenFile:
    """Open the file of an image, as ``open_image`` does, and have it begin and end where the image does.

    Raises:
        HostError: as ``open_image``. OptionError: the image cannot lie there; ``bad-descriptor``, it is that of a
            descriptor that cannot be read.
    """
    image = open_image(source.path, action=action) if source.fd is None else _open_again(source.fd, source.path, action)
    if source.view is not None:
        try:
            source.view.narrow(image)
        except BaseException:
            image.close()
            raise
    return image


def _open_again(fd: int, path: str, action: str) -> OpenFile:
    """Open the file of a descriptor."""
    from instar.host.arguments import check_descriptor

    status = os.fstat(check_descriptor(fd, path, writing=False))
    refuse_no_file(status, path, action)
    try:
        # Opened once more it has an offset and locks of its own.
        return OpenFile(path, above_stdio(os.open(f"/proc/self/fd/{fd}", _TO_READ)), home=None)
    except OSError as error:  # whoever handed it over may have had the right to open it, and nobody here
        if not stat.S_ISREG(status.st_mode):
            raise host_error(error, path, action) from None
        import fcntl

        return SharedFile(path, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), home=None)


def open_stream(path: str) -> int:
    """Open what a caller reads words from, and return the descriptor: a file, a pipe or a terminal, no other device.

    Raises:
        OSError, ValueError: it cannot be opened, or is none.
    """
    with Pinned(path) as pinned:
        device = pinned.status.st_rdev
        harmless = is_empty_device(pinned.status) or (os.major(device) in _TERMINALS and device != _PTMX)
        if stat.S_ISCHR(pinned.status.st_mode) and not harmless:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return pinned.open(os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)


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
