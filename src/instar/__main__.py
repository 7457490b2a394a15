"""``python -P -m instar``.

Law: nothing is imported from the working folder, which may hold what a stranger sent together with an image. Without
``-P`` Python itself has looked there for a few modules before this runs; from here on nobody does.
"""

import posix
import sys


def _places() -> list[str]:
    """Return where modules are looked for, without the working folder.

    If the package lies there itself, or Python's own library, it comes last, so that no other module can be shadowed.
    """

    def is_here(path: str) -> bool:
        try:
            found, here = posix.stat(path), posix.stat(".")
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino)

    package = __file__.removesuffix("/instar/__main__.py")
    elsewhere = [path for path in sys.path if path.startswith("/") and not is_here(path)]
    libraries = tuple(f"{prefix}/lib" for prefix in (sys.prefix, sys.base_prefix))
    # The first place is where Python was started, whatever else that is.
    rest = [
        path for path in sys.path[not sys.flags.safe_path :] if path.startswith(libraries) and path not in elsewhere
    ]
    return [*elsewhere, *rest, *([package] if is_here(package) else [])]


sys.path[:] = _places()

from instar.cli.main import start  # noqa: E402

sys.argv[0] = "instar"
start()
