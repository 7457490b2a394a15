"""Random VMDK descriptors out of the vocabulary that VMware's tools, and people, write them in.

Law: all chance comes from the ``Random`` that is handed in; what a descriptor names is ``flat`` (64 KiB), ``a b`` (the
same), ``sparse`` (a sparse extent of 64 KiB), or not there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from instar.formats.vmdk.ondisk import DEVICE_TYPES, FURTHER_TYPES, QEMU_TYPES

if TYPE_CHECKING:
    import random

TYPES = (*QEMU_TYPES, *FURTHER_TYPES, *DEVICE_TYPES, "foo", "MonolithicFlat")
ACCESS = (*("RW",) * 24, "RDONLY", "NOACCESS", "rw")
EXTENTS = (
    *('128 FLAT "flat" 0', '64 FLAT "a b" 64', '128 VMFS "flat"', '128 SPARSE "sparse"', '128 VMFSSPARSE "sparse"'),
    *(
        "128 ZERO",
        '128 FLAT "flat"',
        '128 VMFS "flat" 0',
        '128 SPARSE "flat"',
        '128 FLAT "nope" 0',
        '256 FLAT "flat" 0',
    ),
    *('128 VMFSRDM "flat"', '128 VMFSRAW "/vmfs/x"', '128 SESPARSE "sparse"', '128 flat "flat" 0', '0 FLAT "flat" 0'),
    *('128 FLAT "flat" 128', '128 FLAT "flat" 0 partitionUUID x', '3 FLAT "flat" 0', '128 FLAT "flat" 127'),
)
FURTHER = (
    *("", "", "# a comment", "#", '# createType="vmfs"', "#DDB", 'ddb.adapterType = "lsilogic"', 'encoding="UTF-8"'),
    *('changeTrackPath="t-ctk.vmdk"', 'isNativeSnapshot="no"', 'ddb.uuid = "60 00"', "# " + "x" * 9000, "RWX 1", "\t"),
    *('ddb.longContentID = "0"', "digestType=sha1", 'ddb.comment = "RW 128 FLAT"', "CID=7", "version=2"),
)
#: What instar says where it refuses, on purpose, what QEMU opens as something else (docs/quirks.md).
REFUSED = (
    *("QEMU leaves out an extent", "raw device mapping", "of an unknown kind", "an extent line ", "an extent's file"),
    *("Invalid extent line: RDONLY", "Invalid extent line: NOACCESS", "Invalid extent line: rw"),
)


def differs_on_purpose(text: str, complaint: str) -> bool:
    """Tell whether instar, which answers with ``complaint``, reads a descriptor otherwise than QEMU, as quirks.md says.

    QEMU counts an extent behind a blank line twice.
    """
    lines = [line.split() for line in text.replace("\r", "").split("\n")]
    twice = any(not above and line[:1] == ["RW"] for above, line in itertools.pairwise(lines))
    return twice or any(words in complaint for words in REFUSED)


def descriptor(chance: random.Random) -> str:
    """Return the text of a descriptor; most are lawful."""

    def some(value: str) -> str:
        return value if chance.random() < 0.97 else chance.choice((value.upper(), value.lower(), f" {value}", ""))

    end = chance.choice(("\n", "\n", "\n", "\r\n"))
    equals = chance.choice(("=",) * 12 + (" = ", "= "))
    kind = chance.choice(QEMU_TYPES) if chance.random() < 0.7 else chance.choice(TYPES)
    lines = ["# Disk DescriptorFile", "version=1"]
    if chance.random() < 0.2:
        lines.append(chance.choice(('encoding="UTF-8"', 'encoding="windows-1252"')))
    lines += [some(f"CID{equals}fffffffe"), some(f"parentCID{equals}ffffffff"), some(f'createType{equals}"{kind}"')]
    lines += [chance.choice(FURTHER) for _ in range(chance.randrange(3))]
    lines.append("# Extent description")
    for _ in range(chance.choice((1, 1, 1, 2, 3, 9))):
        blank = chance.choice((" ", " ", " ", "\t", "  "))
        words = EXTENTS[: 5 if chance.random() < 0.7 else None]
        lines.append(some(f"{chance.choice(ACCESS)} {chance.choice(words)}").replace(" ", blank, 2))
    lines += [chance.choice(FURTHER) for _ in range(chance.randrange(5))]
    return end.join([*lines, ""])
