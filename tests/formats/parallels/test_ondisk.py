from __future__ import annotations

import pytest

from instar.formats.parallels.ondisk import IN_USE, MAGIC, MAX_CLUSTER, Bitmap, Extension, Feature, Header

# Bytes 0-63 of an image made by qemu-img 11.1.2, `create -f parallels t 10M`.
QEMU_HEADER = bytes.fromhex(
    "576974686f7546726553706163457874020000001000000028000000000800000a0000000050000000000000"
    "0000000000080000000000000000000000000000"
)


def test_records_have_the_sizes_of_the_specification() -> None:
    assert (Header.SIZE, Extension.SIZE, Feature.SIZE, Bitmap.SIZE) == (64, 24, 24, 32)


@pytest.mark.parametrize(
    ("name", "offset"),
    [("tracks", 28), ("bat_entries", 32), ("nb_sectors", 36), ("inuse", 44), ("data_off", 48), ("ext_off", 56)],
)
def test_fields_stand_where_the_specification_puts_them(name: str, offset: int) -> None:
    assert Header.field(name).offset == offset


def test_reads_and_writes_a_header_made_by_qemu() -> None:
    header = Header.unpack(QEMU_HEADER)
    assert (header.magic, header.version, header.heads, header.cylinders) == (MAGIC, 2, 16, 40)
    assert (header.tracks, header.bat_entries, header.nb_sectors, header.data_off) == (2048, 10, 20480, 2048)
    assert header.pack() == QEMU_HEADER


def test_numbers_are_those_of_the_specification() -> None:
    assert IN_USE.to_bytes(4, "little") == b"Ynot"
    assert MAX_CLUSTER == 2143297024
