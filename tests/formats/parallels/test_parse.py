from __future__ import annotations

import hashlib
import random

import pytest
from tests.compat.versions import VERSIONS, real
from tests.formats.parallels.images import GENERATIONS, NOW, OLD, bitmap, extended, parallels, reader
from tests.support import needs_qemu_img, qemu_img, qemu_info, run
from tests.support import reader as open_reader

from instar.cli.messages.parallels import QEMU_OPEN
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.wire import decode, encode
from instar.formats.parallels.md5 import md5
from instar.formats.parallels.ondisk import FEATURE_BITMAP, Feature
from instar.formats.parallels.parse import info

#: A bitmap of the disk that ``extended`` makes: 32 sectors, one bit for 64 KiB.
TWO = bitmap([1], id=b"a" * 16) + bitmap([0], id=b"b" * 16)


def facts(data: bytes, generation: tuple[int, int] = NOW) -> ImageFacts:
    return info(reader(data), (), generation=generation)


def test_describes_an_image() -> None:
    found = facts(parallels([1, 2, 0, 3]))
    assert (found.format, found.virtual_size, found.cluster_size) == ("parallels", 16384, None)
    assert (found.extra["cluster_size"], found.extra["data_offset"], found.dirty) == (4096, 4096, False)
    assert not found.has_dirty_flag
    assert ImageFacts.from_wire(decode(encode(found.to_wire()))).extra == found.extra


def test_says_that_an_image_is_in_use() -> None:
    assert facts(parallels([1], inuse=0x746F6E59)).dirty


def test_an_image_of_the_older_kind_has_a_size_of_32_bits() -> None:
    data = parallels([1, 9], old=True, data_off=0, nb_sectors=(5 << 32) + 16)
    assert facts(data).virtual_size == 8192


@needs_qemu_img
@pytest.mark.parametrize("size", [0, 1, 10 << 20, (1 << 40) + 513])
@pytest.mark.parametrize("cluster", ["300k", "1M"])
def test_images_made_by_qemu_have_the_size_that_qemu_says(tmp_path, size: int, cluster: str) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "parallels", "-o", f"cluster_size={cluster}", path, str(size))
    with open_reader(path) as file:
        assert info(file, (), generation=NOW).virtual_size == qemu_info(path)["virtual-size"]


EXT = (1 << 54) - 2
REFUSED = {
    "magic": (b"X" + parallels([1])[1:], "invalid-format", "magic"),
    "version": (parallels([1], version=1), "invalid-format", "version"),
    "no sectors": (parallels([1], tracks=8)[:28] + bytes(4) + parallels([1])[32:], "corrupt", "tracks"),
    "cluster": (parallels([1])[:28] + (4186128).to_bytes(4, "little") + parallels([1])[32:], "too-large", "tracks"),
    "BAT": (parallels([1], bat_entries=0x20000000), "too-large", "bat_entries"),
    "size": (parallels([1], nb_sectors=(1 << 54) - 1, bat_entries=1), "too-large", "nb_sectors"),
    "extension far": (parallels([1], ext_off=EXT + 1), "out-of-bounds", "ext_off"),
    "extension end": (parallels([1], ext_off=EXT), "out-of-bounds", "ext_off end"),
    "extension magic": (extended(b"", magic=7), "corrupt", "magic"),
    "extension checksum": (extended(b"", spoil=True), "corrupt", "m_CheckSum"),
    "feature flags": (extended(bitmap([0], flags=1)), "unsupported-feature", "flags"),
    "feature data": (extended(bitmap([0], data_size=5000)), "out-of-bounds", "data_size"),
    "feature unknown": (extended(bitmap([0], magic=0xABC)), "unsupported-feature", "magic"),
    "bitmap short": (extended(Feature(magic=FEATURE_BITMAP, data_size=8).pack() + bytes(8)), "corrupt", "bitmap"),
    "bitmap size": (extended(bitmap([0], size=33)), "corrupt", "size"),
    "bitmap table": (extended(bitmap([0, 0])), "corrupt", "l1_size"),
    "bitmap table cut": (extended(bitmap([0, 0], data_size=40)), "out-of-bounds", "l1_size"),
    "bitmap cluster": (extended(bitmap([1 << 54])), "out-of-bounds", "l1 entry"),
}


