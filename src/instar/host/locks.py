"""Image locks as QEMU takes them, so that instar and a running virtual machine keep out of each other's way.

Law: a lock is a byte that nobody reads or writes, locked by the open file (OFD, fcntl(2)), never by its content:
byte 100 + n by whoever uses permission n, 200 + n by whoever does not share it (QEMU, block/file-posix.c and
include/block/block-common.h). Locks are shared ones, so many may say the same; a conflict is found by looking.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from instar.core.errors import HostError

#: ``struct flock`` (fcntl.h) with 64-bit offsets: type, whence, start, length, process.
_FLOCK = struct.Struct("hhqqi4x")
_USED, _KEPT = 100, 200
#: QEMU's permissions: bit number and name. (Bit 2, writing what is there already, nobody here needs.)
READ, WRITE, RESIZE = 0, 1, 3
_NAMES = {READ: "consistent read", WRITE: "write", RESIZE: "resize"}

#: Formats whose file may change while somebody looks: they are guest data, or end in it.
UNLOCKED_FORMATS = ("raw", "luks")

#: What kernels and file systems without such locks answer; then there is no lock of anybody to be found either.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TAKEN = (errno.EAGAIN, errno.EACCES)
_HINT = "if it does not matter that it may change meanwhile, use -U"


def hold(fd: int, path: str, write: bool, share: bool, *, read: bool = False, metadata: bool = True) -> None:
    """Lock an open file until it is closed or ``release`` is called, and see that nobody else is in the way.

    What is locked is what qemu-img locks: ``write`` is its ``create`` (and nothing else counts then); ``read``
    its ``check``; without either, its ``info``.

    Args:
        fd: open for reading, at least.
        path: what errors call the file.
        write: the file is to be made anew.
        share: force-share: others may do what they like.
        read: all of the image is to be read, so nobody may have it in a state where that makes no sense.
        metadata: the file has more than guest data in it, so nobody may write to it.

    Raises:
        HostError: with ``lock``, another program uses the file in a way that does not go with this. Nothing is
            locked then.
    """
    if write:
        _take(fd, path, (WRITE, RESIZE), (RESIZE,))
    else:
        _take(fd, path, (READ,) if read else (), () if share else (WRITE, RESIZE) if metadata else (RESIZE,))


def hold_format(fd: int, path: str, format: str, share: bool, *, read: bool) -> None:
    """Lock an image that is to be looked at, as its format wants it. Errors are those of ``hold``."""
    if format not in UNLOCKED_FORMATS:
        hold(fd, path, False, share, read=read)
    elif read:
        _take(fd, path, (READ,), ())


def release(fd: int) -> None:
    """Give up all locks of an open file, whoever else has a copy of its descriptor."""
    for base in (_USED, _KEPT):
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, base, 64, 0))
        except OSError:
            return


def _take(fd: int, path: str, used: tuple[int, ...], kept: tuple[int, ...]) -> None:
    """Lock first, then look: of two who come at once at least one sees the other."""
    byte = 0
    try:
        for byte in (*(_USED + n for n in used), *(_KEPT + n for n in kept)):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        for base, others, words in ((_KEPT, used, ""), (_USED, kept, "shared ")):
            for number in others:
                if _is_locked(fd, base + number):
                    release(fd)
                    raise _in_use(path, f'{words}"{_NAMES[number]}"', hint="" if WRITE in used else _HINT)
    except OSError as error:
        release(fd)
        if error.errno in _TAKEN:  # QEMU locks no byte for itself alone; some other program does
            raise _in_use(path, f"byte {byte}") from None
        if error.errno not in _NO_LOCKS:
            raise HostError(error.errno or 0, path, "lock it", os.strerror(error.errno or 0)) from None


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether another open file holds a lock on a byte."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _in_use(path: str, lock: str, *, hint: str = "") -> HostError:
    error = HostError(errno.EAGAIN, path, f"lock it ({lock})", "another program uses this image", hint=hint)
    error.lock = lock
    return error
