"""A new image appears whole or not at all.

Law: the target is not touched before ``commit``. A new file has no name until it is complete (``O_TMPFILE``),
so that not even SIGKILL leaves a trace; an existing one is replaced by rename, with its mode, owner and
extended attributes kept. Only where a rename cannot work is a target written in place, and ``in_place`` says so.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import HostError
from instar.host.files import host_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_FOLDER_HINT = "create the folder first"


class Output:
    """A file being made for ``path``.

    Attributes:
        fd: where it is written; empty, or a block device.
        in_place: why the target itself is written, or ``None``.
        exists: the target was there before.
    """

    __slots__ = ("_base", "_dir", "_linked", "_old", "exists", "fd", "in_place", "is_device", "path", "size")

    def __init__(self, path: str) -> None:
        """Judge the target and open a place to write.

        Raises:
            HostError: the folder is missing or not writable, or the target is a folder or no file.
        """
        self.path = path
        self.fd = -1
        self.in_place: str | None = None
        self.is_device = False
        self.size = 0
        self._linked: str | None = None
        self._old: os.stat_result | None = None
        # A symbolic link is followed, as qemu-img does: the file it names is made or replaced, the link stays.
        real = os.path.realpath(path)
        folder, self._base = os.path.split(real)
        if not self._base or path.endswith("/"):
            raise HostError(errno.EISDIR, path, "create it", os.strerror(errno.EISDIR))
        try:
            self._dir = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = _FOLDER_HINT if error.errno == errno.ENOENT else ""
            raise host_error(error, path, "create it", hint=hint) from None
        try:
            self._look()
            self._open()
        except BaseException:
            self.abandon()
            raise

    def _look(self) -> None:
        try:
            self._old = os.stat(self._base, dir_fd=self._dir, follow_symlinks=False)
        except FileNotFoundError:
            self.exists = False
            return
        except OSError as error:
            raise host_error(error, self.path, "create it") from None
        self.exists = True
        mode = self._old.st_mode
        if stat.S_ISDIR(mode):
            raise HostError(errno.EISDIR, self.path, "create it", os.strerror(errno.EISDIR))
        if stat.S_ISBLK(mode):
            self.in_place = "it is a block device"
            self.is_device = True
        elif not stat.S_ISREG(mode):
            raise HostError(errno.EINVAL, self.path, "create it", "it is neither a regular file nor a block device")

    def _open(self) -> None:
        if self._old is not None:
            # Whoever may not write the old file may not replace it either, whatever the folder allows.
            try:
                fd = os.open(self._base, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dir)
            except OSError as error:
                raise host_error(error, self.path, "create it") from None
            if self.is_device:
                self.fd = fd
                self.size = os.lseek(fd, 0, os.SEEK_END)
                return
            os.close(fd)
        try:
            self.fd = self._open_unnamed()
        except OSError as error:
            if self._old is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise host_error(error, self.path, "create it") from None
            self._open_in_place("the folder may not be written")
            return
        if self._old is not None and self._is_mount_point():
            os.close(self.fd)
            self._remove_link()
            self._open_in_place("it is a mount point")

    def _is_mount_point(self) -> bool:
        assert self._old is not None
        return self._old.st_dev != os.fstat(self._dir).st_dev

    def _open_in_place(self, why: str) -> None:
        self.in_place = why
        self.fd = -1  # opened by ``begin``: until then, an error must leave the old image whole

    def _open_unnamed(self) -> int:
        try:
            # The name is given later through /proc, so without that there must be a temporary name.
            if os.access("/proc/self/fd", os.X_OK):
                return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=self._dir)
        except OSError as error:
            # what kernels and file systems without unnamed files answer
            if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                raise
        while True:
            name = self._temporary_name()
            try:
                fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._dir)
            except FileExistsError:
                continue
            self._linked = name
            return fd

    def _temporary_name(self) -> str:
        return f".{self._base[:180]}.{os.urandom(6).hex()}.instar"

    def begin(self) -> None:
        """Start writing: everything about the job has been checked. Empties a target that is written in place."""
        if self.fd < 0:
            try:
                self.fd = os.open(self._base, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dir)
            except OSError as error:
                raise host_error(error, self.path, "create it") from None

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

    def commit(self) -> None:
        """Put the complete image in its place.

        Raises:
            HostError: the target could not be replaced; it is as it was.
        """
        try:
            if self.in_place is not None:
                os.fsync(self.fd)
            elif self._old is None:
                self._link_new()
            else:
                self._replace(self._old)
        except OSError as error:
            raise host_error(error, self.path, "put the new image in place") from None
        finally:
            self.abandon()

    def _link_new(self) -> None:
        """Give the file its name; if another process made the target meanwhile, replace that."""
        if self._linked is None:
            try:
                self._link(self._base)
                return
            except FileExistsError:
                pass
        self._name_temporary()
        assert self._linked is not None
        os.rename(self._linked, self._base, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        self._linked = None

    def _replace(self, old: os.stat_result) -> None:
        self._keep_attributes(old)
        # Without this a power cut soon after the rename could leave an empty file where a good image was.
        os.fsync(self.fd)
        self._name_temporary()
        assert self._linked is not None
        os.rename(self._linked, self._base, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        self._linked = None

    def _name_temporary(self) -> None:
        while self._linked is None:
            name = self._temporary_name()
            try:
                self._link(name)
            except FileExistsError:
                continue
            self._linked = name

    def _link(self, name: str) -> None:
        # linkat(2): an unnamed file is given a name through its entry in /proc, which needs no privilege.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._dir, follow_symlinks=True)

    def _keep_attributes(self, old: os.stat_result) -> None:
        current = os.fstat(self.fd)
        if (current.st_uid, current.st_gid) != (old.st_uid, old.st_gid):
            try:
                os.fchown(self.fd, old.st_uid, old.st_gid)
            except PermissionError:
                pass  # only root may give files away; the image is then its maker's own
        os.fchmod(self.fd, stat.S_IMODE(old.st_mode))
        source = f"/proc/self/fd/{self._dir}/{self._base}"
        try:
            names = os.listxattr(source)
        except OSError:
            return
        for name in names:
            try:
                os.setxattr(self.fd, name, os.getxattr(source, name))
            except OSError:
                continue  # security.* and trusted.* need rights that are not ours

    def _remove_link(self) -> None:
        if self._linked is not None:
            try:
                os.unlink(self._linked, dir_fd=self._dir)
            except OSError:
                pass
            self._linked = None

    def abandon(self) -> None:
        """Leave nothing behind; harmless after ``commit`` and when done twice."""
        if self._dir >= 0:
            self._remove_link()
            os.close(self._dir)
            self._dir = -1
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()
