"""What can be chosen when a VMDK is made, and the rules between the choices.

Law: the rules are judged in qemu-img's order, so that of two mistakes the same one is reported. What is
written into the descriptor as text can neither end its line nor its quotes.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.options import Option, preallocation, reserved
from instar.core.plan import Companion
from instar.core.units import SECTOR, MiB, align_up, ceil_div, format_size, is_power_of_two
from instar.formats.vmdk import split
from instar.formats.vmdk.ondisk import (
    DEFAULT_GRAIN,
    FORMAT,
    MAX_CREATED_GRAINS,
    MAX_DESCRIPTOR,
    MAX_EXTENT_NAME,
    MAX_EXTENTS,
    MAX_GRAIN,
    MAX_SPARSE_FILE,
    MIN_GRAIN,
    NO_CID,
    SPLIT_BYTES,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.options import Settings
    from instar.core.plan import Backing, Bound

#: What ``hwversion`` and ``toolsversion`` stand for when they are not given.
DEFAULT_HWVERSION = "4"
COMPAT6_HWVERSION = "6"
DEFAULT_TOOLSVERSION = "2147483647"

SIZE = Option(
    "size", "size", "Virtual disk size", note="Up to 2^32 - 512 grains: 256 TiB less 32 MiB with grain_size=64k."
)
ADAPTER_TYPE = Option(
    "adapter_type",
    "choice",
    "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    default="ide",
    choices=("ide", "buslogic", "lsilogic", "legacyESX"),
    note="What the descriptor says of the controller; also decides the number of heads, 16 or 255.",
)
BACKING_FILE = Option(
    "backing_file", "str", "File name of a base image", note="A VMDK; its CID is recorded as the parent's."
)
BACKING_FMT = Option("backing_fmt", "str", "Must be 'vmdk' if present")
COMPAT6 = Option("compat6", "bool", "VMDK version 6 image", default=False, shown="off", note="The same as hwversion=6.")
HWVERSION = Option(
    "hwversion",
    "str",
    "VMDK hardware version",
    default="undefined",
    shown="undefined",
    note="Text without quotes or control characters; undefined means 4.",
)
TOOLSVERSION = Option(
    "toolsversion",
    "str",
    "VMware guest tools version",
    since=(6, 2),
    note="Text without quotes or control characters; 2147483647 if not given.",
)
SUBFORMAT = Option(
    "subformat",
    "choice",
    # The blank at the end is qemu-img's.
    "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse"
    " | twoGbMaxExtentFlat | streamOptimized} ",
    default="monolithicSparse",
    choices=("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"),
    note="monolithicSparse: one file that grows. streamOptimized: the same, its grains compressed. monolithicFlat:"
    " a descriptor, and a file as large as the disk. twoGbMaxExtent…: a descriptor, and a file for every 2 GiB.",
)
ZEROED_GRAIN = Option(
    "zeroed_grain",
    "bool",
    "Enable efficient zero writes using the zeroed-grain GTE feature",
    default=False,
    note="Header version 2; VMware products from 2012 on read it.",
)
PREALLOCATION = preallocation(
    "metadata: every grain has its place. falloc, full: as well, the space is reserved, or made zero. Flat"
    " disks take falloc and full; streamOptimized none. (qemu-img ignores it.)",
)
GRAIN_SIZE = Option(
    "grain_size",
    "size",
    "Grain size; a power of two, min 8k, max 64M",
    default=DEFAULT_GRAIN,
    extension=True,
    note="A power of two from 8 KiB (the specification's least) to 64 MiB. VMware's own tools write 64 KiB.",
)

CREATE: tuple[Option, ...] = (
    SIZE,
    ADAPTER_TYPE,
    BACKING_FILE,
    BACKING_FMT,
    COMPAT6,
    HWVERSION,
    TOOLSVERSION,
    SUBFORMAT,
    ZEROED_GRAIN,
    GRAIN_SIZE,
    PREALLOCATION,
)

#: QEMU finds this word anywhere in a descriptor and takes what follows for the name of the backing file.
_HINT = "parentFileNameHint"


def resolve(size: int, given: Settings, backing: Backing | None) -> dict[str, int | bool | str]:
    """Judge the choices for a disk of ``size`` bytes and fill in the rest.

    Returns:
        ``adapter_type``, ``hwversion``, ``toolsversion``, ``subformat``, ``zeroed_grain``, ``grain_size`` (0 for a
        flat disk), ``preallocation``.

    Raises:
        OptionError: ``vmdk-backing-fmt``, ``vmdk-choice``, ``vmdk-compat6-hwversion``, ``vmdk-flat-backing``,
            ``vmdk-flat-zeroed-grain``, ``vmdk-backing-format``, ``vmdk-parent-cid``, ``vmdk-text``,
            ``vmdk-grain-size``, ``vmdk-flat-grain-size``, ``vmdk-preallocation``, ``vmdk-extents``,
            ``image-too-large``.
    """
    backing_fmt = given.text(BACKING_FMT)
    if backing_fmt is not None and backing_fmt != FORMAT:
        raise OptionError(
            "vmdk-backing-fmt",
            f"the backing file of a VMDK is a VMDK, not {backing_fmt}; give backing_fmt=vmdk",
            key=BACKING_FMT.name,
            value=backing_fmt,
        )
    adapter_type = _pick(ADAPTER_TYPE, given)
    subformat = _pick(SUBFORMAT, given)
    zeroed_grain = given.flag(ZEROED_GRAIN)
    hwversion = _hwversion(given)
    toolsversion = given.text(TOOLSVERSION)
    if subformat in split.FLAT:
        _judge_flat(subformat, given, backing)
    if backing is not None:
        _judge_backing(backing)
    chosen: dict[str, int | bool | str] = {
        "adapter_type": adapter_type,
        "hwversion": descriptor_text(HWVERSION.name, hwversion),
        "toolsversion": descriptor_text(
            TOOLSVERSION.name, DEFAULT_TOOLSVERSION if toolsversion is None else toolsversion
        ),
        "subformat": subformat,
        "zeroed_grain": zeroed_grain,
        "grain_size": 0,
        "preallocation": _judge_preallocation(given, subformat, backing),
    }
    if split.count(size, subformat) > MAX_EXTENTS:
        limit = MAX_EXTENTS * SPLIT_BYTES
        raise OptionError(
            "vmdk-extents",
            f"a {subformat} disk of {size} bytes would have {split.count(size, subformat)} files, and no more than"
            f" {MAX_EXTENTS} are read, which hold {limit} bytes; use subformat=monolithicSparse",
            key=SUBFORMAT.name,
            limit=limit,
            value=size,
        )
    if subformat not in split.FLAT:
        largest = min(size, SPLIT_BYTES) if subformat in split.SPLIT else size
        chosen["grain_size"] = _judge_grain(given.number(GRAIN_SIZE), largest)
        _judge_sparse_file(largest, chosen)
    return chosen


def bounds(size: int, options: Mapping[str, int | bool | str], backing: Backing | None) -> tuple[Bound, ...]:
    """Return what each file of an image can need at most; ``options`` are ``resolve``'s."""
    from instar.core.plan import Bound
    from instar.formats.vmdk.sparse import file_size

    subformat = str(options["subformat"])
    size = align_up(size, SECTOR)
    extents: list[Bound] = []
    for length in split.lengths(size, subformat) if split.has_files(subformat) else [size]:
        if subformat in split.FLAT:
            extents.append(Bound(length, reserved(options, length)))
        else:
            grains = align_up(length, int(options["grain_size"]))
            extents.append(Bound(file_size(length, options), reserved(options, grains)))
    if not split.has_files(subformat):
        return tuple(extents)
    # The text, and a line for each extent.
    return (Bound(MAX_DESCRIPTOR + len(extents) * (MAX_EXTENT_NAME + SECTOR)), *extents)


