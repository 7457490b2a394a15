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
from instar.host.files import OpenFile, open_image
from instar.host.names import protocol_of

_MAX_LINKS = 40
_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Gate:
    """The policy for what one image (and the chain behind it) may name.

    Args:
        image_path: the image; files in its folder and below may be opened.
        allow: further folders.
    """

    def __init__(self, image_path: str, allow: tuple[str, ...] = ()) -> None:
        self._home = os.path.dirname(os.path.realpath(image_path))
        named = {os.path.dirname(os.path.abspath(image_path)), self._home}
        # Whoever allows a folder names it; its own links are trusted, those below it are not.
        self._allowed = {form(folder) for folder in allow for form in (os.path.abspath, os.path.realpath)}
        self._roots = sorted(named | self._allowed, key=len, reverse=True)

    def open(self, name: bytes, *, relative_to: str | None = None) -> OpenFile:
        """Open a file by the name that an image gives, seen from the folder of ``relative_to`` (default: the image's).

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
        home = self._home if relative_to is None else os.path.dirname(os.path.realpath(relative_to))
        path = os.path.join(home, text)
        for _ in range(_MAX_LINKS):
            found = self._walk(path, text)
            if isinstance(found, OpenFile):
                found.path = text
                return found
            path = found
        raise ImageError("denied", "reference", f"the image names '{printable(text, 200)}', which is a loop of links")

    def _root_of(self, path: str, shown: str) -> str:
        lexical = os.path.normpath(path)
        for root in self._roots:
            if lexical.startswith(root if root.endswith("/") else root + "/"):
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
        root = self._root_of(path, shown)
        prefix = root if root.endswith("/") else root + "/"
        if not path.startswith(prefix):
            path = os.path.normpath(path)  # it leaves the root and comes back: only the text can decide that
        todo = [c for c in path[len(prefix) :].split("/") if c not in ("", ".")]
        done: list[str] = []
        fds: list[int] = []
        try:
            fds.append(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            while todo:
                component = todo.pop(0)
                if component == "..":
                    if not done:
                        return prefix + "/".join(["..", *todo])
                    done.pop()
                    os.close(fds.pop())
                    continue
                fd = os.open(component, _O_PATH, dir_fd=fds[-1])
                fds.append(fd)
                mode = os.fstat(fd).st_mode
                if stat.S_ISLNK(mode):
                    target = os.readlink("", dir_fd=fd)
                    return os.path.join(prefix + "/".join(done), target, *todo)
                done.append(component)
            return self._open_final(fds[-1], prefix + "/".join(done), shown)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise ImageError(
                    "not-found", "reference", f"the image names '{printable(shown, 200)}', which does not exist"
                ) from None
            from instar.host.files import host_error

            raise host_error(error, shown, "open") from None
        finally:
            for fd in fds:
                os.close(fd)

    def _open_final(self, fd: int, path: str, shown: str) -> OpenFile:
        mode = os.fstat(fd).st_mode
        explicit = any(path.startswith(root.rstrip("/") + "/") for root in self._allowed)
        if not (stat.S_ISREG(mode) or (stat.S_ISBLK(mode) and explicit)):
            raise ImageError(
                "denied", "reference", f"the image names '{printable(shown, 200)}', which is not a regular file"
            )
        # The descriptor pins the very file that was judged; opening it again by name would be a race.
        opened = open_image(f"/proc/self/fd/{fd}")
        opened.path = shown
        return opened
