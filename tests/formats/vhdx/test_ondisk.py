from __future__ import annotations

import uuid

import pytest
from tests.formats.vhdx import images

from instar.formats.vhdx import ondisk
from instar.formats.vhdx.crc32c import checksum


def test_guids_are_stored_as_windows_stores_them() -> None:
    for text in ("2dc27766-f623-4200-9d64-115e9bfd4a08", "8b7ca206-4790-4b9a-b8fe-575f050f886e"):
        assert ondisk.guid(text) == uuid.UUID(text).bytes_le
        assert ondisk.guid_text(ondisk.guid(text)) == text


def test_random_guids_are_of_version_4() -> None:
    for raw in (bytes(16), b"\xff" * 16):
        made = uuid.UUID(bytes_le=ondisk.random_guid(raw))
        assert (made.version, made.variant) == (4, uuid.RFC_4122)


def test_records_have_the_sizes_of_the_specification() -> None:
    sizes = {
        ondisk.FileIdentifier: 520,
        ondisk.Header: 80,
        ondisk.RegionTableHeader: 16,
        ondisk.RegionTableEntry: 32,
        ondisk.LogEntryHeader: 64,
        ondisk.LogDescriptor: 32,
        ondisk.MetadataTableHeader: 32,
        ondisk.MetadataTableEntry: 32,
        ondisk.FileParameters: 8,
        ondisk.ParentLocatorHeader: 20,
        ondisk.ParentLocatorEntry: 12,
    }
    for record, size in sizes.items():
        assert size == record.SIZE, record.__name__


def test_reads_headers_made_by_qemu() -> None:
    for number, raw in enumerate(images.QEMU_HEADERS):
        header = ondisk.Header.unpack(raw)
        assert header.pack() == raw
        assert header.checksum == checksum(raw.ljust(4096, b"\0"))
        assert (header.signature, header.version, header.log_version) == (b"head", 1, 0)
        assert (header.log_offset, header.log_length) == (images.LOG, images.MiB)
        assert header.sequence_number == 0x08D0DBDB + number
        assert ondisk.guid_text(header.log_guid) == "ff853dd9-2450-e04d-9d34-fd56d3cb7c61"


def test_reads_a_region_table_made_by_qemu() -> None:
    raw = images.QEMU_REGION_TABLE
    head = ondisk.RegionTableHeader.unpack(raw)
    assert (head.signature, head.entry_count) == (b"regi", 2)
    assert head.checksum == checksum(raw.ljust(65536, b"\0"))
    bat, metadata = (ondisk.RegionTableEntry.unpack(raw, at) for at in (16, 48))
    assert (bat.guid, bat.file_offset, bat.length, bat.flags) == (ondisk.BAT_REGION, images.BAT, images.MiB, 0)
    assert (metadata.guid, metadata.file_offset) == (ondisk.METADATA_REGION, images.METADATA)


def test_reads_metadata_made_by_qemu() -> None:
    raw = images.QEMU_METADATA_TABLE
    assert ondisk.MetadataTableHeader.unpack(raw).entry_count == 5
    rows = [ondisk.MetadataTableEntry.unpack(raw, 32 + 32 * n) for n in range(5)]
    assert [row.item_id for row in rows] == [
        ondisk.FILE_PARAMETERS,
        ondisk.VIRTUAL_DISK_SIZE,
        ondisk.VIRTUAL_DISK_ID,
        ondisk.LOGICAL_SECTOR_SIZE,
        ondisk.PHYSICAL_SECTOR_SIZE,
    ]
    assert [row.flags for row in rows] == [4, 6, 6, 6, 6]
    assert ondisk.FileParameters.unpack(images.QEMU_ITEMS).block_size == 8 * images.MiB


def test_reads_a_log_entry_made_by_qemu() -> None:
    raw = images.QEMU_LOG_ENTRY
    head = ondisk.LogEntryHeader.unpack(raw)
    assert (head.signature, head.entry_length, head.descriptor_count) == (b"loge", 8192, 1)
    assert head.checksum == checksum(raw)
    row = ondisk.LogDescriptor.unpack(raw, 64)
    assert (row.signature, row.file_offset, row.leading_bytes) == (b"desc", images.BAT, 8 * images.MiB | 6)
    assert ondisk.DataSectorHead.unpack(raw, 4096).signature == b"data"


@pytest.mark.parametrize(
    ("size", "block_size", "entries"),
    [
        (0, images.MiB, 0),
        (1, images.MiB, 1),
        (4 * images.GiB, images.MiB, 4096),
        (4 * images.GiB + 512, images.MiB, 4098),
        (8 * images.GiB, images.MiB, 8193),
        (4 * images.GiB + 512, 256 * images.MiB, 18),
        (64 * images.TiB, images.MiB, (1 << 26) + (1 << 14) - 1),
    ],
)
def test_counts_table_entries_with_sector_bitmaps_between_chunks(size: int, block_size: int, entries: int) -> None:
    assert ondisk.bat_entries(size, block_size) == entries


def test_differencing_disks_have_whole_chunks() -> None:
    assert ondisk.bat_entries(1, images.MiB, has_parent=True) == 4097
    assert ondisk.bat_entries(4 * images.GiB + 1, images.MiB, has_parent=True) == 2 * 4097