def companions(size: int, options: Mapping[str, int | bool | str], file_name: str) -> tuple[Companion, ...]:
    """Return the extents of a disk whose descriptor is a file of its own; ``options`` are ``resolve``'s."""
    subformat = str(options["subformat"])
    if not split.has_files(subformat):
        return ()
    return tuple(Companion(name) for name in split.names(file_name, size, subformat))


def _pick(row: Option, given: Settings) -> str:
    """Return the choice; a bad one has a code of its own, because qemu-img words it in its own way for VMDK."""
    try:
        return row.pick(given.text(row))
    except OptionError as error:
        raise OptionError("vmdk-choice", error.detail, **error.values) from None


def _hwversion(given: Settings) -> str:
    """Return the hardware version, of which ``compat6`` is another spelling."""
    text = given.text(HWVERSION)
    asked = None if text == "undefined" else text
    if given.flag(COMPAT6):
        if asked is not None:
            raise OptionError(
                "vmdk-compat6-hwversion",
                "options 'compat6' and 'hwversion' exclude one another: compat6 means hwversion=6",
                key=COMPAT6.name,
                value=asked,
            )
        return COMPAT6_HWVERSION
    return DEFAULT_HWVERSION if asked is None else asked


def _judge_flat(subformat: str, given: Settings, backing: Backing | None) -> None:
    """Refuse what a flat disk, which has no grains, cannot have."""
    if backing is not None:
        raise OptionError(
            "vmdk-flat-backing",
            f"a {subformat} disk cannot have a backing file; use subformat=monolithicSparse",
            key=SUBFORMAT.name,
            value=subformat,
        )
    if given.flag(ZEROED_GRAIN):
        raise OptionError(
            "vmdk-flat-zeroed-grain",
            f"a {subformat} disk has no grains, so no zeroed ones; leave out zeroed_grain",
            key=ZEROED_GRAIN.name,
            value=subformat,
        )
    if GRAIN_SIZE.name in given.values:
        raise OptionError(
            "vmdk-flat-grain-size",
            f"a {subformat} disk has no grains, so they have no size; leave out grain_size",
            key=GRAIN_SIZE.name,
            value=subformat,
        )


