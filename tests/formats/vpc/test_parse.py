from __future__ import annotations

import json
import os
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.compat.versions import generations
from tests.formats.vpc.images import (
    NOW,
    OLD,
    MiB,
    differencing,
    dynamic,
    fixed,
    plan,
    reader,
    with_footer,
    with_header,
)
from tests.support import BytesReader, apply_plan, needs_qemu_img, qemu_img, run
from tests.support import reader as open_reader

from instar.cli.messages.vpc import QEMU_OPEN
from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.wire import decode, encode
from instar.formats.vpc.ondisk import (
    MAX_TABLE_ENTRIES,
    PLATFORM_MAC,
    PLATFORM_MACX,
    PLATFORM_W2KU,
    PLATFORM_W2RU,
    Footer,
    Header,
)
from instar.formats.vpc.parse import info

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_CHS = {"cylinders": 65535, "heads": 16, "sectors_per_track": 255}


def facts(data: bytes, generation: tuple[int, int] = NOW) -> ImageFacts:
    return info(reader(data), (), generation=generation)


def refusal(data: bytes, generation: tuple[int, int] = NOW) -> ImageError:
    with pytest.raises(ImageError) as caught:
        facts(data, generation)
    return caught.value


def survives(data: bytes, generation: tuple[int, int] = NOW) -> None:
    """Read an image; let through nothing but an ``ImageError`` that can be printed."""
    try:
        encode(facts(data, generation).to_wire())
    except ImageError as error:
        str(error)


def cases() -> dict[str, bytes]:
    """Images of many kinds that every generation of qemu-img is asked about as well."""
    plain, block = dynamic(), dynamic(entries={0: 4})
    whole = 2 * MiB + 512
    body = plain[:-512]
    return {
        "dynamic": plain,
        "dynamic empty": dynamic(0),
        "dynamic forced": dynamic(10 * MiB, force_size=True),
        "dynamic with a block": block,
        "dynamic 512k": dynamic(block_size=512 << 10),
        "fixed": fixed(),
        "fixed forced": fixed(force_size=True),
        "fixed empty": fixed(0),
        "fixed footer of 511": fixed()[:-1],
        "fixed and 100 bytes": fixed() + b"a" * 100,
        "fixed cut": fixed()[512:],
        "fixed checksum": fixed()[:-1] + b"\1",
        "nothing": b"",
        "text": b"abc",
        "zeros": bytes(4096),
        "checksum": plain[:9] + b"\1" + plain[10:],
        "differencing": with_footer(plain, disk_type=4),
        "differencing named": differencing([(PLATFORM_W2RU, "p.vhd".encode("utf-16-le"))]),
        "type fixed": with_footer(plain, disk_type=2),
        "type 7": with_footer(plain, disk_type=7),
        "creator unknown": with_footer(plain, creator_app=b"xyz ", current_size=11 * MiB),
        "creator unknown, table too small": with_footer(plain, creator_app=b"xyz ", current_size=20 * MiB),
        "size above 2040 GiB": with_footer(plain, creator_app=b"win ", current_size=3 << 40),
        "size 2^64": with_footer(plain, creator_app=b"win ", current_size=(1 << 64) - 1),
        "odd size": with_footer(plain, creator_app=b"win ", current_size=10 * MiB + 511),
        "largest geometry": with_footer(plain, creator_app=b"vpc ", current_size=12 * MiB, **MAX_CHS),
        "no geometry": with_footer(plain, cylinders=0),
        "header nowhere": with_footer(plain, data_offset=(1 << 64) - 1),
        "header past the end": with_footer(plain, data_offset=1 << 40),
        "header magic": with_header(plain, cookie=b"cxspars "),
        "header checksum": plain[:548] + b"\1" + plain[549:],
        "block size 0": with_header(plain, block_size=0),
        "block size 1000": with_header(plain, block_size=1000),
        "block size 256": with_header(plain, block_size=256),
        "block size 1 GiB": with_header(plain, block_size=1 << 30),
        "entries 0": with_header(plain, max_table_entries=0),
        "entries 5": with_header(plain, max_table_entries=5),
        "entries 128": with_header(plain, max_table_entries=128),
        "entries 1000": with_header(plain, max_table_entries=1000),
        "entries all ones": with_header(plain, max_table_entries=0xFFFFFFFF),
        "BAT at 2^64": with_header(plain, table_offset=(1 << 64) - 1),
        "BAT at 2^63": with_header(plain, table_offset=(1 << 63) - 1),
        "BAT past the end": with_header(plain, table_offset=1 << 30),
        "BAT odd": with_header(plain, table_offset=1537),
        "BAT in the footer copy": with_header(plain, table_offset=0),
        "block past the end": plain[:1536] + struct.pack(">I", 4) + plain[1540:],
        "block far away": plain[:1536] + struct.pack(">I", 0xFFFFFFFE) + plain[1540:],
        "block at the very end": plain[:1536] + struct.pack(">I", 4) + plain[1540:2048] + bytes(whole),
        "block one byte short": plain[:1536] + struct.pack(">I", 4) + plain[1540:2048] + bytes(whole - 1),
        "block one sector short": plain[:1536] + struct.pack(">I", 4) + plain[1540:2048] + bytes(whole - 512),
        "no footer at the end": body,
        "BAT cut": body[:-88],
        "BAT cut in its entries": body[:1540],
        "no BAT": body[:1536],
        "footer copy only": body[:512],
    } | {f"creator {app!r}": with_footer(plain, creator_app=app, current_size=10 * MiB) for app in CREATORS}


