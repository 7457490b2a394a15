"""Structures declared by annotations."""

from __future__ import annotations

import pytest

from instar.core.errors import ImageError
from instar.core.record import Record, b8, u16, u32, u64


class Header(Record, endian=">"):
    """A structure with all kinds of fields."""

    magic: u32 = 0x51464900
    version: u16 = 3
    name: b8 = b""
    size: u64


def test_layout_follows_the_declaration_without_padding():
    assert [(f.name, f.offset, f.size) for f in Header.FIELDS] == [
        ("magic", 0, 4),
        ("version", 4, 2),
        ("name", 6, 8),
        ("size", 14, 8),
    ]
    assert Header.SIZE == 22


def test_packs_in_the_declared_byte_order_with_defaults_and_padded_bytes():
    assert Header(size=5, name=b"ab").pack() == bytes.fromhex("51464900 0003 6162000000000000 0000000000000005")


def test_reads_back_what_it_packs():
    header = Header(size=1 << 63, name=b"12345678", version=7)
    assert Header.unpack(b"xx" + header.pack(), 2) == header
    assert hash(Header.unpack(header.pack())) == hash(header)


def test_a_field_without_default_must_be_given_and_none_invented():
    with pytest.raises(TypeError, match="'size' is missing"):
        Header()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no such field: sise"):
        Header(size=1, sise=2)  # type: ignore[call-arg]


def test_bytes_cut_short_are_an_image_error():
    with pytest.raises(ImageError, match="cut short") as caught:
        Header.unpack(bytes(21))
    assert (caught.value.value, caught.value.limit) == (21, 22)


def test_replace_changes_some_fields_of_a_copy():
    header = Header(size=1)
    assert header.replace(size=2).size == 2
    assert header.size == 1


def test_dump_names_every_field_with_its_place():
    assert Header(size=16).dump().splitlines()[3].split() == ["14", "8", "size", "0x10"]


def test_a_field_is_found_by_name():
    assert Header.field("name").offset == 6
    with pytest.raises(KeyError):
        Header.field("nothing")
