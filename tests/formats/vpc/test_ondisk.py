from __future__ import annotations

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.core.errors import ImageError
from instar.formats.vpc.ondisk import (
    DEFAULT_BLOCK,
    MAX_TABLE_ENTRIES,
    Footer,
    Header,
    ParentLocator,
    bitmap_bytes,
    checksum,
    checksum_of,
    sealed,
)

# The footer of an image made by qemu-img 7.2.22, `create -f vpc t 10M`.
QEMU_FOOTER = bytes.fromhex(
    "636f6e6563746978000000020001000000000000000002003295b236"
    "71656d75000500035769326b0000000000a070000000000000a07000"
    "012e041100000003"
)


def test_records_have_the_sizes_of_the_specification() -> None:
    assert (Footer.SIZE, Header.SIZE, ParentLocator.SIZE) == (512, 1024, 24)


@pytest.mark.parametrize(
    ("record", "name", "offset"),
    [
        (Footer, "timestamp", 24),
        (Footer, "original_size", 40),
        (Footer, "cylinders", 56),
        (Footer, "disk_type", 60),
        (Footer, "checksum", 64),
        (Footer, "saved_state", 84),
        (Header, "table_offset", 16),
        (Header, "max_table_entries", 28),
        (Header, "block_size", 32),
        (Header, "checksum", 36),
        (Header, "parent_unique_id", 40),
        (Header, "parent_name", 64),
        (Header, "parent_locators", 576),
    ],
)
def test_fields_stand_where_the_specification_puts_them(record: type[Footer], name: str, offset: int) -> None:
    assert record.field(name).offset == offset


def test_reads_a_footer_made_by_qemu() -> None:
    footer = Footer.unpack(QEMU_FOOTER + bytes(512 - len(QEMU_FOOTER)))
    assert footer.cookie == b"conectix"
    assert footer.data_offset == 512
    assert footer.creator_app == b"qemu"
    assert footer.creator_version == 0x00050003
    assert footer.current_size == footer.original_size == 10514432
    assert (footer.cylinders, footer.heads, footer.sectors_per_track) == (302, 4, 17)
    assert footer.disk_type == 3


@needs_qemu_img
def test_reads_and_packs_records_made_by_qemu(tmp_path) -> None:
    qemu_img("create", "-q", "-f", "vpc", tmp_path / "t", "10M")
    data = (tmp_path / "t").read_bytes()
    footer, header = Footer.unpack(data), Header.unpack(data, 512)
    assert footer.pack() + header.pack() == data[:1536]
    assert footer.checksum == checksum_of(footer)
    assert header.checksum == checksum_of(header)
    assert (header.cookie, header.table_offset, header.block_size) == (b"cxsparse", 1536, DEFAULT_BLOCK)
    assert header.max_table_entries == 6


def test_checksum_is_the_complement_of_the_byte_sum() -> None:
    assert checksum(b"") == 0xFFFFFFFF
    assert checksum(b"\x01\x02\xff") == 0xFFFFFFFF - 0x102


def test_sealing_ignores_the_checksum_that_was_there() -> None:
    footer = Footer(
        data_offset=512, original_size=1, current_size=1, cylinders=1, heads=1, sectors_per_track=1, disk_type=3
    )
    once = sealed(footer)
    assert sealed(Footer.unpack(once)) == once


@pytest.mark.parametrize(
    ("block", "bitmap"), [(512, 512), (512 << 10, 512), (2 << 20, 512), (4 << 20, 1024), (256 << 20, 65536)]
)
def test_bitmap_has_a_bit_a_sector_and_fills_sectors(block: int, bitmap: int) -> None:
    assert bitmap_bytes(block) == bitmap


def test_the_largest_table_is_128_mib() -> None:
    assert MAX_TABLE_ENTRIES * 4 <= 128 << 20


def test_short_records_are_image_errors() -> None:
    with pytest.raises(ImageError):
        Footer.unpack(b"conectix")
