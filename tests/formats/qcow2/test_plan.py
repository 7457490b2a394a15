"""Planned images are qemu-img's, byte for byte; and they keep the format's own rules without it."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from tests.support import apply_plan, extents, needs_qemu_img, qemu_img, qemu_info, same_bytes, same_holes, same_storage

from instar.core.options import read_settings, split_list
from instar.core.plan import Allocate, Backing, Plan, Seed
from instar.core.units import align_up
from instar.formats.qcow2.allocate import Allocator
from instar.formats.qcow2.layout import Layout
from instar.formats.qcow2.ondisk import COPIED, HEADER_V3_OFFSET, Header, HeaderV3
from instar.formats.qcow2.options import CREATE, resolve
from instar.formats.qcow2.plan import create
from instar.formats.qcow2.tables import Ramp

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

SIZES = [0, 1, 511, 512, 513, MiB, MiB + 1, GiB, 10 * GiB + 512, TiB]

#: One of each value of each option, and what goes together.
CHOICES = [
    "",
    "compat=0.10",
    "compat=v2,cluster_size=512",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    *(f"cluster_size={size}" for size in ("2k", "4k", "8k", "2M")),
    *(f"refcount_bits={bits}" for bits in (1, 2, 4, 8, 32, 64)),
]

#: Refcount blocks and moved refcount tables come between the clusters of small size.
PREALLOCATED = [
    ("preallocation=metadata", 0),
    ("preallocation=metadata", 64 * MiB),
    ("preallocation=metadata", 1000000),
    ("preallocation=metadata,lazy_refcounts=on,compression_type=zstd", 10 * GiB + 512),
    ("preallocation=metadata,compat=v2", 3 * GiB + 1),
    ("preallocation=metadata,extended_l2=on", 1000000),
    ("preallocation=metadata,extended_l2=on,cluster_size=16k", 3 * GiB - 1024),
    ("preallocation=metadata,cluster_size=128k", 2 * GiB - 1),
    ("preallocation=metadata,cluster_size=128k,refcount_bits=64", 9 * GiB),
    ("preallocation=metadata,cluster_size=2M", 20 * GiB + 513),
    ("preallocation=metadata,cluster_size=512", 8258560),
    ("preallocation=metadata,cluster_size=512,refcount_bits=1", 3 * MiB),
    ("preallocation=metadata,cluster_size=512,refcount_bits=2", 1000000),
    ("preallocation=metadata,cluster_size=512,refcount_bits=64", 2064896),
    ("preallocation=metadata,cluster_size=512,refcount_bits=64", 7 * MiB + 1),
    ("preallocation=metadata,cluster_size=1k,refcount_bits=64", 16777216),
    ("preallocation=metadata,cluster_size=1k,refcount_bits=32", 33 * MiB),
    ("preallocation=metadata,cluster_size=4k,refcount_bits=4", 300 * MiB + 512),
    ("preallocation=falloc", 0),
    ("preallocation=falloc", 64 * MiB),
    ("preallocation=falloc,extended_l2=on", 1000000),
    ("preallocation=falloc,cluster_size=512,refcount_bits=64", 3 * MiB),
    ("preallocation=falloc,cluster_size=512", 10 * MiB + 513),
    ("preallocation=falloc,cluster_size=4k,refcount_bits=1", 40 * MiB),
    ("preallocation=falloc,cluster_size=2M,compat=v2", 11 * MiB),
    ("preallocation=full", 0),
    ("preallocation=full", 5 * MiB + 512),
    ("preallocation=full,cluster_size=1k,refcount_bits=8", 3 * MiB + 1),
]


def planned(size, text="", backing=None):
    chosen = resolve(size, read_settings(CREATE, split_list(text) if text else [], format="qcow2"), backing)
    return create(size, chosen, Seed(backing=backing))


def compare(tmp_path, size, text, backing=None):
    """Make the image in both ways; return the two files, which are equal."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = ["-o", text] if text else []
    over = ["-u", "-b", backing.name, "-F", backing.format] if backing else []
    qemu_img("create", "-q", "-f", "qcow2", *options, *over, theirs, f"{size}")
    apply_plan(planned(size, text, backing), ours)
    same_bytes(ours, theirs)
    return ours, theirs


