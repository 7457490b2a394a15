"""What can be chosen when a VHD is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.options import Option
from instar.core.units import format_size, is_power_of_two
from instar.formats.vpc.geometry import too_large
from instar.formats.vpc.ondisk import DEFAULT_BLOCK, FORMAT, MAX_BLOCK, MAX_SIZE, MIN_BLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.options import Settings
    from instar.core.plan import Backing

SIZE = Option("size", "size", "Virtual disk size", note="Up to 2040 GiB. Rounded up to a CHS geometry.")
SUBFORMAT = Option(
    "subformat",
    "choice",
    # The blank at the end is qemu-img's.
    "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
    default="dynamic",
    choices=("dynamic", "fixed"),
    note="dynamic: the file grows as it is filled. fixed: plain data with a footer behind it.",
)
FORCE_SIZE = Option(
    "force_size",
    "bool",
    "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
    default=False,
    note="The size is exact. Hyper-V and Azure read it as meant, Virtual PC does not.",
)
BLOCK_SIZE = Option(
    "block_size",
    "size",
    "Block size of a dynamic disk; a power of two, min 512kB, max 256MB",
    default=DEFAULT_BLOCK,
    extension=True,
    note="A power of two from 512 KiB to 256 MiB. Hyper-V takes 512 KiB and 2 MiB.",
)

CREATE: tuple[Option, ...] = (SIZE, SUBFORMAT, FORCE_SIZE, BLOCK_SIZE)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``subformat``, ``force_size``; for a dynamic disk ``block_size``.

    Raises:
        OptionError: ``bad-choice``, ``vpc-block-size``, ``vpc-block-size-fixed``, ``image-too-large``.
    """
    subformat = SUBFORMAT.pick(given.text(SUBFORMAT))
    chosen: dict[str, int | bool | str] = {"subformat": subformat, "force_size": given.flag(FORCE_SIZE)}
    if subformat == "fixed":
        if BLOCK_SIZE.name in given.values:
            raise OptionError(
                "vpc-block-size-fixed",
                "option 'block_size' is for subformat=dynamic; a fixed disk has no blocks",
                key=BLOCK_SIZE.name,
                value=given.number(BLOCK_SIZE),
            )
    else:
        chosen["block_size"] = _block_size(given.number(BLOCK_SIZE))
    if too_large(size):
        raise OptionError(
            "image-too-large",
            f"a VHD holds at most 2040 GiB ({MAX_SIZE} bytes), not {size} bytes; use vhdx, which holds 64 TiB",
            format=FORMAT,
            limit=MAX_SIZE,
            value=size,
        )
    return chosen


def _block_size(value: int) -> int:
    """Return ``value`` if it is a block size that we make."""
    if not (MIN_BLOCK <= value <= MAX_BLOCK and is_power_of_two(value)):
        raise OptionError(
            "vpc-block-size",
            f"option 'block_size' is a power of two from {format_size(MIN_BLOCK)} to {format_size(MAX_BLOCK)},"
            f" not {value} bytes",
            key=BLOCK_SIZE.name,
            value=value,
        )
    return value
