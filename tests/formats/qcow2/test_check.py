"""A check finds what qemu-img check finds, with the same numbers, in bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import generations
from tests.formats.qcow2.images import (
    NOW,
    OFFSETS,
    RECIPES,
    GiB,
    KiB,
    MiB,
    Places,
    TiB,
    changed,
    cook,
    damage,
    number,
    planned,
    reader,
    snapshot_table,
    u64s,
    with_extensions,
    with_snapshots,
)
from tests.formats.qcow2.test_parse import BITMAP, ENTRY, LUKS, encrypted, rich, with_bitmaps
from tests.support import BytesReader, needs_qemu_img, needs_qemu_io, run
from tests.support import reader as open_reader

from instar.cli.messages.qcow2 import FINDINGS
from instar.core.errors import ImageError
from instar.core.finding import MAX_FINDINGS, Report
from instar.core.wire import encode
from instar.formats.qcow2 import clusters, references
from instar.formats.qcow2.check import check
from instar.formats.qcow2.header import open_image
from instar.formats.qcow2.ondisk import (
    AUTOCLEAR_DATA_FILE_RAW,
    COMPRESSED,
    COPIED,
    EXTENSION_DATA_FILE,
    INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_DIRTY,
    Header,
    HeaderV3,
    SnapshotEntry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

C = 64 * KiB

#: Keys of ``qemu-img check --output=json``, and what they are called here.
COUNTERS = {
    "check-errors": "check_errors",
    "corruptions": "corruptions",
    "leaks": "leaks",
    "image-end-offset": "image_end_offset",
    "total-clusters": "total_clusters",
    "allocated-clusters": "allocated_clusters",
    "fragmented-clusters": "fragmented_clusters",
    "compressed-clusters": "compressed_clusters",
}


def report(data: bytes | BytesReader, generation: tuple[int, int] = NOW) -> Report:
    return check(data if isinstance(data, BytesReader) else reader(data), (), generation=generation)


def totals(found: Report) -> tuple[int, int, int]:
    return found.corruptions, found.leaks, found.check_errors


def details(found: Report) -> list[str]:
    return [f"{row.severity}: {row.structure}: {row.detail}" for row in found.findings]


def exit_code(found: Report) -> int:
    return 1 if found.check_errors else 2 if found.corruptions else 3 if found.leaks else 0


# --- against the real program --------------------------------------------------------------------------


def hidden(found: Report) -> int:
    """Return how many corruptions are ones that qemu-img does not look for: shared metadata that nothing tells of."""
    return sum(
        row.severity == "corruption" and not row.code for row in found.findings if "something else" in row.detail
    )


def compare(program: Path | str, path: Path) -> str | None:
    """Return how our check of an image differs from a real one's, ``None`` if it does not."""
    done = run(program, "check", "--output=json", "-f", "qcow2", path)
    try:
        with open_reader(path) as file:
            found = check(file, (), generation=NOW)
    except ImageError as error:
        return None if done.returncode == 1 and not done.stdout else f"{error}; theirs {done.returncode} {done.stdout}"
    extra = hidden(found)
    found.corruptions -= extra
    if exit_code(found) != done.returncode:
        return f"exit code {exit_code(found)}, theirs {done.returncode}: {details(found)[:3]}, {done.stderr[:300]}"
    if not done.stdout:
        return None  # it gave up half way
    theirs = json.loads(done.stdout)
    for key, name in COUNTERS.items():
        if (getattr(found, name) or 0) != theirs.get(key, 0):
            return f"{name} = {getattr(found, name)}, theirs {theirs.get(key, 0)}"
    said = {line for line in done.stderr.splitlines() if line.startswith(("ERROR", "Leaked", "Can't"))}
    said = {line for line in said if "snapshot table entry corrupted" not in line}  # they hold names
    known = [FINDINGS[row.code].format(*row.values) for row in found.findings if row.code]
    ours = {line for words in known for line in words.splitlines() if not line.startswith("Use ")}
    if "inconsistent" not in done.stderr and len(found.findings) < MAX_FINDINGS and ours != said:
        return f"lines {sorted(ours - said)[:3]}, theirs {sorted(said - ours)[:3]}"
    return None


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cooked")
    dice = random.Random(7)
    return {name: cook(folder, name, dice) for name in RECIPES}


@needs_qemu_img
@needs_qemu_io
def test_agrees_with_every_qemu_img_on_intact_images(cooked: dict[str, Path]) -> None:
    for name, path in cooked.items():
        for program in generations().values():
            assert compare(program, path) is None, name


