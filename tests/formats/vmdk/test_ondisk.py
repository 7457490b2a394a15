from __future__ import annotations

import pytest
from tests.formats.vmdk.images import stream, theirs
from tests.support import needs_qemu_img, qemu_img

from instar.core.units import MiB
from instar.formats.vmdk import ondisk
from instar.formats.vmdk.ondisk import CowdHeader, GrainMarker, Marker, SeSparseHeader, SparseExtentHeader

#: First 512 bytes of ``qemu-img create -f vmdk q.vmdk 1G``, version 7.2.22.
QEMU_HEADER = bytes.fromhex(
    "4b444d560100000003000000000020000000000080000000000000000100000000000000140000000000000000020000"
    "150000000000000096000000000000008001000000000000000a200d0a00000000000000000000000000000000000000"
).ljust(512, b"\0")


def test_header_reads_the_bytes_that_qemu_wrote() -> None:
    header = SparseExtentHeader.unpack(QEMU_HEADER)
    assert dict(header.items()) == {
        "magic": b"KDMV",
        "version": 1,
        "flags": 3,
        "capacity": 1 << 21,
        "grain_size": 128,
        "descriptor_offset": 1,
        "descriptor_size": 20,
        "num_gtes_per_gt": 512,
        "rgd_offset": 21,
        "gd_offset": 150,
        "overhead": 384,
        "unclean_shutdown": 0,
        "newlines": b"\n \r\n",
        "compress_algorithm": 0,
        "pad": bytes(433),
    }
    assert header.pack() == QEMU_HEADER


@pytest.mark.parametrize(
    ("record", "size"), [("SparseExtentHeader", 512), ("Marker", 512), ("GrainMarker", 12), ("SeSparseHeader", 512)]
)
def test_structures_have_the_size_of_the_specification(record: str, size: int) -> None:
    assert size == getattr(ondisk, record).SIZE


def test_offsets_are_those_of_the_specification() -> None:
    fields = ("capacity", "num_gtes_per_gt", "rgd_offset", "overhead", "newlines", "compress_algorithm")
    assert [SparseExtentHeader.field(name).offset for name in fields] == [12, 44, 48, 64, 73, 77]
    assert [CowdHeader.field(name).offset for name in ("num_sectors", "gd_offset", "free_sector")] == [12, 20, 28]
    assert [SeSparseHeader.field(n).offset for n in ("volatile_header_offset", "grains_offset")] == [80, 192]


def test_marker_before_a_grain_has_no_type() -> None:
    data = bytes(stream({1: b"x" * 65536}, 1024))
    grain = GrainMarker.unpack(data, 128 * 512)
    assert (grain.lba, 0 < grain.size < 500) == (128, True)
    assert Marker.unpack(data, 129 * 512).type == ondisk.MARKER_GRAIN_TABLE


@needs_qemu_img
def test_grain_marker_reads_what_qemu_compressed(tmp_path) -> None:
    (tmp_path / "raw").write_bytes(bytes(65536) + b"abc" * 30000)
    out = tmp_path / "t.vmdk"
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", tmp_path / "raw", out)
    data = out.read_bytes()
    header = SparseExtentHeader.unpack(data)
    assert (header.version, header.flags, header.compress_algorithm) == (3, 0x30003, 1)
    assert GrainMarker.unpack(data, header.overhead * 512).lba == 128


@needs_qemu_img
def test_version_2_is_a_disk_with_zeroed_grains(tmp_path) -> None:
    header = SparseExtentHeader.unpack(theirs(tmp_path / "t", MiB, "zeroed_grain=on").read_bytes())
    assert (header.version, header.flags) == (2, 7)
