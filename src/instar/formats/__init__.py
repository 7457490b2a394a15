"""The formats as one table of data. Importing it imports no format.

Law: a format is one folder and one row here. Detection, help, documentation, fuzz targets and the
comparison matrix are generated from these rows.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Probe:
    """Bytes that give a format away: at ``offset`` from the start of the file, or from its end if negative."""

    __slots__ = ("magic", "offset")

    def __init__(self, offset: int, magic: bytes) -> None:
        self.offset = offset
        self.magic = magic


class Format:
    """A row of the table.

    Attributes:
        name: as qemu-img calls it.
        aliases: other names that instar accepts (not in the qemu-img dialect).
        probes: any one that matches gives the format away.
        readable, creatable: whether instar has a reader, a planner.
        qemu_creatable: qemu-img can create it (so its messages differ from those for unknown formats).
        backing: formats a backing file may have: ``None`` takes none, ``()`` any, else these.
        qemu_checks: qemu-img's ``check`` supports it.
        many_files: an image may consist of several files, named by its first.
        unit_name: the field's word for its unit of allocation.
        title: one line for people.
    """

    __slots__ = (
        "aliases",
        "backing",
        "creatable",
        "many_files",
        "name",
        "probes",
        "qemu_checks",
        "qemu_creatable",
        "readable",
        "title",
        "unit_name",
    )

    def __init__(
        self,
        name: str,
        title: str,
        *,
        aliases: tuple[str, ...] = (),
        probes: tuple[Probe, ...] = (),
        readable: bool = False,
        creatable: bool = False,
        qemu_creatable: bool = True,
        backing: tuple[str, ...] | None = None,
        qemu_checks: bool = False,
        many_files: bool = False,
        unit_name: str = "cluster",
    ) -> None:
        self.name = name
        self.title = title
        self.aliases = aliases
        self.probes = probes
        self.readable = readable
        self.creatable = creatable
        self.qemu_creatable = qemu_creatable
        self.backing = backing
        self.qemu_checks = qemu_checks
        self.many_files = many_files
        self.unit_name = unit_name


#: Order is the order of detection: the first row with a matching probe wins, as the highest score does in QEMU. Magics
#: at the start of a file exclude one another; VDI's, which stands further behind, comes where ``BEFORE_VDI`` says.
TABLE: tuple[Format, ...] = (
    Format(
        "qcow",
        "QEMU copy on write, version 1",
        probes=(Probe(0, b"QFI\xfb\0\0\0\1"),),
        readable=True,
        creatable=True,
        backing=(),
    ),
    Format(
        "qcow2",
        "QEMU copy on write, version 2 and 3",
        probes=(Probe(0, b"QFI\xfb"),),
        readable=True,
        creatable=True,
        backing=(),
        qemu_checks=True,
    ),
    Format(
        "vmdk",
        "VMware virtual disk",
        probes=(Probe(0, b"KDMV"), Probe(0, b"COWD")),
        readable=True,
        creatable=True,
        backing=("vmdk",),
        qemu_checks=True,
        unit_name="grain",
        many_files=True,
    ),
    Format(
        "vhdx",
        "Hyper-V virtual disk, version 2",
        probes=(Probe(0, b"vhdxfile"),),
        readable=True,
        creatable=True,
        backing=("vhdx",),
        qemu_checks=True,
        unit_name="block",
    ),
    Format(
        "vpc",
        "Virtual PC and Hyper-V virtual disk (VHD)",
        aliases=("vhd",),
        probes=(Probe(0, b"conectix"),),
        readable=True,
        creatable=True,
        backing=("vpc",),
        unit_name="block",
    ),
    Format(
        "vdi",
        "VirtualBox disk image",
        probes=(Probe(0x40, b"\x7f\x10\xda\xbe"),),
        readable=True,
        creatable=True,
        qemu_checks=True,
        unit_name="block",
    ),
    Format(
        "qed",
        "QEMU enhanced disk",
        probes=(Probe(0, b"QED\0"),),
        readable=True,
        creatable=True,
        backing=(),
        qemu_checks=True,
    ),
    Format(
        "parallels",
        "Parallels disk image",
        probes=(Probe(0, b"WithoutFreeSpace\2\0\0\0"), Probe(0, b"WithouFreSpacExt\2\0\0\0")),
        readable=True,
        creatable=True,
        qemu_checks=True,
    ),
    # Of version 1 alone: QEMU knows no other, and takes what is in version 2 for the bytes of a disk.
    Format(
        "luks",
        "LUKS encrypted volume, version 1",
        probes=(Probe(0, b"LUKS\xba\xbe\0\1"),),
        readable=True,
        creatable=True,
        unit_name="sector",
    ),
    Format("bochs", "Bochs growing disk", probes=(Probe(0, b"Bochs Virtual HD Image\0"),), qemu_creatable=False),
    Format(
        "cloop",
        "Linux compressed loop image",
        probes=(Probe(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),),
        qemu_creatable=False,
    ),
    Format("dmg", "Apple disk image", probes=(Probe(-512, b"koly"),), qemu_creatable=False),
    Format("raw", "plain bytes", readable=True, creatable=True),
)


#: By the version of QEMU since which it is so: the formats for which a file is taken that has VDI's magic too. There
#: it follows from the order in which drivers are linked.
BEFORE_VDI: tuple[tuple[tuple[int, int], tuple[str, ...]], ...] = (
    ((10, 0), ("vmdk", "vhdx", "vpc", "qed", "parallels")),
    ((7, 2), ("qed", "parallels")),
    ((0, 0), ("qcow", "qcow2", "vmdk")),
)


def before_vdi(generation: tuple[int, int]) -> tuple[str, ...]:
    """Return the formats that are found before VDI by a version of QEMU."""
    return next(names for since, names in BEFORE_VDI if generation >= since)


def find(name: str, *, aliases: bool = True) -> Format | None:
    """Return the row of a format by name (or alias), or ``None``."""
    for row in TABLE:
        if row.name == name or (aliases and name in row.aliases):
            return row
    return None


def creatable() -> Iterator[Format]:
    """Yield the rows of all formats that instar can create."""
    return (row for row in TABLE if row.creatable)


def readable() -> Iterator[Format]:
    """Yield the rows of all formats that instar can read."""
    return (row for row in TABLE if row.readable)