@needs_qemu_img
@needs_qemu_io
@pytest.mark.parametrize("name", RECIPES)
def test_agrees_with_qemu_img_on_damaged_images(name: str, cooked: dict[str, Path], tmp_path: Path) -> None:
    """Turns are seeded; ``INSTAR_CHECK_TURNS`` asks for more of them."""
    places = Places(cooked[name].read_bytes())
    programs = list(generations().values())
    path = tmp_path / "damaged"
    for turn in range(int(os.environ.get("INSTAR_CHECK_TURNS", "15"))):
        dice = random.Random(f"{name} {turn}")
        data, story = damage(places, dice)
        path.write_bytes(data)
        assert compare(dice.choice(programs), path) is None, (turn, story)


# --- what is found -------------------------------------------------------------------------------------

#: 4 MiB in 64 KiB clusters, all of them mapped: header, refcount table, refcount block, L1, L2, 64 of data.
FULL = planned(4 * MiB, "preallocation=metadata")
L1 = number(FULL, "l1_table_offset")
L2 = int.from_bytes(FULL[L1 : L1 + 8], "big") & OFFSETS
BLOCKS = number(FULL, "refcount_table_offset")
BLOCK = int.from_bytes(FULL[BLOCKS : BLOCKS + 8], "big")


def put(data: bytes, *changes: tuple[int, int], width: int = 8) -> bytes:
    """Return the bytes with numbers put in at offsets."""
    out = bytearray(data)
    for offset, value in changes:
        out[offset : offset + width] = value.to_bytes(width, "big")
    return bytes(out)


def entry(index: int) -> int:
    """Return an L2 entry of ``FULL``."""
    return int.from_bytes(FULL[L2 + 8 * index : L2 + 8 * index + 8], "big")


def cluster_of(index: int) -> int:
    """Return the host cluster that entry ``index`` of ``FULL`` maps."""
    return (entry(index) & OFFSETS) // C


def refcount(cluster: int, value: int) -> tuple[int, int]:
    return BLOCK + 2 * cluster, value


def test_a_whole_image_is_clean() -> None:
    found = report(FULL)
    assert totals(found) == (0, 0, 0)
    assert found.findings == []
    assert (found.total_clusters, found.allocated_clusters, found.fragmented_clusters) == (64, 64, 0)
    assert found.image_end_offset == len(FULL)


@pytest.mark.parametrize(
    ("make", "expected", "words"),
    [
        (lambda: put(FULL, (L1, 1 << 56 | L2 | COPIED)), (1, 0, 0), "an L1 entry has reserved bits"),
        (lambda: put(FULL, (L1, L2)), (1, 0, 0), "is not set, but the refcount is 1"),
        (lambda: put(FULL, (L2, entry(0) | 2)), (1, 0, 0), "an L2 entry has reserved bits"),
        (lambda: put(FULL, (L2, entry(0) & ~COPIED)), (1, 0, 0), "is not set, but the refcount is 1"),
        (lambda: put(FULL, (L2, 0)), (0, 1, 0), "refcount 1, references 0"),
        (lambda: put(FULL, (L2, 1)), (0, 1, 0), "refcount 1, references 0"),
        (lambda: put(FULL, (L2, entry(1))), (1, 1, 0), "refcount 1, references 2"),
        (lambda: put(FULL, (L2, COPIED | 1 << 40)), (2, 1, 0), "behind the end of the file"),
        (lambda: put(FULL, (L2 + 8 * 63, entry(63) + 512)), (2, 0, 0), "is not a multiple of the cluster size"),
        (lambda: put(FULL, (L2, COPIED | COMPRESSED | 5 * C)), (1, 0, 0), "has the copied flag"),
        (lambda: put(FULL, refcount(5, 0), width=2), (2, 0, 0), "refcount 0, references 1"),
        (lambda: put(FULL, refcount(5, 2), width=2), (1, 1, 0), "refcount 2, references 1"),
        (lambda: put(FULL, refcount(5, 300), width=2), (1, 1, 0), "refcount 300, references 1"),
        (lambda: put(FULL, refcount(100, 300), width=2), (0, 0, 0), ""),
        (lambda: put(FULL, (BLOCKS, BLOCK | 1)), (1, 1, 0), "entry 0 of the refcount table has reserved bits"),
        (lambda: put(FULL, (BLOCKS + 8, 1 << 40)), (1, 0, 0), "entry 1 of the refcount table points behind the end"),
        (lambda: put(FULL, (BLOCKS + 8, 512)), (1, 0, 0), "entry 1 of the refcount table is not a multiple"),
        (
            lambda: put(FULL, (BLOCKS + 8, 5 * C)),
            (2, 0, 0),
            "refcount block 1 is in a cluster that is referenced 2 times",
        ),
        (lambda: put(FULL, (BLOCKS, BLOCK + 512)), (1, 0, 69), "the refcount of cluster 0 cannot be read"),
        (lambda: changed(FULL, refcount_table_clusters=0), (69 + 64 + 1 - 2, 0, 0), "refcount 0, references 1"),
        (lambda: put(FULL, (L1, COPIED | 512 + L2)), (1, 63, 0), "an L1 entry is not a multiple"),
        (lambda: put(FULL, (L1, COPIED | len(FULL))), (2, 65, 0), "behind the end of the file"),
        (lambda: FULL + bytes(10 * C), (0, 0, 0), ""),
        (lambda: FULL[:-C], (1, 0, 0), "behind the end of the file"),
    ],
)
def test_finds(make: Callable[[], bytes], expected: tuple[int, int, int], words: str, tmp_path: Path) -> None:
    data = make()
    found = report(data)
    assert any(words in line for line in details(found) or [""]), details(found)
    assert totals(found) == expected, details(found)
    for program in [*generations().values()][-1:]:
        (tmp_path / "image").write_bytes(data)
        assert compare(program, tmp_path / "image") is None