@needs_qemu_img
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_qemu_refuses_in_its_words(tmp_path, name: str) -> None:
    data, kind, field = REFUSED[name]
    path = tmp_path / "t"
    path.write_bytes(data)
    for version in VERSIONS:
        # The older read no further, and the newer compare the disk with the BAT first.
        if (name, version) == ("extension far", (7, 2)):
            wanted = ("out-of-bounds", "ext_off end")
        elif name == "size" and version > (11, 0):
            wanted = ("corrupt", "nb_sectors")
        else:
            wanted = (kind, field)
        with pytest.raises(ImageError) as caught:
            facts(data, version)
        error = caught.value
        assert (error.kind, error.field) == wanted
        words = QEMU_OPEN[wanted].format(
            value=error.value, hex=f"{error.value or 0:x}", limit=error.limit, expected=error.expected
        )
        done = run(real(version), "info", "-f", "parallels", path)
        assert done.stderr == f"qemu-img: Could not open '{path}': {words}\n"


@needs_qemu_img
def test_reads_the_bitmaps_of_an_extension_that_qemu_accepts(tmp_path) -> None:
    data = extended(TWO)
    found = facts(data)
    assert [row["id"] for row in found.extra["bitmaps"]] == ["61" * 16, "62" * 16]  # type: ignore[union-attr,index]
    assert found.extra["bitmaps"][0] == {"id": "61" * 16, "granularity": 65536, "clusters": 1}  # type: ignore[index]
    (tmp_path / "t").write_bytes(data)
    for version in VERSIONS:
        assert run(real(version), "info", "-f", "parallels", tmp_path / "t").returncode == 0


@pytest.mark.parametrize(
    "features", [bitmap([0]) + bitmap([0]), bitmap([0], granularity=3), bitmap([0], granularity=0)]
)
def test_refuses_bitmaps_that_cannot_be(features: bytes) -> None:
    # qemu-img refuses the first, and fails an assertion on the others.
    with pytest.raises(ImageError):
        facts(extended(features))


def test_refuses_an_extension_without_an_end() -> None:
    with pytest.raises(ImageError) as caught:
        facts(extended(Feature(magic=0xABC, data_size=0).pack() * 169, end=False, tracks=8))
    assert caught.value.field in ("features", "magic")


def test_refuses_an_extension_of_more_than_16_mib() -> None:
    data = parallels([0], tracks=65536, ext_off=65536)
    head = extended(b"")[3 * 4096 : 3 * 4096 + 24]
    with pytest.raises(ImageError) as caught:
        facts(data.ljust(65536 * 512, b"\0") + head)
    assert (caught.value.kind, caught.value.field) == ("too-large", "size")


def test_a_disk_longer_than_its_bat_is_refused_as_newer_versions_do() -> None:
    data = parallels([1, 2], nb_sectors=1000)
    assert facts(data, OLD).virtual_size == 512000
    with pytest.raises(ImageError, match="BAT is too short"):
        facts(data, NOW)


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 1000])
def test_md5_is_that_of_the_standard_library(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert md5([data]) == hashlib.md5(data).digest()
    assert md5([data[:64], data[64:]] if length > 64 else [data]) == hashlib.md5(data).digest()


def test_any_header_gives_facts_or_an_error() -> None:
    dice = random.Random(1)
    whole = extended(TWO)
    lines: set[str] = set()
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 5)):
            place = dice.randrange(16, 64) if turn % 2 else dice.randrange(3 * 4096, 3 * 4096 + 200)
            data[place] = dice.choice([0, 1, 255, dice.randrange(256)])
        # The checksum of a large cluster takes its time.
        data[29:32] = bytes(3)
        try:
            encode(facts(bytes(data), GENERATIONS[turn % 3]).to_wire())
        except ImageError as error:
            lines.update(str(error).splitlines()[1:])
    assert not lines
