"""Edges of what readers take: the last value that is good, and the first that is not, by its kind, field and limit."""

from __future__ import annotations

import pytest
from tests.formats.parallels.images import parallels
from tests.formats.qcow.images import empty as qcow
from tests.formats.qed.images import CLUSTER, allocated
from tests.formats.qed.images import empty as qed
from tests.formats.vdi.images import FREE, MiB, vdi
from tests.formats.vhdx.images import changed, entry
from tests.support import BytesReader

from instar.core.errors import ImageError
from instar.formats.parallels import parse as parallels_parse
from instar.formats.qcow import parse as qcow_parse
from instar.formats.qcow.ondisk import Header as QcowHeader
from instar.formats.qed import check as qed_check
from instar.formats.qed import parse as qed_parse
from instar.formats.qed.ondisk import max_image_size
from instar.formats.vdi import parse as vdi_parse
from instar.formats.vdi.ondisk import MAX_BLOCKS
from instar.formats.vhdx import check as vhdx_check
from instar.formats.vmdk import parse as vmdk_parse

NOW = (11, 1)
GiB = 1 << 30
#: Where the first block of a small VHDX may lie.
FIRST_FREE = 8 * MiB


def facts_of(call, *args: object) -> tuple[object, ...]:
    with pytest.raises(ImageError) as caught:
        call(*args, (), generation=NOW)
    return caught.value.kind, caught.value.field, caught.value.value, caught.value.limit


def test_a_qed_disk_is_as_large_as_its_tables_map() -> None:
    limit = max_image_size(CLUSTER, 2)
    assert qed_parse.info(BytesReader(qed(image_size=limit)), (), generation=NOW).virtual_size == limit
    assert facts_of(qed_parse.info, BytesReader(qed(image_size=limit + 512))) == (
        "too-large",
        "image_size",
        limit + 512,
        limit,
    )


def test_a_qed_header_ends_below_4_gib() -> None:
    # The L1 table must lie behind the header, so the file is that long.
    most = (1 << 32) // CLUSTER - 1
    size = (most + 8) * CLUSTER
    good = qed(header_size=most, l1_table_offset=(most + 1) * CLUSTER)
    assert qed_parse.info(BytesReader(good, size=size), (), generation=NOW).extra["header_size"] == most
    bad = qed(header_size=most + 1, l1_table_offset=(most + 2) * CLUSTER)
    assert facts_of(qed_parse.info, BytesReader(bad, size=size)) == ("too-large", "header_size", most + 1, most)


def test_a_run_of_qed_clusters_may_end_with_the_file() -> None:
    # Half an L2 table is looked at in one go; what is just behind the end is found one by one.
    data = allocated({0: 3}, {i: 5 + i for i in range(512)}, clusters=517)
    assert qed_check.check(BytesReader(data), (), generation=NOW).corruptions == 0
    assert qed_check.check(BytesReader(data[:-CLUSTER]), (), generation=NOW).corruptions == 1


def test_the_block_map_of_a_vdi_has_its_most_entries() -> None:
    for blocks in (MAX_BLOCKS, MAX_BLOCKS + 1):
        file = BytesReader(vdi([FREE], blocks_in_image=blocks, disk_size=MiB), size=1 << 40)
        if blocks == MAX_BLOCKS:
            assert vdi_parse.info(file, (), generation=NOW).virtual_size == MiB
        else:
            assert facts_of(vdi_parse.info, file)[:2] == ("too-large", "blocks_in_image")


def test_a_misplaced_block_is_found_at_its_place() -> None:
    found = vhdx_check.check(changed(entry(0, GiB | 6), length=16 * MiB), (), generation=NOW).findings
    assert [(finding.severity, finding.offset) for finding in found] == [("corruption", GiB)]
    sound = vhdx_check.check(changed(entry(0, FIRST_FREE | 6), length=FIRST_FREE + 8 * MiB), (), generation=NOW)
    assert sound.findings == []


@pytest.mark.parametrize("bits", [9, 16])
def test_clusters_of_a_qcow_image_have_512_bytes_to_64_kib(bits: int) -> None:
    step = 1 if bits == 16 else -1
    data = qcow(cluster_bits=bits)
    assert qcow_parse.info(BytesReader(data), (), generation=NOW).cluster_size == 1 << bits
    bad = QcowHeader.unpack(data).replace(cluster_bits=bits + step).pack() + data[QcowHeader.SIZE :]
    assert facts_of(qcow_parse.info, BytesReader(bad)) == ("corrupt", "cluster_bits", bits + step, None)


def test_a_parallels_disk_ends_with_its_bat() -> None:
    assert parallels_parse.info(BytesReader(parallels([1, 2])), (), generation=NOW).virtual_size == 16 * 512
    data = parallels([1, 2], nb_sectors=17)
    assert facts_of(parallels_parse.info, BytesReader(data))[:3] == ("corrupt", "nb_sectors", 17)


def test_a_vmdk_of_nothing_but_a_magic_is_long_enough_to_be_judged_by_it() -> None:
    assert facts_of(vmdk_parse.info, BytesReader(b"KDM")) == ("invalid-format", "file length", 3, 4)
    assert facts_of(vmdk_parse.info, BytesReader(b"KDMV"))[1] != "file length"