# --- side by side -------------------------------------------------------------------------------------------------


@needs_qemu_img
@pytest.mark.parametrize("text", CHOICES)
def test_has_the_bytes_and_holes_of_qemu_img(tmp_path, text):
    for size in SIZES:
        if "=512" in text and size > 100 * GiB:
            continue
        ours, theirs = compare(tmp_path, size, text)
        same_holes(ours, theirs)
        ours.unlink()
        theirs.unlink()


@needs_qemu_img
@pytest.mark.parametrize(("text", "size"), PREALLOCATED)
def test_preallocates_as_qemu_img_does(tmp_path, text, size):
    ours, theirs = compare(tmp_path, size, text)
    if "metadata" in text:
        assert extents(ours) == extents(theirs)
    same_storage(ours, theirs)
    assert qemu_img("check", ours).stdout.startswith("No errors were found")


@needs_qemu_img
@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("text", ["cluster_size=128k", "cluster_size=16k,refcount_bits=64", "cluster_size=2M"])
def test_preallocates_over_a_backing_file_as_qemu_img_does(tmp_path, text, mode):
    """The first is what Proxmox asks for; subclusters stay unallocated, so that the backing file shows."""
    for size in (0, 10000001, 64 * MiB):
        compare(tmp_path, size, f"extended_l2=on,preallocation={mode},{text}", Backing("base", "qcow2"))


@needs_qemu_img
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("cluster_size=512", 9 * GiB),
        ("cluster_size=512,refcount_bits=64", GiB),
        ("cluster_size=512,refcount_bits=64", 24739011584),  # The spare clusters that a growing table counts show.
        ("cluster_size=1k,refcount_bits=64", 20 * GiB),
        ("cluster_size=512,refcount_bits=1", 128 * GiB),
        ("cluster_size=2M", 2 << 60),
        ("cluster_size=2M,extended_l2=on", 1 << 60),
    ],
)
def test_makes_room_for_an_l1_table_of_many_clusters(tmp_path, text, size):
    ours, theirs = compare(tmp_path, size, text)
    assert extents(ours) == extents(theirs)


@needs_qemu_img
@pytest.mark.parametrize(
    ("text", "name", "format"),
    [
        ("", "base.qcow2", "qcow2"),
        ("compat=0.10", "base.raw", "raw"),
        ("cluster_size=512", "n" * 376, "raw"),
        ("", "n" * 1023, "vmdk"),
        ("", 'json:{"driver":"raw","file":{"driver":"file","filename":"ä,b"}}', "raw"),
        ("", "caf\udce9", "qed"),
        ("", "base", "copy-before-write"),  # QEMU stores 15 bytes of it.
        ("extended_l2=on,cluster_size=128k,preallocation=metadata", "base.qcow2", "qcow2"),
        ("extended_l2=on,preallocation=falloc", "base.qcow2", "qcow2"),
        ("extended_l2=on,preallocation=full,lazy_refcounts=on", "base.qcow2", "qcow2"),
    ],
)
def test_names_the_backing_file_as_qemu_img_does(tmp_path, text, name, format):
    compare(tmp_path, 3 * MiB + 512, text, Backing(name, format))


@needs_qemu_img
@pytest.mark.slow
def test_one_tebibyte_of_metadata_is_qemu_imgs(tmp_path):
    ours, theirs = compare(tmp_path, TiB, "preallocation=metadata")
    assert extents(ours) == extents(theirs)


