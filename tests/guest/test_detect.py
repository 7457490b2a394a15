"""Which format a file gives away: real images, every probe, files that are several things, and short files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compat.versions import programs, real
from tests.support import QEMU_IMG, BytesReader, needs_qemu_img, qemu_img, qemu_info, reader, run

from instar.core.errors import ImageError
from instar.formats import TABLE, find
from instar.guest.detect import choose, detect, looks_like, preload

SOURCE = Path(__file__).parent.parent.parent / "src"
PROBES = [(row.name, probe.offset, probe.magic) for row in TABLE for probe in row.probes]
DESCRIPTOR = b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'


def image(*parts: tuple[int, bytes], size: int = 65536) -> BytesReader:
    return BytesReader(size=size, parts={offset if offset >= 0 else size + offset: data for offset, data in parts})


class TestProbes:
    @pytest.mark.parametrize(("name", "offset", "magic"), PROBES)
    def test_give_their_format_away(self, name: str, offset: int, magic: bytes) -> None:
        assert detect(image((offset, magic))).name == name

    @pytest.mark.parametrize(("name", "offset", "magic"), PROBES)
    def test_take_no_other_place(self, name: str, offset: int, magic: bytes) -> None:
        assert detect(image((offset + 1 if offset >= 0 else offset - 1, magic))).name == "raw"

    @pytest.mark.parametrize(("name", "offset", "magic"), PROBES)
    def test_take_no_part_of_it(self, name: str, offset: int, magic: bytes) -> None:
        others = [m for n, o, m in PROBES if o == offset and m != magic]
        for end in range(len(magic)):
            if not any(magic[:end].startswith(other) for other in others):
                assert detect(image((offset, magic[:end] + b"\xaa"))).name == "raw"

    @pytest.mark.parametrize(("name", "offset", "magic"), PROBES)
    def test_work_in_a_file_that_holds_just_them(self, name: str, offset: int, magic: bytes) -> None:
        size = offset + len(magic) if offset >= 0 else -offset
        assert detect(image((offset, magic), size=size)).name == name
        # What lies past the end counts as zeros, so a magic that ends in one may lack it.
        if offset >= 0 and name != "qcow" and magic[-1]:
            assert detect(image((offset, magic[:-1]), size=size - 1)).name == "raw"

    @pytest.mark.parametrize("size", [0, 1, 3, 4, 511, 512, 513])
    def test_find_nothing_in_short_files_of_zeros(self, size: int) -> None:
        assert detect(image(size=size)).name == "raw"

    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(max_size=5000))
    def test_never_fail(self, data: bytes) -> None:
        assert detect(BytesReader(data)) in TABLE

    def test_look_at_few_bytes_only(self) -> None:
        asked: list[int] = []

        class Counting(BytesReader):
            def read(self, offset: int, length: int) -> bytes:
                asked.append(length)
                return super().read(offset, length)

        detect(Counting(size=1 << 50))
        assert sum(asked) <= 4096 + 512


class TestSeveral:
    """A file that begins as one format and also looks like another."""

    @pytest.mark.parametrize(
        ("parts", "name"),
        [
            (((0, b"QFI\xfb\0\0\0\1"),), "qcow"),
            (((0, b"QFI\xfb\0\0\0\2"),), "qcow2"),
            (((0, b"QFI\xfb\0\0\0\3"),), "qcow2"),
            (((0, b"QFI\xfb\0\0\0\0"),), "qcow2"),
            (((0, b"QFI\xfb\xff\xff\xff\xff"),), "qcow2"),
            (((0, b"conectix"), (-512, b"koly")), "vpc"),
            (((0, b"LUKS\xba\xbe\0\1"), (-512, b"koly")), "luks"),
            (((0, DESCRIPTOR.ljust(0x40, b" ")[:0x200]), (-512, b"koly")), "vmdk"),
        ],
    )
    def test_has_one_format_the_earliest_in_the_table(self, parts: tuple[tuple[int, bytes], ...], name: str) -> None:
        assert detect(image(*parts)).name == name

    @pytest.mark.parametrize("generation", [(5, 2), (7, 2), (10, 0), (11, 1)])
    @pytest.mark.parametrize("magic", [m for n, o, m in PROBES if o == 0])
    def test_with_the_magic_of_vdi_is_what_that_version_of_qemu_finds_first(
        self, magic: bytes, generation: tuple[int, int], tmp_path: Path
    ) -> None:
        magic += b"\0\0\0\3" if magic == b"QFI\xfb" else b""  # QEMU wants a version, too
        both = image((0, magic.ljust(0x40, b"\0")[:0x40] + b"\x7f\x10\xda\xbe"))
        found = detect(both, generation).name
        assert found in ("vdi", detect(image((0, magic))).name)
        if generation not in programs():
            pytest.skip(f"qemu-img {generation} is not there")
        path = tmp_path / "disk"
        path.write_bytes(both.read(0, both.size))
        said = run(real(generation), "info", path).stderr
        assert ("unsupported VDI image" in said) == (found == "vdi"), said

    def test_is_never_raw_if_any_probe_matches(self) -> None:
        for _, offset, magic in PROBES:
            for _, other, more in PROBES:
                assert detect(image((other, more), (offset, magic))).name != "raw"

    def test_a_fixed_vhd_is_known_by_its_name_only(self) -> None:
        assert detect(image((-512, b"conectix"))).name == "raw"


class TestDescriptors:
    @pytest.mark.parametrize(
        "text",
        [
            DESCRIPTOR,
            b"version=1\n",
            b"version=2\r\n",
            b"version=3\n",
            b"# a comment\n#another\nversion=1\n",
            b" \nversion=1\n",
        ],
    )
    def test_are_vmdk(self, text: bytes) -> None:
        assert detect(BytesReader(text)).name == "vmdk"

    @pytest.mark.parametrize(
        "text",
        [
            b"version=4\n",
            b"version=1",
            b"version=10\n",
            b"Version=1\n",
            b"#",
            b"# Disk DescriptorFile",
            b"#!/bin/sh\necho\nversion=1\n",
            b"\xef\xbb\xbfversion=1\n",
            b"#" * 5000 + b"\nversion=1\n",
        ],
    )
    def test_are_nothing_else(self, text: bytes) -> None:
        assert detect(BytesReader(text)).name == "raw"


class TestChoice:
    def test_of_raw_is_always_raw(self) -> None:
        for _, offset, magic in PROBES:
            assert choose(image((offset, magic)), "raw").name == "raw"

    @pytest.mark.parametrize("name", [row.name for row in TABLE if not row.readable])
    def test_of_a_format_without_a_reader_is_refused_never_raw(self, name: str) -> None:
        row = find(name)
        assert row is not None
        for probe in row.probes:
            for asked in (None, name):
                with pytest.raises(ImageError, match=f"this is a {name} image") as caught:
                    choose(image((probe.offset, probe.magic)), asked)
                assert (caught.value.kind, caught.value.format) == ("unsupported-feature", name)

    @pytest.mark.parametrize("row", [row for row in TABLE if row.readable], ids=lambda row: row.name)
    def test_by_name_or_alias_asks_no_probe(self, row: object) -> None:
        from instar.formats import Format

        assert isinstance(row, Format)
        for name in (row.name, *row.aliases):
            assert choose(image((0, b"QFI\xfb")), name) is row

    def test_of_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(ImageError, match="no format 'nope'"):
            choose(image(), "nope")


class TestPreload:
    """In a process of its own: what a cell will need is imported before its walls close, and no more."""

    def _loaded(self, call: str) -> set[str]:
        program = f"""
