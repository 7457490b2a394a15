from __future__ import annotations

import pytest

from instar.formats.vdi.ondisk import MAX_SIZE, SIGNATURE, TEXT_QEMU, TYPE_DYNAMIC, Header

# Bytes 0-511 of an image made by qemu-img 11.1.2, `create -f vdi t 10M`, from the signature on.
QEMU_HEADER = TEXT_QEMU.ljust(64, b"\0") + bytes.fromhex(
    "7f10dabe01000100800100000100000000000000"
    + "00" * 256
    + "000200000004000000000000000000000000000000020000"
    + "000000000000a00000000000000010000000"
    + "00000a00000000000000e95746b9d3b58a4bb0125ef16dc27570f98752971e61bf408c69fd482f8571b8"
    + "00" * 88
)


def test_header_is_one_sector() -> None:
    assert Header.SIZE == 512


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("signature", 0x40),
        ("image_type", 0x4C),
        ("offset_bmap", 0x154),
        ("sector_size", 0x168),
        ("disk_size", 0x170),
        ("block_size", 0x178),
        ("blocks_in_image", 0x180),
        ("blocks_allocated", 0x184),
        ("uuid_image", 0x188),
        ("uuid_last_snap", 0x198),
        ("uuid_link", 0x1A8),
        ("uuid_parent", 0x1B8),
    ],
)
def test_fields_stand_where_virtualbox_puts_them(name: str, offset: int) -> None:
    assert Header.field(name).offset == offset


def test_reads_and_writes_a_header_made_by_qemu() -> None:
    header = Header.unpack(QEMU_HEADER)
    assert (header.signature, header.image_type, header.header_size) == (SIGNATURE, TYPE_DYNAMIC, 0x180)
    assert (header.offset_bmap, header.offset_data) == (512, 1024)
    assert (header.disk_size, header.block_size, header.blocks_in_image) == (10 << 20, 1 << 20, 10)
    assert header.pack() == QEMU_HEADER


def test_largest_disk_is_the_one_that_qemu_names() -> None:
    assert MAX_SIZE == 0x1FFFFF8000000