def test_a_clean_image_may_be_dirty_or_marked_corrupt() -> None:
    found = report(changed(FULL, incompatible_features=INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
    assert totals(found) == (0, 0, 0)
    assert [row.severity for row in found.findings] == ["warning", "warning"]


def test_stale_bitmaps_are_a_warning() -> None:
    found = report(with_bitmaps(BITMAP.pack() + b"full", autoclear=0))
    assert "its bitmaps are stale" in details(found)[0]


def test_a_cluster_with_every_refcount_is_counted_exactly() -> None:
    """References above 254 are kept aside."""
    cluster = L2 // C + 1
    for references_made in (253, 254, 255, 256, 1000):
        data = bytearray(planned(references_made * C, "preallocation=metadata"))
        at = int.from_bytes(data[L1 : L1 + 8], "big") & OFFSETS
        for index in range(references_made):
            data[at + 8 * index : at + 8 * index + 8] = (cluster * C).to_bytes(8, "big")
        block = int.from_bytes(data[BLOCKS : BLOCKS + 8], "big")
        for other in range(cluster, cluster + references_made):
            data[block + 2 * other : block + 2 * other + 2] = bytes(2)
        data[block + 2 * cluster : block + 2 * cluster + 2] = references_made.to_bytes(2, "big")
        assert totals(report(bytes(data))) == (0, 0, 0), references_made


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_refcount_that_is_too_narrow_overflows(bits: int) -> None:
    most = (1 << bits) - 1
    data = bytearray(planned(512 * C, f"preallocation=metadata,refcount_bits={bits}"))
    at = int.from_bytes(data[L1 : L1 + 8], "big") & OFFSETS
    for index in range(most + 3):
        data[at + 8 * index : at + 8 * index + 8] = data[at : at + 8]
    found = report(bytes(data))
    over = [row for row in found.findings if row.code == "qcow2-refcount-overflow"]
    assert sum(row.values[0] == at + C for row in over) >= 1
    assert found.corruptions >= 3


def test_metadata_that_two_structures_share_is_corrupt_though_refcounts_agree() -> None:
    """The first data cluster is the L1 table, and the refcount says 2: qemu-img finds only a leak."""
    data = put(FULL, (L2, L1))
    data = put(data, refcount(L1 // C, 2), refcount(cluster_of(0), 0), width=2)
    found = report(data)
    assert totals(found) == (1, 0, 0)
    assert "something else uses" in details(found)[0]


def test_an_l2_table_that_the_guest_writes_to_is_corrupt_though_refcounts_agree() -> None:
    data = put(FULL, (L2, L2), (L1, L2))
    data = put(data, refcount(L2 // C, 2), refcount(cluster_of(0), 0), width=2)
    found = report(data)
    assert totals(found) == (1, 0, 0)
    assert found.findings[0].structure == "L2 table"


def test_shared_metadata_is_a_warning_where_the_refcounts_tell_of_it() -> None:
    found = report(put(FULL, (L2, COPIED | L1)))
    assert found.corruptions == 1
    assert any(row.severity == "warning" and "something else uses" in row.detail for row in found.findings)


# --- subclusters, data files, snapshots, bitmaps, encryption --------------------------------------------


def test_subclusters_that_are_both_allocated_and_zero_are_corrupt() -> None:
    data = planned(4 * MiB, "preallocation=metadata,extended_l2=on")
    assert totals(report(data)) == (0, 0, 0)
    at = int.from_bytes(data[L1 : L1 + 8], "big") & OFFSETS
    assert totals(report(put(data, (at + 8, 1 << 32 | 1)))) == (1, 0, 0)
    assert totals(report(put(data, (at + 8, 1 << 33 | 1)))) == (0, 0, 0)
    assert totals(report(put(data, (at + 16 * 64 + 8, 1)))) == (1, 0, 0)
    assert totals(report(put(data, (at, COMPRESSED | 5 * C), (at + 8, 1)))) == (1, 1, 0)


def external() -> bytes:
    """Return ``FULL`` with its data in another file: each cluster where the guest sees it."""
    data = with_extensions(FULL, (EXTENSION_DATA_FILE, b"data"))
    data = changed(data, incompatible_features=INCOMPATIBLE_DATA_FILE, autoclear_features=AUTOCLEAR_DATA_FILE_RAW)
    data = put(data, *((L2 + 8 * index, COPIED | index * C) for index in range(64)))
    return put(data, *(refcount(cluster_of(index), 0) for index in range(64)), width=2)[: L2 + C]


def test_clusters_of_a_data_file_are_not_counted_but_must_be_copied() -> None:
    data = external()
    assert totals(report(data)) == (0, 0, 0)
    assert report(data).allocated_clusters == 64
    assert totals(report(put(data, (L2 + 8 * 9, 9 * C)))) == (1, 0, 0)
    assert totals(report(put(data, (L2 + 8 * 9, COMPRESSED | 9 * C)))) == (1, 0, 0)
    assert totals(report(put(data, (L2 + 8 * 9, COPIED | 1 << 50)))) == (0, 0, 0)


def test_an_image_with_a_data_file_has_no_snapshots() -> None:
    table = snapshot_table([(ENTRY.replace(l1_size=0), bytes(16), b"1", b"one")])
    assert "an image with a data file has snapshots" in " ".join(details(report(with_snapshots(external(), table, 1))))


def test_rejects_a_data_file_without_name_or_bit() -> None:
    with pytest.raises(ImageError, match="does not name it"):
        report(changed(FULL, incompatible_features=INCOMPATIBLE_DATA_FILE))
    with pytest.raises(ImageError, match="there is none"):
        report(changed(FULL, autoclear_features=AUTOCLEAR_DATA_FILE_RAW))


def snapshotted(row: SnapshotEntry, extra: int = 16) -> bytes:
    """Return ``FULL`` with one snapshot; nothing but its own L1 table is counted once more."""
    data = with_snapshots(FULL, snapshot_table([(row, bytes(extra), b"1", b"one")]), 1)
    clusters_used = -(-len(data) // C)
    return put(data, refcount(clusters_used - 1, 1), width=2)


def test_tables_of_snapshots_are_counted() -> None:
    found = report(snapshotted(ENTRY.replace(l1_table_offset=L1, l1_size=8)))
    # L1 and L2 table and all data are used twice, and refcounted once.
    assert sum(row.code == "qcow2-refcount-corruption" for row in found.findings) == 66
    assert found.allocated_clusters == 64


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"l1_table_offset": 512}, "does not start at a multiple"),
        ({"l1_size": (32 << 20) // 8 + 1}, "the table is too large"),
        ({"l1_table_offset": 1 << 50, "l1_size": 1}, "behind the end of the file"),
    ],
)
def test_finds_a_broken_snapshot(fields: dict[str, int], words: str) -> None:
    found = report(snapshotted(ENTRY.replace(**fields)))
    assert totals(found) == (1, 0, 0)
    assert words in details(found)[0]


def test_a_snapshot_where_no_file_can_reach_is_an_error() -> None:
    found = report(snapshotted(ENTRY.replace(l1_table_offset=1 << 63, l1_size=1)))
    assert found.check_errors == 1


def test_version_3_demands_extra_data_of_a_snapshot() -> None:
    found = report(snapshotted(ENTRY.replace(l1_size=0), extra=8))
    assert totals(found) == (1, 0, 0)
    assert "lacks extra data" in details(found)[0]


def test_rejects_a_snapshot_table_that_is_too_large() -> None:
    with pytest.raises(ImageError) as caught:
        report(changed(FULL, nb_snapshots=65537))
    assert (caught.value.kind, caught.value.structure) == ("too-large", "Snapshot table")


def test_clusters_of_bitmaps_are_counted() -> None:
    found = report(with_bitmaps(BITMAP.pack() + b"full", table=3 * C))
    wrong = {row.values[0]: row.values[1:] for row in found.findings if row.code.startswith("qcow2-refcount")}
    assert wrong == {3: (1, 2), 4: (0, 1), 5: (0, 1)}


def test_a_broken_table_of_a_bitmap_in_use_is_an_error() -> None:
    assert report(with_bitmaps(BITMAP.replace(flags=1).pack() + b"full", table=2)).check_errors == 1


def test_an_encrypted_image_is_checked_without_its_key() -> None:
    found = report(encrypted(LUKS))
    assert [row.values for row in found.findings if row.code == "qcow2-refcount-corruption"] == [(4, 0, 1)]


# --- bounds --------------------------------------------------------------------------------------------


def test_rejects_a_file_of_too_many_clusters() -> None:
    with pytest.raises(ImageError) as caught:
        report(reader(FULL, size=(1 << 31) * C))
    assert (caught.value.kind, caught.value.structure) == ("too-large", "Image file")


def test_a_huge_hole_at_the_end_costs_little() -> None:
    start = time.process_time()
    assert totals(report(reader(FULL, size=(1 << 30) * C))) == (0, 0, 0)
    assert time.process_time() - start < 5


def test_rejects_references_that_are_too_scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_REFERENCE_PAGES", 32)
    table = u64s(*(COPIED | (1 << 30) + index * (1 << 30) for index in range(8192)))
    with pytest.raises(ImageError) as caught:
        report(reader(FULL[:L2] + table + FULL[L2 + C :], size=1 << 45))
    assert (caught.value.kind, caught.value.structure) == ("too-large", "References")


def test_scattered_references_need_memory_only_for_their_pages() -> None:
    table = u64s(*(COPIED | (1 << 30) + index * (1 << 30) for index in range(2048)), *[0] * 6144)
    tracemalloc.start()
    try:
        found = report(reader(FULL[:L2] + table + FULL[L2 + C :], size=1 << 45))
        assert tracemalloc.get_traced_memory()[1] < 16 * MiB
    finally:
        tracemalloc.stop()
    assert found.corruptions == 2 * 2048
    assert len(found.findings) == MAX_FINDINGS


def test_rejects_l2_tables_that_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_CHECKED_L2_BYTES", 4 * C)
    with pytest.raises(ImageError) as caught:
        report(reader(put(planned(3 * GiB), *((L1 + 8 * index, (10 + index) * C) for index in range(6))), size=GiB))
    assert (caught.value.kind, caught.value.structure) == ("too-large", "L2 table")


def test_rejects_l1_tables_that_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_CHECKED_L1_ENTRIES", 8)
    row = (ENTRY.replace(l1_table_offset=L1, l1_size=4), bytes(16), b"1", b"one")
    with pytest.raises(ImageError) as caught:
        report(with_snapshots(FULL, snapshot_table([row] * 3), 3))
    assert caught.value.kind == "too-large"


def test_a_table_is_read_once_however_often_it_is_named() -> None:
    """An L1 table whose entries all point to one L2 table: QEMU reads that table each time."""
    count = 100_000
    data = changed(FULL, l1_size=count, l1_table_offset=128 * C)
    image = reader(data)
    image.parts, image.size = {0: data, 128 * C: u64s(L2 | COPIED) * count}, 256 * C
    read, sizes = image.read, Counter[int]()

    def counting(offset: int, length: int) -> bytes:
        sizes[offset] += 1
        return read(offset, length)

    image.read = counting  # type: ignore[method-assign]
    start = time.process_time()
    found = report(image)
    assert sizes[L2] <= 4
    assert found.allocated_clusters == 64 * count
    assert found.corruptions >= 65535
    assert time.process_time() - start < 10


def test_a_refcount_table_that_names_one_block_everywhere_is_bounded() -> None:
    entries = C // 8
    data = put(FULL, *((BLOCKS + 8 * index, BLOCK) for index in range(entries)))
    start = time.process_time()
    found = report(reader(data, size=(1 << 27) * C))
    assert found.leaks > 200_000
    assert time.process_time() - start < 30


@pytest.mark.parametrize("make", [rich, lambda: FULL, external], ids=["rich", "full", "external"])
def test_survives_every_header_field(make: Callable[[], bytes]) -> None:
    data = make()
    random.seed(5)
    for record, base in ((Header, 0), (HeaderV3, 72)):
        for field in record.FIELDS:
            most = (1 << 8 * field.size) - 1
            for value in (0, 1, most, most >> 1, random.randrange(most)):
                at = base + field.offset
                survives(data[:at] + value.to_bytes(field.size, "big") + data[at + field.size :])


def test_survives_being_cut() -> None:
    data = rich()
    for end in [*range(0, 1024, 64), *range(1024, len(data), 8192)]:
        survives(data[:end])


def test_survives_noise_in_its_tables() -> None:
    random.seed(6)
    for _ in range(40):
        noise = random.randbytes(C)
        at = random.choice([L1, L2, BLOCK, BLOCKS])
        survives(FULL[:at] + noise + FULL[at + C :])


def survives(data: bytes) -> None:
    try:
        encode(report(data).to_wire())
    except ImageError as error:
        if not error.sentence().isprintable():
            pytest.fail(error.sentence())


def test_pages_of_equal_counts_are_shared() -> None:
    """Pages fill piece by piece; a full one costs nothing more."""
    counted = references.References(open_image(reader(FULL, size=8192 * C)), Report())
    for first in range(0, 4096, 64):
        counted.run("Data cluster", first, 64)
    counted.run("Data cluster", 1024, 1024)
    assert [counted.pages[number] is references.uniform(1 + (number == 1)) for number in range(4)] == [True] * 4
    assert (counted.get(0), counted.get(1500), counted.get(4095), counted.get(4096)) == (1, 2, 1, 0)


@pytest.mark.slow
def test_a_preallocated_terabyte_needs_little_memory_and_time(tmp_path: Path) -> None:
    """128 MiB of L2 tables, 2^24 clusters: a few seconds, and under 64 MiB with the interpreter."""
    path = tmp_path / "terabyte"
    program = next(iter(generations().values()), None)
    if program is None:
        pytest.skip("qemu-img is not installed (Debian: qemu-utils)")
    made = run(program, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, str(TiB))
    assert made.returncode == 0, made.stderr
    code = """
import os, sys, time
from instar.formats.qcow2.check import check
from instar.formats.qcow2.header import open_image
from instar.sandbox.files import GrantedFile
fd = os.open(sys.argv[1], os.O_RDONLY)
start = time.process_time()
found = check(GrantedFile(0, fd, "r", os.fstat(fd).st_size), (), generation=(11, 1))
seconds = time.process_time() - start
print(found.corruptions, found.leaks, found.allocated_clusters, seconds)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    source = Path(__file__).parents[3] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(source)}
    )
    corruptions, leaks, allocated, seconds, kilobytes = done.stdout.split()
    assert (corruptions, leaks, allocated) == ("0", "0", str(1 << 24))
    assert float(seconds) < 6
    assert int(kilobytes) < 64 * 1024


def test_extensions_do_not_disturb_a_check() -> None:
    assert totals(report(with_extensions(FULL, (EXTENSION_DATA_FILE, b"unused")))) == (0, 0, 0)


@pytest.mark.parametrize("pointer", [MiB | 1 << 63, MiB, MiB | 1, MiB + 512, 1 << 40, MiB | 1 << 56])
@pytest.mark.parametrize("bits", ["", "refcount_bits=64", "refcount_bits=1"])
def test_an_l1_table_of_one_entry_again_and_again_counts_as_entry_by_entry(
    pointer: int, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^22 of them took a minute; they are judged together, with the same totals."""
    count = 40_000
    l2 = u64s(*(1 << 63 | 2 * MiB + 65536 * (n % 3) for n in range(40))).ljust(65536, b"\0")
    plain = planned(MiB, bits)
    image = changed(plain, size=count << 29, l1_size=count, l1_table_offset=4 * MiB)
    data = BytesReader(image, parts={MiB: l2, 4 * MiB: u64s(pointer) * count}, size=8 * MiB)
    together = check(data, [], generation=NOW)
    monkeypatch.setattr(clusters, "_ONE_BY_ONE", 1 << 30)
    apart = check(data, [], generation=NOW)
    for name in Report.__slots__:
        if name != "findings":
            assert getattr(together, name) == getattr(apart, name), name
    # A thousand of one kind leave no room for others.
    assert {finding.code for finding in together.findings} >= {finding.code for finding in apart.findings}