import sys
sys.path[:0] = [{str(SOURCE)!r}]
from instar.guest.detect import preload
{call}
print(*[m.split(".")[2] for m in sys.modules if m.startswith("instar.formats.") and m.endswith(".parse")])
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    def test_without_a_name_every_reader(self) -> None:
        assert self._loaded("preload(None, ('parse',))") == {row.name for row in TABLE if row.readable}

    @pytest.mark.parametrize("name", ["qcow2", "raw", "vpc", "vhd"])
    def test_with_a_name_that_one(self, name: str) -> None:
        row = find(name)
        assert row is not None
        assert self._loaded(f"preload({name!r}, ('parse',))") == {row.name}

    def test_of_an_unknown_name_is_nothing(self) -> None:
        preload("nope", ("parse",))


@needs_qemu_img
class TestRealImages:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("qcow2", ""),
            ("qcow2", "compat=0.10"),
            ("qcow", ""),
            ("vmdk", ""),
            ("vmdk", "subformat=streamOptimized"),
            ("vmdk", "subformat=monolithicFlat"),
            ("vmdk", "subformat=twoGbMaxExtentSparse"),
            ("vhdx", ""),
            ("vhdx", "subformat=fixed"),
            ("vpc", ""),
            ("vdi", ""),
            ("qed", ""),
            ("parallels", ""),
            ("raw", ""),
        ],
    )
    def test_are_what_qemu_says(self, name: str, options: str, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        qemu_img("create", "-f", name, *(["-o", options] if options else []), path, "4M")
        assert QEMU_IMG is not None
        assert qemu_info(path)["format"] == name
        with reader(path) as file:
            assert detect(file).name == name

    def test_a_fixed_vhd_is_raw_to_both(self, tmp_path: Path) -> None:
        path = tmp_path / "disk"
        qemu_img("create", "-f", "vpc", "-o", "subformat=fixed", path, "4M")
        assert qemu_info(path)["format"] == "raw"
        with reader(path) as file:
            assert detect(file).name == "raw"
            assert choose(file, "vpc").name == "vpc"


class TestLooks:
    """What an image looks like that is read as something else: for people, never for a reader."""

    @pytest.mark.parametrize(("name", "offset", "magic"), PROBES)
    def test_like_the_format_that_detection_finds(self, name: str, offset: int, magic: bytes) -> None:
        file = image((offset, magic))
        assert looks_like(file, "raw") == name
        assert looks_like(file, name) is None

    @pytest.mark.parametrize("generation", [(7, 2), (10, 0), (11, 1)])
    @pytest.mark.parametrize(("name", "offset", "magic"), [probe for probe in PROBES if probe[1] == 0])
    def test_like_what_that_version_takes_a_file_of_two_kinds_for(
        self, name: str, offset: int, magic: bytes, generation: tuple[int, int]
    ) -> None:
        if len(magic) > 0x40:
            pytest.skip("this magic reaches over VDI's")
        file = image((0, magic), (0x40, b"\x7f\x10\xda\xbe"))
        assert looks_like(file, "raw", generation) == detect(file, generation).name

    def test_like_a_vmdk_by_the_first_line_of_its_text(self) -> None:
        assert looks_like(image((0, DESCRIPTOR)), "raw") == "vmdk"
        assert looks_like(image((0, DESCRIPTOR)), "vmdk") is None

    @pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096])
    def test_like_nothing_if_there_is_nothing_to_see(self, size: int) -> None:
        assert looks_like(image(size=size), "raw") is None

    def test_like_a_fixed_vhd_only_with_data_before_its_footer(self) -> None:
        footer = b"conectix" + bytes(52) + b"\0\0\0\2"
        assert looks_like(image((-512, footer)), "raw") == "vhd-footer"
        assert looks_like(image((-511, footer), size=4607), "raw") == "vhd-footer"
        assert looks_like(image((-512, footer)), "qcow2") is None
        assert looks_like(image((-512, footer.replace(b"\2", b"\3"))), "raw") is None
