"""Facts of an image: what a cell sends is rebuilt as it was, or refused."""

from __future__ import annotations

import pytest

from instar.core.image import MAX_NAME, MAX_REFERENCES, ImageFacts, Reference
from instar.core.wire import WireError, decode, encode


def facts(**more):
    return ImageFacts("qcow2", 1 << 20, **more)


def test_what_is_not_said_is_off_or_empty():
    made = facts()
    assert (made.encrypted, made.dirty, made.corrupt, made.has_dirty_flag) == (False, False, False, True)
    assert (made.references, made.snapshots, made.extra) == ([], [], {})
    assert (made.cluster_size, made.format_specific, made.backing) == (None, None, None)
    reference = Reference("backing", b"x")
    assert (reference.format, reference.required) == (None, False)


def test_facts_cross_the_seam_unchanged():
    made = facts(
        cluster_size=512,
        encrypted=True,
        dirty=True,
        corrupt=True,
        references=[Reference("data-file", b"d", required=True), Reference("backing", b"\xff", format="raw")],
        snapshots=[{"id": "1"}],
        format_specific={"type": "qcow2"},
        extra={"cid": 7},
        has_dirty_flag=False,
    )
    wire = made.to_wire()
    back = ImageFacts.from_wire(decode(encode(wire)))
    assert back.to_wire() == wire
    assert wire["references"] == [["data-file", b"d", None, True], ["backing", b"\xff", "raw", False]]
    assert [wire[name] for name in ("encrypted", "dirty", "corrupt", "has_dirty_flag")] == [True, True, True, False]
    assert (wire["format"], wire["virtual_size"], wire["cluster_size"]) == ("qcow2", 1 << 20, 512)
    assert (wire["snapshots"], wire["format_specific"], wire["extra"]) == ([{"id": "1"}], {"type": "qcow2"}, {"cid": 7})
    assert back.backing is back.references[1]


@pytest.mark.parametrize("name", ["encrypted", "dirty", "corrupt", "has_dirty_flag"])
def test_each_flag_travels_by_itself(name):
    back = ImageFacts.from_wire(facts(has_dirty_flag=False).to_wire() | {name: True})
    assert [flag for flag in ("encrypted", "dirty", "corrupt", "has_dirty_flag") if getattr(back, flag)] == [name]


@pytest.mark.parametrize(
    "rows", [[["backing", b"x" * MAX_NAME, None, False]], [["r", b"", "raw", True]] * MAX_REFERENCES]
)
def test_takes_names_and_references_up_to_their_limits(rows):
    assert len(ImageFacts.from_wire(facts().to_wire() | {"references": rows}).references) == len(rows)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("references", [["r", b"", None, False]] * (MAX_REFERENCES + 1)),
        ("references", [["r", b"x" * (MAX_NAME + 1), None, False]]),
        ("references", [[b"r", b"", None, False]]),
        ("references", [["r", "", None, False]]),
        ("references", [["r", b"", b"raw", False]]),
        ("references", [["r", b"", None, None]]),
        ("references", [["r", b"", None]]),
        ("references", [["r", b"", None, False, 1]]),
        ("references", [{"r": 1}]),
        ("references", None),
        ("snapshots", [{}, 1]),
        ("snapshots", {}),
        ("format", None),
        ("virtual_size", -1),
        ("virtual_size", None),
        ("cluster_size", -1),
        ("cluster_size", "1"),
        ("encrypted", 1),
        ("dirty", None),
        ("corrupt", 0),
        ("format_specific", []),
        ("extra", None),
        ("has_dirty_flag", 1),
    ],
)
def test_refuses_another_shape(member, value):
    with pytest.raises(WireError):
        ImageFacts.from_wire(facts().to_wire() | {member: value})


@pytest.mark.parametrize(
    "member", [name for name in ImageFacts.__slots__ if name not in ("cluster_size", "format_specific")]
)
def test_refuses_facts_with_a_member_missing(member):
    wire = facts().to_wire()
    del wire[member]
    with pytest.raises(WireError):
        ImageFacts.from_wire(wire)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["r", b"", None, False]] * (MAX_REFERENCES + 1), "too many references"),
        ([1], "a reference has another shape"),
        ([["r", "", None, False]], "a reference has another shape"),
        ([["r", b"", 1, False]], "a reference has another shape"),
    ],
)
def test_says_what_has_another_shape(rows, words):
    with pytest.raises(WireError) as caught:
        ImageFacts.from_wire(facts().to_wire() | {"references": rows})
    assert str(caught.value) == words
    with pytest.raises(WireError, match=r"^a snapshot has another shape$"):
        ImageFacts.from_wire(facts().to_wire() | {"snapshots": [1]})
