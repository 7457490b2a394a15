"""What can be chosen when a raw image is made: its size. How the file is made is the file's own business.

Law: a raw image has no metadata, so there are no rules between options.
"""

from __future__ import annotations

from instar.core.options import Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.options import Settings, Value
    from instar.core.plan import Backing

SIZE = Option("size", "size", "Virtual disk size", note="rounded up to 512 bytes")

CREATE = (SIZE,)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, Value]:
    """Return the options a raw image is made with: none.

    What sizes a file can have only the host can tell, so none is judged here.
    """
    return {}
