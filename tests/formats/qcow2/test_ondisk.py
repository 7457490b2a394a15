"""The structures, held against the specification's offsets and against bytes that QEMU wrote."""

from __future__ import annotations

import struct

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.core.errors import ImageError
from instar.core.record import Record
from instar.formats.qcow2 import ondisk
from instar.formats.qcow2.ondisk import (
    AUTOCLEAR_BITMAPS,
    BITMAP_AUTO,
    BITMAP_TYPE_DIRTY_TRACKING,
    COMPATIBLE_LAZY_REFCOUNTS,
    COMPRESSION_ZSTD,
    COPIED,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_BITMAPS,
    EXTENSION_END,
    EXTENSION_FEATURE_NAMES,
    FEATURE_NAMES,
    HEADER_ADDITIONAL_OFFSET,
    HEADER_FULL_LENGTH,
    HEADER_V3_OFFSET,
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_EXTENDED_L2,
    L1_OFFSET_MASK,
    MAGIC,
    MIN_SNAPSHOT_EXTRA_V3,
    REFCOUNT_TABLE_OFFSET_MASK,
    BitmapDirectoryEntry,
    BitmapsExtension,
    Extension,
    FeatureName,
    Header,
    HeaderAdditional,
    HeaderV3,
    SnapshotEntry,
    SnapshotExtra,
)

RECORDS = [
    value
    for value in vars(ondisk).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]


def extensions(data, offset):
    """Yield ``(type, data)`` of the header extensions, the end included."""
    while True:
        head = Extension.unpack(data, offset)
        offset += Extension.SIZE
        yield head.type, data[offset : offset + head.length]
        if head.type == EXTENSION_END:
            return
        offset += -(-head.length // 8) * 8


@pytest.mark.parametrize(
    ("record", "offsets"),
    [
        # The byte numbers of qcow2.rst, "Header" to "Bitmap directory".
        (Header, {"magic": 0, "version": 4, "backing_file_offset": 8, "backing_file_size": 16, "cluster_bits": 20}),
        (Header, {"size": 24, "crypt_method": 32, "l1_size": 36, "l1_table_offset": 40, "refcount_table_offset": 48}),
        (Header, {"refcount_table_clusters": 56, "nb_snapshots": 60, "snapshots_offset": 64}),
        (HeaderV3, {"incompatible_features": 0, "compatible_features": 8, "autoclear_features": 16}),
        (HeaderV3, {"refcount_order": 24, "header_length": 28}),
        (FeatureName, {"type": 0, "bit": 1, "name": 2}),
        (BitmapsExtension, {"nb_bitmaps": 0, "reserved": 4, "bitmap_directory_size": 8, "bitmap_directory_offset": 16}),
        (SnapshotEntry, {"l1_table_offset": 0, "l1_size": 8, "id_str_size": 12, "name_size": 14, "date_sec": 16}),
        (SnapshotEntry, {"date_nsec": 20, "vm_clock_nsec": 24, "vm_state_size": 32, "extra_data_size": 36}),
        (BitmapDirectoryEntry, {"bitmap_table_offset": 0, "bitmap_table_size": 8, "flags": 12, "type": 16}),
        (BitmapDirectoryEntry, {"granularity_bits": 17, "name_size": 18, "extra_data_size": 20}),
    ],
)
def test_fields_lie_where_the_specification_puts_them(record, offsets):
    assert {name: record.field(name).offset for name in offsets} == offsets


def test_sizes_are_those_of_the_specification():
    sizes = {record.__name__: record.SIZE for record in RECORDS}
    assert sizes == {
        "Header": 72,
        "HeaderV3": 32,
        "HeaderAdditional": 8,
        "Extension": 8,
        "FeatureName": 48,
        "BitmapsExtension": 24,
        "CryptoHeaderExtension": 16,
        "SnapshotEntry": 40,
        "SnapshotExtra": 24,
        "BitmapDirectoryEntry": 24,
    }


@pytest.mark.parametrize("record", RECORDS)
def test_any_bytes_unpack_and_pack_to_themselves(record):
    for data in (bytes(record.SIZE), b"\xff" * record.SIZE, bytes(i * 37 & 0xFF for i in range(record.SIZE))):
        assert record.unpack(data).pack() == data
    for length in range(record.SIZE):
        with pytest.raises(ImageError):
            record.unpack(bytes(length))


def test_masks_divide_an_entry_without_overlap():
    for offset, reserved, flags in (
        (ondisk.L1_OFFSET_MASK, ondisk.L1_RESERVED_MASK, COPIED),
        (ondisk.L2_OFFSET_MASK, ondisk.L2_RESERVED_MASK, COPIED | ondisk.COMPRESSED | ondisk.ZERO),
        (ondisk.REFCOUNT_TABLE_OFFSET_MASK, ondisk.REFCOUNT_TABLE_RESERVED_MASK, 0),
        (ondisk.BITMAP_TABLE_OFFSET_MASK, ondisk.BITMAP_TABLE_RESERVED_MASK, ondisk.BITMAP_TABLE_ALL_ONES),
    ):
        assert offset | reserved | flags == (1 << 64) - 1
        assert offset & reserved == offset & flags == reserved & flags == 0


def test_compressed_offset_narrows_as_clusters_grow():
    # Spec, "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8).
    assert [ondisk.compressed_offset_bits(bits) for bits in (9, 16, 21)] == [61, 54, 49]


@needs_qemu_img
def test_reads_the_version_3_header_of_qemu_img(tmp_path):
    path = tmp_path / "a.qcow2"
    options = "compression_type=zstd,extended_l2=on,lazy_refcounts=on,refcount_bits=32,cluster_size=32k"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "base.img", "-F", "raw", "-o", options, path, "3G")
    data = path.read_bytes()
    header = Header.unpack(data)
    assert data[:4] == b"QFI\xfb"
    assert (header.magic, header.version, header.cluster_bits, header.size) == (MAGIC, 3, 15, 3 << 30)
    name = header.backing_file_offset
    assert data[name : name + header.backing_file_size] == b"base.img"
    v3 = HeaderV3.unpack(data, HEADER_V3_OFFSET)
    assert v3.incompatible_features == INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2
    assert (v3.compatible_features, v3.autoclear_features) == (COMPATIBLE_LAZY_REFCOUNTS, 0)
    assert (v3.refcount_order, v3.header_length) == (5, HEADER_FULL_LENGTH)
    assert HeaderAdditional.unpack(data, HEADER_ADDITIONAL_OFFSET).compression_type == COMPRESSION_ZSTD
    found = dict(extensions(data, v3.header_length))
    assert list(found) == [EXTENSION_BACKING_FORMAT, EXTENSION_FEATURE_NAMES, EXTENSION_END]
    assert found[EXTENSION_BACKING_FORMAT] == b"raw"
    table = found[EXTENSION_FEATURE_NAMES]
    rows = [FeatureName.unpack(table, at) for at in range(0, len(table), FeatureName.SIZE)]
    assert tuple((row.type, row.bit, row.name.rstrip(b"\0")) for row in rows) == FEATURE_NAMES
    (block,) = struct.unpack_from(">Q", data, header.refcount_table_offset)
    assert block == block & REFCOUNT_TABLE_OFFSET_MASK == 2 << 15


