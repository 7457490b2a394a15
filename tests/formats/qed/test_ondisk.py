from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.formats.qed.ondisk import F_BACKING_FILE, F_BACKING_FORMAT_NO_PROBE, MAGIC, Header, max_image_size

if TYPE_CHECKING:
    from pathlib import Path

# The header of an image made by qemu-img 7.2.22, `create -u -f qed -o cluster_size=8k,table_size=8 -b x -F raw t 3M`.
QEMU_HEADER = bytes.fromhex(
    "51454400" "00200000" "08000000" "01000000" "0500000000000000" "0000000000000000" "0000000000000000"
    "0020000000000000" "0000300000000000" "40000000" "01000000"
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("cluster_size", 4),
        ("header_size", 12),
        ("features", 16),
        ("autoclear_features", 32),
        ("l1_table_offset", 40),
        ("image_size", 48),
        ("backing_filename_size", 60),
    ],
)
def test_fields_stand_where_the_specification_puts_them(name: str, offset: int) -> None:
    assert Header.field(name).offset == offset
    assert Header.SIZE == 64


def test_reads_a_header_made_by_qemu() -> None:
    header = Header.unpack(QEMU_HEADER)
    assert header.magic == MAGIC
    assert (header.cluster_size, header.table_size, header.header_size) == (8192, 8, 1)
    assert header.features == F_BACKING_FILE | F_BACKING_FORMAT_NO_PROBE
    assert (header.l1_table_offset, header.image_size) == (8192, 3 << 20)
    assert (header.backing_filename_offset, header.backing_filename_size) == (64, 1)
    assert header.pack() == QEMU_HEADER


@needs_qemu_img
def test_the_header_above_is_that_of_the_program_here(tmp_path: Path) -> None:
    words = ["-q", "-u", "-f", "qed", "-o", "cluster_size=8k,table_size=8", "-b", "x", "-F", "raw"]
    qemu_img("create", *words, tmp_path / "t", "3M")
    assert (tmp_path / "t").read_bytes()[:65] == QEMU_HEADER + b"x"


@pytest.mark.parametrize(
    ("cluster_size", "table_size", "limit"),
    [(65536, 4, 64 << 40), (4096, 1, 1 << 30), (4096, 16, 256 << 30), (2 << 20, 4, 1 << 61), (8 << 20, 1, 1 << 63)],
)
def test_tables_map_what_the_specification_says(cluster_size: int, table_size: int, limit: int) -> None:
    assert max_image_size(cluster_size, table_size) == limit


@pytest.mark.parametrize(("cluster_size", "table_size"), [(64 << 20, 16), (64 << 20, 1), (4 << 20, 4)])
def test_nothing_is_left_where_qemu_runs_out_of_bits(cluster_size: int, table_size: int) -> None:
    assert max_image_size(cluster_size, table_size) == 0
