"""The one gate through which a file that an *image* names is opened.

Law: the policy is applied to the text of a name before any system call, so an image cannot learn whether a
file outside exists; then every component is opened by itself, and the target of each link is judged again.
Only regular files pass (block devices only below a folder that was allowed by name), never a protocol. An image opens
folders only if it is a regular file among people's files: /dev, /proc and /sys are no image's own folder.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import MAX_DETAIL, HostError, ImageError, printable, shell_word
from instar.host.files import OpenFile, Pinned, bad_name, host_error, open_pinned
from instar.host.names import combine, protocol_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.image import Reference

_MAX_LINKS = 40


class Gate:
    """The policy for what one image (and the chain behind it) may name.

    Args:
        image: the image; files in its folder and below may be opened. (Of an image in ``/``, only its neighbours:
            nobody means the whole machine by leaving an image there. Of one that is no regular file, or that lies
            where the kernel keeps devices and processes, none.)
        allow: further folders.
    """

    def __init__(self, image: OpenFile, allow: tuple[str, ...] = ()) -> None:
        self._image = image
        # Whoever allows a folder names it; its own links are trusted, those below it are not.
        self._allowed = {name for folder in allow for name in _names_of(folder)}
        #: found out when an image first names a file, which most do not
        self._roots: list[str] | None = None

    def _find_roots(self) -> list[str]:
        """Return the folders that are open, innermost first, each with a slash at its end.

        Raises:
            HostError: one cannot be looked up.
        """
        try:
            folders = self._allowed | _folders_of(self._image)
        except OSError as error:  # the working folder is gone
            raise host_error(error, self._image.path, "open") from None
        return sorted({_slashed(folder) for folder in folders}, key=len, reverse=True)

    def open(self, name: bytes, *, relative_to: str | None) -> OpenFile:
        """Open a file by the name that an image gives, seen from the folder of ``relative_to``, that image's ``home``.

        As in QEMU that is the folder of the name by which the image was opened, also where that is a link.

        Raises:
            ImageError: ``denied`` or ``not-found``; names what was asked, and for ``denied`` how to allow it.
            HostError: the file may be opened but the system refuses.
        """
        text = os.fsdecode(name)
        if not text or "\0" in text:
            raise ImageError(
                "denied", "reference", f"the image names a file by {printable(name, 200)!r}, which is no file name"
            )
        protocol = protocol_of(text)
        if protocol is not None:
            raise ImageError(
                "denied",
                "reference",
                f"the image names '{printable(text, 200)}'; '{printable(protocol, 40)}:' names are never opened",
            )
        if self._roots is None:
            self._roots = self._find_roots()
        if relative_to is None and not text.startswith("/"):
            raise ImageError(
                "denied",
                "reference",
                f"the image names '{printable(text, 200)}', and a descriptor has no folder in which that could be",
            )
        path = text if relative_to is None else os.path.join(_folder_of(relative_to), text)
        named = path
        for _ in range(_MAX_LINKS):
            found = self._walk(path, text, named)
            if isinstance(found, OpenFile):
                return found
            path = found
        detail = f"the image names '{printable(text, 200)}', which is a loop of links"
        raise _numbered(errno.ELOOP, ImageError("denied", "reference", detail, name=text))

    def _root_of(self, path: str, shown: str) -> str:
        """Return the innermost allowed folder, with a slash at its end, that a normal path lies in."""
        for root in self._roots or ():
            if path.startswith(root) and (root != "/" or "/" in self._allowed or "/" not in path[1:]):
                return root
        raise self._denied(shown)

    def _denied(self, shown: str) -> ImageError:
        why = "which is not inside the image's folder"
        if not self._roots:
            why = "and no folder is open to an image like this"
        words = f"the image names '{printable(shown, 200)}', {why};"
        words += " if you trust it, allow its folder with --allow-path="
        folder = shell_word(os.path.dirname(shown)) if shown.startswith("/") else None
        if folder is None or len(words) + len(folder) > MAX_DETAIL:
            folder = "DIR"
        return ImageError("denied", "reference", words + folder)

    def _walk(self, path: str, shown: str, named: str) -> OpenFile | str:
        """Open ``path`` without following a link; a link gives the path that it stands for."""
        root = self._root_of(_normal(path), shown)
        if not path.startswith(root):
            path = _normal(path)  # it leaves the root and comes back: only the text can decide that
        todo = [c for c in path[len(root) :].split("/") if c not in ("", ".")]
        done: list[str] = []
        # The folders that were walked through, outermost first, and at last what was found.
        pins: list[Pinned] = []
        try:
            pins.append(Pinned(root))
            while todo:
                component = todo.pop(0)
                if component == "..":
                    if not done:
                        return _normal(root + "/".join(["..", *todo]))
                    done.pop()
                    pins.pop().close()
                    continue
                pins.append(Pinned(component, pins[-1].fd, follow=False))
                if stat.S_ISLNK(pins[-1].status.st_mode):
                    target = os.readlink("", dir_fd=pins[-1].fd)
                    return os.path.join(root + "/".join(done), target, *todo)
                done.append(component)
            return self._open_final(pins[-1], root + "/".join(done), shown, named)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                detail = f"the image names '{printable(shown, 200)}', which does not exist"
                raise _numbered(error.errno, ImageError("not-found", "reference", detail, name=shown)) from None
            raise host_error(error, shown, "open") from None
        finally:
            for pin in pins:
                pin.close()

    def _open_final(self, found: Pinned, path: str, shown: str, named: str) -> OpenFile:
        mode = found.status.st_mode
        explicit = any(path.startswith(_slashed(root)) for root in self._allowed)
        if not (stat.S_ISREG(mode) or (stat.S_ISBLK(mode) and explicit)):
            detail = f"the image names '{printable(shown, 200)}', which is not a regular file"
            refused = ImageError("denied", "reference", detail, name=shown)
            raise _numbered(errno.EISDIR, refused) if stat.S_ISDIR(mode) else refused
        return open_pinned(found, shown, home=named)


def _names_of(folder: str) -> tuple[str, str]:
    try:
        return os.path.abspath(folder), os.path.realpath(folder)
    except ValueError as error:
        raise bad_name(error, folder, "allow it") from None
    except OSError as error:  # the working folder is gone
        raise host_error(error, folder, "allow it") from None


def _folders_of(image: OpenFile) -> set[str]:
    """Return the folders that are an image's own: that of its name, and that of the file if the name is a link.

    None, if that is no regular file any more by the time, or if it is reached through /dev, /proc or the like:
    ``/dev/stdin`` is a file that somebody opened, and neither its neighbours nor those of the link are meant.
    """
    if image.home is None or image.is_device:
        return set()
    from instar.host.mounts import is_made_up

    found: set[str] = set()
    last = ""
    for last in _steps(image.home):
        folder = os.path.dirname(last)
        if not found and os.path.realpath(typed := os.path.dirname(os.path.abspath(image.home))) == folder:
            found.add(typed)  # as it may be named with the links that are in it
        with Pinned(folder) as pinned:
            if is_made_up(pinned.fd) or _is_among_devices(folder, pinned.status):
                return set()
        found.add(folder)
    with Pinned(last, follow=False) as pinned:
        same = (pinned.status.st_dev, pinned.status.st_ino) == image.identity
        return found if same and not is_made_up(pinned.fd) else set()


def _steps(path: str) -> Iterator[str]:
    """Yield a name and, while it is a link, what that stands for; the folders free of links."""
    for _ in range(_MAX_LINKS):
        folder, base = os.path.split(path)
        path = os.path.join(os.path.realpath(folder or "."), base)
        yield path
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return


def _is_among_devices(folder: str, status: os.stat_result) -> bool:
    """Tell whether a folder is /dev or in it, and no file system of its own there: /dev/shm has people's files.

    The kind of file system does not tell that everywhere: in containers /dev is a tmpfs.
    """
    return _slashed(folder).startswith("/dev/") and status.st_dev == os.stat("/dev").st_dev


def blame(error: ImageError | HostError, image: str, reference: Reference) -> None:
    """Put into an error about a file that an image names which image names it, and what for."""
    error.image = error.image or image
    error.role = "backing" if reference.role == "backing" else error.role
    if isinstance(error, HostError):
        error.path = combine(image, os.fsdecode(reference.name))
        return
    error.path = image
    error.structure = reference.role


def _numbered(number: int, error: ImageError) -> ImageError:
    error.errno = number
    return error


def _folder_of(path: str) -> str:
    """Return the folder of a name, itself free of links; what the name stands for is not looked at."""
    return os.path.realpath(os.path.dirname(path) or ".")


def _normal(path: str) -> str:
    """Return an absolute path without ``.``, ``..`` and doubled slashes, by its text alone."""
    normal = os.path.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _slashed(folder: str) -> str:
    return folder if folder.endswith("/") else folder + "/"
