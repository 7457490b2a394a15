"""Reading within bounds: what is not wholly there is refused or padded.

Reading ahead gives the bytes that reading gives, and asks the file less often while it goes forward.
"""

from __future__ import annotations

import random

import pytest
from tests.support import BytesReader

from instar.core.errors import ImageError
from instar.core.reader import MAX_READ, Ahead, iter_table, read_exact, read_padded, read_table, table

LENGTH = 1_000_000


class Bytes:
    """A file in memory that counts how often it is read."""

    number = 0

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.data[offset : offset + length]


def file() -> Bytes:
    return Bytes(random.Random(1).randbytes(LENGTH))


def test_reading_ahead_gives_what_reading_gives() -> None:
    chance = random.Random(2)
    image, plain = file(), file()
    ahead = Ahead(image)
    offset = 0
    for _ in range(2000):
        length = chance.choice((1, 2, 8, 512, 4096, 70_000))
        offset = chance.choice((offset, offset, offset, chance.randrange(LENGTH + 5000)))
        assert ahead.read(offset, length) == read_padded(plain, offset, length)
        offset += length


def test_tables_in_a_row_are_read_in_large_pieces() -> None:
    image = file()
    ahead = Ahead(image)
    for offset in range(0, LENGTH, 512):
        ahead.read(offset, 512)
    assert image.reads < 20


def test_tables_here_and_there_are_read_alone() -> None:
    image = file()
    ahead = Ahead(image)
    for offset in range(LENGTH - 512, 0, -1024):
        assert len(ahead.read(offset, 512)) == 512
        assert len(ahead._data) <= 512


def test_what_is_past_the_end_reads_as_zeros() -> None:
    ahead = Ahead(Bytes(b"abcdef"))
    assert [ahead.read(at, 3) for at in (0, 3, 6, 4)] == [b"abc", b"def", bytes(3), b"ef\0"]


class Counting(BytesReader):
    """A reader that notes each read, and may be shorter than it says."""

    def __init__(self, data, *, held=None):
        super().__init__(data)
        self.reads = []
        self.held = len(data) if held is None else held

    def read(self, offset, length):
        assert offset >= 0
        assert length >= 0
        self.reads.append((offset, length))
        return super().read(offset, length)[: max(0, self.held - offset)]


def facts_of(call, *args):
    with pytest.raises(ImageError) as caught:
        call(*args)
    error = caught.value
    return error.kind, error.structure, error.field, error.value, error.limit, error.offset, error.detail


def test_reads_what_is_wholly_inside():
    file = BytesReader(bytes(range(16)))
    assert read_exact(file, 0, 16, "s") == bytes(range(16))
    assert read_exact(file, 15, 1, "s") == b"\x0f"
    assert read_exact(file, 16, 0, "s") == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 17), (16, 1), (-1, 1), (1 << 64, 0)])
def test_refuses_what_reaches_past_the_end(offset, length):
    expected = (
        "out-of-bounds",
        "s",
        "end",
        offset + length,
        16,
        offset,
        "the structure reaches past the end of the file",
    )
    assert facts_of(read_exact, BytesReader(bytes(16)), offset, length, "s") == expected


def test_refuses_a_length_below_zero():
    assert facts_of(read_exact, BytesReader(bytes(16)), 4, -1, "s")[0] == "out-of-bounds"


def test_refuses_more_than_64_mib_before_it_reads():
    most = 64 << 20
    file = BytesReader(b"", size=1 << 40)
    expected = ("too-large", "s", None, most + 1, most, 5, "the structure is too large to read")
    assert facts_of(read_exact, file, 5, most + 1, "s") == expected
    assert len(read_exact(file, 0, most, "s")) == most