@needs_qemu_img
@pytest.mark.parametrize("text", ["", "compat=v2", "extended_l2=on,preallocation=metadata", "preallocation=full"])
def test_reads_as_zeros(tmp_path, text):
    ours, empty = tmp_path / "ours", tmp_path / "empty"
    apply_plan(planned(20 * MiB + 512, text), ours)
    with empty.open("wb") as file:
        file.truncate(20 * MiB + 512)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", ours, empty)
    assert qemu_img("check", ours).stdout.startswith("No errors were found")


@needs_qemu_img
def test_says_what_was_chosen(tmp_path):
    ours = tmp_path / "ours"
    apply_plan(planned(3 * GiB + 1, "refcount_bits=8,lazy_refcounts=on,compression_type=zstd,cluster_size=8k"), ours)
    info = qemu_info(ours)
    assert (info["virtual-size"], info["cluster-size"]) == (3 * GiB + 512, 8192)
    data = info["format-specific"]["data"]
    assert (data["compat"], data["refcount-bits"], data["lazy-refcounts"], data["compression-type"]) == (
        "1.1",
        8,
        True,
        "zstd",
    )


# --- by the format's rules ----------------------------------------------------------------------------------------

EVERY = [(text, size) for text in CHOICES for size in SIZES[:-1]] + PREALLOCATED


@pytest.mark.parametrize(("text", "size"), EVERY)
def test_items_are_apart_and_inside_the_file(text, size):
    plan = planned(size, text)
    plan.check()
    assert plan.virtual_size == align_up(size, 512)
    assert sum(item.length for item in plan.items) <= plan.sizes[0]


@pytest.mark.parametrize(("text", "size"), EVERY)
def test_every_piece_is_as_long_as_its_item_says(text, size):
    for item in planned(size, text).items:
        if isinstance(item, Allocate):
            continue
        at = item.offset
        for offset, data in item.pieces():
            assert offset == at
            assert 0 < len(data) <= MiB
            at += len(data)
        assert at == item.offset + item.length


