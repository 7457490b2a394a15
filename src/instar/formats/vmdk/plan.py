"""The writes that make a VMDK: of one file, or a descriptor file and its extents.

Law: pure. The same size, options and seed give the same plan, and the plan gives the bytes that
``qemu-img create`` writes, but for the CID.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Fill, Plan, Write
from instar.core.units import align_up
from instar.formats.vmdk import split
from instar.formats.vmdk.ondisk import DESCRIPTOR_OFFSET, SECTOR
from instar.formats.vmdk.sparse import extent, file_size
from instar.formats.vmdk.text import descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed

#: QEMU writes the first 4 KiB of a file that it extends from nothing, so as to learn the alignment of direct I/O;
#: of a shorter one the first sector.
_FIRST_BLOCK = 4096


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a VMDK for a request of ``size`` bytes, rounded up to a sector, with the options ``resolve`` gave.

    Bytes 0-3 of ``seed.entropy`` become the CID (ffffffff, which stands for no disk, becomes fffffffe).
    ``seed.file_name`` gives the names in the extent lines, ``seed.backing`` (name and CID) the parent's lines.
    The files are in the order of ``options.companions``.

    >>> from instar.core.plan import Seed
    >>> options = {"subformat": "monolithicSparse", "adapter_type": "ide", "hwversion": "4",
    ...            "toolsversion": "2147483647", "zeroed_grain": False, "grain_size": 65536,
    ...            "preallocation": "off"}
    >>> plan = create(1 << 30, options, Seed(entropy=bytes(64), file_name="disk.vmdk"))
    >>> plan.virtual_size, plan.sizes
    (1073741824, (196608,))
    >>> for item in plan.items:
    ...     print(item.offset, item.length, item.label)
    0 512 header
    512 336 descriptor
    10752 128 redundant grain directory
    10880 384 redundant grain directory, unused end
    76800 128 grain directory
    76928 384 grain directory, unused end

    Raises:
        OptionError: ``vmdk-file-name``, ``vmdk-backing-name``, ``vmdk-descriptor-size``: a name cannot stand in
            the descriptor, or the descriptor does not fit its 20 sectors.
    """
    size = align_up(size, SECTOR)
    subformat = str(options["subformat"])
    items: list[Item]
    if not split.has_files(subformat):
        text = descriptor(size, options, seed, [(seed.file_name, size)])
        header, *rest = extent(size, options)
        items = [header, Write(DESCRIPTOR_OFFSET, text, "descriptor"), *rest]
        sizes = [file_size(size, options)]
    else:
        lengths = split.lengths(size, subformat)
        names = split.names(seed.file_name, size, subformat)
        text = descriptor(size, options, seed, list(zip(names, lengths, strict=True)))
        items = [Write(0, text, "descriptor")]
        sizes = [len(text)]
        for number, length in enumerate(lengths, 1):
            if subformat in split.FLAT:
                items.append(_flat(length, str(options["preallocation"]), number))
                sizes.append(length)
            else:
                items += extent(length, options, file=number)
                sizes.append(file_size(length, options))
    return Plan(
        items,
        sizes=tuple(sizes),
        virtual_size=size,
        unit=int(options["grain_size"]),
        unit_name="grain",
    )


def _flat(length: int, mode: str, file: int) -> Item:
    """Return what makes a file of zeros of ``length`` bytes."""
    if mode == "off":
        return Fill(0, _FIRST_BLOCK if length >= _FIRST_BLOCK else SECTOR, "first block", file=file)
    return Allocate(0, length, "data", mode=mode, file=file)
