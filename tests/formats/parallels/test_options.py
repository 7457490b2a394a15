from __future__ import annotations

import pytest
from tests.support import needs_qemu_img, qemu_img, run

from instar.cli.messages.parallels import QEMU
from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.formats.parallels.ondisk import MAX_BAT_ENTRIES, MAX_CLUSTER
from instar.formats.parallels.options import CREATE, resolve


def given(**values: str) -> Settings:
    return read_settings(CREATE, list(values.items()), format="parallels")


def refusal(size: int, **values: str) -> OptionError:
    with pytest.raises(OptionError) as caught:
        resolve(size, given(**values), None)
    return caught.value


def test_fills_in_the_defaults() -> None:
    assert resolve(1, given(), None) == {"cluster_size": 1 << 20, "preallocation": "off"}


@pytest.mark.parametrize(("asked", "used"), [("1", 512), ("512", 512), ("3000", 3072), (str(MAX_CLUSTER), MAX_CLUSTER)])
def test_rounds_the_cluster_size_up_to_a_sector(asked: str, used: int) -> None:
    assert resolve(1, given(cluster_size=asked), None)["cluster_size"] == used


@needs_qemu_img
@pytest.mark.parametrize(
    ("size", "cluster_size"),
    [
        (0, "2147483137"),
        (0, "2G"),
        (1, "1P"),
        (1, "0"),
        (0, "0"),
        (0, "18446744073709551615"),
        (1 << 60, "1M"),
        (1 << 41, "512"),
        (1, "8E"),
    ],
)
def test_rejects_what_qemu_rejects_in_its_words(tmp_path, size: int, cluster_size: str) -> None:
    path = tmp_path / "t"
    done = run("qemu-img", "create", "-f", "parallels", "-o", f"cluster_size={cluster_size}", path, str(size))
    error = refusal(size, cluster_size=cluster_size)
    assert done.stderr == f"qemu-img: {path}: {QEMU[error.code]}\n"


@pytest.mark.parametrize("cluster_size", [str(MAX_CLUSTER + 1), "2147483136"])
def test_rejects_clusters_that_qemu_makes_but_cannot_open(cluster_size: str) -> None:
    assert refusal(1, cluster_size=cluster_size).code == "parallels-cluster-size"


def test_rejects_more_clusters_than_can_be_opened() -> None:
    limit = MAX_BAT_ENTRIES << 20
    assert resolve(limit, given(), None)
    error = refusal(limit + 1)
    assert (error.code, error.values["limit"]) == ("image-too-large", limit)


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
def test_takes_every_preallocation(mode: str) -> None:
    assert resolve(1, given(preallocation=mode), None)["preallocation"] == mode


def test_rejects_other_preallocations() -> None:
    assert refusal(1, preallocation="on").code == "bad-choice"


@needs_qemu_img
def test_rows_are_those_of_qemu() -> None:
    theirs = [line.rstrip() for line in qemu_img("create", "-f", "parallels", "-o", "help").stdout.splitlines()]
    assert {row.help_line().rstrip() for row in CREATE if not row.extension} <= set(theirs)
