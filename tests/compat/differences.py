"""What may legitimately differ between two images of one case, or two answers about them, and nothing else.

In images, random: VMDK's CID, VHD's UUID, VHDX's GUIDs and sequence numbers, VDI's UUIDs, keys. Dated: VHD's time
stamp, snapshots. The tool's name: VHDX's creator. Checksums over these follow them. In answers: the same values, how
fast keys are derived here, and bytes of storage, which the file system counts. Tests and fuzzers know no other list.
"""

from __future__ import annotations

import hashlib
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
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_DESCRIPTOR = b"# Disk Desc"
#: The value ffffffff of a parent's is not random: there is none.
_CID = re.compile(rb"\b((?:parent)?CID)=(?!ffffffff\n)[0-9a-f]{1,8}\n")

#: In answers: bytes of storage.
_STORAGE = re.compile(r'("actual-size": )\d+|(disk size: ).*')
#: In answers: what else is replaced, and by what.
_IN_TEXT = (
    (re.compile(r'"(iters|master-key-iters|cid)": \d+'), r'"\1": 0'),
    (re.compile(r"^( *)(iters|master key iters|cid): \d+$", re.M), r"\1\2: 0"),
    (re.compile(r'("parent-cid"|parent cid): (?!4294967295\b)\d+'), r"\1: 0"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r'"(date-sec|date-nsec)": \d+'), r'"\1": 0'),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b"), "2000-01-01 00:00:00"),
)
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
        data = without_cid(data).rstrip(b"\0")
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


def plain(text: str) -> str:
    """Return an answer without what is random, dated or of this machine."""
    text = without_storage(text)
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def without_storage(text: str) -> str:
    """Return an answer without bytes of storage alone."""
    return _STORAGE.sub(r"\1\g<2>0", text)


def without_cid(data: bytes) -> bytes:
    """Return a VMDK descriptor without its content identifiers, which have no fixed width."""
    return _CID.sub(rb"\1=\n", data)


def told_of(path: Path) -> list[Any]:
    """Return length and digest of a file."""
    size = path.stat().st_size
    if size < 64 << 10 and path.read_bytes().startswith(_DESCRIPTOR):
        size = len(without_cid(path.read_bytes()))
    return [size, digest(path)]


def digest(path: Path) -> str:
    """Return a digest of what is not zero in a file, ``random`` where too much of it is."""
    with path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        head, tail = os.pread(fd, 4096, 0), os.pread(fd, 512, max(0, size - 512))
        if head.startswith(b"LUKS\xba\xbe") or (head.startswith(b"QFI\xfb") and head[35:36] == b"\2"):
            return "random"
        if head.startswith((b"KDMV", _DESCRIPTOR)):
            data = without_cid(os.pread(fd, 64 << 10, 0))
            # The CID has no fixed width, so the zeros behind the descriptor vary.
            return hashlib.sha1(re.sub(rb"\0+", b"\0", data)).hexdigest()[:12]
        holes: tuple[tuple[int, int], ...] = ()
        if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
            holes = ignored("vdi", path)
        elif head.startswith(b"vhdxfile"):
            holes = ignored("vhdx", path)
        elif tail.startswith(b"conectix"):
            holes = ignored("vpc", path)
        sums = hashlib.sha1()
        position = 0
        while position < size:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError:
                break
            block = bytearray(os.pread(fd, _BLOCK, position))
            for low, high in holes:
                if low < position + _BLOCK and high > position:
                    block[max(0, low - position) : high - position] = bytes(high - max(low, position))
            if block != _ZEROS[: len(block)]:
                sums.update(position.to_bytes(8, "big") + block.rstrip(b"\0"))
            position += _BLOCK
        return sums.hexdigest()[:12]
