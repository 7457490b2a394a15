"""A new image appears whole or not at all.

Law: the target is not touched before ``begin``, and then only where it must be written in place. A new file has
no name until it is complete (``O_TMPFILE``), so that not even SIGKILL leaves a trace; an existing one is replaced
by rename, with its mode, owner and extended attributes kept. Only where a rename cannot work is a target written
in place, and ``in_place`` says why. (Other hard links to a target that is replaced keep the old image.)
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.host.files import bad_name, host_error
from instar.sandbox.posix import above_stdio, hold_signals, let_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

_FOLDER_HINT = "create the folder first"
_NEW_MODE = 0o644
_READ_WRITE = os.O_RDWR | os.O_CLOEXEC
#: What kernels and file systems without unnamed files answer.
_NO_TMPFILE = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)
#: SIGHUP and SIGTERM.
_ENDING_SIGNALS = (1, 15)


class Output:
    """A file being made for ``path``.

    Attributes:
        fd: where it is written; empty, or a block device. -1 before ``begin`` if the target is written in place.
        in_place: why the target itself is written, or ``None``.
        exists: the target was there before.
        is_device, size: it is a block device, of so many bytes.
    """

    __slots__ = (
        "_base",
        "_dir",
        "_handled",
        "_linked",
        "_old",
        "_old_fd",
        "exists",
        "fd",
        "in_place",
        "is_device",
        "path",
        "size",
    )

    def __init__(self, path: str) -> None:
        """Judge the target and open a place to write.

        Raises:
            HostError: the folder is missing or not writable, or the target is a folder or no file.
        """
        self.path = path
        self.fd = -1
        self.in_place: str | None = None
        self.is_device = False
        self.exists = False
        self.size = 0
        self._dir = -1
        self._linked: str | None = None
        self._old: os.stat_result | None = None
        self._old_fd = -1
        self._handled: list[int] = []
        try:
            self._open_folder()
            self._open_target()
            self._open_new()
        except OSError as error:
            self.abandon()
            raise host_error(error, path, "create it") from None
        except ValueError as error:
            self.abandon()
            raise bad_name(error, path, "create it") from None
        except BaseException:
            self.abandon()
            raise

    # --- before anything is written ---------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        if not self.path:
            raise FileNotFoundError(errno.ENOENT, "")
        # A symbolic link is followed, as qemu-img does: the file it names is made or replaced, the link stays.
        folder, self._base = os.path.split(os.path.realpath(self.path))
        if not self._base or self.path.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, "")
        try:
            self._dir = above_stdio(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise host_error(error, self.path, "create it", hint=_FOLDER_HINT) from None

    def _open_target(self) -> None:
        """Open what is there already, if anything is."""
        try:
            # Looked at by name first, because opening some devices does something.
            found = os.stat(self._base, dir_fd=self._dir, follow_symlinks=False)
        except FileNotFoundError:
            return
        _judge(found, self.path)
        # Whoever may not write the old file may not replace it either, whatever the folder allows.
        flags = _READ_WRITE | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        self._old_fd = above_stdio(os.open(self._base, flags, dir_fd=self._dir))
        # From here on only what was opened counts.
        self._old = os.fstat(self._old_fd)
        _judge(self._old, self.path)
        self.exists = True
        if stat.S_ISBLK(self._old.st_mode):
            self.in_place = "it is a block device"
            self.is_device = True
            self.size = os.lseek(self._old_fd, 0, os.SEEK_END)
            self._use_old()

    def _open_new(self) -> None:
        """Open the file that will be put in place, or find out why the target must be written itself."""
        if self.is_device:
            return
        if self._old is None:
            self._open_unnamed(_NEW_MODE)
            return
        self.in_place = self._why_not_replaced(self._old)
        if self.in_place is not None:
            return
        try:
            # Nobody else may read it before it has the old one's mode, which ``commit`` sees to.
            self._open_unnamed(0o600)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self.in_place = "its folder may not be written"
            return
        new = os.fstat(self.fd)
        if (new.st_uid, new.st_gid) != (self._old.st_uid, self._old.st_gid):
            try:
                os.fchown(self.fd, self._old.st_uid, self._old.st_gid)
            except PermissionError:
                self._discard_new()
                self.in_place = "a new file could not be given its owner"

    def _why_not_replaced(self, old: os.stat_result) -> str | None:
        folder = os.fstat(self._dir)
        if _mount_of(self._old_fd) != _mount_of(self._dir):
            return "it is a mount point"
        user = os.geteuid()
        if folder.st_mode & stat.S_ISVTX and user not in (0, old.st_uid, folder.st_uid):
            return "only its owner may replace it in a sticky folder"
        return None

    def _open_unnamed(self, mode: int) -> None:
        # The name is given later through /proc, so without that there must be a temporary name.
        if os.access("/proc/self/fd", os.X_OK):
            try:
                self.fd = above_stdio(os.open(".", _READ_WRITE | os.O_TMPFILE, mode, dir_fd=self._dir))
                return
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        self._catch_signals()
        while self.fd < 0:
            # Remembered before it exists: whatever interrupts this, it is removed.
            self._linked = self._temporary_name()
            try:
                fd = os.open(self._linked, _READ_WRITE | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._dir)
                self.fd = above_stdio(fd)
            except FileExistsError:
                self._linked = None
            except OSError:
                self._linked = None
                raise

    def _temporary_name(self) -> str:
        # At most 255 bytes, whatever the characters are.
        stem = os.fsdecode(os.fsencode(self._base)[:180])
        return f".{stem}.{os.urandom(6).hex()}.instar"

    def _catch_signals(self) -> None:
        """Where a temporary file has a name: remove it when a signal ends this program.

        Only where such a signal would have ended the program anyway, and only for as long as the file exists.
        """
        import signal
        import threading

        if threading.current_thread() is not threading.main_thread():
            return  # Python runs handlers in the main thread only, and only there they can be set
        for number in _ENDING_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._on_signal)
                self._handled.append(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        import signal

        self._remove_link()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _let_signals_go(self) -> None:
        if self._handled:
            import signal

            while self._handled:
                number = self._handled.pop()
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, signal.SIG_DFL)

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start writing: everything about the job has been checked. Empties a target that is written in place."""
        if self.fd < 0:
            try:
                os.ftruncate(self._old_fd, 0)
            except OSError as error:
                raise host_error(error, self.path, "create it") from None
            self._use_old()

    def _use_old(self) -> None:
        os.set_blocking(self._old_fd, True)
        self.fd, self._old_fd = self._old_fd, -1

    def resize(self, size: int) -> None:
        """Set the length of the new file; a block device must already be that large."""
        if self.is_device:
            if size > self.size:
                raise HostError(
                    errno.ENOSPC, self.path, f"write {size} bytes to a device of {self.size}", os.strerror(errno.ENOSPC)
                )
            return
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise host_error(error, self.path, f"give it {size} bytes") from None

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode of the target that is there now, or ``None``."""
        return None if self._old is None else (self._old.st_dev, self._old.st_ino)

    # --- the end ----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put the complete image in its place.

        Raises:
            HostError: the target could not be replaced; it is as it was.
        """
        try:
            if self.in_place is not None:
                os.fsync(self.fd)
                return
            if self._old is not None:
                self._keep_attributes(self._old)
                # Without this a power cut soon after the rename could leave an empty file where a good image was.
                os.fsync(self.fd)
            # Between getting a name and being renamed, the new file could be left behind by a signal.
            held = hold_signals()
            try:
                self._put_in_place()
            finally:
                let_signals(held)
        except OSError as error:
            raise host_error(error, self.path, "put the new image in place") from None
        finally:
            self.abandon()

    def _put_in_place(self) -> None:
        """Give the file its name. What another process has put there meanwhile is replaced."""
        if self._old is None and self._linked is None:
            try:
                self._link(self._base)
                return
            except FileExistsError:
                pass
        while self._linked is None:
            name = self._temporary_name()
            try:
                self._link(name)
            except FileExistsError:
                continue
            self._linked = name
        os.rename(self._linked, self._base, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        self._linked = None

    def _link(self, name: str) -> None:
        # linkat(2): an unnamed file is given a name through its entry in /proc, which needs no privilege.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._dir, follow_symlinks=True)

    def _keep_attributes(self, old: os.stat_result) -> None:
        os.fchmod(self.fd, stat.S_IMODE(old.st_mode))
        try:
            kept, given = os.listxattr(self._old_fd), os.listxattr(self.fd)
        except OSError:
            return  # the file system has none
        for name in given:
            if name not in kept:  # an access list that the folder gives to new files
                try:
                    os.removexattr(self.fd, name)
                except OSError:
                    continue
        for name in kept:
            try:
                os.setxattr(self.fd, name, os.getxattr(self._old_fd, name))
            except OSError:
                continue  # security.* and trusted.* need rights that are not ours

    def _remove_link(self) -> None:
        if self._linked is not None:
            try:
                os.unlink(self._linked, dir_fd=self._dir)
            except OSError:
                pass
            self._linked = None

    def _discard_new(self) -> None:
        self._remove_link()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def abandon(self) -> None:
        """Leave nothing behind; harmless after ``commit`` and when done twice."""
        self._discard_new()
        self._let_signals_go()
        if self._old_fd >= 0:
            os.close(self._old_fd)
            self._old_fd = -1
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def _judge(found: os.stat_result, path: str) -> None:
    """Refuse what cannot be made an image of."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "")
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise HostError(errno.EINVAL, path, "create it", "it is neither a regular file nor a block device")


def _mount_of(fd: int) -> str | None:
    """Return which mount a descriptor belongs to. A file mounted over a name is not on the mount of its folder."""
    try:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _, found, rest = os.read(info, 4096).decode("ascii", "replace").partition("mnt_id:")
    finally:
        os.close(info)
    return rest.split("\n", 1)[0].strip() if found else None
