"""Compressed clusters are counted in bulk exactly as one by one, on whole and on damaged images."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, qemu_img, reader, run

from instar.formats.qcow2.check import check
from instar.formats.qcow2.clusters import Clusters
from instar.formats.qcow2.references import References

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_qemu_img


def compressed(folder: Path, options: str) -> Path:
    """Make an image all clusters of which are compressed, but for a few."""
    number = random.Random(zlib.crc32(options.encode()))
    with (folder / "raw").open("wb") as file:
        for index in range(1500):
            kept = 4096 if index % 701 == 700 else number.choice((0, 20, 20, 900, 3000))
            file.write(number.randbytes(kept).ljust(4096, b"\0" if index % 3 else b"\1"))
    qemu_img("convert", "-c", "-O", "qcow2", "-o", options, folder / "raw", folder / "image")
    return folder / "image"


def report(path: Path) -> object:
    with reader(path) as image:
        return check(image, [], generation=(11, 1)).to_wire()


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Check in both ways; return the report, which is the same."""
    with monkeypatch.context() as slow:
        slow.setattr(Clusters, "_all_compressed", lambda *_: False)
        slow.setattr(References, "_repeated", lambda *_: False)
        expected = report(path)
    assert report(path) == expected
    return expected


@pytest.mark.parametrize("options", ["cluster_size=4k", "cluster_size=512", "cluster_size=64k,refcount_bits=8"])
def test_whole_image_is_clean(tmp_path, monkeypatch, options):
    path = compressed(tmp_path, options)
    found = both(path, monkeypatch)
    assert found["compressed_clusters"] > 50
    assert (found["corruptions"], found["leaks"]) == (0, 0)


@pytest.mark.parametrize("options", ["cluster_size=4k", "cluster_size=4k,refcount_bits=64", "cluster_size=512"])
def test_damaged_image_is_judged_as_one_by_one_and_as_qemu_img_does(tmp_path, monkeypatch, options):
    whole = compressed(tmp_path, options).read_bytes()
    number = random.Random(7)
    size = 1 << int.from_bytes(whole[20:24], "big")
    l1 = int.from_bytes(whole[40:48], "big")
    path = tmp_path / "damaged"
    codes = set()
    for kind in ("cut", "same", "copied", "offset", "length", "plain"):
        data = bytearray(whole)
        table = int.from_bytes(whole[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00
        for _ in range(40):
            at = table + 8 * number.randrange(size // 8)
            if kind == "same":
                data[table + 8 : table + size] = data[table : table + 8] * (size // 8 - 1)
            elif kind in ("copied", "plain"):
                data[at] ^= 0x80 if kind == "copied" else 0x40
            elif kind == "offset":
                data[at + number.choice((3, 4, 5))] ^= 1 << number.randrange(8)
            elif kind == "length":
                data[at + 1] ^= 1 << number.randrange(8)
        path.write_bytes(data[: len(data) * 2 // 3] if kind == "cut" else data)
        found = both(path, monkeypatch)
        done = run("qemu-img", "check", path)
        assert done.returncode == (2 if found["corruptions"] else 3 if found["leaks"] else 0), done.stderr[-200:]
        codes.add(done.returncode)
    assert 2 in codes
