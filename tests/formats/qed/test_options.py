from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from tests.support import needs_qemu_img, run

from instar.cli.messages import option_words
from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.core.plan import Backing
from instar.formats.qed.options import CREATE, resolve

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 64 << 40


def given(text: str = "") -> Settings:
    pairs = [(k, v) for k, _, v in (member.partition("=") for member in text.split(",") if member)]
    return read_settings(CREATE, pairs, format="qed")


def code_of(size: int, text: str = "", backing: Backing | None = None) -> str:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(text), backing)
    return caught.value.code


def test_fills_in_the_defaults() -> None:
    assert resolve(1 << 20, given(), None) == {"cluster_size": 65536, "table_size": 4}


@pytest.mark.parametrize("power", range(12, 27))
@pytest.mark.parametrize("table_size", [1, 2, 4, 8, 16])
def test_takes_every_geometry_of_the_specification(power: int, table_size: int) -> None:
    text = f"cluster_size={1 << power},table_size={table_size}"
    assert resolve(0, given(text), None) == {"cluster_size": 1 << power, "table_size": table_size}


@pytest.mark.parametrize("text", ["0", "1", "2k", "5000", "128M", "4294971392", "18446744073709551615"])
def test_rejects_other_cluster_sizes(text: str) -> None:
    assert code_of(0, f"cluster_size={text}") == "qed-cluster-size"


@pytest.mark.parametrize("text", ["0", "3", "32", "4k", "4294967298", "9223372036854775807"])
def test_rejects_other_table_sizes(text: str) -> None:
    assert code_of(0, f"table_size={text}") == "qed-table-size"


@pytest.mark.parametrize("size", [0, 1, LIMIT - 512, LIMIT])
def test_takes_disks_that_the_tables_map(size: int) -> None:
    assert resolve(size, given(), None)


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 62, (1 << 64) - 512, (1 << 64) - 2])
def test_rejects_disks_that_the_tables_cannot_map(size: int) -> None:
    assert code_of(size) == "qed-size"


def test_says_that_no_size_will_do_where_qemu_runs_out_of_bits() -> None:
    with pytest.raises(OptionError, match="use smaller ones"):
        resolve(512, given("cluster_size=64M"), None)


@pytest.mark.parametrize(("cluster_size", "limit"), [("4k", 4032), ("8k", 4095), ("64k", 4095)])
def test_rejects_names_that_qemu_cannot_read_back(cluster_size: str, limit: int) -> None:
    text = f"cluster_size={cluster_size}"
    assert resolve(0, given(text), Backing("é" * (limit // 2), "raw"))
    assert code_of(0, text, Backing("é" * (limit // 2) + "ab", "raw")) == "qed-backing-name-length"


def test_judges_the_backing_format_with_and_without_a_file() -> None:
    assert resolve(0, given("backing_fmt=nbd"), None)
    assert code_of(0, "backing_fmt=foo,cluster_size=3") == "bad-choice"
    assert code_of(0, "", Backing("x", "foo")) == "bad-choice"


SETS = [
    "cluster_size=0",
    "cluster_size=2k",
    "cluster_size=128M",
    "cluster_size=64M",
    "cluster_size=18446744073709551615",
    "table_size=3",
    "table_size=32",
    "table_size=9223372036854775807",
    "table_size=18446744073709551615",
    "table_size=3,cluster_size=1",
    "table_size=18446744073709551615,cluster_size=1",
    "backing_fmt=foo,table_size=3",
    "backing_fmt=foo,table_size=18446744073709551615",
    "cluster_size=4k,table_size=1",
    "cluster_size=8M,table_size=1",
    "cluster_size=8M,table_size=2",
]


@needs_qemu_img
@pytest.mark.parametrize(("text", "size"), list(itertools.product(SETS, ("1073741825", "8191P"))))
def test_refuses_what_qemu_refuses_in_its_words(text: str, size: str, tmp_path: Path) -> None:
    theirs = run("qemu-img", "create", "-q", "-f", "qed", "-o", text, "t", size, cwd=tmp_path)
    number = 8191 << 50 if size == "8191P" else int(size)
    try:
        resolve(number, given(text), None)
        ours = ""
    except OptionError as error:
        words = option_words(error, format="qed", generation=(7, 2), has_cluster_size=True)
        ours = f"qemu-img: t: {words}\n"
    assert ours == theirs.stderr
