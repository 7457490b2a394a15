"""The text of a new descriptor (spec, "The Descriptor File"), in qemu-img's order of lines.

Law: pure. No name can end its line or its quotes, or mean something else to a reader.
"""

from __future__ import annotations

from instar.core.errors import OptionError, printable
from instar.core.units import SECTOR
from instar.formats.vmdk.ondisk import MAX_BACKING_NAME, MAX_DESCRIPTOR, MAX_EXTENT_NAME, NO_CID
from instar.formats.vmdk.options import descriptor_text
from instar.formats.vmdk.split import FLAT, has_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from instar.core.plan import Seed

#: Sectors of a track in every geometry QEMU writes.
_TRACK = 63


def descriptor(
    size: int, options: Mapping[str, int | bool | str], seed: Seed, extents: Sequence[tuple[str, int]]
) -> bytes:
    """Return the text for a disk of ``size`` bytes; ``extents`` are file names and bytes of disk in each.

    Raises:
        OptionError: ``vmdk-file-name``, ``vmdk-backing-name``, ``vmdk-descriptor-size``.
    """
    cid = int.from_bytes(seed.entropy[:4], "big")
    parent_cid, parent_line = NO_CID, ""
    if seed.backing is not None:
        name = seed.backing.name
        judge_name("vmdk-backing-name", "the backing file's name", name, MAX_BACKING_NAME)
        parent_cid = NO_CID if seed.backing.content_id is None else seed.backing.content_id
        parent_line = f'parentFileNameHint="{name}"'
    subformat = str(options["subformat"])
    kind, offset = ("FLAT", " 0") if subformat in FLAT else ("SPARSE", "")
    lines = []
    for name, length in extents:
        judge_name("vmdk-file-name", "the image file's name", name, MAX_EXTENT_NAME)
        lines.append(f'RW {length // SECTOR} {kind} "{name}"{offset}')
    heads = 16 if options["adapter_type"] == "ide" else 255
    text = "\n".join(
        [
            "# Disk DescriptorFile",
            "version=1",
            f"CID={NO_CID - 1 if cid == NO_CID else cid:x}",
            f"parentCID={parent_cid:x}",
            f'createType="{subformat}"',
            parent_line,
            "# Extent description",
            *lines,
            "",
            "# The Disk Data Base",
            "#DDB",
            "",
            f'ddb.virtualHWVersion = "{options["hwversion"]}"',
            f'ddb.geometry.cylinders = "{size // (_TRACK * heads * SECTOR)}"',
            f'ddb.geometry.heads = "{heads}"',
            f'ddb.geometry.sectors = "{_TRACK}"',
            f'ddb.adapterType = "{options["adapter_type"]}"',
            f'ddb.toolsVersion = "{options["toolsversion"]}"',
            "",
        ]
    ).encode("utf-8", "surrogateescape")
    # A file of its own has room for as many extents as an image may have. What comes after them is judged alike.
    if len(text) - (sum(map(len, lines)) if has_files(subformat) else 0) > MAX_DESCRIPTOR:
        raise OptionError(
            "vmdk-descriptor-size",
            f"the descriptor would take {len(text)} bytes of its {MAX_DESCRIPTOR};"
            " shorten hwversion, toolsversion or the names",
            limit=MAX_DESCRIPTOR,
            value=len(text),
        )
    return text


def judge_name(code: str, what: str, name: str, limit: int) -> None:
    """Refuse a name that could not be read back from the descriptor as it is.

    Raises:
        OptionError: ``code``.
    """
    try:
        descriptor_text(what, name)
        length = len(name.encode("utf-8", "surrogateescape"))
    except OptionError:
        raise OptionError(
            code,
            f"{what}, '{printable(name, 80)}', cannot be written into a VMDK descriptor: it holds a quote,"
            " a control character, or the word parentFileNameHint; rename the file",
            value=name,
        ) from None
    if not 0 < length <= limit:
        raise OptionError(
            code,
            f"{what} is {length} bytes long; a VMDK descriptor holds 1 to {limit}",
            value=name,
            limit=limit,
        )
