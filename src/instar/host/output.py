"""A new file appears whole or not at all; ``outputs`` has the rule for several that belong together.

Law: the target is not touched before ``begin``, and then only where it must be written in place. A new file has
no name until it is complete (``O_TMPFILE``), so that not even SIGKILL leaves a trace; an existing one is replaced
by rename, with its mode, owner and extended attributes kept. Only where a rename cannot work is a target written
in place, and ``in_place`` says why. (Other hard links to a target that is replaced keep the old image.) SIGKILL just
before that rename can leave the new image, complete, as ``.NAME.….instar``.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.host import temporary
from instar.host.files import bad_name, host_error
from instar.sandbox.posix import above_stdio, hold_signals, let_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_FOLDER_HINT = "create the folder first"
_NEW_MODE = 0o644
_READ_WRITE = os.O_RDWR | os.O_CLOEXEC
#: What kernels and file systems without unnamed files answer.
_NO_TMPFILE = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


class Output:
    """A file being made for ``path``, or with ``keep`` one that is there already and is used as it is.

    ``folders`` holds descriptors of folders by name, so that many files of one folder need only one; whoever gives
    it closes them.

    Attributes:
        fd: where it is written; empty, or a block device. -1 before ``begin`` if the target is written in place.
        in_place: why the target itself is written, or ``None``.
        exists: the target was there before.
        keep: nothing in the target is replaced; it can only become longer.
        is_device, size: it is a block device, of so many bytes.
    """

    __slots__ = (
        "_backup",
        "_base",
        "_dir",
        "_folders",
        "_grown",
        "_linked",
        "_old",
        "_old_fd",
        "_shared",
        "exists",
        "fd",
        "in_place",
        "is_device",
        "keep",
        "path",
        "size",
    )

    def __init__(self, path: str, folders: dict[str, int] | None = None, *, keep: bool = False) -> None:
        """Judge the target and open a place to write.

        Raises:
            HostError: the folder is missing or not writable, or the target is a folder or no file; with ``keep``,
                it is not there.
        """
        self.path = path
        self.keep = keep
        self.fd = -1
        self.in_place: str | None = None
        self.is_device = False
        self.exists = False
        self.size = 0
        self._dir = -1
        self._grown = False
        self._shared = folders is not None
        self._folders: dict[str, int] = {} if folders is None else folders
        self._linked: str | None = None
        self._backup: str | None = None
        self._old: os.stat_result | None = None
        self._old_fd = -1
        try:
            self._open_folder()
            self._open_target()
            self._open_new()
        except OSError as error:
            self.abandon()
            raise host_error(error, path, "open it" if keep else "create it") from None
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
        # A symbolic link is followed, as qemu-img does: the file it names is made or replaced, the link stays. By the
        # kernel first, which does not follow everybody's links in folders like /tmp (fs.protected_symlinks).
        try:
            os.stat(self.path)
        except FileNotFoundError:
            pass
        folder, self._base = os.path.split(os.path.realpath(self.path))
        if not self._base or self.path.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, "")
        try:
            if folder not in self._folders:
                self._folders[folder] = above_stdio(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self._dir = self._folders[folder]
        except FileNotFoundError as error:
            raise host_error(error, self.path, "create it", hint=_FOLDER_HINT) from None

    def _open_target(self) -> None:
        """Open what is there already, if anything is."""
        try:
            # Looked at by name first, because opening some devices does something.
            found = os.stat(self._base, dir_fd=self._dir, follow_symlinks=False)
        except FileNotFoundError:
            if self.keep:
                raise
            return
        _judge(found, self.path)
        # Whoever may not write the old file may not replace it either, whatever the folder allows.
        flags = _READ_WRITE | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        self._old_fd = above_stdio(os.open(self._base, flags, dir_fd=self._dir))
        # From here on only what was opened counts.
        self._old = os.fstat(self._old_fd)
        _judge(self._old, self.path)
        self.exists = True
        from instar.host.locks import hold

        hold(self._old_fd, self.path, True, False)
        if stat.S_ISBLK(self._old.st_mode):
            self.in_place = "it is a block device"
            self.is_device = True
            self.size = os.lseek(self._old_fd, 0, os.SEEK_END)
            self._use_old()
        elif self.keep:
            self.in_place = "what is in it is kept"
            self.size = self._old.st_size
            self._use_old()

    def _open_new(self) -> None:
        """Open the file that will be put in place, or find out why the target must be written itself."""
        if self.fd >= 0:
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
        while self.fd < 0:
            # Remembered before it exists: whatever interrupts this, it is removed.
            self._name_it(temporary.make_name(self._base))
            try:
                fd = os.open(self._linked or "", _READ_WRITE | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._dir)
                self.fd = above_stdio(fd)
            except FileExistsError:
                self._forget_name()
            except OSError:
                self._forget_name()
                raise

    def _name_it(self, name: str) -> None:
        self._linked = name
        temporary.remember(self._dir, name)

    def _forget_name(self) -> None:
        if self._linked is not None:
            temporary.forget(self._dir, self._linked)
            self._linked = None

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
        if self.keep and size <= self.size:
            return
        self._grown = self.keep
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise host_error(error, self.path, f"give it {size} bytes") from None

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode of the target that was there at the beginning, or ``None``."""
        return None if self._old is None else (self._old.st_dev, self._old.st_ino)

    def place(self) -> tuple[int, str]:
        """Return where the file is to be: its folder's descriptor and its name, links followed."""
        return self._dir, self._base

    # --- the end ----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put the complete image in its place.

        Raises:
            HostError: the target could not be replaced; it is as it was.
        """
        try:
            self.settle(lasting=self.exists)
            # Between getting a name and being renamed, the new file could be left behind by a signal.
            held = hold_signals()
            try:
                self.put_in_place()
            finally:
                let_signals(held)
        except OSError as error:
            raise self.not_placed(error) from None
        finally:
            self.abandon()

    def not_placed(self, error: OSError) -> HostError:
        """Turn an error of ``settle`` or ``put_in_place`` into one that names the file."""
        return host_error(error, self.path, "put the new image in place")

    def settle(self, *, lasting: bool) -> None:
        """Give the new file everything but its name. ``lasting``: it must survive a power cut from here on.

        Without that, a power cut soon after the rename could leave an empty file where a good image was.
        """
        if self.in_place is None and self._old is not None:
            self._keep_attributes(self._old)
        if lasting or self.in_place is not None:
            os.fsync(self.fd)
        else:
            # A network's file system may refuse the data only now; after this ``abandon`` has nothing to lose.
            _again(lambda: os.close(os.dup(self.fd)))

    def put_in_place(self, *, backup: bool = False) -> None:
        """Give the file its name. What another process has put there meanwhile is replaced.

        With ``backup``, what is replaced can be had back by ``take_back`` until ``drop_backup``.
        """
        if self.in_place is not None:
            return
        if self._old is None and self._linked is None:
            try:
                self._link(self._base)
                return
            except FileExistsError:
                if self.is_placed():
                    return  # done, although the system said "interrupted"
        while self._linked is None:
            self._linked = temporary.make_name(self._base)
            try:
                self._link(self._linked)
            except FileExistsError:
                if not self._is_new(self._linked):
                    self._forget_name()
        if backup:
            self._save_old()
        try:
            self._rename(self._linked, self._base)
        except FileNotFoundError:
            if not self.is_placed():
                raise
        self._forget_name()

    def _save_old(self) -> None:
        """Give the file that is to be replaced a second name."""
        name = self._backup = temporary.make_name(self._base)
        folder = self._dir
        try:
            _again(lambda: os.link(self._base, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            self._backup = None
        except OSError:
            # No second names here, or none for this file: then the only name has to go for a moment.
            self._rename(self._base, name)

    def is_placed(self) -> bool:
        """Tell whether the name now stands for the new file."""
        return self._is_new(self._base)

    def _is_new(self, name: str) -> bool:
        if self.fd < 0:
            return False
        try:
            found = os.stat(name, dir_fd=self._dir, follow_symlinks=False)
        except OSError:
            return False
        new = os.fstat(self.fd)
        return (found.st_dev, found.st_ino) == (new.st_dev, new.st_ino)

    def take_back(self) -> None:
        """Undo ``put_in_place``: the name stands for what it stood for before.

        Raises:
            OSError: the system refuses; an earlier file is then still there under a temporary name.
        """
        if self.in_place is not None:
            return
        if self._backup is not None:
            try:
                self._rename(self._backup, self._base)
            except FileNotFoundError:
                pass  # interrupted before there was one
            # Where both names stand for one file, a rename does nothing.
            self.drop_backup()
        elif self.is_placed():
            self._unlink(self._base)

    def drop_backup(self) -> None:
        """Give up what was replaced: every file that belongs together is in its place."""
        self._grown = False
        if self._backup is not None:
            try:
                self._unlink(self._backup)
            except OSError:
                pass
            self._backup = None

    def _link(self, name: str) -> None:
        # linkat(2): an unnamed file is given a name through its entry in /proc, which needs no privilege.
        _again(lambda: os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._dir, follow_symlinks=True))

    def _rename(self, old: str, new: str) -> None:
        _again(lambda: os.rename(old, new, src_dir_fd=self._dir, dst_dir_fd=self._dir))

    def _unlink(self, name: str) -> None:
        _again(lambda: os.unlink(name, dir_fd=self._dir))

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
                self._unlink(self._linked)
            except OSError:
                pass
            self._forget_name()

    def _discard_new(self) -> None:
        self._remove_link()
        if self.fd >= 0:
            close_quietly(self.fd)
            self.fd = -1

    def abandon(self) -> None:
        """Leave nothing behind; harmless after ``commit`` and when done twice."""
        if self._grown and self.fd >= 0:
            try:
                os.ftruncate(self.fd, self.size)
            except OSError:
                pass
            self._grown = False
        locked = self._old_fd if self._old_fd >= 0 else self.fd
        if self.exists and locked >= 0:
            from instar.host.locks import release

            # A cell that is slow to die may still have the descriptor.
            release(locked)
        self._discard_new()
        if self._old_fd >= 0:
            close_quietly(self._old_fd)
            self._old_fd = -1
        if not self._shared:
            while self._folders:
                close_quietly(self._folders.popitem()[1])
        self._dir = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def close_quietly(fd: int) -> None:
    """Close a descriptor through which nothing is lost any more; the system closes it also where it complains."""
    try:
        os.close(fd)
    except OSError:
        pass


def _again(call: Callable[[], None]) -> None:
    """Make a call until no signal interrupts it, which Python does itself for all but names and ``close``."""
    while True:
        try:
            return call()
        except InterruptedError:
            continue


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
