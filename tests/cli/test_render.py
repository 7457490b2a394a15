"""What people read."""

from __future__ import annotations

import time

import pytest

from instar.cli.render import check_text, info_text
from instar.core.finding import Report
from instar.core.image import ImageFacts, Reference
from instar.host.check import CheckResult
from instar.host.describe import Described
from instar.host.files import open_image
from instar.host.info import ImageInfo


def made(tmp_path, facts):
    (tmp_path / "t").write_bytes(bytes(1000))
    with open_image(str(tmp_path / "t")) as image:
        return ImageInfo("dir/t", Described(image, facts, None))


def test_control_characters_of_an_image_never_reach_a_terminal(tmp_path):
    facts = ImageFacts(
        "qcow2",
        1 << 20,
        references=[Reference("backing", b"a\x1b[2Jb\n\xff", format="raw\x07")],
        snapshots=[
            {"id": "1\x1b", "name": "n\x9b", "date-sec": 1, "vm-clock-sec": 2, "vm-clock-nsec": 3, "vm-state-size": 4}
        ],
        format_specific={"type": "qcow2", "data": {"data-file": "x\x1b]0;owned\x07"}},
    )
    text = info_text(made(tmp_path, facts), (11, 1))
    assert not [c for c in text if (ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) < 0xA0]
    assert r"a\x1b[2Jb\x0a\xff" in text


def test_snapshot_dates_out_of_range_are_shown_as_unknown(tmp_path):
    facts = ImageFacts("qcow2", 0, snapshots=[{"id": "1", "name": "n", "date-sec": 1 << 62}])
    assert "?" in info_text(made(tmp_path, facts), (11, 1))


#: As four versions print them: the name has 17 bytes and 16 characters, the size 2^64 - 1 bytes.
SNAPSHOT_LINES = {
    (5, 2): "1         aaaaaaaaaaaaaaaü  16 EiB 2024-02-03 04:05:06100:00:01.002          3",
    (7, 2): "1         aaaaaaaaaaaaaaaü   16 EiB 2024-02-03 04:05:06100:00:01.002          3",
    (10, 0): "1       aaaaaaaaaaaaaaaü   16 EiB 2024-02-03 04:05:06  0100:00:01.002          3",
    (11, 1): "1       aaaaaaaaaaaaaaaü   16 EiB 2024-02-03 04:05:06  0100:00:01.002          3",
}


@pytest.mark.parametrize("version", SNAPSHOT_LINES, ids=str)
def test_snapshots_stand_in_columns_of_bytes(version, tmp_path):
    date = int(time.mktime((2024, 2, 3, 4, 5, 6, 0, 0, -1)))
    row = {"id": "1", "name": "a" * 15 + "ü", "date-sec": date, "icount": 3, "vm-state-size": -1}
    facts = ImageFacts("qcow2", 0, snapshots=[{**row, "vm-clock-sec": 360001, "vm-clock-nsec": 2000000}])
    assert SNAPSHOT_LINES[version] in info_text(made(tmp_path, facts), version).split("\n")


def result(**totals):
    report = Report()
    for name, value in totals.items():
        setattr(report, name, value)
    return CheckResult("t", "qcow2", report.to_wire())


def test_check_of_a_clean_image_says_so_with_its_numbers():
    text = check_text(
        result(
            total_clusters=16,
            allocated_clusters=3,
            fragmented_clusters=0,
            compressed_clusters=0,
            image_end_offset=524288,
        )
    )
    assert text == (
        "No errors were found on the image.\n"
        "3/16 = 18.75% allocated, 0.00% fragmented, 0.00% compressed clusters\n"
        "Image end offset: 524288\n"
    )


def test_exit_codes_are_those_of_qemu_img():
    assert result().exit_code == 0
    assert result(check_errors=1).exit_code == 1
    assert result(corruptions=1, leaks=1, check_errors=1).exit_code == 1
    assert result(corruptions=1, leaks=1).exit_code == 2
    assert result(leaks=1).exit_code == 3
