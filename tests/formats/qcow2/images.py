"""qcow2 images for the tests of readers: made by qemu-img, made by hand, and damaged by a seeded hand."""

from __future__ import annotations

import struct
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import QEMU_IO, BytesReader, qemu_img

from instar.core.options import read_settings, split_list
from instar.core.plan import Seed
from instar.formats.qcow2.ondisk import (
    EXTENSION_BITMAPS,
    HEADER_V3_OFFSET,
    BitmapDirectoryEntry,
    BitmapsExtension,
    Extension,
    Header,
    HeaderV3,
    SnapshotEntry,
)
from instar.formats.qcow2.options import CREATE, resolve
from instar.formats.qcow2.plan import create

if TYPE_CHECKING:
    import random

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
NOW = (11, 1)
OLD = (7, 2)
OFFSETS = 0x00FFFFFFFFFFFE00


def planned(size: int = MiB, options: str = "") -> bytes:
    """Return the bytes of a small image of our own making."""
    settings = read_settings(CREATE, split_list(options) if options else [], format="qcow2")
    plan = create(size, resolve(size, settings, None), Seed(entropy=bytes(256), time=0))
    data = bytearray(plan.sizes[0])
    for item in plan.items:
        for offset, piece in item.pieces():
            data[offset : offset + len(piece)] = piece
    return bytes(data)


def reader(data: bytes | bytearray, size: int | None = None) -> BytesReader:
    """Return a reader over bytes; ``size`` lets the file be longer, with a hole at its end."""
    return BytesReader(bytes(data), size=size)


def changed(data: bytes, **fields: int) -> bytes:
    """Return an image with header fields changed."""
    out = bytearray(data)
    for name, value in fields.items():
        offset, size = place(name)
        out[offset : offset + size] = value.to_bytes(size, "big")
    return bytes(out)


def place(name: str) -> tuple[int, int]:
    """Return offset and size of a header field."""
    for record, base in ((Header, 0), (HeaderV3, HEADER_V3_OFFSET)):
        for field in record.FIELDS:
            if field.name == name:
                return base + field.offset, field.size
    raise KeyError(name)


def number(data: bytes | bytearray, name: str) -> int:
    """Return a header field."""
    offset, size = place(name)
    return int.from_bytes(data[offset : offset + size], "big")


def with_extensions(data: bytes, *extensions: tuple[int, bytes], header_length: int = 112) -> bytes:
    """Return a version 3 image with these header extensions and no others."""
    area = b"".join(
        Extension(type=kind, length=len(body)).pack() + body + bytes(-len(body) % 8) for kind, body in extensions
    )
    start = header_length
    end = start + len(area) + Extension.SIZE
    return data[:start] + area + bytes(Extension.SIZE) + data[end:]


def write(path: Path, *commands: str) -> None:
    """Run qemu-io commands; one that the format refuses (a compressed write onto data) is skipped."""
    assert QEMU_IO is not None
    arguments = [argument for command in commands for argument in ("-c", command)]
    subprocess.run([QEMU_IO, "-f", "qcow2", *arguments, str(path)], check=False, capture_output=True)


#: Images with all that a check looks at, small enough to be damaged and checked hundreds of times.
RECIPES: dict[str, tuple[str, int]] = {
    "tiny": ("cluster_size=512", 300 * KiB),
    "wide": ("cluster_size=512,refcount_bits=64", 512 * KiB),
    "bits": ("cluster_size=512,refcount_bits=1", 200 * KiB),
    "two": ("cluster_size=2048,refcount_bits=2", 2 * MiB),
    "nibbles": ("cluster_size=4096,refcount_bits=4", 5 * MiB),
    "bytes": ("cluster_size=1024,refcount_bits=8", 900 * KiB),
    "lazy": ("cluster_size=4096,refcount_bits=32,lazy_refcounts=on", 3 * MiB),
    "subclusters": ("cluster_size=16384,extended_l2=on", 9 * MiB),
    "usual": ("", 40 * MiB),
    "old": ("compat=0.10,cluster_size=512", 300 * KiB),
    "preallocated": ("cluster_size=512,preallocation=metadata", 256 * KiB),
    "data-file": ("cluster_size=4096,data_file={},data_file_raw=on", 2 * MiB),
}


