from __future__ import annotations

import pytest
from tests.formats.vhdx import images
from tests.formats.vhdx.images import LOG, MiB, u32, u64
from tests.support import BytesReader

from instar.core.errors import ImageError
from instar.formats.vhdx import log, ondisk, parse
from instar.formats.vhdx.crc32c import checksum

GUID = b"this is the log."


def entry(number: int, *, tail: int, sectors: int = 1, guid: bytes = GUID, flushed: int = 0, **odd: int) -> bytes:
    """Make a log entry with ``sectors`` data sectors."""
    head = ondisk.LogEntryHeader(
        entry_length=odd.get("entry_length", (1 + sectors) * 4096),
        tail=tail,
        sequence_number=number,
        descriptor_count=odd.get("descriptor_count", sectors),
        log_guid=guid,
        flushed_file_offset=flushed,
        last_file_offset=0,
    )
    rows = [
        ondisk.LogDescriptor(
            signature=b"desc",
            leading_bytes=0,
            file_offset=4096 * n + odd.get("shift", 0),
            sequence_number=odd.get("row_number", number),
        ).pack()
        for n in range(sectors)
    ]
    data = [
        (b"data" + (number >> 32).to_bytes(4, "little")).ljust(4092, b"x")
        + (odd.get("data_number", number) & 0xFFFFFFFF).to_bytes(4, "little")
        for _ in range(sectors)
    ]
    raw = (head.pack() + b"".join(rows)).ljust(4096, b"\0") + b"".join(data)
    return raw[:4] + checksum(raw).to_bytes(4, "little") + raw[8:]


def ring(parts: dict[int, bytes], length: int = MiB) -> log.Log:
    return log.Log(
        BytesReader(b"", size=LOG + length, parts={LOG + at: d for at, d in parts.items()}), LOG, length, GUID
    )


def numbers(parts: dict[int, bytes], length: int = MiB) -> list[int]:
    return [found.header.sequence_number for found in ring(parts, length).active_sequence()]


def test_an_untouched_log_holds_nothing() -> None:
    assert numbers({}) == []


def test_finds_one_entry_anywhere() -> None:
    for at in (0, 4096, MiB - 8192):
        assert numbers({at: entry(5, tail=at)}) == [5]


def test_an_entry_may_wrap_around_the_end() -> None:
    raw = entry(5, tail=MiB - 4096, sectors=3)
    assert numbers({MiB - 4096: raw[:4096], 0: raw[4096:]}) == [5]


def test_follows_a_sequence_around_the_end() -> None:
    one, two, three = (entry(n, tail=MiB - 8192) for n in (7, 8, 9))
    assert numbers({MiB - 8192: one, 0: two, 8192: three}) == [7, 8, 9]


def test_a_sequence_begins_where_the_tail_of_its_last_entry_says() -> None:
    assert numbers({0: entry(7, tail=0), 8192: entry(8, tail=8192), 16384: entry(9, tail=8192)}) == [8, 9]


def test_the_sequence_with_the_highest_number_is_the_active_one() -> None:
    assert numbers({0: entry(3, tail=0), 40960: entry(9, tail=40960), 81920: entry(5, tail=81920)}) == [9]


def test_a_gap_in_the_numbers_ends_a_sequence() -> None:
    assert numbers({0: entry(3, tail=0), 8192: entry(5, tail=8192)}) == [5]


@pytest.mark.parametrize(
    "raw",
    [
        entry(0, tail=0),
        entry(1, tail=0, guid=b"that is the log."),
        entry(1, tail=0, entry_length=0),
        entry(1, tail=0, entry_length=4095),
        entry(1, tail=0, entry_length=0xFFFFF000),
        entry(1, tail=0, descriptor_count=0xFFFFFFFF),
        entry(1, tail=0, descriptor_count=2),
        entry(1, tail=0, row_number=2),
        entry(1, tail=0, data_number=2),
        entry(1, tail=0, shift=512),
        entry(1, tail=0)[:-4],
        b"LOGE" + entry(1, tail=0)[4:],
        entry(1, tail=0)[:100] + b"!" + entry(1, tail=0)[101:],
    ],
)
def test_damaged_entries_do_not_count(raw: bytes) -> None:
    assert numbers({0: raw}) == []


def test_valid_entries_without_their_beginning_are_corrupt() -> None:
    with pytest.raises(ImageError) as caught:
        numbers({8192: entry(8, tail=0)})
    assert (caught.value.kind, caught.value.field) == ("corrupt", "tail")


def test_an_entry_as_long_as_the_log_is_read_once() -> None:
    raw = entry(5, tail=0, sectors=100)
    raw += bytes(MiB - len(raw))
    raw = raw[:8] + u32(MiB) + raw[12:]
    raw = raw[:4] + checksum(raw).to_bytes(4, "little") + raw[8:]
    assert numbers({0: raw}) == [5]


def test_entries_that_claim_to_overlap_are_not_verified_for_ever() -> None:
    length = 64 * MiB
    raw = entry(5, tail=0)[:4096]
    long = raw[:8] + u32(length) + raw[12:]
    with pytest.raises(ImageError) as caught:
        numbers(dict.fromkeys(range(0, 40960, 4096), long), length)
    assert caught.value.kind == "too-large"


def dirty(raw: bytes, **size: int) -> BytesReader:
    made = images.changed({**images.both(images.HEADERS, 48, GUID), LOG: raw})
    made.size = size.get("size", made.size)
    return made


def test_a_log_shows_that_the_file_was_truncated() -> None:
    with pytest.raises(ImageError) as caught:
        parse.info(dirty(entry(1, tail=0, flushed=1 << 40)), (), generation=(7, 2))
    assert (caught.value.kind, caught.value.value) == ("out-of-bounds", 1 << 40)


def test_a_log_with_nothing_valid_in_it_does_not_hinder_reading() -> None:
    assert parse.info(dirty(b"loge"), (), generation=(7, 2)).virtual_size == 64 * MiB


def test_sees_the_log_that_qemu_left() -> None:
    source = images.qemu_dirty()
    found = log.Log(source, LOG, MiB, source.read(images.HEADERS[1] + 48, 16)).active_sequence()
    assert [(e.offset, e.header.sequence_number) for e in found] == [(0, 1)]


@pytest.mark.parametrize("record", [ondisk.LogEntryHeader, ondisk.LogDescriptor])
def test_any_field_of_an_entry_may_be_anything(record: type) -> None:
    base = 0 if record is ondisk.LogEntryHeader else 64
    for field in record.FIELDS:
        for value in (bytes(field.size), b"\1".ljust(field.size, b"\0"), b"\xff" * field.size, b"\x5a" * field.size):
            raw = entry(1, tail=0)
            at = base + field.offset
            raw = raw[:at] + value + raw[at + field.size :]
            if field.name != "checksum":
                raw = raw[:4] + checksum(raw).to_bytes(4, "little") + raw[8:]
            try:
                assert ring({0: raw}).active_sequence() is not None
            except ImageError as error:
                assert error.kind in ("corrupt", "too-large")  # noqa: PT017


def test_sequence_numbers_are_64_bits_wide() -> None:
    assert numbers({0: entry((1 << 64) - 1, tail=0)}) == [(1 << 64) - 1]
    assert u64((1 << 64) - 1) == b"\xff" * 8