@pytest.mark.parametrize("order", range(7))
@pytest.mark.parametrize("cluster_size", [512, 1024, 4096, 16384])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc"])
def test_every_used_cluster_has_one_owner_and_one_refcount(cluster_size, order, preallocation):
    for size in (0, 512, 1000448, 4 * MiB, 20 * MiB + 512, 2 * GiB if preallocation == "off" else 9 * MiB):
        layout = Layout(size, cluster_size, order, preallocation=preallocation)
        state = layout.clusters
        owned = [(0, 1), (state.table_start, state.table_clusters)]
        owned += [(block, 1) for block in state.blocks if block]
        if layout.l1_entries:
            owned.append((layout.l1_start, -(-layout.l1_entries * 8 // cluster_size)))
        owned += [(table, 1) for table in layout.tables()]
        owned += layout.data()
        joined = []
        for start, count in sorted(owned):
            if joined and joined[-1][1] == start:
                joined[-1][1] += count
            else:
                joined.append([start, start + count])
        assert joined == state.used
        assert sum(count for _, count in layout.data()) == (0 if preallocation == "off" else layout.data_clusters)
        for _, end in state.used:
            assert state.blocks[(end - 1) // state.per_block]


def test_small_and_large_steps_lay_out_the_same(monkeypatch):
    """Rows of tables are taken at once where nothing is in the way; it must not show."""
    cases = [
        (300 * MiB, 4096, 4, "metadata"),
        (40 * GiB, 65536, 4, "metadata"),
        (9 * MiB, 512, 6, "metadata"),
        (9 * GiB, 131072, 6, "metadata"),
        (5 * MiB, 512, 4, "falloc"),
        (900 * MiB, 4096, 0, "falloc"),
    ]

    def laid_out():
        for size, cluster_size, order, mode in cases:
            layout = Layout(size, cluster_size, order, preallocation=mode)
            runs = []
            for start, count in layout.data():
                if runs and sum(runs[-1]) == start:
                    start, count = runs[-1][0], runs.pop()[1] + count
                runs.append((start, count))
            yield list(layout.tables()), runs, layout.clusters.used, list(layout.clusters.blocks), layout.end

    quick = list(laid_out())
    monkeypatch.setattr("instar.formats.qcow2.allocate.Allocator.alloc_rows", lambda self, count, length: (0, 0))
    assert list(laid_out()) == quick


@pytest.mark.parametrize("spacing", [8, 16])
@pytest.mark.parametrize("step", [512, 4096, 32768, 65536, 2 * MiB])
def test_ramp_makes_what_one_by_one_would(step, spacing):
    ramp = Ramp(step, spacing)
    assert 512 <= ramp.count <= 65536
    most = ramp.count * step
    # Within the low bytes, up to where they end, across that place, and where all high bytes change.
    for start in (0, 0xABCDEF << 21, most - 3 * step, 7 * most - step, (1 << 48) - step, (1 << 56) - 4 * most, most):
        for count in (1, 2, 100, 2 * ramp.count + 3 if start == most - 3 * step else 3):
            first = COPIED | start
            expected = b"".join((first + k * step).to_bytes(8, "big").ljust(spacing, b"\0") for k in range(count))
            assert ramp.table(first, count) == expected


@pytest.mark.parametrize("order", range(7))
@pytest.mark.parametrize("cluster_size", [512, 1024, 4096, 16384])
def test_rounds_lay_out_what_single_steps_do(monkeypatch, cluster_size, order):
    """Sizes at which a round begins and ends in different ways, and which a request of QEMU's cuts."""
    rounds = 0

    def counted(self, *args):
        nonlocal rounds
        found = real(self, *args)
        rounds += len(found)
        return found

    def laid_out():
        found = []
        for size in (20 * span, 33 * span + 512, 101 * span - cluster_size):
            layout = Layout(size, cluster_size, order, extended_l2=extended, preallocation="metadata")
            clusters = layout.clusters
            found.append((list(layout.tables()), list(layout.data()), clusters.blocks, clusters.used, layout.end))
        return found

    real = Allocator.alloc_rounds
    extended = cluster_size == 16384
    span = cluster_size * cluster_size // (16 if extended else 8)
    monkeypatch.setattr(Allocator, "alloc_rounds", counted)
    fast = laid_out()
    assert rounds or order < 3 or extended
    monkeypatch.setattr(Allocator, "alloc_rounds", lambda *_: [])
    assert laid_out() == fast


@pytest.mark.parametrize(("text", "items"), [("", 5), ("preallocation=metadata", 7), ("preallocation=falloc", 7)])
def test_data_file_is_file_1_and_kept_means_untouched(text, items):
    text = f"data_file=d,{text}".rstrip(",")
    plan = planned(100000, text)
    plan.check()
    assert plan.sizes[1] == (131072 if "pre" in text else 100352)
    assert len([item for item in plan.items if item.file == 1]) == 1
    assert len(list(plan.items)) == items
    if "falloc" not in text:
        kept = planned(100000, f"{text},data_file_raw=on,keep_data_file=on")
        assert kept.sizes[1] == 131072
        assert not [item for item in kept.items if item.file == 1]


def test_header_is_right_without_asking_anybody():
    plan = planned(GiB, "refcount_bits=64,lazy_refcounts=on,extended_l2=on,compression_type=zstd")
    data = next(iter(plan.items)).data
    header = Header.unpack(data)
    assert (header.version, header.size, header.l1_size, header.l1_table_offset) == (3, GiB, 4, 3 * 65536)
    v3 = HeaderV3.unpack(data, HEADER_V3_OFFSET)
    assert (v3.incompatible_features, v3.compatible_features, v3.refcount_order) == (0x18, 1, 6)


def test_takes_nothing_from_entropy_time_or_name():
    chosen = resolve(GiB, read_settings(CREATE, [], format="qcow2"), None)
    one = create(GiB, chosen, Seed())
    other = create(GiB, chosen, Seed(entropy=b"\xa5" * 64, time=1 << 31, file_name="x"))
    assert one.text() == other.text()


def test_a_tebibyte_of_metadata_is_planned_in_no_time_and_space():
    tracemalloc.start()
    begun = time.process_time()
    plan = planned(TiB, "preallocation=metadata")
    count = sum(1 for _ in plan.items)
    took = time.process_time() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 2048
    assert took < 2
    assert peak < 8 * MiB


def test_text_of_a_plain_image():
    assert shortened(planned(10 * GiB)) == GOLDEN_PLAIN


def test_text_of_an_image_whose_refcount_table_moved():
    assert shortened(planned(2064896, "cluster_size=512,refcount_bits=64,preallocation=metadata")) == GOLDEN_MOVED


def test_text_of_a_reserved_image():
    assert shortened(planned(MiB + 1, "preallocation=falloc,compat=v2,cluster_size=8k")) == GOLDEN_RESERVED


def shortened(plan: Plan) -> str:
    """Return a plan's text without full refcount blocks and the L2 tables between first and last, bytes cut."""
    lines = [line if len(line) < 110 else line[:109] + "…" for line in plan.text().splitlines()]
    lines = [line for line in lines if not ("refcount block" in line and "fill" in line)]
    tables = [line for line in lines if " L2 table " in line]
    return "\n".join(line for line in lines if line not in tables[2:-2])


GOLDEN_PLAIN = """\
virtual_size 10737418240  cluster 65536  files 196768
0 0x000000000000 0x00010000 header: write  514649fb0000000300000000000000000000000000000010000000028000000000…
0 0x000000010000 0x00010000 refcount table: write  000000000002 +65530 zeros
0 0x000000020000 0x00010000 refcount block 0: write  0001000100010001 +65528 zeros
0 0x000000030000 0x000000a0 L1 table: fill   00 × 160"""
GOLDEN_MOVED = """\
virtual_size 2064896  cluster 512  files 2165760
0 0x000000000000 0x00000200 header: write  514649fb000000030000000000000000000000000000000900000000001f820000…
0 0x000000208400 0x00000400 refcount table: write  00000000000004000000000000008a000000000000010e000000000000…
0 0x000000000400 0x00000200 refcount block 0: write  00000000000000010000000000000000000000000000000100000000…
0 0x000000200200 0x00000200 refcount block 64: write  000000000000000100000000000000010000000000000001 +488 z…
0 0x000000208200 0x00000200 refcount block 66: write  0000000000000001000000000000000100000000000000010000000…
0 0x000000000200 0x00000200 former refcount table: write  00000000000004000000000000008a000000000000010e00000…
0 0x000000000600 0x00000200 L1 table: write  80000000000008008000000000008c0080000000000110008000000000019400…
0 0x000000000800 0x00000200 L2 table 0: series 0x8000000000000a00 + k·0x200, 64 × 64 bit >
0 0x000000008c00 0x00000200 L2 table 1: series 0x8000000000008e00 + k·0x200, 64 × 64 bit >
0 0x000000210800 0x00000008 L2 table 63: series 0x8000000000210a00 + k·0x200, 1 × 64 bit >
0 0x000000210808 0x000001f8 rest of L2 table 63: fill   00 × 504"""
GOLDEN_RESERVED = """\
virtual_size 1049088  cluster 8192  files 1097728
0 0x000000000000 0x00002000 header: write  514649fb000000020000000000000000000000000000000d000000000010020000…
0 0x000000008000 0x00002000 refcount table: write  00000000000040 +8185 zeros
0 0x000000004000 0x00002000 refcount block 0: write  00010001000100010001000100010001000100010001000100010001…
0 0x000000006000 0x00000008 L1 table: write  80000000000020 +1 zeros
0 0x000000002000 0x00000408 L2 table 0: series 0x800000000000a000 + k·0x2000, 129 × 64 bit >
0 0x000000002408 0x00001bf8 rest of L2 table 0: fill   00 × 7160
0 0x00000000a000 0x00102000 data clusters: alloc  falloc"""
