from __future__ import annotations

import contextlib
import random

import pytest
from tests.formats.vmdk.images import text, theirs
from tests.support import QEMU_IMG, needs_qemu_img, run

from instar.core.errors import ImageError
from instar.formats.vmdk.descriptor import (
    c_text,
    content_id,
    create_type,
    extent_lines,
    identity,
    is_text_descriptor,
    parent_name,
    window,
)
from instar.formats.vmdk.ondisk import MAX_EXTENTS

HEAD = b"# Disk DescriptorFile\nversion=1\n"


def refused(call, data: bytes) -> ImageError:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageError) as caught:
        call(data)
    return caught.value


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"version=1\n", True),
        (b"version=2\r\n", True),
        (b"version=3\n", True),
        (b"version=4\n", False),
        (b"version=0\n", False),
        (b"version=1", False),
        (b"version=1 \n", False),
        (b"version=1\rx", False),
        (b"Version=1\n", False),
        (HEAD, True),
        (b"#\n#\r\n# x\nversion=1\n", True),
        (b"# no end of line version=1", False),
        (b" \n   \r\nversion=1\n", True),
        (b"\nversion=1\n", False),
        (b"\r\nversion=1\n", False),
        (b"\t\nversion=1\n", False),
        (b"  version=1\n", False),
        (b" \r\r\nversion=1\n", False),
        (b"encoding=x\nversion=1\n", False),
        (b"", False),
        (b"   ", False),
        (b"#" + b"x" * 501 + b"\nversion=1\n", False),
        (b"#" + b"x" * 499 + b"\nversion=1\n", True),
        (b"#" + b"x" * 500 + b"\nversion=1\r\n", False),
    ],
)
def test_probe_takes_what_qemus_probe_takes(head: bytes, found: bool) -> None:
    assert is_text_descriptor(head) is found


@needs_qemu_img
def test_probe_agrees_with_qemu(tmp_path) -> None:
    """QEMU says what it took the file for: raw opens, a descriptor without createType does not."""
    dice = random.Random(5)
    pieces = [b"#", b" ", b"\n", b"\r\n", b"version=1", b"version=2\n", b"version=4\n", b"x", b"\t", b"# c\n", b" \n"]
    for _ in range(120):
        head = b"".join(dice.choice(pieces) for _ in range(dice.randrange(1, 7))) + b"\n"
        (tmp_path / "t").write_bytes(head)
        done = run(QEMU_IMG, "info", tmp_path / "t")  # type: ignore[arg-type]
        assert is_text_descriptor(head) == ("invalid VMDK image descriptor" in done.stderr), head


@pytest.mark.parametrize(
    ("line", "cid"),
    [
        (b"CID=1", 1),
        (b"CID=fffffffe", 0xFFFFFFFE),
        (b"CID=0x1F", 0x1F),
        (b"CID= \n 7", 7),
        (b"CID=-1", 0xFFFFFFFF),
        (b"CID=123456789", 0x23456789),
        (b"CID=" + b"f" * 40, 0xFFFFFFFF),
        (b"CID=00000000000000000000000012", 0x12),
        (b"parentCID=5\nCID=6", 5),
        (b"# CID of 8\nCID=9", None),
        (b"CID=g", None),
        (b"CID=", None),
        (b"CID=0x", None),
        (b"CID", None),
        (b"", None),
    ],
)
def test_cid_is_read_as_qemu_reads_it(line: bytes, cid: int | None) -> None:
    if cid is None:
        assert refused(content_id, line).kind == "invalid-format"
    else:
        assert content_id(line) == cid


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"CID=7\nparentCID=8\n", (7, 8, False, False)),
        (b"CID = 7\nparentCID = 8\n", (7, 8, True, True)),
        (b"cid=7\r\nParentCid=0x8\r\n", (7, 8, True, True)),
    ],
)
def test_cid_is_also_what_the_line_says_where_qemu_finds_none(data: bytes, found: tuple[object, ...]) -> None:
    (cid, no), (parent, none) = identity(data), identity(data, parent=True)
    assert (cid, parent, no is not None, none is not None) == found


