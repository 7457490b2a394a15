"""Reading ahead gives the bytes that reading gives, and asks the file less often while it goes forward."""

from __future__ import annotations

import random

from instar.core.reader import Ahead, read_padded

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