CREATORS = [b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0", b"tapx", b"CTXS", b"wa\0\0", b"vs  ", b"\0\0\0\0"]
CASES = cases()


@needs_qemu_img
@pytest.mark.parametrize("name", CASES)
def test_sees_what_qemu_of_each_generation_sees(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(CASES[name])
    for generation, program in generations().items():
        done = run(program, "info", "-f", "vpc", "--output=json", path)
        if done.returncode:
            error = refusal(CASES[name], generation)
            sentence = QEMU_OPEN[error.kind, str(error.field)].format(path=path, value=error.value)
            # qemu-img prints the number of entries as a signed one.
            sentence = sentence.replace("4294967295", "-1")
            assert done.stderr == f"qemu-img: Could not open '{path}': {sentence}\n", generation
            continue
        ours = facts(CASES[name], generation)
        theirs = json.loads(done.stdout)
        assert ours.virtual_size == theirs["virtual-size"], generation
        assert ours.cluster_size == theirs.get("cluster-size"), generation
        assert ours.dirty == theirs["dirty-flag"]
        assert "format-specific" not in theirs
        assert ours.format_specific is None


@needs_qemu_img
@pytest.mark.parametrize("options", ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on"])
@pytest.mark.parametrize("size", [1, 10 * MiB, (10 << 30) + 512, 2040 << 30])
def test_reads_images_made_by_qemu(tmp_path: Path, options: str, size: int) -> None:
    path = tmp_path / "t"
    qemu_img("create", "-q", "-f", "vpc", "-o", options, path, str(size))
    with open_reader(path) as file:
        for generation, program in generations().items():
            theirs = json.loads(run(program, "info", "-f", "vpc", "--output=json", path).stdout)
            ours = info(file, (), generation=generation)
            assert (ours.virtual_size, ours.cluster_size) == (theirs["virtual-size"], theirs.get("cluster-size"))


@needs_qemu_img
def test_reads_an_image_that_qemu_filled(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "t"
    with raw.open("wb") as file:
        file.truncate(10 * MiB)
        os.pwrite(file.fileno(), b"x" * 4096, 5 * MiB)
    qemu_img("convert", "-f", "raw", "-O", "vpc", raw, path)
    with open_reader(path) as file:
        assert info(file, (), generation=OLD).virtual_size == 10514432


def test_the_creator_decides_which_size_counts() -> None:
    azure = with_footer(dynamic(), creator_app=b"wa\0\0", current_size=10 * MiB)
    assert facts(azure, (7, 2)).virtual_size == 10514432
    assert facts(azure, (10, 0)).virtual_size == facts(azure, (11, 1)).virtual_size == 10 * MiB


def test_an_image_of_qemu_has_one_size_in_all_generations() -> None:
    for data in (dynamic(), dynamic(force_size=True), fixed(), fixed(force_size=True)):
        assert facts(data, (7, 2)).virtual_size == facts(data, (11, 1)).virtual_size


def test_extra_facts_cross_the_seam() -> None:
    made = facts(differencing([(PLATFORM_W2RU, "p.vhd".encode("utf-16-le"))]))
    back = ImageFacts.from_wire(decode(encode(made.to_wire())))
    assert back.extra["disk_type"] == "differencing"
    assert back.extra["geometry"] == [302, 4, 17]
    assert back.extra["parent_unique_id"] == "07" * 16
    assert back.backing is not None
    assert back.backing.name == b"p.vhd"


RELATIVE = (PLATFORM_W2RU, ".\\päre.vhd".encode("utf-16-le"))
ABSOLUTE = (PLATFORM_W2KU, "C:\\päre.vhd".encode("utf-16-le"))
URL = (PLATFORM_MACX, b"file:///p%C3%A4re.vhd")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([ABSOLUTE, RELATIVE, URL], "./päre.vhd".encode()),
        ([(PLATFORM_W2RU, "..\\a\\p.vhd".encode("utf-16-le"))], b"../a/p.vhd"),
        ([(PLATFORM_W2KU, "\\a\\p.vhd".encode("utf-16-le"))], b"/a/p.vhd"),
        ([(PLATFORM_W2KU, "\\\\host\\p.vhd".encode("utf-16-le"))], b"\\\\host\\p.vhd"),
        ([URL, ABSOLUTE], "C:\\päre.vhd".encode()),
        ([URL], b"file:///p%C3%A4re.vhd"),
        ([(PLATFORM_MAC, b"alias")], "hdr😀.vhd".encode()),
        ([], "hdr😀.vhd".encode()),
        ([(PLATFORM_W2RU, "a\0b".encode("utf-16-le"))], b"a"),
        ([(PLATFORM_W2RU, b"\0\0"), ABSOLUTE], "C:\\päre.vhd".encode()),
        ([(PLATFORM_W2RU, b"a\0b\0c")], b"ab"),
        ([(PLATFORM_W2RU, b"a\0\x00\xd8b\0")], b"a\xed\xa0\x80b"),
        ([(PLATFORM_W2RU, "\u20ac".encode("utf-16-le") * 2000), URL], b"file:///p%C3%A4re.vhd"),
        ([(PLATFORM_W2RU, b"a\0" * 5000), URL], b"file:///p%C3%A4re.vhd"),
        ([(PLATFORM_MACX, b"\xff\xfe/x")], b"\xff\xfe/x"),
    ],
)
def test_names_the_parent_of_a_differencing_disk(names: list[tuple[int, bytes]], expected: bytes) -> None:
    made = facts(differencing(names, parent_name="hdr😀.vhd".encode("utf-16-be")))
    assert [(r.role, r.name, r.format, r.required) for r in made.references] == [("backing", expected, "vpc", False)]


def test_a_locator_past_the_end_is_passed_over() -> None:
    data = differencing([RELATIVE, ABSOLUTE])
    locators = bytearray(Header.unpack(data, 512).parent_locators)
    locators[16:24] = b"\xff" * 8
    backing = facts(with_header(data, parent_locators=bytes(locators))).backing
    assert backing is not None
    assert backing.name == "C:\\päre.vhd".encode()


def test_a_parent_without_a_name_is_still_told() -> None:
    made = facts(differencing([]))
    assert made.references == []
    assert made.extra["disk_type"] == "differencing"


def test_rejects_more_bat_entries_than_the_limit() -> None:
    data = with_header(dynamic(), max_table_entries=MAX_TABLE_ENTRIES + 1)
    image = BytesReader(data, size=1 << 40)
    with pytest.raises(ImageError) as caught:
        info(image, (), generation=NOW)
    assert caught.value.kind == "too-large"


def test_a_sparse_file_of_8_eib_is_no_trouble() -> None:
    image = BytesReader(dynamic(), size=(1 << 63) - 1)
    assert info(image, (), generation=NOW).virtual_size == 10514432


def filled() -> bytes:
    """Return a dynamic disk that has a block."""
    return dynamic(entries={0: 4})


def child() -> bytes:
    """Return a differencing disk."""
    return differencing([RELATIVE])


@pytest.mark.parametrize("make", [filled, fixed, child])
def test_any_cut_gives_facts_or_an_image_error(make: Callable[[], bytes]) -> None:
    data = make()
    ends = [*range(0, min(len(data), 8192), 64), len(data) - 513, len(data) - 512, len(data) - 1]
    for end in ends:
        for part in (data[:end], data[end:]):
            survives(part)


def hostile_values(size: int, pick: random.Random) -> list[int]:
    top = (1 << 8 * size) - 1
    return [0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1, 512, 4096, pick.randrange(top), pick.randrange(top)]


@pytest.mark.parametrize("record", [Footer, Header])
@pytest.mark.parametrize("make", [filled, child])
def test_any_field_value_gives_facts_or_an_image_error(record: type[Footer], make: Callable[[], bytes]) -> None:
    data = make()
    pick = random.Random(7)
    base = 0 if record is Footer else 512
    for field in record.FIELDS:
        for value in hostile_values(min(field.size, 8), pick):
            changed = bytearray(data)
            low = base + field.offset
            changed[low : low + min(field.size, 8)] = (value % (1 << 8 * min(field.size, 8))).to_bytes(
                min(field.size, 8), "big"
            )
            for sealed_too in (True, False):
                whole = bytes(changed)
                if sealed_too and field.name != "checksum":
                    whole = with_footer(whole, at_end=False)
                survives(whole)
                survives(whole, OLD)


def test_planned_images_are_read_with_their_planned_size(tmp_path: Path) -> None:
    for size in (1, MiB, (1 << 30) + 1, 200 << 30):
        for block_size in (512 << 10, 2 * MiB, 256 * MiB):
            made = plan(size, block_size=block_size)
            apply_plan(made, tmp_path / "t")
            with open_reader(tmp_path / "t") as file:
                seen = info(file, (), generation=NOW)
            assert (seen.virtual_size, seen.cluster_size) == (made.virtual_size, block_size)
