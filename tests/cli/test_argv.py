"""Reading arguments as getopt_long does."""

from __future__ import annotations

import pytest

from instar.cli.argv import Switch, UsageError, parse

SWITCHES = (
    Switch("format", "f", "format", "FMT", ""),
    Switch("options", "o", "options", "KEY", ""),
    Switch("output", "", "output", "FORMAT", ""),
    Switch("quiet", "q", "quiet", "", ""),
    Switch("unsafe", "u", "", "", ""),
)


def test_switches_may_stand_after_words():
    parsed = parse(SWITCHES, ["disk", "-f", "raw", "1G", "-q"])
    assert parsed.words == ["disk", "1G"]
    assert parsed.switches == [("format", "raw"), ("quiet", "")]


def test_double_dash_ends_switches():
    assert parse(SWITCHES, ["--", "-f", "raw"]).words == ["-f", "raw"]


@pytest.mark.parametrize("words", [["-qfraw"], ["-q", "-f", "raw"], ["-q", "--format=raw"], ["-q", "--for", "raw"]])
def test_clusters_attached_values_and_abbreviations_mean_the_same(words):
    assert parse(SWITCHES, words).switches == [("quiet", ""), ("format", "raw")]


def test_exact_long_name_wins_over_a_longer_one():
    rows = (Switch("a", "", "back", "X", ""), Switch("b", "", "backing", "X", ""))
    assert parse(rows, ["--back=1"]).switches == [("a", "1")]


def test_last_value_counts_and_all_are_kept():
    parsed = parse(SWITCHES, ["-o", "a", "-o", "b"])
    assert (parsed.last("options"), parsed.all("options")) == ("b", ["a", "b"])


def test_single_dash_is_a_word():
    assert parse(SWITCHES, ["-"]).words == ["-"]


@pytest.mark.parametrize(
    ("words", "kind", "option"),
    [
        (["-Z"], "unknown", "-Z"),
        (["--nosuch=1"], "unknown", "--nosuch"),
        (["-f"], "missing", "-f"),
        (["--format"], "missing", "--format"),
        (["--quiet=1"], "unwanted", "--quiet"),
        (["--o", "x"], "ambiguous", "--o"),
        (["-1G"], "unknown", "-1"),
    ],
)
def test_refuses_what_cannot_be_read(words, kind, option):
    with pytest.raises(UsageError) as caught:
        parse(SWITCHES, words)
    assert (caught.value.kind, caught.value.option) == (kind, option)


def test_negative_numbers_can_be_words():
    assert parse(SWITCHES, ["disk", "-1G"], numbers_are_words=True).words == ["disk", "-1G"]
