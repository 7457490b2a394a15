"""Reserve and zero ranges of a file, in steps that show progress and can be interrupted.

Law: ``falloc`` reserves; ``full`` reserves and guarantees zeros, by the file system where it can, by
writing them where it cannot.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: Called with bytes done and bytes in all.
    Progress = Callable[[int, int], None]

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_ZERO_RANGE = 0x10

#: One step of reserving: long enough to cost nothing, short enough that Ctrl-C answers.
_RESERVE_STEP = 8 << 30
_ZERO_STEP = 1 << 20
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


def _no_progress(done: int, total: int) -> None:
    pass


def zero_range(fd: int, offset: int, length: int, *, progress: Progress = _no_progress) -> None:
    """Reserve ``length`` bytes from ``offset`` and make them read as zeros (``fallocate(ZERO_RANGE)``, else writes).

    Raises:
        OSError: as the system says.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    done = 0
    while done < length:
        step = min(_RESERVE_STEP, length - done)
        failed = libc.fallocate(
            ctypes.c_int(fd), ctypes.c_int(_FALLOC_FL_ZERO_RANGE), ctypes.c_int64(offset + done), ctypes.c_int64(step)
        )
        if failed:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number not in _UNSUPPORTED:
                raise OSError(number, os.strerror(number))
            _write_zeros(fd, offset, done, length, progress)
            return
        done += step
        progress(done, length)


def _write_zeros(fd: int, offset: int, done: int, length: int, progress: Progress) -> None:
    zeros = memoryview(bytes(_ZERO_STEP))
    while done < length:
        done += os.pwrite(fd, zeros[: length - done], offset + done)
        if done % (64 << 20) < _ZERO_STEP or done == length:
            progress(done, length)


def reserve(fd: int, offset: int, length: int, *, progress: Progress = _no_progress) -> None:
    """Reserve ``length`` bytes from ``offset``; what is there stays.

    Raises:
        OSError: as the system says.
    """
    done = 0
    while done < length:
        step = min(_RESERVE_STEP, length - done)
        os.posix_fallocate(fd, offset + done, step)
        done += step
        progress(done, length)


def allocate(
    fd: int, offset: int, length: int, mode: str, *, device: bool = False, progress: Progress = _no_progress
) -> None:
    """Carry out a plan's ``Allocate`` item: ``mode`` is ``falloc`` or ``full``.

    A device has its storage already, but what a new file would have as zeros is whatever was there before: there
    both modes write zeros.

    Raises:
        OSError: as the system says; ``ENOSPC`` at once where there is not room for all, so that a doomed
            request does not fill the disk first.
    """
    if length and device:
        zero_range(fd, offset, length, progress=progress)
    elif length:
        room = os.fstatvfs(fd)
        if length > room.f_bfree * room.f_frsize + os.fstat(fd).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (zero_range if mode == "full" else reserve)(fd, offset, length, progress=progress)
