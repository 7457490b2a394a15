"""qcow of version 1, and QED: the same tables for a million clusters, streams without end, sizes of 64 bits."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.formats.qcow import images as qcow
from tests.formats.qed import images as qed
from tests.hostile.corpus import SIZES, GiB, Hostile, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator


def cases() -> Iterator[Hostile]:
    yield from _qcow()
    yield from _qed()


def _qcow() -> Iterator[Hostile]:
    for size in SIZES:
        yield Hostile("qcow", f"a disk of {size:#x} bytes", qcow.empty(size=size))
    yield Hostile("qcow", "2^27 L1 entries in a hole", {0: qcow.empty(size=1 << 48)}, size=2 * GiB, seconds=20)
    fields = {
        "cluster_bits": (0, 8, 16, 17, 63, 255),
        "l2_bits": (0, 5, 13, 14, 255),
        "crypt_method": (1, 2, 0xFFFFFFFF),
        "l1_table_offset": (0, 1, 1 << 62, (1 << 63) - 512, (1 << 64) - 512, (1 << 64) - 1),
        "backing_file_size": (1023, 1024, 0xFFFFFFFF),
        "backing_file_offset": (1, (1 << 63) - 1, (1 << 64) - 1),
        "version": (0, 2, 0xFFFFFFFF),
    }
    for field, values in fields.items():
        for value in values:
            more = {"backing_file_offset": 1024} if field == "backing_file_size" else {}
            more = {"backing_file_size": 16} if field == "backing_file_offset" else more
            yield Hostile("qcow", f"{field} = {value:#x}", {0: qcow.empty(**{field: value}, **more)}, size=2 * MiB)
    stream = dict.fromkeys(range(512), qcow.packed(8192, 40))
    bomb = {0: qcow.allocated({}, stream, end=8192, size=1 << 36), qcow.L1: struct.pack(">Q", 4096) * (1 << 15)}
    bomb = {0: qcow.empty(size=1 << 36, l1_table_offset=MiB), MiB: struct.pack(">Q", 4096) * (1 << 15)}
    bomb[4096] = struct.pack(">Q", qcow.packed(8192, 40)) * 512
    yield Hostile("qcow", "2^24 clusters out of one stream", bomb, size=2 * MiB)
    long = {**bomb, 4096: struct.pack(">Q", qcow.packed(8192, 4095)) * 512}
    yield Hostile("qcow", "2^24 streams past the end of the file", long, size=2 * MiB)
    itself = {0: qcow.empty(size=1 << 36, l1_table_offset=MiB), MiB: struct.pack(">Q", MiB) * (1 << 15)}
    yield Hostile("qcow", "L2 tables that are the L1 table", itself, size=2 * MiB)
    holes = struct.pack(f">{1 << 15}Q", *range(GiB, GiB + (1 << 27), 4096))
    yield Hostile("qcow", "32,768 L2 tables in a hole", {0: bomb[0], MiB: holes}, size=2 * GiB)


def _qed() -> Iterator[Hostile]:
    for size in SIZES:
        yield Hostile("qed", f"a disk of {size:#x} bytes", qed.empty(image_size=size))
        big = qed.empty(image_size=size, cluster_size=64 * MiB, table_size=16, l1_table_offset=64 * MiB)
        yield Hostile("qed", f"a disk of {size:#x} bytes in large clusters", {0: big}, size=2 * GiB, seconds=20)
    fields = {
        "cluster_size": (0, 1, 4095, 2048, 1 << 27, 0x80000000, 0xFFFFFFFF),
        "table_size": (0, 3, 32, 0x80000000, 0xFFFFFFFF),
        "header_size": (0, 2, 0x7FFFFFFF, 0xFFFFFFFF),
        "features": (1, 2, 4, 5, 7, 8, (1 << 64) - 1),
        "l1_table_offset": (0, 1, 8192, 1 << 62, (1 << 63) - 4096, (1 << 64) - 4096, (1 << 64) - 1),
    }
    for field, values in fields.items():
        for value in values:
            yield Hostile("qed", f"{field} = {value:#x}", qed.empty(**{field: value}))
    for offset, length in (
        (0, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (64, 4096),
        (64, 4095),
        (0xFFFFFFFF, 1),
        (64, 1024),
    ):
        made = qed.empty(features=1, backing_filename_offset=offset, backing_filename_size=length)
        yield Hostile("qed", f"a backing name of {length:#x} bytes at {offset:#x}", made)
    wide = qed.empty(cluster_size=64 * MiB, table_size=16, l1_table_offset=64 * MiB, image_size=1 << 60, features=2)
    entries = struct.pack("<Q", 64 * MiB) * 8192
    yield Hostile(
        "qed", "8,192 L2 tables of 1 GiB that are the L1 table", {0: wide, 64 * MiB: entries}, size=2 * GiB, seconds=20
    )
    many = qed.empty(cluster_size=4096, table_size=16, image_size=1 << 36, l1_table_offset=MiB, features=2)
    same = struct.pack("<Q", 2 * MiB) * 8192
    table = struct.pack("<Q", 4 * MiB) * 8192
    yield Hostile(
        "qed",
        "8,192 L1 entries for one L2 table, 8,192 for one cluster",
        {0: many, MiB: same, 2 * MiB: table},
        size=8 * MiB,
    )
    holes = struct.pack("<8192Q", *range(GiB, GiB + 8192 * 65536, 65536))
    yield Hostile("qed", "8,192 L2 tables in a hole", {0: many, MiB: holes}, size=2 * GiB)
    yield Hostile("qed", "cut inside the header", qed.empty()[:63])
