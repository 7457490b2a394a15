"""What can be chosen when a VDI is made, and the rules between the choices."""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.options import Option, preallocation, reserved
from instar.core.units import align_up, ceil_div
from instar.formats.vdi.ondisk import BLOCK, MAP_OFFSET, MAX_SIZE, SECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

SIZE = Option("size", "size", "Virtual disk size", note="Up to 512 TiB less 128 MiB. Rounded up to 512 bytes.")
STATIC = Option(
    "static",
    "bool",
    "VDI static (pre-allocated) image",
    default=False,
    shown="off",
    note="The file has its full length and every block its place in order; no storage is taken yet.",
)
PREALLOCATION = preallocation(
    "With static=on: falloc reserves storage for all blocks; full makes sure that it is zero as well.",
    modes=("off", "falloc", "full"),
)

CREATE: tuple[Option, ...] = (SIZE, STATIC, PREALLOCATION)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``static`` and ``preallocation``.

    Raises:
        OptionError: ``bad-choice``, ``vdi-preallocation``, ``vdi-size``.
    """
    static = given.flag(STATIC)
    preallocation = PREALLOCATION.pick(given.values.get(PREALLOCATION.name))
    if preallocation != "off" and not static:
        raise OptionError(
            "vdi-preallocation",
            f"preallocation={preallocation} is for static images, whose blocks have their places; add static=on",
            key=PREALLOCATION.name,
            value=preallocation,
        )
    size = align_up(size, SECTOR)
    if size > MAX_SIZE:
        raise OptionError(
            "vdi-size",
            f"a VDI holds at most {MAX_SIZE} bytes (512 TiB less 128 MiB), not {size}",
            key=SIZE.name,
            value=size,
            limit=MAX_SIZE,
            hex=f"{size:x}",
        )
    return {"static": static, "preallocation": preallocation}


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    blocks = ceil_div(size, BLOCK)
    tables = MAP_OFFSET + align_up(4 * blocks, SECTOR)
    data = blocks * BLOCK if options["static"] else 0
    return (Bound(tables + data, reserved(options, data)),)