@needs_qemu_img
@pytest.mark.parametrize("cid", ["1", "0x1F", " \n 7", "-1", "123456789", "f" * 40, "00000000000000000000000012", "-2"])
def test_cid_agrees_with_qemu(tmp_path, cid: str) -> None:
    (tmp_path / "a").write_bytes(bytes(512))
    data = text('RW 1 FLAT "a" 0', cid=cid)
    (tmp_path / "t").write_bytes(data)
    done = run(QEMU_IMG, "info", "-f", "vmdk", "--output=json", tmp_path / "t")  # type: ignore[arg-type]
    assert f'"cid": {content_id(data)},' in done.stdout, done.stderr


def test_nul_ends_the_text_and_qemu_sees_20_sectors() -> None:
    assert c_text(b"ab\0CID=1") == b"ab"
    assert window(b"x" * 20000) == b"x" * 10239


def test_type_and_parent_are_what_stands_in_quotes() -> None:
    data = text(type="vmfs", more='parentFileNameHint="/a b/\xe9.vmdk"')
    assert create_type(data) == (b"vmfs", None)
    assert parent_name(data) == "/a b/\xe9.vmdk".encode()
    assert parent_name(text()) is None
    assert parent_name(text(more='parentFileNameHint=""')) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('# parentFileNameHint="x"', "unsupported-feature"),
        ('ddb.comment = "parentFileNameHint=X/etc/passwd"', "unsupported-feature"),
        ('parentFileNameHint = "x"', "unsupported-feature"),
        ('PARENTFILENAMEHINT="x"', "unsupported-feature"),
        ('parentFilenameHint="x"\nparentFileNameHint="x"', "unsupported-feature"),
        ("parentFileNameHint=x", "unsupported-feature"),
        (f'# {"x" * 8000}\n# {"y" * 3000}\nparentFileNameHint="late"', "unsupported-feature"),
        ('parentFileNameHint="x', "corrupt"),
        ('parentFileNameHint="x\ny"', "corrupt"),
        ('parentFileNameHint="a"\nparentFileNameHint="b"', "corrupt"),
        (f'parentFileNameHint="{"x" * 4096}"', "corrupt"),
    ],
)
def test_refuses_a_parent_for_which_qemu_would_open_another_file(line: str, kind: str) -> None:
    assert refused(parent_name, text(more=line)).kind == kind


def test_a_word_like_the_parents_in_other_text_is_no_parent() -> None:
    assert parent_name(text(more='# see ParentFileNameHint\nddb.x = "parentfilenamehint"')) is None


@pytest.mark.parametrize(
    ("data", "value", "refusal"),
    [
        (b'createType="vmfs"', b"vmfs", None),
        (b'# createType="vmfs"\ncreateType="monolithicFlat"\n', b"vmfs", None),
        (b'createType="vmfs"\ncreateType="custom"\n', b"vmfs", None),
        (b'# createType="x"\ncreateType="vmfs"\n', b"vmfs", "type 'x'"),
        (b'createType = "vmfs"\n', b"vmfs", "type ' '"),
        (b'\tCREATETYPE="vmfs"\r\n', b"vmfs", "no createType"),
        (b"createType=vmfs\n", b"vmfs", "no createType"),
    ],
)
def test_a_type_is_what_qemu_finds_or_else_what_the_line_says(data: bytes, value: bytes, refusal: str | None) -> None:
    found, error = create_type(data)
    assert found == value
    assert (error is None) if refusal is None else (refusal in str(error))


def test_refuses_a_descriptor_without_a_type() -> None:
    assert refused(create_type, b'createType="' + b"x" * 128 + b'"').kind == "invalid-format"
    assert refused(create_type, b"nothing").kind == "invalid-format"