def _judge_preallocation(given: Settings, subformat: str, backing: Backing | None) -> str:
    """Return the mode, if a disk of this kind can be preallocated so."""
    mode = PREALLOCATION.pick(given.text(PREALLOCATION))
    if mode == "off":
        return mode
    why = None
    if subformat == "streamOptimized":
        why = "the grains of a streamOptimized disk are compressed and have no place before they are written"
    elif subformat in split.FLAT and mode == "metadata":
        why = f"a {subformat} disk has no metadata; use falloc or full"
    elif backing is not None:
        why = "grains that are there would hide the backing file"
    if why is not None:
        raise OptionError(
            "vmdk-preallocation",
            f"option 'preallocation={mode}' cannot be had: {why}",
            key=PREALLOCATION.name,
            value=mode,
        )
    return mode


def _judge_sparse_file(size: int, chosen: Mapping[str, int | bool | str]) -> None:
    """Refuse a preallocated file in which not every sector has a number."""
    if chosen["preallocation"] == "off":
        return
    grain = int(chosen["grain_size"])
    # Two tables, of 4 bytes a grain, and their directories; then the grains.
    if align_up(size, grain) + 2 * 5 * ceil_div(size, grain) + MiB > MAX_SPARSE_FILE:
        raise OptionError(
            "image-too-large",
            f"a preallocated VMDK file has at most {MAX_SPARSE_FILE} bytes, too few for {size} bytes of disk and their"
            " tables; use subformat=twoGbMaxExtentSparse, or no preallocation",
            format=FORMAT,
            limit=MAX_SPARSE_FILE,
            value=size,
        )


def _judge_backing(backing: Backing) -> None:
    """Refuse a parent that cannot be recorded."""
    if backing.format is not None and backing.format != FORMAT:
        raise OptionError(
            "vmdk-backing-format",
            f"the backing file of a VMDK is a VMDK; '{printable(backing.name)}' is {backing.format}",
            key=BACKING_FILE.name,
            value=backing.format,
        )
    if backing.content_id is None or not 0 <= backing.content_id <= NO_CID:
        raise OptionError(
            "vmdk-parent-cid",
            f"the CID of the backing file '{printable(backing.name)}' is not known, and a VMDK records it;"
            " the backing file must be readable",
            key=BACKING_FILE.name,
            value=backing.name,
        )


def descriptor_text(key: str, text: str) -> str:
    """Return ``text`` if it can stand between quotes in a descriptor and means nothing else there.

    Raises:
        OptionError: ``vmdk-text``.
    """
    if '"' in text or any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        problem = "holds a quote or a control character, which would end its line in the descriptor"
    elif any(0xD800 <= ord(c) < 0xDC80 or 0xDCFF < ord(c) <= 0xDFFF for c in text):
        problem = "holds a character that cannot be encoded"
    elif _HINT in text:
        problem = f"holds the word {_HINT}, which QEMU would read as the name of a backing file"
    else:
        return text
    raise OptionError("vmdk-text", f"option '{key}': '{printable(text, 80)}' {problem}", key=key, value=text)


def _judge_grain(grain_size: int, size: int) -> int:
    """Return ``grain_size`` if it is one that we make and ``size`` bytes are not too many for it."""
    if not (MIN_GRAIN <= grain_size <= MAX_GRAIN and is_power_of_two(grain_size)):
        raise OptionError(
            "vmdk-grain-size",
            f"option 'grain_size' is a power of two from {format_size(MIN_GRAIN)} to {format_size(MAX_GRAIN)},"
            f" not {grain_size} bytes",
            key=GRAIN_SIZE.name,
            value=grain_size,
        )
    if ceil_div(size, grain_size) > MAX_CREATED_GRAINS:
        limit = MAX_CREATED_GRAINS * grain_size
        raise OptionError(
            "image-too-large",
            f"with grains of {format_size(grain_size)} a VMDK holds at most {limit} bytes, not {size} bytes;"
            " use a larger grain_size",
            format=FORMAT,
            limit=limit,
            value=size,
        )
    return grain_size
