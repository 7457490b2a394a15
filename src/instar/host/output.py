"""A new file appears whole or not at all; ``outputs`` has the rule for several that belong together.

Law: the target is not touched before ``begin``, and then only where it must be written in place. A new file has
no name until it is complete (``O_TMPFILE``), so that not even SIGKILL leaves a trace; an existing one is replaced
by rename, with its mode, owner and extended attributes kept. Only where a rename cannot work, or there is nothing to
lose, is a target written in place, and ``in_place`` says why. (Other hard links to a target that is replaced keep the
old image.) SIGKILL just before that rename can leave the new image, complete, as ``.NAME.….instar``; while an empty
target is written it can leave a part of the image.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.host import temporary
from instar.host.files import bad_name, host_error, refuse_no_file
from instar.host.target import NoFolder, find_target
from instar.sandbox.posix import above_stdio, hold_signals, let_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from instar.host.target import Target

_FOLDER_HINT = "create the folder first"
_NEW_MODE = 0o644
_PERMISSIONS = 0o777
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
        is_device, size: it is no regular file but a device, of so many bytes.
        replaces: there is something in the target that will be lost.
    """

    __slots__ = (
        "_backup",
        "_base",
        "_dir",
        "_folders",
        "_length",
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
        "replaces",
        "size",
    )

    def __init__(self, path: str, folders: dict[object, int] | None = None, *, keep: bool = False) -> None:
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
        #: which length the target is given back if it does not become an image
        self._length: int | None = None
        self.replaces = False
        self._shared = folders is not None
        self._folders: dict[object, int] = {} if folders is None else folders
        self._linked: str | None = None
        self._backup: str | None = None
        self._old: os.stat_result | None = None
        self._old_fd = -1
        try:
            target = find_target(path, self._folders)
            self._dir, self._base = target.folder, target.base
            self._open_target(target)
            self._open_new()
        except NoFolder as error:
            self.abandon()
            raise host_error(error, path, "create it", hint=_FOLDER_HINT) from None
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

    def _open_target(self, target: Target) -> None:
        """Open what is there already, if anything is."""
        if target.found is None:
            if self.keep:
                raise FileNotFoundError(errno.ENOENT, "")
            return
        with target.found as found:
            refuse_no_file(found.status, self.path, "open it" if self.keep else "create it")
            # Whoever may not write the old file may not replace it either, whatever the folder allows.
            self._old_fd = found.open(_READ_WRITE | os.O_NONBLOCK | os.O_NOCTTY)
        self._old = os.fstat(self._old_fd)
        self.exists = True
        self.is_device = not stat.S_ISREG(self._old.st_mode)
        self.replaces = self.is_device or self._old.st_size > 0
        if stat.S_ISCHR(self._old.st_mode):
            self.in_place = "it is a device without contents"
            self._use_old()
            return
        from instar.host.locks import hold

        hold(self._old_fd, self.path, True, False)
        if self.is_device:
            self.in_place = "it is a block device"
            self.size = os.lseek(self._old_fd, 0, os.SEEK_END)
            self._use_old()
        elif self.keep:
            self.in_place = "what is in it is kept"
            self.size = self._old.st_size
            self._use_old()
        elif target.is_open_file:
            self.in_place = "it is a file that is open already"
        elif not self.replaces:
            # Whoever made it may have it open, or know it by its inode; and a new one would save nothing.
            self.in_place = "it is empty"

    def _open_new(self) -> None:
        """Open the file that will be put in place, or find out why the target must be written itself."""
        if self.in_place is not None:
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
        from instar.host.mounts import mount_of

        folder = os.fstat(self._dir)
        if mount_of(self._old_fd) != mount_of(self._dir):
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
        if self.fd >= 0:
            return
        if not self.replaces:
            if os.fstat(self._old_fd).st_size:
                raise HostError(errno.EBUSY, self.path, "create it", "it was empty, and is being written by another")
            self._give_back(0)
        try:
            os.ftruncate(self._old_fd, 0)
        except OSError as error:
            raise host_error(error, self.path, "create it") from None
        self._use_old()

    def _give_back(self, length: int) -> None:
        """Have the target cut to its old length if it does not become an image, whatever ends this program."""
        self._length = length
        temporary.remember_length(self._old_fd if self.fd < 0 else self.fd, length)

    def _keep_length(self) -> None:
        if self._length is not None:
            self._length = None
            temporary.forget_length(self._old_fd if self.fd < 0 else self.fd)

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
        if self.keep and self._length is None:
            self._give_back(self.size)
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
            self.settle(lasting=self.replaces)
            # Between getting a name and being renamed, the new file could be left behind by a signal.
            held = hold_signals()
            try:
                self.put_in_place()
                self._keep_length()
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
        if self._old is not None and not self.keep and not self.is_device:
            self._keep_attributes(self._old)
        if self._old is not None and stat.S_ISCHR(self._old.st_mode):
            return
        if lasting or (self.in_place is not None and self.replaces):
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
        self._keep_length()
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
        # An image is no program: whose rights it would run with is not kept.
        mode = stat.S_IMODE(old.st_mode) & _PERMISSIONS
        if self.in_place is not None:
            if stat.S_IMODE(old.st_mode) != mode:
                try:
                    os.fchmod(self.fd, mode)
                except PermissionError:
                    pass  # it is another's file
            return
        os.fchmod(self.fd, mode)
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
        if self._length is not None:
            try:
                os.ftruncate(self._old_fd if self.fd < 0 else self.fd, self._length)
            except OSError:
                pass
            self._keep_length()
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