def test_a_word_inside_other_text_counts_only_where_it_comes_first() -> None:
    assert create_type(text('RW 1 FLAT "createType.vmdk" 0')) == (b"monolithicFlat", None)


def test_extents_are_read_in_order() -> None:
    data = text(
        'RW 4194304 SPARSE "a b-s001.vmdk"',
        '  RW  63\tFLAT "x" 12 junk',
        'RW 5 VMFS "v-flat.vmdk"',
        'RW 6 VMFSSPARSE "v-delta.vmdk"\r',
        'RW 7 SESPARSE "s" ',
        'RW 0 SPARSE "nothing"',
        "RWX 1",
    )
    assert [(e.sectors, e.kind, e.name, e.offset) for e in extent_lines(data)] == [
        (4194304, b"SPARSE", b"a b-s001.vmdk", 0),
        (63, b"FLAT", b"x", 12),
        (5, b"VMFS", b"v-flat.vmdk", 0),
        (6, b"VMFSSPARSE", b"v-delta.vmdk", 0),
        (7, b"SESPARSE", b"s", 0),
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("RW", "corrupt"),
        ("RW 1", "corrupt"),
        ("RW 1 FLAT", "corrupt"),
        ('RW 1 FLAT "x"', "corrupt"),
        ('RW 1 FLAT "x" -1', "corrupt"),
        ('RW 1 FLAT "x 0', "corrupt"),
        ('RW 1 FLAT "" 0', "corrupt"),
        (f'RW 1 FLAT "{"x" * 512}" 0', "corrupt"),
        ('RW 1 SPARSE "x" 1', "corrupt"),
        ('RW 1 VMFS "x" -1', "corrupt"),
        ('RW 1 FLAT"x" 0', "corrupt"),
        ('RW -1 SPARSE "x"', "corrupt"),
        ('RW 1x SPARSE "x"', "corrupt"),
        ('RW 99999999999999999999 SPARSE "x"', "corrupt"),
        ('RW 9999999999999999999 SPARSE "x"', "too-large"),
        ('RW 1 FLAT "x" 9999999999999999999999999', "too-large"),
        ('RW 1 VMFSRDM "x"', "unsupported-feature"),
        ('rdonly 1 vmfsraw "x"', "unsupported-feature"),
        ('RW 1 OTHER "x"', "unsupported-feature"),
    ],
)
def test_refuses_extents_that_cannot_be_read(line: str, kind: str) -> None:
    error = refused(extent_lines, text(line))
    assert error.kind == kind
    assert str(error)


@pytest.mark.parametrize(
    ("line", "what", "field"),
    [
        ("RW 7 ZERO", (7, b"ZERO", b"", 0), "type"),
        ('RW 7 ZERO "x"', (7, b"ZERO", b"", 0), "type"),
        ('RDONLY 7 SPARSE "x"', (7, b"SPARSE", b"x", 0), "access"),
        ("NOACCESS 7 ZERO", (7, b"ZERO", b"", 0), "access"),
        ('NOACCESS 7 FLAT "x" 9', (7, b"FLAT", b"x", 9), "access"),
        ('rw 7 VMFS "x"', (7, b"VMFS", b"x", 0), "access"),
        ('RW 7 vmfssparse "x"', (7, b"VMFSSPARSE", b"x", 0), "type"),
        ('RW 7 flat "x" 9', (7, b"FLAT", b"x", 9), "offset"),
        ('RW 7 VMFS "x" 9', (7, b"VMFS", b"x", 9), "offset"),
        ('RW 7 SPARSE "x" 0', (7, b"SPARSE", b"x", 0), "offset"),
    ],
)
def test_reads_what_qemu_leaves_out_and_says_so(line: str, what: tuple[object, ...], field: str) -> None:
    (extent,) = extent_lines(text(line))
    assert (extent.sectors, extent.kind, extent.name, extent.offset) == what
    assert extent.refusal is not None
    assert extent.refusal.field == field


