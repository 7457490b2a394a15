"""Check a raw image: there is nothing to check, and saying "clean" would promise too much.

Law: no byte of the image is read.
"""

from __future__ import annotations

from instar.core.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.finding import Report
    from instar.core.reader import Reader


def check(image: Reader, parts: Sequence[Reader | None], *, generation: tuple[int, int]) -> Report:
    """Refuse: a raw image has no metadata.

    Raises:
        ImageError: ``unsupported-feature``, always.
    """
    raise ImageError("unsupported-feature", "check", "a raw image has no metadata that could be checked", format="raw")
