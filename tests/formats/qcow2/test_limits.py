"""Limits of what a check or a reader keeps in memory: at the limit all is well, one more is refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.formats.qcow2.images import GiB, planned, reader, u64s
from tests.formats.qcow2.test_parse import BITMAP, with_bitmaps

from instar.core.errors import ImageError
from instar.formats.qcow2 import bitmap, bulk, clusters, references
from instar.formats.qcow2.check import check
from instar.formats.qcow2.ondisk import COPIED
from instar.formats.qcow2.parse import info

if TYPE_CHECKING:
    from types import ModuleType

NOW = (11, 1)
C = 65536
L1 = 3 * C


def with_l1(*entries: int) -> bytes:
    data = planned(8 * GiB)
    return data[:L1] + u64s(*entries) + data[L1 + 8 * len(entries) :]


def facts_of(data: bytes) -> tuple[object, ...]:
    with pytest.raises(ImageError) as caught:
        check(reader(data, size=GiB), (), generation=NOW)
    error = caught.value
    return error.kind, error.structure, error.limit, error.detail


@pytest.mark.parametrize(
    ("module", "name", "entries", "structure", "detail"),
    [
        (
            clusters,
            "MAX_UNALIGNED_TABLES",
            [10 * C + 512 * n for n in range(1, 4)],
            "L2 table",
            "too many L2 tables do not start at a multiple of the cluster size",
        ),
        (
            clusters,
            "MAX_SHARED_TABLES",
            [(10 + n // 2) * C | COPIED for n in range(6)],
            "L2 table",
            "too many L2 tables are used more than once",
        ),
    ],
)
def test_tables_that_are_kept_are_counted(
    module: ModuleType, name: str, entries: list[int], structure: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_l1(*entries)
    monkeypatch.setattr(module, name, 3)
    check(reader(data, size=GiB), (), generation=NOW)
    monkeypatch.setattr(module, name, 2)
    assert facts_of(data) == ("too-large", structure, 2, detail)


def test_clusters_with_many_references_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_l1(*[10 * C | COPIED] * 4)
    table = u64s(*[20 * C | COPIED] * 300, *[21 * C | COPIED] * 300)
    data = data.ljust(10 * C, b"\0")[: 10 * C] + table.ljust(C, b"\0")
    monkeypatch.setattr(references, "MAX_LARGE_REFERENCES", 2)
    check(reader(data, size=GiB), (), generation=NOW)
    monkeypatch.setattr(references, "MAX_LARGE_REFERENCES", 1)
    detail = "too many clusters are referenced more than 254 times"
    assert facts_of(data) == ("too-large", "References", 1, detail)


def test_tables_of_bitmaps_are_counted_together_without_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    two = with_bitmaps(BITMAP.pack() + b"full", BITMAP.replace(bitmap_table_offset=6 * C).pack() + b"more")
    one = with_bitmaps(BITMAP.pack() + b"full", BITMAP.replace(flags=1).pack() + b"busy")
    monkeypatch.setattr(bitmap, "MAX_BITMAP_TABLE_BYTES", 8)
    info(reader(one), (), generation=NOW)
    with pytest.raises(ImageError) as caught:
        info(reader(two), (), generation=NOW)
    assert (caught.value.kind, caught.value.structure, caught.value.limit) == ("too-large", "Bitmap table", 8)
    monkeypatch.setattr(bitmap, "MAX_BITMAP_TABLE_BYTES", 16)
    info(reader(two.ljust(7 * C, b"\0")), (), generation=NOW)


def test_a_bitmap_in_use_may_have_the_name_of_another() -> None:
    busy = BITMAP.replace(flags=1).pack() + b"full"
    assert info(reader(with_bitmaps(BITMAP.pack() + b"full", busy)), (), generation=NOW)


def test_a_bitmap_covers_the_disk_unless_it_is_in_use() -> None:
    small = BITMAP.replace(granularity_bits=9)
    # One cluster of bits for 512 bytes each covers 256 MiB.
    for size, fits in ((256 << 20, True), ((256 << 20) + 512, False)):
        data = bytearray(with_bitmaps(small.pack() + b"full"))
        data[24:32] = size.to_bytes(8, "big")
        if fits:
            assert info(reader(bytes(data)), (), generation=NOW).virtual_size == size
        else:
            with pytest.raises(ImageError) as caught:
                info(reader(bytes(data)), (), generation=NOW)
            assert caught.value.field == "bitmap_table_size"


def test_tables_that_are_kept_ready_are_few_and_right() -> None:
    for count in range(1, 20):
        assert bulk.ones(count).to_bytes(8 * count, "big") == count * u64s(1)
        assert bulk.ramp(count).to_bytes(8 * count, "big") == u64s(*range(count))
        assert len(bulk._ones) <= 8
        assert len(bulk._ramps) <= 8
    assert bulk.ones(3, 4) == 1 << 64 | 1 << 32 | 1
    assert bulk.ramp(3, 2) == 1 << 16 | 2
    assert bulk.any_bits(u64s(4, 2, 8), 2)
    assert not bulk.any_bits(u64s(4, 2, 8), 17)