@needs_qemu_img
def test_reads_the_version_2_header_of_qemu_img(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10,preallocation=metadata", path, "1M")
    data = path.read_bytes()
    header = Header.unpack(data)
    assert (header.version, header.size, header.l1_size, header.refcount_table_clusters) == (2, 1 << 20, 1, 1)
    assert dict(extensions(data, Header.SIZE)) == {EXTENSION_END: b""}
    (entry,) = struct.unpack_from(">Q", data, header.l1_table_offset)
    assert entry == COPIED | 4 << 16
    assert entry & L1_OFFSET_MASK == 4 << 16


@needs_qemu_img
def test_reads_the_snapshot_table_of_qemu_img(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("snapshot", "-c", "first", path)
    data = path.read_bytes()
    header = Header.unpack(data)
    assert header.nb_snapshots == 1
    at = header.snapshots_offset
    entry = SnapshotEntry.unpack(data, at)
    assert (entry.l1_size, entry.vm_state_size) == (header.l1_size, 0)
    assert entry.extra_data_size >= MIN_SNAPSHOT_EXTRA_V3
    extra = SnapshotExtra.unpack(data, at + SnapshotEntry.SIZE)
    assert (extra.disk_size, extra.vm_state_size_large) == (64 << 20, 0)
    texts = at + SnapshotEntry.SIZE + entry.extra_data_size
    assert data[texts : texts + entry.id_str_size] == b"1"
    assert data[texts + entry.id_str_size :][: entry.name_size] == b"first"


@needs_qemu_img
def test_reads_the_bitmap_directory_of_qemu_img(tmp_path):
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    qemu_img("bitmap", "--add", "-g", "128k", path, "dirt")
    data = path.read_bytes()
    v3 = HeaderV3.unpack(data, HEADER_V3_OFFSET)
    assert v3.autoclear_features == AUTOCLEAR_BITMAPS
    row = BitmapsExtension.unpack(dict(extensions(data, v3.header_length))[EXTENSION_BITMAPS])
    assert row.nb_bitmaps == 1
    at = row.bitmap_directory_offset
    entry = BitmapDirectoryEntry.unpack(data, at)
    assert (entry.type, entry.granularity_bits, entry.flags) == (BITMAP_TYPE_DIRTY_TRACKING, 17, BITMAP_AUTO)
    name = at + BitmapDirectoryEntry.SIZE + entry.extra_data_size
    assert data[name : name + entry.name_size] == b"dirt"
