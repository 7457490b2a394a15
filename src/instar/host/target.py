"""Where a new file is to be: links are followed to a folder and a name, and nothing is opened.

Law: what was looked at is what is used. Folders and links are descriptors from the first look on, and no name is looked
up a second time, so nobody can put a link there in between. In folders where everybody may put one (``/tmp``), only
the caller's links and those of the folder's owner are followed, as the kernel does it (``fs.protected_symlinks``).
"""

from __future__ import annotations

import errno
import os
import stat

from instar.host.files import Pinned
from instar.host.mounts import kind_of
from instar.sandbox.posix import above_stdio

#: As many as the kernel follows.
_MAX_LINKS = 40


class Target:
    """A place for a file.

    Attributes:
        folder: descriptor of the folder; whoever gave ``folders`` closes it.
        base: the name in it.
        found: what has that name, not a link; ``None`` if nothing has.
        is_open_file: it is a file that some program has open, named by its descriptor (``/dev/stdout``).
    """

    __slots__ = ("base", "folder", "found", "is_open_file")

    def __init__(self, folder: int, base: str, found: Pinned | None, *, is_open_file: bool = False) -> None:
        self.folder = folder
        self.base = base
        self.found = found
        self.is_open_file = is_open_file


class NoFolder(FileNotFoundError):
    """The folder that a file is to be in is not there."""


def find_target(path: str, folders: dict[object, int]) -> Target:
    """Find the place that a name stands for. Descriptors of folders are taken from ``folders``, or added to them.

    Raises:
        OSError: as the system says; ``NoFolder``; ``EISDIR`` for a name that can only be a folder's. ValueError: it is
            no name.
    """
    try:
        # The kernel may have more reasons not to follow a link (``nosymfollow``, security modules).
        os.stat(path)
    except FileNotFoundError:
        pass
    folder: int | None = None
    for _ in range(_MAX_LINKS):
        head, base = os.path.split(path)
        if base in ("", ".", ".."):
            number = errno.EISDIR if path else errno.ENOENT
            raise OSError(number, os.strerror(number))
        folder = _open_folder(head, folder, folders)
        try:
            found = Pinned(base, folder, follow=False)
        except FileNotFoundError:
            return Target(folder, base, None)
        if not stat.S_ISLNK(found.status.st_mode):
            return Target(folder, base, found)
        with found:
            _judge_link(found.status, os.fstat(folder))
            if kind_of(folder) == "proc":
                # What such a link says is for people; only the kernel knows the file.
                return Target(folder, base, Pinned(base, folder), is_open_file=True)
            path = os.readlink("", dir_fd=found.fd)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _open_folder(name: str, start: int | None, folders: dict[object, int]) -> int:
    """Open a folder, seen from another; links on the way are the kernel's business, as they are in any path."""
    if start is None and name in folders:
        return folders[name]
    try:
        fd = os.open(os.path.join(name, "."), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=start)
    except FileNotFoundError as error:
        raise NoFolder(error.errno, error.strerror) from None
    status = os.fstat(fd)
    # Many files of one image may be links to one folder.
    key = name if start is None else (status.st_dev, status.st_ino)
    if key in folders:
        os.close(fd)
    else:
        folders[key] = above_stdio(fd)
    return folders[key]


def _judge_link(link: os.stat_result, folder: os.stat_result) -> None:
    """Refuse to follow a link that anybody may have put there.

    Raises:
        PermissionError: it is in a sticky folder that everybody may write to, and neither the caller's nor the folder's
            owner's.
    """
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    if folder.st_mode & everybodys == everybodys and link.st_uid not in (os.geteuid(), folder.st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
