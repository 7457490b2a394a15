from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, needs_qemu_io, qemu_img, run

from instar.formats.qcow.ondisk import COMPRESSED, MAGIC, Header, compressed_place

if TYPE_CHECKING:
    from pathlib import Path

# The header of an image made by qemu-img 7.2.22, `create -u -f qcow -b nosuch -F raw t 1M`.
QEMU_HEADER = bytes.fromhex(
    "514649fb 00000001 0000000000000030 00000006 00000000 0000000000100000 09 0c 0000 00000000 0000000000000038"
)


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("version", 4),
        ("backing_file_offset", 8),
        ("size", 24),
        ("cluster_bits", 32),
        ("l2_bits", 33),
        ("crypt_method", 36),
        ("l1_table_offset", 40),
    ],
)
def test_fields_stand_where_qemu_puts_them(name: str, offset: int) -> None:
    assert Header.field(name).offset == offset
    assert Header.SIZE == 48


def test_reads_a_header_made_by_qemu() -> None:
    header = Header.unpack(QEMU_HEADER)
    assert (header.magic, header.version) == (MAGIC, 1)
    assert (header.backing_file_offset, header.backing_file_size) == (48, 6)
    assert (header.size, header.cluster_bits, header.l2_bits) == (1 << 20, 9, 12)
    assert (header.crypt_method, header.l1_table_offset) == (0, 56)
    assert header.pack() == QEMU_HEADER


@needs_qemu_img
def test_the_header_above_is_that_of_the_program_here(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-u", "-f", "qcow", "-b", "nosuch", "-F", "raw", tmp_path / "t", "1M")
    assert (tmp_path / "t").read_bytes()[:54] == QEMU_HEADER + b"nosuch"


@needs_qemu_io
def test_reads_an_entry_of_a_compressed_cluster_made_by_qemu(tmp_path: Path) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "qcow", path, "1M")
    assert run("qemu-io", "-f", "qcow", "-c", "write -c -P 7 0 4k", path).returncode == 0
    data = path.read_bytes()
    entry = int.from_bytes(data[4096:4104], "big")
    assert entry & COMPRESSED
    offset, length = compressed_place(entry, 12)
    # QEMU's file driver pads a file by zeros up to a sector.
    assert 8192 <= offset < offset + length <= len(data)
    assert set(data[offset + length :]) <= {0}
