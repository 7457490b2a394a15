"""qcow2 and work: compressed clusters, refcounts, snapshots and bitmaps, a million out of one piece of a file."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING

from tests.formats.qcow2.images import changed, planned, snapshot_table, u64s, with_extensions, with_snapshots
from tests.hostile.corpus import GiB, Hostile, MiB, TiB
from tests.hostile.qcow2 import BITMAPS

from instar.formats.qcow2.ondisk import SnapshotEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

COPIED = 1 << 63
COMPRESSED = 1 << 62
CLUSTER = 65536
#: The most entries an L1 table may have: 32 MiB of them.
MOST_L1 = 1 << 22


def cases() -> Iterator[Hostile]:
    yield from _compressed()
    yield from _shared()
    yield from _refcounts()
    yield from _snapshots()
    yield from _bitmaps()


def _compressed() -> Iterator[Hostile]:
    """A cluster of 2 MiB in 2 KiB of stream, and 262,144 of them in one table, and 64 of these tables."""
    for kind, stream in (("zlib", zlib.compress(bytes(2 * MiB), 9, -12)), ("zstd", _zstd_bomb())):
        made = planned(GiB, f"cluster_size=2M,compression_type={kind}")
        data, table = 16 * MiB, 12 * MiB
        entry = COMPRESSED | (len(stream) - 1) // 512 << 62 - 13 | data
        head = changed(made, size=64 << 39, l1_size=64)
        l1 = int.from_bytes(made[40:48], "big")
        parts = {0: head, l1: u64s(*[table | COPIED] * 64), table: u64s(*[entry] * 262144), data: stream}
        yield Hostile("qcow2", f"2^24 clusters out of one {kind} stream of {len(stream)} bytes", parts, size=18 * MiB)
        longest = COMPRESSED | ((1 << 62 - 49) - 1) << 49
        parts = {0: head, l1: u64s(table), table: u64s(*(longest | 512 * n for n in range(262144)))}
        yield Hostile("qcow2", f"{kind} streams as long as can be, one behind the other", parts, size=18 * MiB)


def _zstd_bomb() -> bytes:
    """Return a frame of run-length blocks (RFC 8878, 3.1.1): 16 blocks of 128 KiB of zeros."""
    blocks = b"".join(((128 << 10) << 3 | 1 << 1 | (n == 15)).to_bytes(3, "little") + b"\0" for n in range(16))
    return b"\x28\xb5\x2f\xfd\x80" + bytes([0x58]) + (2 * MiB).to_bytes(4, "little") + blocks


def _same(entry: int, count: int) -> bytes:
    """Return a table whose entries are one."""
    return u64s(entry) * count


def _rising(count: int) -> bytes:
    """Return a table of clusters one behind the other, from 2 GiB on."""
    return struct.pack(f">{count}Q", *range(2 * GiB, 2 * GiB + count * CLUSTER, CLUSTER))


def _shared() -> Iterator[Hostile]:
    plain = planned(MiB)
    l2 = 65536 * 4
    end = 65536 * 8
    full = u64s(*(COPIED | end + CLUSTER * (n % 2) for n in range(8192)))
    long = changed(plain, size=MOST_L1 << 29, l1_size=MOST_L1, l1_table_offset=GiB)
    yield Hostile(
        "qcow2",
        "2^22 L1 entries for one L2 table",
        {0: long, l2: full, GiB: partial(_same, l2 | COPIED, MOST_L1)},
        large=True,
    )
    itself = partial(_same, GiB, MOST_L1)
    yield Hostile("qcow2", "2^22 L1 entries for the L1 table itself", {0: long, GiB: itself}, large=True)
    yield Hostile(
        "qcow2",
        "2^22 L2 tables in a hole of 256 GiB",
        {0: long, GiB: partial(_rising, MOST_L1)},
        size=2 * GiB + MOST_L1 * CLUSTER,
        large=True,
        seconds=40,
    )
    some = changed(plain, size=2048 << 29, l1_size=2048, l1_table_offset=GiB)
    yield Hostile("qcow2", "2,048 L2 tables in a hole", {0: some, GiB: partial(_rising, 2048)}, size=3 * GiB)
    odd = struct.pack(">2048Q", *range(2 * GiB, 2 * GiB + 2048 * 512, 512))
    yield Hostile("qcow2", "2,048 L2 tables that overlap", {0: some, GiB: odd}, size=3 * GiB)
    scattered = u64s(*((n * 7919 % (1 << 40) + 1) * CLUSTER | COPIED for n in range(8192)))
    yield Hostile(
        "qcow2", "data all over 8 TiB", {0: changed(plain, l1_size=1), 196608: u64s(l2), l2: scattered}, size=8 * TiB
    )
    subclusters = planned(MiB, "cluster_size=16k,extended_l2=on")
    at = int.from_bytes(subclusters[40:48], "big")
    rows = u64s(*(value for n in range(1024) for value in (COPIED | at, (1 << 64) - 1)))
    parts = {0: subclusters, at: u64s(at + 16384 | COPIED), at + 16384: rows}
    yield Hostile("qcow2", "subclusters that are allocated and zero at once", parts)


def _refcounts() -> Iterator[Hostile]:
    for bits in (1, 64):
        plain = planned(MiB, f"refcount_bits={bits}")
        table = GiB
        long = changed(plain, refcount_table_offset=table, refcount_table_clusters=128)
        block = int.from_bytes(plain[65536:65544], "big")
        yield Hostile(
            "qcow2",
            f"2^20 refcount blocks that are one, {bits} bits",
            {0: long, table: partial(_same, block, MiB)},
            large=True,
        )
        yield Hostile(
            "qcow2",
            f"2^20 refcount blocks that are the table, {bits} bits",
            {0: long, table: partial(_same, table, MiB)},
            large=True,
        )
        yield Hostile(
            "qcow2",
            f"2^20 refcount blocks in a hole of 64 GiB, {bits} bits",
            {0: long, table: partial(_rising, MiB)},
            size=2 * GiB + MiB * CLUSTER,
            large=True,
            seconds=40,
        )
        sparse_table = {table + 8 * at: u64s(block) for at in (0, 8191, 524288, MiB - 1)}
        yield Hostile(
            "qcow2", f"a refcount table of holes, {bits} bits", {0: long, **sparse_table}, size=table + 8 * MiB
        )
        yield Hostile("qcow2", f"a refcount table past the end of the file, {bits} bits", {0: long})
        ones = {0: plain, block: b"\xff" * CLUSTER}
        yield Hostile("qcow2", f"a refcount block of ones, {bits} bits", ones, size=8 * TiB)
        wild = {0: long, table: u64s(*((n << 55) + n * 512 for n in range(512)))}
        yield Hostile("qcow2", f"refcount blocks anywhere, {bits} bits", wild, size=table + 8 * MiB)
    for number, size in ((1, 1 << 40), (2, 8 * TiB)):
        yield Hostile(
            "qcow2", f"a file of {size:#x} bytes of which nobody knows ({number})", {0: planned(MiB)}, size=size
        )
    tiny = planned(MiB, "cluster_size=512,refcount_bits=64")
    yield Hostile("qcow2", "a file of 1 TiB in clusters of 512 bytes", {0: tiny}, size=TiB)


def _snapshots() -> Iterator[Hostile]:
    plain = planned(MiB)
    for count, large in ((1000, False), (65536, True), (65537, True)):
        row = snapshot_table(
            [
                (
                    SnapshotEntry(
                        l1_table_offset=196608,
                        l1_size=1,
                        id_str_size=0,
                        name_size=0,
                        date_sec=1,
                        date_nsec=1,
                        vm_clock_nsec=1,
                        vm_state_size=0,
                        extra_data_size=0,
                    ),
                    bytes(16),
                    b"7",
                    b"snapshot-name",
                )
            ]
        )
        row += bytes(-len(row) % 8)
        yield Hostile(
            "qcow2", f"{count} snapshots of one L1 table", with_snapshots(plain, row * count, count), large=large
        )
    for length, count in ((0xFFFF, 1000), (0xFFFF, 1100), (300, 20000)):
        entry = SnapshotEntry(
            l1_table_offset=0,
            l1_size=0,
            id_str_size=0,
            name_size=0,
            date_sec=1,
            date_nsec=1,
            vm_clock_nsec=1,
            vm_state_size=0,
            extra_data_size=0,
        )
        row = snapshot_table([(entry, bytes(16), b"\x1b" * min(200, length), b"\x9b\xff\x07\n" * (length // 4))])
        row += bytes(-len(row) % 8)
        yield Hostile(
            "qcow2",
            f"{count} snapshots with names of {length} control characters",
            with_snapshots(plain, row * count, count),
            large=True,
        )
    entry = SnapshotEntry(
        l1_table_offset=0,
        l1_size=0,
        id_str_size=0,
        name_size=0,
        date_sec=1,
        date_nsec=1,
        vm_clock_nsec=1,
        vm_state_size=0,
        extra_data_size=0,
    )
    for name in (
        b"\x1b[2J\x1b]0;x\x07",
        b"\xff\xfe\xfd",
        "\u202egnp.exe\u2028\x9b31m".encode(),
        b'"\\</script>',
        b"a\r\nfake: yes",
        b"\0",
    ):
        table = snapshot_table([(entry, bytes(16), name[:100], name)])
        yield Hostile("qcow2", f"a snapshot called {name!r}", with_snapshots(plain, table, 1))
    for extra in (1025, 0xFFFFFFFF):
        table = entry.replace(extra_data_size=extra).pack()
        yield Hostile("qcow2", f"a snapshot with {extra:#x} bytes of extra data", with_snapshots(plain, table, 1))
    for l1_size, offset in ((MOST_L1, 1 << 40), (0xFFFFFFFF, 196608), (1, 1), (1 << 22, (1 << 63) - 65536)):
        table = snapshot_table([(entry.replace(l1_size=l1_size, l1_table_offset=offset), bytes(16), b"1", b"x")]) * 1
        made = with_snapshots(plain, table, 1)
        yield Hostile("qcow2", f"a snapshot of {l1_size:#x} L1 entries at {offset:#x}", {0: made}, size=2 * TiB)
    row = snapshot_table([(entry.replace(l1_size=MOST_L1, l1_table_offset=GiB), bytes(16), b"1", b"many")])
    row += bytes(-len(row) % 8)
    made = with_snapshots(plain, row * 4096, 4096)
    yield Hostile(
        "qcow2", "4,096 snapshots of one L1 table of 2^22 entries", {0: made}, size=2 * GiB, seconds=40, large=True
    )
    yield from _names()
    yield Hostile(
        "qcow2",
        "snapshots past the end of the file",
        changed(plain, snapshots_offset=1 << 40, nb_snapshots=65536),
        large=True,
    )
    zeros = changed(plain, snapshots_offset=MiB, nb_snapshots=65536)
    yield Hostile("qcow2", "65,536 snapshots that are a hole", {0: zeros}, size=128 * MiB, large=True)


def _names() -> Iterator[Hostile]:
    """As many names, as long, as there may be, of characters that take the most room."""
    entry = SnapshotEntry(
        l1_table_offset=0,
        l1_size=0,
        id_str_size=0,
        name_size=0,
        date_sec=1,
        date_nsec=1,
        vm_clock_nsec=1,
        vm_state_size=0,
        extra_data_size=0,
    )
    for length in (63, 255):
        row = snapshot_table([(entry, bytes(16), b"\x1b" * (1 if length < 255 else 127), b"\x9b" * length)])
        row += bytes(-len(row) % 8)
        made = with_snapshots(planned(MiB), row * 65536, 65536)
        yield Hostile("qcow2", f"65,536 snapshots with names of {length} bytes", made, large=True)
    for length, count in ((64, 65535), (1000, 60000)):
        rows = b"".join(
            struct.pack(">QIIBBHI", 262144, 1, 0, 1, 16, length, 0) + (b"%08x" % n).ljust(length, b"\x1b")
            for n in range(count)
        )
        where = struct.pack(">IIQQ", count, 0, len(rows), MiB)
        head = changed(with_extensions(planned(MiB), (BITMAPS, where)), autoclear_features=1)
        yield Hostile(
            "qcow2",
            f"{count} bitmaps with names of {length} bytes",
            {0: head, MiB: rows},
            size=80 * MiB,
            large=True,
        )


def _bitmaps() -> Iterator[Hostile]:
    for count, entries, large in ((1000, 1, False), (65535, 1, True), (65535, 1 << 10, True), (1000, 1 << 27, True)):
        rows = b"".join(
            struct.pack(">QIIBBHI8s", 262144, entries, 0, 1, 16, 8, 0, b"%08x" % number) for number in range(count)
        )
        where = struct.pack(">IIQQ", count, 0, len(rows), MiB)
        head = changed(with_extensions(planned(MiB), (BITMAPS, where)), autoclear_features=1, size=entries << 35)
        name = f"{count} bitmaps of one table of {entries} entries"
        yield Hostile("qcow2", name, {0: head, MiB: rows}, size=2 * GiB, large=large)
    evil = b"\x1b[2J\xff\x85\r\n"
    rows = struct.pack(">QIIBBHI", 262144, 1, 0xFFFFFFFF, 1, 16, len(evil), 0) + evil
    rows += bytes(-len(rows) % 8)
    where = struct.pack(">IIQQ", 1, 0, len(rows), MiB)
    head = changed(with_extensions(planned(MiB), (BITMAPS, where)), autoclear_features=1)
    yield Hostile("qcow2", "a bitmap whose name is an escape sequence", {0: head, MiB: rows}, size=2 * MiB)
    rows = struct.pack(">QIIBBHI", 262144, 1, 2, 1, 16, len(evil), 0) + evil
    rows += bytes(-len(rows) % 8)
    where = struct.pack(">IIQQ", 1, 0, len(rows), MiB)
    head = changed(with_extensions(planned(MiB), (BITMAPS, where)), autoclear_features=1)
    yield Hostile("qcow2", "an active bitmap whose name is an escape sequence", {0: head, MiB: rows}, size=2 * MiB)
