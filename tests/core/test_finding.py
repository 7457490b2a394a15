"""Findings and totals: what is counted, what is kept, what crosses the seam."""

from __future__ import annotations

import pytest

from instar.core.finding import MAX_FINDINGS, SEVERITIES, Finding, Report
from instar.core.wire import decode, encode

COUNTERS = {"corruption": "corruptions", "leak": "leaks", "error": "check_errors"}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_each_severity_has_its_own_total_and_a_warning_none(severity):
    report = Report()
    report.add(severity, "table", "words")
    report.add(severity, "table", "words", count=4)
    for name, counter in COUNTERS.items():
        assert getattr(report, counter) == (5 if name == severity else 0)
    assert [found.severity for found in report.findings] == [severity, severity]


def test_a_new_report_has_counted_nothing_and_leaves_open_what_not_every_format_counts():
    report = Report()
    assert (report.corruptions, report.leaks, report.false_leaks, report.check_errors) == (0, 0, 0, 0)
    assert report.image_end_offset is None
    assert report.total_clusters is None
    assert (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) == (None, None, None)


def test_findings_are_kept_in_order_as_long_as_there_is_room_and_counted_beyond():
    report = Report()
    for number in range(MAX_FINDINGS + 2):
        report.add("leak", "file", str(number))
    assert report.leaks == MAX_FINDINGS + 2
    assert [found.detail for found in report.findings] == [str(number) for number in range(MAX_FINDINGS)]


def test_a_finding_has_the_facts_that_it_was_given_and_no_others():
    found = Finding("leak", "file", "words")
    assert (found.offset, found.code, found.values) == (None, "", ())
    report = Report()
    report.add("error", "L1 table", "words", offset=512, code="x-y", values=(1, 2))
    report.add("warning", "file", "other")
    assert report.to_wire()["findings"] == [
        ["error", "L1 table", "words", 512, "x-y", [1, 2]],
        ["warning", "file", "other", None, "", []],
    ]


def test_a_report_crosses_the_seam_with_all_of_its_totals():
    report = Report()
    totals = [name for name in Report.__slots__ if name != "findings"]
    for number, name in enumerate(totals):
        setattr(report, name, number)
    back = decode(encode(report.to_wire()))
    assert back == {"findings": [], **{name: number for number, name in enumerate(totals)}}
