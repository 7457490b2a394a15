"""Structures declared by annotations."""

from __future__ import annotations

import pytest

from instar.core.errors import ImageError
from instar.core.record import Record, b8, i32, i64, u16, u32, u64


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


def test_a_field_without_default_is_named_and_so_is_one_that_does_not_exist():
    with pytest.raises(TypeError, match=r"^Header: field 'size' is missing$"):
        Header()
    with pytest.raises(TypeError, match=r"^Header: no such field: other, more$"):
        Header(size=1, other=2, more=3)
    with pytest.raises(KeyError, match="other"):
        Header.field("other")


def test_declarations_are_words_not_types():
    with pytest.raises(TypeError, match=r"^Bad: the module needs 'from __future__ import annotations'$"):
        type(Record)("Bad", (Record,), {"__annotations__": {"a": int}}, endian=">")


def test_what_is_cut_short_is_told_by_its_facts():
    with pytest.raises(ImageError) as caught:
        Header.unpack(bytes(30), 9)
    error = caught.value
    assert (error.kind, error.structure, error.detail) == ("corrupt", "Header", "the structure is cut short")
    assert (error.value, error.limit) == (21, 22)
    assert Header.unpack(bytes(31), 9).size == 0


def test_a_dump_has_a_line_for_each_field():
    assert Header(size=5, name=b"ab").dump().splitlines() == [
        "    0    4 magic                            0x51464900",
        "    4    2 version                          0x3",
        "    6    8 name                             6162",
        "   14    8 size                             0x5",
    ]


def test_equality_is_of_type_and_all_fields():
    class Other(Header, endian=">"):
        pass

    one = Header(size=5)
    assert one == Header(size=5)
    assert one != Header(size=6)
    assert one != "x"
    assert one.replace(size=6) == Header(size=6)
    assert one.replace() == one
    assert one.replace() is not one
    assert dict(one.items()) == {"magic": 0x51464900, "version": 3, "name": b"", "size": 5}
    assert hash(one) != hash(Header(size=6))


def test_signed_fields_and_both_byte_orders_are_kept():
    class Little(Record, endian="<"):
        a: i32
        b: i64 = -2

    assert Little(a=-1).pack() == bytes.fromhex("ffffffff feffffffffffffff")
    assert Little.unpack(Little(a=-1).pack()).b == -2
    assert [field.offset for field in Little.FIELDS] == [0, 4]
