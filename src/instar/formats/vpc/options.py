"""What can be chosen when a VHD is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.options import Option, parent, preallocation, reserved
from instar.core.units import SECTOR, align_up, ceil_div, format_size, is_power_of_two
from instar.core.winpath import to_windows
from instar.formats.vpc.geometry import fit, too_large
from instar.formats.vpc.ondisk import (
    BAT_OFFSET,
    DEFAULT_BLOCK,
    FORMAT,
    MAX_BLOCK,
    MAX_SIZE,
    MIN_BLOCK,
    Identity,
    bitmap_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

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
BACKING_FILE, BACKING_FMT = parent(FORMAT, "A VHD of any kind; the new disk has its size and records its identifier.")
PREALLOCATION = preallocation(
    "metadata: all blocks are in the file and take no space yet (dynamic only); falloc, full: they take it.",
)

CREATE: tuple[Option, ...] = (SIZE, SUBFORMAT, FORCE_SIZE, BLOCK_SIZE, BACKING_FILE, BACKING_FMT, PREALLOCATION)


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``subformat``, ``force_size``, ``preallocation``; for a dynamic disk ``block_size``.

    Raises:
        OptionError: ``bad-choice``, ``vpc-block-size``, ``vpc-block-size-fixed``, ``vpc-fixed-metadata``,
            ``image-too-large``; with a parent ``vpc-fixed-parent``, ``vpc-parent-force-size``,
            ``vpc-parent-format``, ``vpc-parent``, ``vpc-parent-name``, ``vpc-parent-size``.
    """
    subformat = SUBFORMAT.pick(given.text(SUBFORMAT))
    preallocation = PREALLOCATION.pick(given.values.get(PREALLOCATION.name))
    chosen: dict[str, int | bool | str] = {
        "subformat": subformat,
        "force_size": given.flag(FORCE_SIZE),
        "preallocation": preallocation,
    }
    if subformat == "fixed":
        if preallocation == "metadata":
            raise OptionError(
                "vpc-fixed-metadata",
                "preallocation=metadata is for subformat=dynamic: a fixed disk has no tables to fill;"
                " falloc and full reserve its data",
                key=PREALLOCATION.name,
                value=preallocation,
            )
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
    if backing is not None:
        _judge_parent(size, subformat, given, backing)
    return chosen


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound

    virtual_size = fit(size, force=bool(options["force_size"]))[0]
    locators = 0
    if backing is not None and backing.identity is not None:
        virtual_size = Identity.unpack(backing.identity).current_size
        # Two paths in UTF-16; names of drives and shares become a little longer.
        locators = sum(align_up(4 * len(path) + SECTOR, SECTOR) for path in (backing.relative, backing.absolute))
    if options["subformat"] == "fixed":
        return (Bound(virtual_size + SECTOR, reserved(options, virtual_size)),)
    block_size = int(options["block_size"])
    entries = ceil_div(virtual_size, block_size)
    tables = BAT_OFFSET + locators + align_up(4 * entries, SECTOR)
    data = 0 if options["preallocation"] == "off" else entries * (bitmap_bytes(block_size) + block_size)
    return (Bound(tables + data + SECTOR, reserved(options, data)),)


def _judge_parent(size: int, subformat: str, given: Settings, backing: Backing) -> None:
    """Refuse a parent that a differencing disk of ``size`` bytes cannot have.

    The parent decides the size: spec, "Implementing a Differencing Hard Disk"; Windows opens no others.
    """
    name = printable(backing.name)
    if subformat == "fixed":
        raise OptionError(
            "vpc-fixed-parent",
            "a disk with a parent holds blocks, so it cannot be a fixed one; leave out subformat=fixed",
            key=SUBFORMAT.name,
            value=subformat,
        )
    if FORCE_SIZE.name in given.values:
        raise OptionError(
            "vpc-parent-force-size",
            "a disk with a parent has the parent's size and geometry; leave out force_size",
            key=FORCE_SIZE.name,
            value=given.raw[FORCE_SIZE.name],
        )
    if backing.format != FORMAT:
        raise OptionError(
            "vpc-parent-format",
            f"the parent of a VHD is a VHD; '{name}' is {backing.format}",
            key=BACKING_FILE.name,
            value=backing.format,
        )
    if backing.identity is None or backing.virtual_size is None:
        raise OptionError(
            "vpc-parent",
            f"'{name}' cannot be a parent: it says of itself to be neither a fixed, a dynamic nor a differencing disk",
            key=BACKING_FILE.name,
            value=backing.name,
        )
    # QEMU may go by the geometry instead, so an image that is opened can have any size in its footer.
    held = Identity.unpack(backing.identity).current_size
    if too_large(held):
        raise OptionError(
            "vpc-parent",
            f"'{name}' cannot be a parent: its footer says that it holds {held} bytes,"
            f" and a VHD holds at most 2040 GiB ({MAX_SIZE} bytes)",
            key=BACKING_FILE.name,
            value=backing.name,
            limit=MAX_SIZE,
        )
    for path in (backing.relative, backing.absolute):
        try:
            to_windows(path)
        except ValueError as error:
            raise OptionError(
                "vpc-parent-name",
                f"the path '{printable(path, 200)}' cannot be recorded in a VHD: {error}",
                key=BACKING_FILE.name,
                value=backing.name,
            ) from None
    if backing.virtual_size not in (size, fit(size, force=False)[0]):
        raise OptionError(
            "vpc-parent-size",
            f"a differencing VHD has the size of its parent, {backing.virtual_size} bytes, not {size};"
            " leave out the size",
            key=SIZE.name,
            value=size,
            limit=backing.virtual_size,
        )


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
