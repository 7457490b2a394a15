"""A reply is hostile: whatever a cell answers, the host has a value or one of the library's errors, safe to print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instar.core.errors import HostError, ImageError, InstarError, OptionError, SandboxError
from instar.core.image import ImageFacts
from instar.core.wire import encode
from instar.guest.main import main
from instar.host.cells import call
from instar.sandbox.cell import Grant, Isolation, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Serve


class Answering(Isolation):
    """A cell that answers what the test says."""

    __slots__ = ("reply",)

    name = "fake"

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.used = set()

    def open(self) -> Answering:  # type: ignore[override]
        return self

    def run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve) -> bytes:
        return self.reply


def answer(reply: bytes, operation: str = "info") -> Wire:
    files = [Grant(0, "r", 0, "first"), Grant(1, "w", 0, "second")]
    return call(operation, {}, files, isolation=Answering(reply), limits=Limits(), path="disk\x1b.img")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(1 - (1 << 127), (1 << 127) - 1)
    | st.binary(max_size=8)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
)
anything = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=6
)
likely = st.sampled_from(["image", "os", "limit", "internal", "corrupt", "denied", "\x1b[2J", "x" * 5000])
names = (
    "class",
    "kind",
    "structure",
    "detail",
    "field",
    "offset",
    "value",
    "limit",
    "expected",
    "format",
    "errno",
    "file",
)
errors = st.dictionaries(st.sampled_from(names), likely | anything, max_size=len(names))


class TestReply:
    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(max_size=200))
    def test_of_any_bytes_is_a_value_or_a_protocol_error(self, reply: bytes) -> None:
        try:
            answer(reply)
        except InstarError as error:
            _safe(error)

    @settings(deadline=None)  # the machine may be busy
    @given(errors)
    @example({"class": "os", "errno": 1 << 100})
    @example({"class": "os", "errno": -(1 << 126)})
    @example({"class": "os", "errno": 0})
    @example({"class": "image", "kind": "corrupt", "structure": "\x1b[2J" * 999, "detail": "\x07" * 9999})
    @example({"class": "internal", "detail": "\u202ex" * 9999})
    @example({"class": "option", "code": "x", "detail": "x", "values": {"self": 1, "code": b"", "detail": [None]}})
    def test_of_any_error_is_an_error_of_the_library(self, facts: dict[str, Wire]) -> None:
        with pytest.raises(InstarError) as caught:
            answer(encode({"error": facts}))
        _safe(caught.value)

    @settings(deadline=None)  # the machine may be busy
    @given(anything)
    def test_of_any_value_but_that_of_its_operation_is_a_protocol_error(self, value: Wire) -> None:
        for operation in ("info", "check", "create"):
            with pytest.raises(SandboxError) as caught:
                answer(encode({"ok": value}), operation)
            assert caught.value.kind == "protocol"

    def test_is_given_to_the_caller_as_it_is(self) -> None:
        value = ImageFacts("raw", 512).to_wire()
        assert answer(encode({"ok": value})) == value

    @pytest.mark.parametrize("value", [None, [], {}, {"ok": 1, "error": {}}, {"other": 1}, "ok", b"ok", 5, True])
    def test_is_either_a_value_or_an_error(self, value: Wire) -> None:
        with pytest.raises(SandboxError) as caught:
            answer(encode(value))
        assert caught.value.kind == "protocol"

    @pytest.mark.parametrize(
        ("facts", "kind"),
        [
            ({"class": "os", "errno": 28}, HostError),
            ({"class": "os", "errno": 28, "file": 2}, HostError),
            ({"class": "limit", "detail": "memory"}, SandboxError),
            ({"class": "internal", "detail": "oh"}, SandboxError),
            ({"class": "image", "kind": "corrupt", "structure": "header", "detail": "bad"}, ImageError),
            ({"class": "option", "code": "odd", "detail": "bad", "values": {"key": "size"}}, OptionError),
        ],
    )
    def test_of_each_class_becomes_that_error_about_the_file(self, facts: dict[str, Wire], kind: type) -> None:
        with pytest.raises(kind) as caught:
            answer(encode({"error": facts}), "create")
        assert type(caught.value) is kind
        if kind is not OptionError:
            assert str(caught.value).startswith("disk\\x1b.img: ")

    @pytest.mark.parametrize(
        "facts",
        [
            {"class": "option", "code": "bad-image-size", "detail": "x", "values": {}},
            {"class": "os", "errno": 28, "file": -1},
            {"class": "os", "errno": True},
            {"class": "image", "kind": "corrupt", "structure": "header", "detail": "bad", "format": "../x"},
            {"class": "image", "kind": "corrupt", "structure": "header", "detail": "bad", "path": "/etc/passwd"},
            {"class": "image", "kind": "corrupt", "structure": "header", "detail": "x" * 401},
            {"class": "image", "kind": "host", "structure": "header", "detail": "x"},
        ],
    )
    def test_of_an_error_that_nothing_in_a_cell_makes_is_a_protocol_error(self, facts: dict[str, Wire]) -> None:
        with pytest.raises(SandboxError, match="sandbox protocol"):
            answer(encode({"error": facts}))

    def test_that_names_an_option_does_not_name_the_keys_of_the_error(self) -> None:
        values: dict[str, Wire] = {"class": "ImageError", "message": "No errors were found", "kind": "", "code": ""}
        with pytest.raises(OptionError) as caught:
            answer(encode({"error": {"class": "option", "code": "odd", "detail": "bad", "values": values}}), "create")
        assert caught.value.facts() == {"class": "OptionError", "kind": "option", "message": "bad", "code": "odd"}

    @pytest.mark.parametrize(
        ("file", "said"), [(0, "first: cannot read it: No space"), (1, "second: cannot write it: No space")]
    )
    def test_of_the_system_names_the_file_that_it_is_about(self, file: int, said: str) -> None:
        with pytest.raises(HostError) as caught:
            answer(encode({"error": {"class": "os", "errno": 28, "file": file}}))
        assert str(caught.value).startswith(said)


class TestDoor:
    """``guest.main`` never raises, and what it says can be read by the host."""

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RecursionError(),
            OSError(5, "Input/output error"),
            OSError("no number"),
            KeyError("x"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            ValueError("\ud800\udc80\x1b"),
            ImageError("corrupt", "\ud800" * 1000, "\udfff\udc80", field="\ud801", format="\udbff"),
            ImageError("corrupt", "header", "x" * 10_000, value=1 << 100, offset=-(1 << 100), limit=5, expected=6),
        ],
    )
    def test_turns_every_failure_into_facts(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        from instar.guest import info

        def fail(args: object, files: object, ask: object) -> Wire:
            raise error

        monkeypatch.setattr(info, "run", fail)
        reply = main(encode({"op": "info", "args": {}}), [], lambda request: None)
        with pytest.raises(InstarError) as caught:
            answer(reply)
        _safe(caught.value)

    def test_hands_on_every_fact_of_an_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from instar.guest import info

        numbers = {"offset": 1, "value": 2, "limit": 3, "expected": 4}

        def fail(args: object, files: object, ask: object) -> Wire:
            raise ImageError("corrupt", "header", "words", field="version", format="qed", **numbers)  # type: ignore[arg-type]

        monkeypatch.setattr(info, "run", fail)
        with pytest.raises(ImageError) as caught:
            answer(main(encode({"op": "info", "args": {}}), [], lambda request: None))
        facts = caught.value.facts()
        assert {key: facts[key] for key in numbers} == numbers
        assert (facts["structure"], facts["field"], facts["format"]) == ("header", "version", "qed")

    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(max_size=60))
    def test_takes_any_job(self, job: bytes) -> None:
        assert main(job, [], lambda request: None)

    @pytest.mark.parametrize("job", [{"op": "no such", "args": {}}, {"op": 5}, {}, None, {"op": "info", "args": 5}])
    def test_refuses_jobs_that_are_none(self, job: Wire) -> None:
        with pytest.raises(SandboxError, match="died: what ran in the cell failed"):
            answer(main(encode(job), [], lambda request: None))


def _safe(error: InstarError) -> None:
    """Fail unless an error can be printed on a terminal: one line, no control characters, no novel."""
    text = str(error)
    assert len(text) < 2000
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text)
    text.encode()
    assert len(repr(error.facts())) < 10_000
