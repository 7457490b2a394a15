from __future__ import annotations

import contextlib
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.compat.versions import generations
from tests.formats.vmdk.images import (
    NOW,
    OLD,
    MiB,
    cowd,
    image,
    make,
    reader,
    sesparse,
    stream,
    text,
    theirs,
)
from tests.support import BytesReader, needs_qemu_img, qemu_img, run
from tests.support import reader as opened

from instar.core.errors import ImageError
from instar.core.image import Elsewhere
from instar.core.plan import Backing
from instar.core.wire import decode, encode
from instar.formats.vmdk.ondisk import FURTHER_TYPES, CowdHeader, SeSparseHeader, SparseExtentHeader
from instar.formats.vmdk.parse import info, is_descriptor

if TYPE_CHECKING:
    from pathlib import Path

    from instar.core.image import ImageFacts

LARGEST = ((1 << 32) - 512) * 65536


def describe(data: bytes | bytearray, *parts: bytes | None, generation: tuple[int, int] = NOW) -> ImageFacts:
    return info(reader(data), [None if part is None else reader(part) for part in parts], generation=generation)


def refused(data: bytes | bytearray, *parts: bytes | None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        describe(data, *parts)
    assert str(caught.value)
    return caught.value


def seen(path: Path, generation: tuple[int, int]) -> dict[str, Any]:
    """Return what we say of a file and its extents, with names as paths, as the host and renderer will."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened(path))
        facts = info(file, (), generation=generation)
        needs = [r for r in facts.references if r.required]
        if needs:
            parts = [stack.enter_context(opened(path.parent / r.name.decode())) for r in needs]
            facts = info(file, parts, generation=generation)
        facts = type(facts).from_wire(decode(encode(facts.to_wire())))
    specific: Any = facts.format_specific
    for role, row in zip(facts.extra["extents"], specific["data"]["extents"], strict=True):  # type: ignore[arg-type]
        row["filename"] = str(path if role == "file" else path.parent / row["filename"])
    shown = {"virtual-size": facts.virtual_size, "format": "vmdk", "format-specific": specific}
    if facts.cluster_size is not None:
        shown["cluster-size"] = facts.cluster_size
    if facts.has_dirty_flag:
        shown["dirty-flag"] = facts.dirty
    if facts.backing is not None:
        shown["backing-filename"] = facts.backing.name.decode()
        shown["backing-filename-format"] = facts.backing.format
    if generation >= (8, 0):
        shown["children"] = sorted(["file", *(r.role for r in facts.references if r.required)])
    return shown


def agree(path: Path) -> dict[str, Any]:
    """Compare with every generation of qemu-img; return what the last one said."""
    shown: dict[str, Any] = {}
    for generation, program in generations().items():
        done = run(program, "info", "-f", "vmdk", "--output=json", path)
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        keys = [list(row) for row in shown["format-specific"]["data"]["extents"]]
        for name in ("filename", "actual-size", "full-backing-filename"):
            shown.pop(name, None)
        if "children" in shown:
            shown["children"] = sorted(child["name"] for child in shown["children"])
        ours = seen(path, generation)
        assert ours == shown
        assert [list(row) for row in ours["format-specific"]["data"]["extents"]] == keys
        assert list(ours["format-specific"]["data"]) == list(shown["format-specific"]["data"])
    return shown


@needs_qemu_img
@pytest.mark.parametrize(
    "options",
    [
        "",
        "subformat=streamOptimized",
        "zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
    ],
)
@pytest.mark.parametrize("size", [513, 1 << 30, 3 << 30])
def test_shows_what_qemu_shows_of_qemus_images(tmp_path, options: str, size: int) -> None:
    agree(theirs(tmp_path / "t.vmdk", size, options))


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "subformat=streamOptimized", "grain_size=8k", "grain_size=64M,zeroed_grain"])
def test_shows_what_qemu_shows_of_ours(tmp_path, options: str) -> None:
    make(tmp_path / "t.vmdk", 1 << 30, options)
    agree(tmp_path / "t.vmdk")


@needs_qemu_img
@pytest.mark.parametrize("options", ["", "subformat=streamOptimized", "subformat=twoGbMaxExtentSparse"])
def test_shows_the_parent(tmp_path, options: str) -> None:
    parent = theirs(tmp_path / "p.vmdk", MiB)
    child = theirs(tmp_path / "t.vmdk", MiB, options, "-b", "p.vmdk", "-F", "vmdk")
    assert agree(child)["backing-filename"] == "p.vmdk"
    with opened(child) as file, opened(parent) as other:
        facts = info(file, (), generation=OLD)
        assert facts.references[-1].role == "backing"
        assert facts.extra["parent_cid"] == info(other, (), generation=OLD).extra["cid"]


@needs_qemu_img
def test_shows_what_qemu_shows_of_a_stream_with_a_footer(tmp_path) -> None:
    body = {0: bytes(65536), 3: b"x" * 65536, 600: b"y" * 65536}
    (tmp_path / "t.vmdk").write_bytes(stream(body, 600 * 128 + 256))
    shown = agree(tmp_path / "t.vmdk")
    assert shown["format-specific"]["data"]["extents"][0]["compressed"] is True
    qemu_img("convert", "-O", "raw", tmp_path / "t.vmdk", tmp_path / "raw")
    with (tmp_path / "raw").open("rb") as file:
        file.seek(3 * 65536)
        assert file.read(4) == b"xxxx"


@needs_qemu_img
def test_shows_what_qemu_shows_of_vmfs_extents(tmp_path) -> None:
    (tmp_path / "v-flat.vmdk").write_bytes(bytes(MiB))
    (tmp_path / "v-delta.vmdk").write_bytes(cowd(2048, tables={0: {0: 40, 7: 41}}))
    (tmp_path / "v-se.vmdk").write_bytes(sesparse(entries={0: 0x3000000000000000, 5: 0x2000000000000000}))
    (tmp_path / "v.vmdk").write_bytes(text('RW 2048 VMFS "v-flat.vmdk"', type="vmfs"))
    (tmp_path / "d.vmdk").write_bytes(text('RW 2048 VMFSSPARSE "v-delta.vmdk"', type="vmfsSparse"))
    (tmp_path / "s.vmdk").write_bytes(text('RW 65536 SESPARSE "v-se.vmdk"', type="seSparse"))
    agree(tmp_path / "v.vmdk")
    agree(tmp_path / "d.vmdk")
    agree(tmp_path / "s.vmdk")
    # QEMU finds our handmade grains where we put them.
    for name, needle in (("d", b"\xaa"), ("s", b"\xbb")):
        qemu_img("convert", "-f", "vmdk", "-O", "raw", tmp_path / f"{name}.vmdk", tmp_path / "raw")
        with (tmp_path / "raw").open("rb") as file:
            assert file.read(1) == needle


@needs_qemu_img
def test_extents_of_different_kinds_have_no_common_grain_and_no_dirty_flag(tmp_path) -> None:
    (tmp_path / "a").write_bytes(bytes(MiB))
    (tmp_path / "b").write_bytes(cowd(2048))
    make(tmp_path / "c", MiB, "subformat=streamOptimized")
    (tmp_path / "t").write_bytes(text('RW 2048 FLAT "a" 0', 'RW 2048 SPARSE "b"', 'RW 2048 SPARSE "c"'))
    shown = agree(tmp_path / "t")
    assert "dirty-flag" not in shown
    assert shown["format-specific"]["data"]["create-type"] == "streamOptimized"


@needs_qemu_img
def test_version_3_without_compression_is_read(tmp_path) -> None:
    data = image(MiB)
    data[4] = 3
    (tmp_path / "t").write_bytes(data)
    agree(tmp_path / "t")


@needs_qemu_img
def test_second_pass_uses_the_length_in_an_extents_header_as_qemu_does(tmp_path) -> None:
    path = theirs(tmp_path / "t.vmdk", MiB, "subformat=twoGbMaxExtentSparse")
    path.write_bytes(path.read_bytes().replace(b"RW 2048", b"RW 4096"))
    assert agree(path)["virtual-size"] == MiB
    with opened(path) as file:
        assert info(file, (), generation=NOW).virtual_size == 2 * MiB


def test_first_pass_names_the_extents_and_says_no_more() -> None:
    facts = describe(text('RW 1 FLAT "a" 0', 'RW 2 SPARSE "../b"', more='parentFileNameHint="p"'))
    assert [(r.role, r.name, r.format, r.required) for r in facts.references] == [
        ("extents.0", b"a", "raw", True),
        ("extents.1", b"../b", None, True),
        ("backing", b"p", "vmdk", False),
    ]
    assert (facts.virtual_size, facts.format_specific) == (3 * 512, None)


def test_refused_extent_is_named() -> None:
    error = refused(text('RW 1 FLAT "a" 0', 'RW 2 FLAT "../b\x1b" 0'), bytes(512), None)
    assert (error.kind, error.structure) == ("denied", "extents.1")
    assert "../b\\x1b" in str(error)
    assert refused(text('RW 1 FLAT "a" 0', 'RW 2 FLAT "b" 0'), bytes(512)).kind == "denied"


@pytest.mark.parametrize("kind", FURTHER_TYPES)
def test_reads_types_that_differ_in_name_only(kind: str) -> None:
    facts = describe(text('RW 4 VMFS "a"', type=kind), bytes(2048))
    assert facts.virtual_size == 2048
    assert facts.format_specific["data"]["create-type"] == kind  # type: ignore[index,call-overload]


@pytest.mark.parametrize("kind", ["fullDevice", "partitionedDevice", "vmfsRDM", "vmfsrdmp", "vmfsRaw", "x\x1b"])
def test_refuses_other_types_of_descriptor_files(kind: str) -> None:
    error = refused(text('RW 4 FLAT "a" 0', type=kind))
    assert (error.kind, error.field) == ("unsupported-feature", "createType")


def test_disk_of_no_bytes_is_read_though_qemu_cannot() -> None:
    for options in ("", "subformat=streamOptimized"):
        facts = describe(image(0, options))
        assert (facts.virtual_size, facts.cluster_size) == (0, 65536)


@needs_qemu_img
def test_header_of_no_sectors_gives_way_to_its_descriptor(tmp_path) -> None:
    data = image(0)
    data[512:1536] = text('RW 2048 FLAT "a" 0').ljust(1024, b"\0")
    (tmp_path / "t").write_bytes(data)
    (tmp_path / "a").write_bytes(bytes(MiB))
    assert agree(tmp_path / "t")["virtual-size"] == MiB


def test_extent_that_is_itself_a_disk_with_extents_is_refused() -> None:
    nested = image(0)
    nested[512:1536] = text('RW 2048 FLAT "/etc/passwd" 0').ljust(1024, b"\0")
    error = refused(text('RW 2048 SPARSE "n"'), bytes(nested))
    assert error.kind == "unsupported-feature"


def test_extent_of_a_larger_disk_is_refused_with_a_hint() -> None:
    data = image(MiB)
    data[512:10752] = bytes(10240)
    assert "descriptor file" in str(refused(data))
    assert "descriptor file" in str(refused(sesparse()))


def test_text_of_other_kinds_is_refused() -> None:
    assert refused(b"").kind == "invalid-format"
    assert refused(b"\0" * 4096).kind == "invalid-format"
    assert refused(b"\xff" * 4096).kind == "invalid-format"


def test_descriptor_must_be_where_qemu_reads_it() -> None:
    data = image(MiB)
    data[28:36] = (2).to_bytes(8, "little")
    error = refused(data)
    assert (error.kind, error.field) == ("unsupported-feature", "descriptorOffset")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"version": 4}, "unsupported-feature"),
        ({"num_gtes_per_gt": 513}, "too-large"),
        ({"num_gtes_per_gt": 0}, "corrupt"),
        ({"grain_size": 0}, "corrupt"),
        ({"grain_size": 1 << 32}, "too-large"),
        ({"grain_size": 0x200001}, "too-large"),
        ({"capacity": (1 << 64) - 1}, "too-large"),
        ({"capacity": 1 << 55, "grain_size": 0x200000}, "too-large"),
        ({"overhead": 129}, "out-of-bounds"),
        ({"gd_offset": (1 << 64) - 2}, "out-of-bounds"),
        ({"rgd_offset": 1 << 54}, "out-of-bounds"),
        ({"gd_offset": (1 << 64) - 1}, "corrupt"),
    ],
)
@needs_qemu_img
def test_refuses_headers_that_qemu_refuses(tmp_path, fields: dict[str, int], kind: str) -> None:
    data = image(MiB)
    data[:512] = SparseExtentHeader.unpack(data).replace(**fields).pack()
    assert refused(data).kind == kind
    (tmp_path / "t").write_bytes(data)
    for program in generations().values():
        # QEMU drops the topmost bits of these, and opens something else.
        wraps = fields in ({"rgd_offset": 1 << 54}, {"capacity": (1 << 64) - 1}, {"gd_offset": (1 << 64) - 2})
        assert wraps or run(program, "info", tmp_path / "t").returncode == 1


@pytest.mark.parametrize(
    "damage",
    [(-1536 + 12, 1), (-1536 + 8, 1), (-1024, 0), (-512 + 12, 1), (-512, 1), (-1024 + 4, 4)],
)
def test_refuses_a_damaged_footer(damage: tuple[int, int]) -> None:
    data = stream({0: b"x" * 65536}, 1024)
    describe(data)
    data[damage[0]] = damage[1] ^ (data[damage[0]] if damage[1] == 1 else 0)
    refused(data)


def test_footer_that_names_no_directory_is_refused() -> None:
    data = stream({0: b"x" * 65536}, 1024)
    data[-1024 + 56 : -1024 + 64] = b"\xff" * 8
    assert refused(data).kind == "corrupt"


def test_zero_grains_in_a_cowd_extent_do_not_divide() -> None:
    data = bytearray(cowd(2048))
    data[16:20] = bytes(4)
    assert refused(text('RW 2048 SPARSE "a"', type="vmfsSparse"), bytes(data)).kind == "corrupt"


@pytest.mark.parametrize(
    ("offset", "value"), [(8, 0), (24, 16), (32, 63), (40, 1), (48, 1), (300, 1), (512, 0), (536, 1), (700, 1)]
)
def test_sesparse_is_read_as_strictly_as_qemu_does(offset: int, value: int) -> None:
    data = bytearray(sesparse())
    data[offset] = value
    assert refused(text('RW 65536 SESPARSE "a"', type="seSparse"), bytes(data)).kind in (
        "unsupported-feature",
        "invalid-format",
    )


def test_names_that_are_not_utf_8_survive() -> None:
    facts = describe(text('RW 1 FLAT "a\udcff" 0'.encode("utf-8", "surrogateescape").decode("latin-1")), bytes(512))
    assert facts.format_specific is not None
    encode(facts.to_wire())


def test_backing_name_is_bytes_as_they_stand() -> None:
    data = image(MiB, backing=Backing("p\udcff.vmdk", "vmdk", content_id=9))
    facts = describe(data)
    assert facts.backing is not None
    assert (facts.backing.name, facts.extra["parent_cid"]) == (b"p\xff.vmdk", 9)


def test_bogus_parent_in_a_free_text_is_refused() -> None:
    data = image(MiB)
    where = data.index(b"2147483647")
    data[where : where + 10] = b'X"\n#parent'
    patch = b'parentFileNameHint=X/etc/passwd"\n'
    data[where : where + len(patch)] = patch
    assert refused(data).kind == "unsupported-feature"


def samples() -> dict[str, tuple[bytes, ...]]:
    flat = text('RW 4 FLAT "a" 0', 'RW 4 FLAT "b" 4', more='parentFileNameHint="p"')
    return {
        "sparse": (bytes(image(MiB)),),
        "stream": (bytes(stream({0: b"x" * 65536, 5: b"y" * 65536}, 2048)),),
        "empty": (bytes(image(0)),),
        "text": (flat, bytes(2048), bytes(4096)),
        "cowd": (text('RW 2048 VMFSSPARSE "a"', type="vmfsSparse"), cowd(2048, tables={0: {0: 40}})),
        "sesparse": (text('RW 9 SESPARSE "a"', type="seSparse"), sesparse(entries={0: 3 << 60})),
        "split": (text('RW 2048 SPARSE "a"', type="twoGbMaxExtentSparse"), bytes(image(MiB))),
    }


def survives(files: tuple[bytes, ...]) -> None:
    readers = [reader(data) for data in files]
    with contextlib.suppress(ImageError):
        facts = info(readers[0], readers[1:], generation=NOW)
        decode(encode(facts.to_wire()))
    is_descriptor(files[0][:512])


@pytest.mark.parametrize("name", list(samples()))
def test_truncation_gives_a_value_or_an_image_error(name: str) -> None:
    files = samples()[name]
    for number, data in enumerate(files):
        for end in range(0, len(data), 64 if len(data) < 20000 else 512):
            survives((*files[:number], data[:end], *files[number + 1 :]))


@pytest.mark.parametrize(
    ("name", "number", "record", "at"),
    [
        ("sparse", 0, SparseExtentHeader, 0),
        ("empty", 0, SparseExtentHeader, 0),
        ("stream", 0, SparseExtentHeader, 0),
        ("stream", 0, SparseExtentHeader, -1024),
        ("split", 1, SparseExtentHeader, 0),
        ("cowd", 1, CowdHeader, 0),
        ("sesparse", 1, SeSparseHeader, 0),
    ],
)
def test_any_header_field_gives_a_value_or_an_image_error(name: str, number: int, record: Any, at: int) -> None:
    dice = random.Random(3)
    files = samples()[name]
    for field in record.FIELDS:
        for value in (0, 1, 255, *[None] * 4):
            data = bytearray(files[number])
            start = (at % len(data)) + field.offset
            data[start : start + field.size] = (
                dice.randbytes(field.size)
                if value is None
                else bytes([255]) * field.size
                if value == 255
                else value.to_bytes(field.size, "little")
            )
            survives((*files[:number], bytes(data), *files[number + 1 :]))


@pytest.mark.parametrize("name", list(samples()))
def test_random_damage_gives_a_value_or_an_image_error(name: str) -> None:
    dice = random.Random(11)
    files = samples()[name]
    for _ in range(300):
        number = dice.randrange(len(files))
        data = bytearray(files[number])
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(min(len(data), 2048))] = dice.choice((0, 1, 10, 34, 255, dice.randrange(256)))
        survives((*files[:number], bytes(data), *files[number + 1 :]))


@needs_qemu_img
def test_damaged_images_that_both_open_look_alike(tmp_path) -> None:
    """What we show of a damaged image is what QEMU would use of it."""
    dice = random.Random(13)
    files = samples()["sparse"]
    compared = 0
    path = tmp_path / "t.vmdk"
    for _ in range(80):
        data = bytearray(files[0])
        for _ in range(dice.randrange(1, 3)):
            at = dice.choice((dice.randrange(4, 80), dice.randrange(512, 850)))
            data[at] = dice.choice((0, 1, 2, 10, 34, 255, dice.randrange(256)))
        path.write_bytes(data)
        done = run("qemu-img", "info", "-f", "vmdk", "--output=json", path)
        try:
            ours = seen(path, OLD)
        except ImageError:
            continue
        if done.returncode == 0:
            shown = json.loads(done.stdout)
            compared += 1
            assert ours["format-specific"] == shown["format-specific"]
            assert ours["virtual-size"] == shown["virtual-size"]
    assert compared > 30


def test_reads_little_however_large_the_disk_is() -> None:
    class Counting(BytesReader):
        total = 0

        def read(self, offset: int, length: int) -> bytes:
            Counting.total += length
            return super().read(offset, length)

    data = image(MiB)
    data[:512] = SparseExtentHeader.unpack(data).replace(capacity=LARGEST // 512).pack()
    assert info(Counting(bytes(data), size=1 << 45), (), generation=NOW).virtual_size == LARGEST
    assert Counting.total < 32768


@needs_qemu_img
def test_text_descriptor_is_detected(tmp_path) -> None:
    path = theirs(tmp_path / "t.vmdk", MiB, "subformat=monolithicFlat")
    assert is_descriptor(path.read_bytes())
    assert not is_descriptor(shutil.copy(theirs(tmp_path / "s.vmdk", MiB), tmp_path / "u").read_bytes()[:512])


def test_a_descriptor_without_extents_is_an_empty_disk() -> None:
    """QEMU makes one for a disk of 0 bytes that has files of its own, and then fails an assertion of its own on it."""
    facts = describe(text())
    assert (facts.virtual_size, facts.references, facts.cluster_size) == (0, [], None)
    assert facts.format_specific is not None
    assert facts.format_specific["data"]["extents"] == []  # type: ignore[index, call-overload]


def test_extents_read_in_turns_give_what_they_give_at_once() -> None:
    """As the host does it where there are more of them than one cell may have."""
    data = text('RW 2048 SPARSE "a"', 'RW 5 FLAT "b" 0', 'RW 2048 SPARSE "c"')
    files = [reader(image(MiB)), reader(bytes(2560)), reader(image(MiB, "grain_size=8k"))]
    once = info(reader(data), files, generation=NOW)
    known: list[object] = [None] * len(files)
    for number, file in enumerate(files):
        parts = [file if n == number else Elsewhere(known[n]) for n in range(len(files))]  # type: ignore[arg-type]
        last = info(reader(data), parts, generation=NOW)
        said = last.extra["parts"]
        assert isinstance(said, list)
        assert all(said[n] is None for n in range(len(files)) if n != number)
        known[number] = said[number]
    rows = (once.to_wire(), last.to_wire())
    for row in rows:
        assert isinstance(row, dict)
        assert isinstance(row["extra"], dict)
        del row["extra"]["parts"]
    assert rows[0] == rows[1]