def cook(folder: Path, name: str, random: random.Random) -> Path:
    """Make one of the ``RECIPES`` with qemu-img and qemu-io: data, compressed and zero clusters, snapshots, bitmaps."""
    options, size = RECIPES[name]
    path = folder / f"{name}.qcow2"
    options = options.format(folder / f"{name}.raw")
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, str(size))
    unit = number(path.read_bytes(), "cluster_bits")
    cluster = 1 << unit

    def some(count: int) -> list[str]:
        out = []
        for _ in range(count):
            offset = random.randrange(size // cluster) * cluster
            length = min(size - offset, cluster * random.choice([1, 1, 2, 3, 9]))
            kind = random.choice(["write -c -P 7", "write -c -P 8", "write -P 9", "write -P 10", "write -z", "discard"])
            if kind.startswith("write -c"):
                length = min(cluster, size - offset)
                if name == "data-file":
                    kind = "write -P 7"
            out.append(f"{kind} {offset} {length}")
        return out

    write(path, *some(14))
    if name == "subclusters":
        write(path, *(f"write -P 3 {random.randrange(size // 2048) * 512} 1024" for _ in range(8)))
    if name not in ("data-file", "bits", "two"):
        for snapshot in ("first", "second"):
            qemu_img("snapshot", "-c", snapshot, path)
            write(path, *some(5))
    if name in ("bytes", "lazy", "subclusters", "usual"):
        qemu_img("bitmap", "--add", path, "stale")
        write(path, *some(3))
        qemu_img("bitmap", "--add", "--disable", path, "fresh")
    return path


class Places:
    """Where the metadata of an intact image lies: ``(offset, size)`` of entries, by structure."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.cluster = 1 << number(data, "cluster_bits")
        self.found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        names = [field.name for field in Header.FIELDS[6:]]
        if number(data, "version") == 3:
            names += [field.name for field in HeaderV3.FIELDS]
        self.found["header"] = [place(name) for name in names if name not in ("size", "crypt_method")]
        tables = [(number(data, "l1_table_offset"), number(data, "l1_size")), *self._snapshots()]
        for offset, entries in tables:
            self._l1(offset, entries)
        self._refcounts()
        self._bitmaps()

    def _u64(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "big")

    def _snapshots(self) -> list[tuple[int, int]]:
        offset = number(self.data, "snapshots_offset")
        rows = []
        for _ in range(number(self.data, "nb_snapshots")):
            offset = -(-offset // 8) * 8
            row = SnapshotEntry.unpack(self.data, offset)
            fields = [
                SnapshotEntry.field(name) for name in ("l1_table_offset", "l1_size", "name_size", "extra_data_size")
            ]
            self.found["snapshots"] += [(offset + field.offset, field.size) for field in fields]
            rows.append((row.l1_table_offset, row.l1_size))
            offset += SnapshotEntry.SIZE + row.extra_data_size + row.id_str_size + row.name_size
        return rows

    def _l1(self, offset: int, entries: int) -> None:
        for index in range(entries):
            self.found["l1"].append((offset + 8 * index, 8))
            table = self._u64(offset + 8 * index) & OFFSETS
            for at in range(table, table + self.cluster if table else table, 8):
                if self._u64(at) or at % 512 == 0:
                    self.found["l2"].append((at, 8))

    def _refcounts(self) -> None:
        offset = number(self.data, "refcount_table_offset")
        for index in range(min(64, number(self.data, "refcount_table_clusters") * self.cluster // 8)):
            self.found["refcount table"].append((offset + 8 * index, 8))
            block = self._u64(offset + 8 * index) & ~511
            used = len(self.data[block : block + self.cluster].rstrip(b"\0")) if block else 0
            self.found["refcounts"] += [(block + at, 1) for at in range(used)]

    def _bitmaps(self) -> None:
        if number(self.data, "version") < 3:
            return
        offset = number(self.data, "header_length")
        while (head := Extension.unpack(self.data, offset)).type:
            offset += Extension.SIZE
            if head.type == EXTENSION_BITMAPS:
                row = BitmapsExtension.unpack(self.data, offset)
                end = row.bitmap_directory_offset + row.bitmap_directory_size
                at = row.bitmap_directory_offset
                while at < end:
                    entry = BitmapDirectoryEntry.unpack(self.data, at)
                    self.found["bitmaps"] += [(at + field.offset, field.size) for field in BitmapDirectoryEntry.FIELDS]
                    table = range(entry.bitmap_table_offset, entry.bitmap_table_offset + 8 * entry.bitmap_table_size, 8)
                    self.found["bitmaps"] += [(place, 8) for place in table]
                    at += -(-(BitmapDirectoryEntry.SIZE + entry.name_size) // 8) * 8
            offset += -(-head.length // 8) * 8


def damage(places: Places, random: random.Random) -> tuple[bytearray, list[object]]:
    """Return a copy with one to six entries of its metadata changed, and what was done."""
    data = bytearray(places.data)
    story: list[object] = []
    every = ("header", "l1", "l2", "l2", "refcount table", "refcounts", "snapshots", "bitmaps")
    kinds = [kind for kind in every if places.found[kind]]
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        kind = random.choice(kinds)
        offset, size = random.choice(places.found[kind])
        old = int.from_bytes(data[offset : offset + size], "big")
        most = (1 << 8 * size) - 1
        cluster = random.randrange(len(data) // places.cluster + 3) * places.cluster
        other = random.choice(places.found["l2"] or places.found["l1"])[0]
        ways = [old ^ 1 << random.randrange(8 * size), 0, most, random.randrange(most + 1), old + 1, old - 1]
        if size == 8:
            ways += [
                old & 0xFF000000000001FF | cluster,
                int.from_bytes(data[other : other + 8], "big"),
                old & ~(places.cluster - 1) | 512 * random.randrange(places.cluster // 512),
            ] * 2
        new = random.choice(ways) & most
        data[offset : offset + size] = new.to_bytes(size, "big")
        story.append((kind, offset, hex(old), hex(new)))
    if random.random() < 0.06:
        del data[random.randrange(len(data)) :]
        story.append(("cut to", len(data)))
    elif random.random() < 0.04:
        data += bytes(random.randrange(1, 5 * places.cluster))
        story.append(("grown to", len(data)))
    return data, story


def snapshot_table(entries: list[tuple[SnapshotEntry, bytes, bytes, bytes]]) -> bytes:
    """Return a snapshot table of ``(entry, extra data, id, name)``; sizes are filled in."""
    out = b""
    for entry, extra, identifier, name in entries:
        out += bytes(-len(out) % 8)
        out += entry.replace(extra_data_size=len(extra), id_str_size=len(identifier), name_size=len(name)).pack()
        out += extra + identifier + name
    return out


def with_snapshots(data: bytes, table: bytes, count: int, cluster: int = 65536) -> bytes:
    """Return an image with a snapshot table at its end (its clusters are not counted)."""
    end = -(-len(data) // cluster) * cluster
    return changed(data, snapshots_offset=end, nb_snapshots=count) + bytes(end - len(data)) + table


def u64s(*numbers: int) -> bytes:
    """Return a table of entries."""
    return struct.pack(f">{len(numbers)}Q", *numbers)
