"""Facts of an image: what a cell sends is rebuilt as it was, or refused."""

from __future__ import annotations

import pytest

from instar.core.image import MAX_NAME, MAX_REFERENCES, ImageFacts, Reference, shape
from instar.core.schema import number
from instar.core.wire import WireError, decode, encode

SNAPSHOT = {
    "id": "1",
    "name": "before",
    "vm-state-size": 0,
    "date-sec": 1,
    "date-nsec": 2,
    "vm-clock-sec": 3,
    "vm-clock-nsec": 4,
}


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
        references=[Reference("extents.0", b"d", required=True), Reference("backing", b"\xff", format="raw")],
        snapshots=[SNAPSHOT],
        format_specific={"type": "qcow2"},
        extra={"cid": 7},
        has_dirty_flag=False,
    )
    wire = made.to_wire()
    back = ImageFacts.from_wire(decode(encode(wire)))
    assert back.to_wire() == wire
    assert wire["references"] == [["extents.0", b"d", None, True], ["backing", b"\xff", "raw", False]]
    assert [wire[name] for name in ("encrypted", "dirty", "corrupt", "has_dirty_flag")] == [True, True, True, False]
    assert (wire["format"], wire["virtual_size"], wire["cluster_size"]) == ("qcow2", 1 << 20, 512)
    assert (wire["snapshots"], wire["format_specific"], wire["extra"]) == ([SNAPSHOT], {"type": "qcow2"}, {"cid": 7})
    assert back.backing is back.references[1]


@pytest.mark.parametrize("name", ["encrypted", "dirty", "corrupt", "has_dirty_flag"])
def test_each_flag_travels_by_itself(name):
    back = ImageFacts.from_wire(facts(has_dirty_flag=False).to_wire() | {name: True})
    assert [flag for flag in ("encrypted", "dirty", "corrupt", "has_dirty_flag") if getattr(back, flag)] == [name]


@pytest.mark.parametrize(
    "rows", [[["backing", b"x" * MAX_NAME, None, False]], [["extents.5", b"", "raw", True]] * MAX_REFERENCES]
)
def test_takes_names_and_references_up_to_their_limits(rows):
    assert len(ImageFacts.from_wire(facts().to_wire() | {"references": rows}).references) == len(rows)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("references", [["backing", b"", None, False]] * (MAX_REFERENCES + 1)),
        ("references", [["backing", b"x" * (MAX_NAME + 1), None, False]]),
        ("references", [[b"r", b"", None, False]]),
        ("references", [["backing", "", None, False]]),
        ("references", [["backing", b"", b"raw", False]]),
        ("references", [["backing", b"", None, None]]),
        ("references", [["backing", b"", None]]),
        ("references", [["backing", b"", None, False, 1]]),
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
    "role", ["", "file", "backing\x1b", "extents.", "extents.-1", "extents.123456", "extents.²", "Backing", "a" * 99, 1]
)
def test_role_of_a_file_is_one_that_there_is(role):
    with pytest.raises(WireError, match=r"^references: it is no role of a file$"):
        ImageFacts.from_wire(facts().to_wire() | {"references": [[role, b"x", None, False]]})


@pytest.mark.parametrize("role", ["backing", "data-file"])
def test_no_image_demands_more_than_its_extents(role):
    with pytest.raises(WireError, match="must not be required"):
        ImageFacts.from_wire(facts().to_wire() | {"references": [[role, b"x", None, True]]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key in SNAPSHOT for value in (None, b"1", [1], True, -(1 << 64), "x" * 300)],
        ("icount", "\x1b[2J"),
        ("other", 1),
        ("date-sec", 1 << 32),
        ("vm-clock-nsec", 1_000_000_000),
    ],
)
def test_a_snapshot_has_its_fields_with_their_types_and_no_other(key, value):
    with pytest.raises(WireError, match=r"^snapshots: "):
        ImageFacts.from_wire(facts(snapshots=[{**SNAPSHOT, key: value}]).to_wire())


def test_what_is_not_declared_is_refused():
    with pytest.raises(WireError):
        ImageFacts.from_wire(facts().to_wire() | {"more": 1})
    made = shape("qcow2", extra={"cid": number()})
    made(facts(extra={"cid": 5}).to_wire())
    for other in (facts(extra={"cid": "5"}), facts(extra={"other": 5}), facts(snapshots=[SNAPSHOT])):
        with pytest.raises(WireError):
            made(other.to_wire())
    for specific in ({"type": "qcow2", "data": {}}, {"type": "raw"}):
        with pytest.raises(WireError):
            made(facts(format_specific=specific).to_wire())