def test_tells_of_a_file_that_became_shorter():
    file = Counting(bytes(16), held=9)
    expected = ("out-of-bounds", "s", None, 5, 12, 4, "the file became shorter while it was read")
    assert facts_of(read_exact, file, 4, 12, "s") == expected


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4, b"abcd"),
        (2, 4, b"cd\0\0"),
        (4, 2, b"\0\0"),
        (9, 2, b"\0\0"),
        (-2, 3, b"\0\0\0"),
        (0, 0, b""),
        (3, 1, b"d"),
    ],
)
def test_pads_with_zeros_as_qemu_does(offset, length, expected):
    assert read_padded(Counting(b"abcd"), offset, length) == expected
    assert Ahead(Counting(b"abcd")).read(offset, length) == expected


def test_pads_what_a_file_that_became_shorter_no_longer_has():
    assert read_padded(Counting(b"abcd", held=1), 0, 4) == b"a\0\0\0"


def test_reads_ahead_where_reading_goes_forward_and_only_there():
    data = bytes(range(256)) * 4096
    file = Counting(data)
    ahead = Ahead(file)
    for at in range(0, len(data), 512):
        assert ahead.read(at, 512) == data[at : at + 512]
    assert file.reads[:5] == [(0, 512), (512, 1024), (1536, 2048), (3584, 4096), (7680, 8192)]
    assert max(length for _, length in file.reads) == 256 << 10
    assert len(file.reads) < 16
    file.reads.clear()
    for at in (4096, 1024, 9000, 512):
        assert ahead.read(at, 512) == data[at : at + 512]
    assert file.reads == [(4096, 512), (1024, 512), (9000, 512), (512, 512)]


def test_what_is_in_hand_is_not_read_again():
    file = Counting(bytes(range(64)))
    ahead = Ahead(file)
    assert ahead.read(0, 8) + ahead.read(8, 8) == bytes(range(16))
    assert file.reads == [(0, 8), (8, 16)]
    assert ahead.read(8, 16) == bytes(range(8, 24))
    assert ahead.read(9, 15) == bytes(range(9, 24))
    assert len(file.reads) == 2
    assert ahead.read(9, 16) == bytes(range(9, 25))
    assert ahead.read(7, 2) == b"\7\x08"
    assert file.reads[-1] == (7, 2)


@pytest.mark.parametrize(("code", "width"), [("H", 2), ("I", 4), ("Q", 8)])
@pytest.mark.parametrize(("endian", "order"), [(">", "big"), ("<", "little")])
def test_decodes_tables_of_either_order(code, width, endian, order):
    numbers = [1, 2, (1 << 8 * width) - 2]
    data = b"".join(number.to_bytes(width, order) for number in numbers)
    assert list(table(data, code, endian)) == numbers
    assert list(read_table(BytesReader(b"xx" + data), 2, 3, code, endian, "s")) == numbers


def test_goes_over_a_long_table_in_pieces_of_a_mebibyte():
    count = MAX_READ // 4 + 3
    data = b"".join(number.to_bytes(4, "big") for number in range(count))
    file = Counting(b"#" + data)
    pieces = list(iter_table(file, 1, count, "I", ">", "s"))
    assert [first for first, _ in pieces] == [0, MAX_READ // 4]
    assert [number for _, entries in pieces for number in entries] == list(range(count))
    assert file.reads == [(1, MAX_READ), (1 + MAX_READ, 12)]
    assert list(iter_table(file, 1, 0, "I", ">", "s")) == []


@pytest.mark.parametrize(("offset", "count"), [(0, 3), (9, 2), (-1, 1)])
def test_refuses_a_table_that_is_not_wholly_inside_before_it_reads(offset, count):
    file = Counting(bytes(16))
    end = offset + 8 * count
    expected = ("out-of-bounds", "s", "end", end, 16, offset, "the table reaches past the end of the file")
    assert facts_of(lambda: list(iter_table(file, offset, count, "Q", "<", "s"))) == expected
    assert file.reads == []
    assert len(list(iter_table(file, 0, 2, "Q", "<", "s"))) == 1
