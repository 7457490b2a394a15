"""Creation options of VHDX and the rules between their values, in the order in which qemu-img judges them."""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.options import Option
from instar.core.units import GiB, MiB, TiB, align_up, format_size, is_power_of_two
from instar.formats.vhdx import ondisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.options import Settings
    from instar.core.plan import Backing

SIZE = Option("size", "size", "Virtual disk size; max of 64TB.", note="rounded up to 512 bytes; up to 64 TiB")
LOG_SIZE = Option(
    "log_size",
    "size",
    "Log size; min 1MB.",
    default=ondisk.DEFAULT_LOG_SIZE,
    shown=str(ondisk.DEFAULT_LOG_SIZE),
    note="rounded up to 1 MiB; 1 MiB to 4095 MiB",
)
BLOCK_SIZE = Option(
    "block_size",
    "size",
    "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
    default=0,
    shown="0",
    note="rounded up to 1 MiB, then a power of two; above 256 MiB it is 256 MiB. 0: 8 MiB for disks up to 1 GiB,"
    " 16 MiB up to 100 GiB, 32 MiB up to 32 TiB, else 64 MiB",
)
SUBFORMAT = Option(
    "subformat",
    "choice",
    "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
    default="dynamic",
    choices=("dynamic", "fixed"),
)
BLOCK_STATE_ZERO = Option(
    "block_state_zero",
    "bool",
    "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using"
    " 'qemu-img convert' with subformat=dynamic.",
    default=True,
    note="off: blocks start as absent (dynamic) or in place (fixed)",
)

#: In qemu-img's order, which is that of its Formatting line.
CREATE = (SIZE, LOG_SIZE, BLOCK_SIZE, SUBFORMAT, BLOCK_STATE_ZERO)


def automatic_block_size(size: int) -> int:
    """Return the block size in bytes that qemu-img takes for a disk of ``size`` bytes."""
    if size > 32 * TiB:
        return 64 * MiB
    if size > 100 * GiB:
        return 32 * MiB
    if size > 1 * GiB:
        return 16 * MiB
    return 8 * MiB


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge a person's choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``subformat``, ``log_size``, ``block_size`` (never 0) and ``block_state_zero``.

    Raises:
        OptionError: ``bad-choice``, ``vhdx-size``, ``vhdx-log-size-max``, ``vhdx-log-size``,
            ``vhdx-block-size``, ``vhdx-empty-disk``, or ``vhdx-backing``, which qemu-img finds by itself earlier.
    """
    if backing is not None:
        raise OptionError("vhdx-backing", "instar does not create VHDX images with a backing file", key="backing_file")
    subformat = SUBFORMAT.pick(given.values.get("subformat"))
    size = align_up(size, 512)
    if size > ondisk.VIRTUAL_SIZE_MAX:
        raise OptionError(
            "vhdx-size",
            f"a VHDX disk holds at most 64 TiB, {format_size(size)} were asked for",
            key="size",
            value=size,
            limit=ondisk.VIRTUAL_SIZE_MAX,
        )
    log_size = align_up(given.number(LOG_SIZE), MiB)
    if log_size > ondisk.LOG_SIZE_MAX:
        raise OptionError(
            "vhdx-log-size-max",
            "option 'log_size' is at most 4095 MiB",
            key="log_size",
            value=log_size,
            limit=ondisk.LOG_SIZE_MAX,
        )
    if not log_size:
        raise OptionError("vhdx-log-size", "option 'log_size' is at least 1 MiB", key="log_size", value=log_size)
    block_size = min(align_up(given.number(BLOCK_SIZE), MiB), ondisk.BLOCK_SIZE_MAX) or automatic_block_size(size)
    if not is_power_of_two(block_size):
        raise OptionError(
            "vhdx-block-size",
            "option 'block_size' is a power of two from 1 MiB to 256 MiB, or 0 for automatic",
            key="block_size",
            value=block_size,
        )
    zero = given.flag(BLOCK_STATE_ZERO)
    if not size and block_size == ondisk.BLOCK_SIZE_MAX and (zero or subformat == "fixed"):
        # qemu-img tries, and fails to write 2 GiB in one piece; see README.md on disks of size 0.
        raise OptionError(
            "vhdx-empty-disk",
            "an empty disk with blocks of 256 MiB would need 2 GiB of tables; choose a smaller block_size",
            key="block_size",
            value=block_size,
        )
    return {"subformat": subformat, "log_size": log_size, "block_size": block_size, "block_state_zero": zero}
