"""What may legitimately differ between our image and qemu-img's own of the same case, and nothing else.

Random: VMDK's CID, VHD's UUID, VHDX's GUIDs and sequence numbers, VDI's UUIDs. Dated: VHD's time stamp. The tool's
name: VHDX's creator. Checksums over these follow them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FOOTER_TIME, _FOOTER_CHECKSUM, _FOOTER_UUID = (24, 28), (64, 68), (68, 84)
#: VDI: the image, and its last change.
_VDI_UUIDS = (392, 424)
_VHDX_CREATOR = (8, 8 + 512)
#: checksum, sequence number, then three GUIDs (the log's is zero) in each header
_VHDX_HEADER = ((4, 16), (16, 48))
_VHDX_REGION_1 = 192 << 10
_VHDX_REGION_2 = 256 << 10
#: Above this qemu-img fills the disk with a table.
MAX_QCOW = (512 << 40) - (2 << 20)


def knowingly_refused(format: str, options: Mapping[str, str], size: int) -> bool:
    """Tell whether qemu-img makes an image that cannot be used, or hardly, and instar refuses (docs/quirks.md)."""
    if format == "qcow":
        return size > MAX_QCOW
    if format != "vmdk":
        return False
    subformat = options.get("subformat", "monolithicSparse")
    if subformat.startswith("twoGb"):
        return size > 1023 << 31
    return subformat != "monolithicFlat" and -(-size // 65536) > (1 << 32) - 512


def ignored(format: str, path: Path) -> tuple[tuple[int, int], ...]:
    """Return the byte ranges of an image whose values are its own."""
    size = path.stat().st_size
    if format == "vpc":
        at = [size - 512] + ([0] if size < 64 << 20 and path.read_bytes()[:8] == b"conectix" else [])
        if size >= 64 << 20:
            with path.open("rb") as file:
                at += [0] if os.pread(file.fileno(), 8, 0) == b"conectix" else []
        return tuple((o + a, o + b) for o in at for a, b in (_FOOTER_TIME, _FOOTER_CHECKSUM, _FOOTER_UUID))
    if format == "vdi":
        return (_VDI_UUIDS,)
    if format == "vhdx":
        with path.open("rb") as file:
            table = os.pread(file.fileno(), 64 << 10, _VHDX_REGION_1)
            metadata = int.from_bytes(table[16 + 32 + 16 : 16 + 32 + 24], "little")
        page83 = metadata + 0x10010
        headers = [(base + a, base + b) for base in (64 << 10, 128 << 10) for a, b in _VHDX_HEADER]
        return (_VHDX_CREATOR, *headers, (page83, page83 + 16))
    return ()


def same_descriptor(left: Path, right: Path) -> tuple[tuple[int, int], ...]:
    """Compare the embedded VMDK descriptors but for the CID; return the range they stand in."""

    def text(path: Path) -> bytes:
        with path.open("rb") as file:
            data = os.pread(file.fileno(), 20 * 512, 512)
        data = re.sub(rb"\nCID=[0-9a-f]{1,8}\n", b"\nCID=\n", data).rstrip(b"\0")
        return data.replace(path.name.encode(), b"NAME")

    assert text(left) == text(right)
    return ((512, 512 + 20 * 512),)


def normalised(value: Any, names: dict[str, str]) -> Any:
    """Return ``info`` output with the file's name replaced and random values blanked."""
    if isinstance(value, dict):
        return {k: "random" if k == "cid" else normalised(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [normalised(v, names) for v in value]
    if isinstance(value, str):
        for name, stand_in in names.items():
            value = value.replace(name, stand_in)
    return value


def without_allocation(value: Any) -> Any:
    """Return ``info`` output without bytes of storage: the file system counts its own blocks among them."""
    if isinstance(value, dict):
        return {k: without_allocation(v) for k, v in value.items() if k != "actual-size"}
    return [without_allocation(v) for v in value] if isinstance(value, list) else value
