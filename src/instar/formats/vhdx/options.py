"""Creation options of VHDX and the rules between their values, in the order in which qemu-img judges them."""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.options import Option, parent, preallocation, reserved
from instar.core.units import GiB, MiB, TiB, align_up, ceil_div, format_size, is_power_of_two
from instar.core.winpath import to_windows
from instar.formats.vhdx import ondisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

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
    note="off: blocks start as absent (dynamic) or in place (fixed); so they do with a parent or preallocation",
)
BACKING_FILE, BACKING_FMT = parent(
    ondisk.FORMAT,
    "A VHDX of any kind; the new disk has its size, sectors and disk identifier, and records its data write GUID.",
)
PREALLOCATION = preallocation(
    "metadata: all blocks are in the file and take no space yet; falloc, full: they take it.",
)

#: In qemu-img's order, which is that of its Formatting line; then our own.
CREATE = (SIZE, LOG_SIZE, BLOCK_SIZE, SUBFORMAT, BLOCK_STATE_ZERO, BACKING_FILE, BACKING_FMT, PREALLOCATION)


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
        ``subformat``, ``log_size``, ``block_size`` (never 0), ``block_state_zero`` and ``preallocation``.

    Raises:
        OptionError: ``bad-choice``, ``vhdx-size``, ``vhdx-log-size-max``, ``vhdx-log-size``,
            ``vhdx-block-size``, ``vhdx-empty-disk``, ``vhdx-zero-preallocation``; with a parent ``vhdx-fixed-parent``,
            ``vhdx-zero-parent``, ``vhdx-parent-format``, ``vhdx-parent``, ``vhdx-parent-name``, ``vhdx-parent-size``.
    """
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
    preallocation = PREALLOCATION.pick(given.values.get(PREALLOCATION.name))
    zero = given.flag(BLOCK_STATE_ZERO)
    if backing is not None or preallocation != "off":
        if zero and BLOCK_STATE_ZERO.name in given.values:
            raise _zero_blocks(backing is not None)
        zero = False
    if backing is not None:
        _judge_parent(size, subformat, backing)
    if not size and block_size == ondisk.BLOCK_SIZE_MAX and (zero or subformat == "fixed" or preallocation != "off"):
        # qemu-img tries, and fails to write 2 GiB in one piece; see README.md on disks of size 0.
        raise OptionError(
            "vhdx-empty-disk",
            "an empty disk with blocks of 256 MiB would need 2 GiB of tables; choose a smaller block_size",
            key="block_size",
            value=block_size,
        )
    return {
        "subformat": subformat,
        "log_size": log_size,
        "block_size": block_size,
        "block_state_zero": zero,
        "preallocation": preallocation,
    }


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    block_size, mode = int(options["block_size"]), options["preallocation"]
    size = align_up(size, 512)
    blocks, bitmaps = ceil_div(size, block_size), 0
    entries = ondisk.created_bat_entries(size, block_size)
    if backing is not None and backing.identity is not None:
        sector = ondisk.Identity.unpack(backing.identity).logical_sector
        ratio = ondisk.chunk_ratio(block_size, sector if sector in ondisk.SECTOR_SIZES else 512)
        bitmaps = ceil_div(blocks, ratio)
        entries = bitmaps * (ratio + 1)
    table = align_up(entries * ondisk.ENTRY_SIZE, MiB) or MiB
    head = ondisk.HEADER_SECTION + int(options["log_size"]) + table + ondisk.DATA_GAP
    data = bitmaps * ondisk.BITMAP_BLOCK
    if mode != "off":
        data += blocks * block_size
    elif options["subformat"] == "fixed":
        data += size
    return (Bound(head + data, reserved(options, data)),)


def _zero_blocks(child: bool) -> OptionError:
    if child:
        code, what = "vhdx-zero-parent", "would hide all of the parent's data: every block would read as zeros"
    else:
        code, what = "vhdx-zero-preallocation", "means that no block is in the file, so there is nothing to preallocate"
    return OptionError(
        code, f"block_state_zero=on {what}; leave it out", key=BLOCK_STATE_ZERO.name, value=BLOCK_STATE_ZERO.name
    )


def _judge_parent(size: int, subformat: str, backing: Backing) -> None:
    """Refuse a parent that a differencing disk of ``size`` bytes cannot have.

    The parent decides the size: [MS-VHDX] 2.6.1.2, items of the virtual disk are copied into the child.
    """
    name = printable(backing.name)
    if subformat == "fixed":
        raise OptionError(
            "vhdx-fixed-parent",
            "a disk with a parent cannot be a fixed one, which has all its blocks; leave out subformat=fixed",
            key=SUBFORMAT.name,
            value=subformat,
        )
    if backing.format != ondisk.FORMAT:
        raise OptionError(
            "vhdx-parent-format",
            f"the parent of a VHDX is a VHDX; '{name}' is {backing.format}",
            key=BACKING_FILE.name,
            value=backing.format,
        )
    if backing.identity is None or backing.virtual_size is None:
        raise OptionError("vhdx-parent", f"'{name}' does not say who it is", key=BACKING_FILE.name, value=backing.name)
    try:
        to_windows(backing.relative)
    except ValueError as error:
        raise OptionError(
            "vhdx-parent-name",
            f"the path '{printable(backing.relative, 200)}' cannot be recorded in a VHDX: {error}",
            key=BACKING_FILE.name,
            value=backing.name,
        ) from None
    if backing.virtual_size != size:
        raise OptionError(
            "vhdx-parent-size",
            f"a differencing VHDX has the size of its parent, {backing.virtual_size} bytes, not {size};"
            " leave out the size",
            key=SIZE.name,
            value=size,
            limit=backing.virtual_size,
        )
