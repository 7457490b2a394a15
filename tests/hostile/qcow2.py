"""qcow2: headers that lie, tables that are shared a million times, and names for escape sequences."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from tests.formats.qcow2.images import changed, planned, with_extensions
from tests.hostile.corpus import SIZES, Hostile, KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator

BITMAPS, CRYPTO, BACKING_FORMAT, FEATURES = 0x23852875, 0x0537BE77, 0xE2792ACA, 0x6803F857


def cases() -> Iterator[Hostile]:
    plain = planned(MiB)
    yield from _headers(plain)
    yield from _extensions(plain)


def _headers(plain: bytes) -> Iterator[Hostile]:
    for size in SIZES:
        yield Hostile("qcow2", f"a disk of {size:#x} bytes", changed(plain, size=size))
        # An L1 table that would do: 2 MiB clusters, 512 GiB for each entry.
        wide = changed(planned(MiB, "cluster_size=2M"), size=size, l1_size=min(1 << 22, -(-size >> 39)))
        yield Hostile("qcow2", f"a disk of {size:#x} bytes in large clusters", {0: wide}, size=64 * MiB)
    fields = {
        "cluster_bits": (0, 8, 22, 31, 63, 64, 0xFFFFFFFF),
        "l1_size": (0, 1 << 22, (1 << 22) + 1, 0x7FFFFFFF, 0xFFFFFFFF),
        "l1_table_offset": (0, 1, 65536, 1 << 56, (1 << 63) - 65536, 1 << 63, (1 << 64) - 65536, (1 << 64) - 1),
        "refcount_table_offset": (0, 1, 196608, 1 << 62, (1 << 63) - 65536, (1 << 64) - 65536, (1 << 64) - 1),
        "refcount_table_clusters": (0, 128, 129, 0x7FFFFFFF, 0xFFFFFFFF),
        "refcount_order": (0, 6, 7, 63, 0xFFFFFFFF),
        "header_length": (0, 72, 103, 105, 65536, 65544, 0xFFFFFFF8, 0xFFFFFFFF),
        "nb_snapshots": (1, 1_000_000, 65536, 0xFFFFFFFF),
        "crypt_method": (1, 2, 3, 0xFFFFFFFF),
        "backing_file_offset": (1, 104, 65535, (1 << 63) - 1, (1 << 64) - 1),
        "backing_file_size": (1024, 0x7FFFFFFF, 0xFFFFFFFF),
        "version": (0, 1, 2, 4, 0xFFFFFFFF),
        "incompatible_features": (1, 2, 4, 8, 16, 31, 32, (1 << 64) - 1),
        "autoclear_features": (1, 2, (1 << 64) - 1),
    }
    for field, values in fields.items():
        for value in values:
            more = {"backing_file_offset": 1024} if field == "backing_file_size" else {}
            if field == "backing_file_offset":
                more = {"backing_file_size": 16}
            yield Hostile("qcow2", f"{field} = {value:#x}", changed(plain, **{field: value}, **more))
    yield Hostile("qcow2", "cut inside the header", plain[:100])
    yield Hostile("qcow2", "cut inside the magic", plain[:3])
    everything_at_zero = changed(plain, l1_table_offset=0, refcount_table_offset=0, snapshots_offset=0, nb_snapshots=9)
    yield Hostile("qcow2", "every table is the header", everything_at_zero)
    same = changed(plain, refcount_table_offset=65536, l1_table_offset=65536, snapshots_offset=65536, nb_snapshots=5)
    yield Hostile("qcow2", "every table is the refcount table", same)


def _extensions(plain: bytes) -> Iterator[Hostile]:
    many = [(0x12345678, b"")] * 8000
    yield Hostile("qcow2", "8,000 empty extensions", with_extensions(plain, *many).ljust(256 * KiB, b"\0"))
    wide = planned(MiB, "cluster_size=2M")
    yield Hostile("qcow2", "200,000 empty extensions", {0: partial(with_extensions, wide, *(many * 25))})
    for length in (1 << 16, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF):
        head = struct.pack(">II", FEATURES, length)
        yield Hostile("qcow2", f"an extension of {length:#x} bytes", plain[:112] + head + plain[120:])
    evil = b"\x1b]0;evil\x07\x1b[2J\r\n\xff\xfe\x9b31m".ljust(46, b"\x85")
    names = b"".join(bytes([kind, bit]) + evil for kind in range(3) for bit in range(64))
    yield Hostile(
        "qcow2",
        "unknown features with names that are escape sequences",
        changed(with_extensions(plain, (FEATURES, names)), incompatible_features=1 << 9 | 1 << 60),
    )
    flood = b"".join(bytes([0, bit % 64]) + b"A" * 46 for bit in range(43000))
    yield Hostile(
        "qcow2",
        "43,000 names of features, all bits set",
        changed(with_extensions(wide, (FEATURES, flood)), incompatible_features=(1 << 64) - 32),
    )
    evil_format = with_extensions(plain, (BACKING_FORMAT, b"\x1b[2Jqcow2\0\r\n"))
    yield Hostile("qcow2", "a backing format that is an escape sequence", evil_format)
    for offset, length in (
        *((65536, 1 << 20), (1 << 63, 592), ((1 << 64) - 512, 1024), (196608, 592), (0, 592), (65536, (1 << 64) - 1)),
        *((196608, 1 << 21), (196608, (1 << 21) + 1)),
    ):
        where = struct.pack(">QQ", offset, length)
        made = changed(with_extensions(plain, (CRYPTO, where)), crypt_method=2)
        yield Hostile("qcow2", f"a LUKS header of {length:#x} bytes at {offset:#x}", {0: made}, size=8 * MiB)
    luks = bytearray(b"LUKS\xba\xbe\0\1" + b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0"))
    luks += b"sha256".ljust(32, b"\0") + struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF) + bytes(52)
    luks += struct.pack(">I", 0xFFFFFFFF) + b"\x1b[2J".ljust(40, b"\xff")
    luks += struct.pack(">II32sII", 0x00AC71F3, 0xFFFFFFFF, b"", 0xFFFFFFFF, 0xFFFFFFFF) * 8
    made = changed(with_extensions(plain, (CRYPTO, struct.pack(">QQ", 262144, MiB))), crypt_method=2)
    yield Hostile(
        "qcow2", "a LUKS header inside whose numbers are all ones", {0: made, 262144: bytes(luks)}, size=2 * MiB
    )
    for count, length, offset in (
        *((1_000_000, 1_000_000 * 32, 262144), (65535, 65535 << 10, 262144), (1, 24, (1 << 64) - 65536)),
        *((0xFFFFFFFF, (1 << 64) - 1, 0), (1, 1 << 40, 262144), (0, 0, 0), (5, 24, 262144)),
    ):
        row = struct.pack(">IIQQ", count, 0, length, offset)
        made = changed(with_extensions(plain, (BITMAPS, row)), autoclear_features=1)
        yield Hostile("qcow2", f"{count} bitmaps in {length} bytes at {offset:#x}", {0: made}, size=80 * MiB)
