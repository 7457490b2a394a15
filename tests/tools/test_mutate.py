"""What mutation testing stands on: which statement a line is in, what differs, how sure a share is."""

from __future__ import annotations

import pytest
from tools.mutants import change, places
from tools.mutate import interval, report

MODULE = '''"""Doc."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    import x
LIMIT = (
    1,
    2,
)


class A:
    size = 1

    def f(self, a,
          b=2):
        if (a and
                b):
            return [
                a,
            ]

    def __repr__(self):
        return "A"
'''


def test_a_line_belongs_to_its_innermost_statement_without_the_body_of_that():
    found = places(MODULE)
    assert found[6].head == (5, 8)
    assert found[12].head == (12, 12)
    assert found[16].head == (16, 17)
    assert found[19].head == (18, 20)
    assert found[15].head == (14, 15)


def test_what_runs_at_import_is_in_no_function():
    found = places(MODULE)
    assert [found[line].function for line in (6, 12, 14, 15)] == [None] * 4
    assert found[16].function == found[19].function == (16, 20)


def test_what_only_type_checkers_or_people_read_does_not_count():
    found = places(MODULE)
    assert [line for line in found if not found[line].counts] == [2, 3, 4, 22, 23]


def test_shows_the_lines_that_differ():
    assert change("a\nb\nc\n", "a\nx\ny\nc\n") == ["-b", "+x", "+y"]
    assert change("a\nb\n", "a\n") == ["-b"]


@pytest.mark.parametrize(("hits", "count", "low", "high"), [(90, 100, 0.826, 0.945), (0, 10, 0, 0.278), (0, 0, 0, 1)])
def test_knows_how_sure_a_share_is(hits, count, low, high):
    assert interval(hits, count) == pytest.approx((low, high), abs=0.001)


def test_reports_survivors_and_counts_timeouts_as_seen():
    rows = [
        ("core/a.py#1", "killed"),
        ("core/a.py#2", "timeout"),
        ("core/b.py#3", "survived"),
        ("core/b.py#4", "no tests"),
    ]
    text = report([{"mutant": m, "line": 7, "result": r, "change": ["-x", "+y"]} for m, r in rows])
    assert "core/b.py#3 line 7: survived\n-x\n+y\n" in text
    assert [
        line.split()[1:] for line in text.splitlines() if line.startswith(("core/a.py ", "core/b.py ", "total "))
    ] == [
        ["1", "1", "0", "0", "100.0%"],
        ["0", "0", "1", "1", "0.0%"],
        ["1", "1", "1", "1", "50.0%"],
    ]
