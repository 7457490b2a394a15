"""The one gate through which a file that an *image* names is opened.

Law: the policy is applied to the text of a name before any system call, so an image cannot learn whether a
file outside exists; then every component is opened by itself, and the target of each link is judged again.
Only regular files pass (block devices only below a folder that was allowed by name), never a protocol.
"""

from __future__ import annotations

import errno
import os
import stat

from instar.core.errors import ImageError, printable
from instar.host.files import OpenFile, bad_name, host_error, open_image
from instar.host.names import protocol_of

_MAX_LINKS = 40
_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Gate:
    """The policy for what one image (and the chain behind it) may name.

    Args:
        image_path: the image; files in its folder and below may be opened. (Of an image in ``/``, only its
            neighbours: nobody means the whole machine by leaving an image there.)
        allow: further folders.
    """

    def __init__(self, image_path: str, allow: tuple[str, ...] = ()) -> None:
        self._image_path = image_path
        try:
            home = os.path.dirname(os.path.realpath(image_path))
            named = {os.path.dirname(os.path.abspath(image_path)), home, _folder_of(image_path)}
            # Whoever allows a folder names it; its own links are trusted, those below it are not.
            self._allowed = {form(folder) for folder in allow for form in (os.path.abspath, os.path.realpath)}
        except ValueError as error:
            raise bad_name(error, image_path, "open") from None
        except OSError as error:  # the working folder is gone
            raise host_error(error, image_path, "open") from None
        self._roots = sorted({_slashed(folder) for folder in named | self._allowed}, key=len, reverse=True)

    def open(self, name: bytes, *, relative_to: str | None = None) -> OpenFile:
        """Open a file by the name that an image gives, seen from the folder of ``relative_to`` (default: the image's).

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
        path = os.path.join(_folder_of(self._image_path if relative_to is None else relative_to), text)
        for _ in range(_MAX_LINKS):
            found = self._walk(path, text)
            if isinstance(found, OpenFile):
                return found
            path = found
        raise ImageError("denied", "reference", f"the image names '{printable(text, 200)}', which is a loop of links")

    def _root_of(self, path: str, shown: str) -> str:
        """Return the innermost allowed folder, with a slash at its end, that a normal path lies in."""
        for root in self._roots:
            if path.startswith(root) and (root != "/" or "/" in self._allowed or "/" not in path[1:]):
                return root
        raise self._denied(shown)

    def _denied(self, shown: str) -> ImageError:
        folder = os.path.dirname(shown) if shown.startswith("/") else "DIR"
        return ImageError(
            "denied",
            "reference",
            f"the image names '{printable(shown, 200)}', which is not inside the image's folder;"
            f" if you trust it, allow its folder with --allow-path={printable(folder, 200)}",
        )

    def _walk(self, path: str, shown: str) -> OpenFile | str:
        """Open ``path`` without following a link; a link gives the path that it stands for."""
        root = self._root_of(_normal(path), shown)
        if not path.startswith(root):
            path = _normal(path)  # it leaves the root and comes back: only the text can decide that
        todo = [c for c in path[len(root) :].split("/") if c not in ("", ".")]
        done: list[str] = []
        fds: list[int] = []
        try:
            fds.append(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            while todo:
                component = todo.pop(0)
                if component == "..":
                    if not done:
                        return _normal(root + "/".join(["..", *todo]))
                    done.pop()
                    os.close(fds.pop())
                    continue
                fd = os.open(component, _O_PATH, dir_fd=fds[-1])
                fds.append(fd)
                mode = os.fstat(fd).st_mode
                if stat.S_ISLNK(mode):
                    target = os.readlink("", dir_fd=fd)
                    return os.path.join(root + "/".join(done), target, *todo)
                done.append(component)
            return self._open_final(fds[-1], root + "/".join(done), shown)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise ImageError(
                    "not-found",
                    "reference",
                    f"the image names '{printable(shown, 200)}', which does not exist",
                    name=shown,
                ) from None
            raise host_error(error, shown, "open") from None
        finally:
            for fd in fds:
                os.close(fd)

    def _open_final(self, fd: int, path: str, shown: str) -> OpenFile:
        mode = os.fstat(fd).st_mode
        explicit = any(path.startswith(_slashed(root)) for root in self._allowed)
        if not (stat.S_ISREG(mode) or (stat.S_ISBLK(mode) and explicit)):
            raise ImageError(
                "denied", "reference", f"the image names '{printable(shown, 200)}', which is not a regular file"
            )
        # The descriptor pins the very file that was judged; opening it again by name would be a race.
        return open_image(shown, reopen=fd)


def _folder_of(path: str) -> str:
    """Return the folder of a name, itself free of links; what the name stands for is not looked at."""
    return os.path.realpath(os.path.dirname(path) or ".")


def _normal(path: str) -> str:
    """Return an absolute path without ``.``, ``..`` and doubled slashes, by its text alone."""
    normal = os.path.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _slashed(folder: str) -> str:
    return folder if folder.endswith("/") else folder + "/"