@needs_qemu_img
@pytest.mark.parametrize(
    "line",
    [
        'RW 9 FLAT "a" 0 junk',
        ' RW\t9 FLAT "a" 3',
        'RW 9 VMFS "a"',
        'RW 9 VMFS "a" 0',
        'RW 9 FLAT "a"',
        'RW 0 FLAT "a" 0',
    ],
)
def test_extent_lines_agree_with_qemu(tmp_path, line: str) -> None:
    (tmp_path / "a").write_bytes(bytes(8192))
    data = text('RW 1 FLAT "a" 0', line)
    (tmp_path / "t").write_bytes(data)
    done = run(QEMU_IMG, "info", "-f", "vmdk", "--output=json", tmp_path / "t")  # type: ignore[arg-type]
    if done.returncode:
        assert "Invalid extent line" in done.stderr
        try:
            last = extent_lines(data)[-1].refusal
        except ImageError as error:
            last = error
        assert last is not None
        assert last.kind == "corrupt"
    else:
        sectors = sum(extent.sectors for extent in extent_lines(data))
        assert f'"virtual-size": {512 * sectors},\n    "filename"' in done.stdout


@needs_qemu_img
def test_extent_after_a_blank_line_counts_once_here_and_twice_in_qemu(tmp_path) -> None:
    (tmp_path / "a").write_bytes(bytes(512))
    data = text("", 'RW 1 FLAT "a" 0')
    (tmp_path / "t").write_bytes(data)
    (extent,) = extent_lines(data)
    assert extent.after_blank
    done = run(QEMU_IMG, "info", "-f", "vmdk", "--output=json", tmp_path / "t")  # type: ignore[arg-type]
    assert '"virtual-size": 1024,' in done.stdout


def test_extents_are_bounded_and_other_lines_are_not() -> None:
    for filler in (b"# " + b"x" * 9000, b"# x\n" * 20000, b"\n" * (1 << 20), b"RWX " * (1 << 18), b"=" * (1 << 20)):
        assert len(extent_lines(filler + b'\nRW 1 FLAT "x" 0\n')) == 1
    many = text(*[f'RW 1 FLAT "x" {n}' for n in range(MAX_EXTENTS)])
    assert len(extent_lines(many)) == MAX_EXTENTS
    assert refused(extent_lines, many + b'RW 1 FLAT "x" 0\n').kind == "too-large"


def test_repeated_words_take_no_more_than_linear_time() -> None:
    for filler in (b"createType", b"createType ", b" " * 30 + b"createType"):
        data = b'createType="vmfs"\n#' + filler * ((1 << 20) // len(filler))
        create_type(data)


@needs_qemu_img
def test_descriptor_files_of_qemu_are_read(tmp_path) -> None:
    for subformat, kind in (("twoGbMaxExtentSparse", b"SPARSE"), ("twoGbMaxExtentFlat", b"FLAT")):
        data = theirs(tmp_path / "t.vmdk", 3 << 30, f"subformat={subformat}").read_bytes()
        assert is_text_descriptor(data)
        assert create_type(data) == (subformat.encode(), None)
        assert [(e.sectors, e.kind) for e in extent_lines(data)] == [(1 << 22, kind), (1 << 21, kind)]


def test_random_text_is_a_value_or_an_image_error() -> None:
    dice = random.Random(7)
    words = b'RW|RDONLY|1|-1|FLAT|SPARSE|"x"|"|\n|\r\n| |=|CID|parentCID|createType|parentFileNameHint|\0|\xff|0x|#'
    pieces = words.split(b"|")
    for _ in range(3000):
        data = b"".join(dice.choice(pieces) for _ in range(dice.randrange(30)))
        for call in (content_id, identity, create_type, parent_name, extent_lines):
            with contextlib.suppress(ImageError):
                call(data)
        is_text_descriptor(data)
