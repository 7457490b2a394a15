"""The codec between host and cell: what goes in comes out, and any other bytes are refused in bounded time."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instar.core.wire import MAX_DEPTH, Room, WireError, decode, encode, take, take_optional, take_size

scalars = (
    st.none()
    | st.booleans()
    | st.integers(1 - (1 << 127), (1 << 127) - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    | st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


class TestRoundTrip:
    @settings(deadline=None)  # the machine may be busy
    @given(values)
    def test_gives_back_the_value_and_its_types(self, value: object) -> None:
        back = decode(encode(value))  # type: ignore[arg-type]
        assert back == value
        assert repr(back) == repr(value)  # True is not 1 here

    @settings(deadline=None)  # the machine may be busy
    @given(st.binary(max_size=300))
    def test_refuses_what_encode_never_makes(self, data: bytes) -> None:
        try:
            value = decode(data)
        except WireError:
            return
        assert encode(value) == data

    @settings(deadline=None)  # the machine may be busy
    @given(values, st.data())
    def test_refuses_a_value_with_a_byte_changed_or_takes_it_for_another(
        self, value: object, data: st.DataObject
    ) -> None:
        wire = bytearray(encode(value))  # type: ignore[arg-type]
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at] = data.draw(st.integers(0, 255))
        try:
            back = decode(bytes(wire))
        except WireError:
            return
        assert encode(back) == wire

    @settings(deadline=None)  # the machine may be busy
    @given(values)
    def test_refuses_every_beginning_of_a_value(self, value: object) -> None:
        wire = encode(value)  # type: ignore[arg-type]
        for end in range(len(wire)):
            with pytest.raises(WireError):
                decode(wire[:end])


class TestBounds:
    def test_of_depth(self) -> None:
        value: object = 1
        for _ in range(MAX_DEPTH):
            value = [value]
        assert decode(encode(value)) == value  # type: ignore[arg-type]
        with pytest.raises(WireError, match="deep"):
            encode([value])  # type: ignore[list-item]
        with pytest.raises(WireError, match="deep"):
            decode(b"l\0\0\0\1" * 100_000 + b"N")

    @pytest.mark.parametrize("number", [1 << 127, -(1 << 127) - 1, 1 << 4000])
    def test_of_numbers(self, number: int) -> None:
        with pytest.raises(WireError):
            encode(number)

    @pytest.mark.parametrize(
        "wire",
        [
            b"",
            b"?",
            b"NN",
            b"i\0",
            b"i\x11" + bytes(17),
            b"i\2\0\1",
            b"i",
            b"b\xff\xff\xff\xff",
            b"s\xff\xff\xff\xffabc",
            b"l\xff\xff\xff\xff" + b"N" * 100,
            b"d\xff\xff\xff\xff" + b"N" * 100,
            b"d\0\0\0\1NN",
            b"d\0\0\0\1i\1\1N",
            b"d\0\0\0\2s\0\0\0\1aNs\0\0\0\1aN",
            b"d\0\0\0\1s\0\0\0\1a",
        ],
    )
    def test_of_shape(self, wire: bytes) -> None:
        with pytest.raises(WireError):
            decode(wire)

    @pytest.mark.parametrize("value", [1.5, (1,), {1: 2}, object(), {"a": {1}}])
    def test_of_types(self, value: object) -> None:
        with pytest.raises(WireError):
            encode(value)  # type: ignore[arg-type]

    def test_of_time(self) -> None:
        """A long reply of the smallest members there are."""
        wire = b"l" + (1_000_000).to_bytes(4, "big") + b"N" * 1_000_000
        started = time.process_time()
        assert len(decode(wire)) == 1_000_000  # type: ignore[arg-type]
        assert time.process_time() - started < 10


class TestRoom:
    """What a reply may cost its host does not depend on what is in it."""

    @pytest.mark.parametrize(
        "wire",
        [
            b"l" + (5_000_000).to_bytes(4, "big") + b"N" * 5_000_000,
            b"l" + (50_000).to_bytes(4, "big") + (b"l" + (20).to_bytes(4, "big") + b"F" * 20) * 50_000,
            b"d" + (300_000).to_bytes(4, "big") + b"s\0\0\0\0N" * 300_000,
        ],
        ids=["list", "lists", "dict"],
    )
    def test_refuses_too_many_values_before_they_are_made(self, wire: bytes) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(WireError, match="too many values"):
                decode(wire, Room(values=400_000, memory=1 << 30))
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "value",
        [
            [[] for _ in range(10_000)],
            [{} for _ in range(10_000)],
            [{"a": 1} for _ in range(5000)],
            [(1 << 120) + n for n in range(10_000)],
            [str(n) for n in range(10_000)],
            {str(n): None for n in range(5000)},
            ["\U0001f600" + "x" * 4000 for _ in range(1000)],
            "\U0001f600" + "x" * 4_000_000,
            "\udcff" * 2_000_000,
            [bytes(1) + n.to_bytes(8, "big") for n in range(10_000)],
            [{f"k{n}": n for n in range(count)} for count in (5, 6, 10, 11, 12, 40, 1000, 30_000)],
        ],
        ids=lambda value: f"{type(value).__name__} {len(value)}",
    )
    def test_price_is_no_less_than_what_the_values_take(self, value: object) -> None:
        wire = encode(value)  # type: ignore[arg-type]
        room = Room(values=1 << 30, memory=1 << 30)
        tracemalloc.start()
        try:
            back = decode(wire, room)
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert back == value
        assert taken <= (1 << 30) - room.memory + 4096

    def test_is_shared_by_what_is_decoded_one_after_another(self) -> None:
        wire = encode([None] * 9)
        room = Room(values=25, memory=1 << 20)
        decode(wire, room)
        decode(wire, room)
        with pytest.raises(WireError, match="too many values"):
            decode(wire, room)

    @pytest.mark.parametrize("wire", [encode("x" * 10_000), encode(b"x" * 10_000), encode([1] * 1000)])
    def test_refuses_what_takes_more_memory_than_there_is(self, wire: bytes) -> None:
        with pytest.raises(WireError, match="too much memory"):
            decode(wire, Room(values=1 << 20, memory=5000))


class TestTake:
    @pytest.mark.parametrize(
        ("value", "kind"), [(True, int), (1, bool), ("a", bytes), (b"a", str), (None, int), ([], dict)]
    )
    def test_wants_the_exact_type(self, value: object, kind: type) -> None:
        with pytest.raises(WireError):
            take({"key": value}, "key", kind)  # type: ignore[dict-item]

    @pytest.mark.parametrize("value", [None, [], "x", b"x", 5, {}])
    def test_wants_a_dict_with_the_key(self, value: object) -> None:
        with pytest.raises(WireError):
            take(value, "key", int)  # type: ignore[arg-type]

    def test_optional_takes_none_and_nothing(self) -> None:
        assert take_optional({}, "key", int) is None
        assert take_optional({"key": None}, "key", int) is None
        assert take_optional({"key": 3}, "key", int) == 3
        with pytest.raises(WireError):
            take_optional({"key": True}, "key", int)

    @pytest.mark.parametrize("number", [-1, 1 << 64, 1 << 100])
    def test_size_is_not_negative_and_within_its_limit(self, number: int) -> None:
        with pytest.raises(WireError):
            take_size({"key": number}, "key")
        with pytest.raises(WireError):
            take_size({"key": 11}, "key", limit=10)
        assert take_size({"key": 10}, "key", limit=10) == 10


def test_a_text_with_a_surrogate_that_stands_for_no_byte_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="surrogate"):
        encode("a\ud800")


class TestBytes:
    """The encoding itself: both ends of it may be of different builds."""

    @pytest.mark.parametrize(
        ("value", "wire"),
        [
            (None, b"N"),
            (True, b"T"),
            (False, b"F"),
            (0, b"i\1\0"),
            (127, b"i\1\x7f"),
            (128, b"i\2\0\x80"),
            (-128, b"i\2\xff\x80"),
            (b"ab", b"b\0\0\0\2ab"),
            ("é", b"s\0\0\0\2\xc3\xa9"),
            ("\udcff", b"s\0\0\0\1\xff"),
            ([None, 1], b"l\0\0\0\2Ni\1\1"),
            ({"a": True}, b"d\0\0\0\1s\0\0\0\1aT"),
        ],
    )
    def test_are_these(self, value: object, wire: bytes) -> None:
        assert encode(value) == wire  # type: ignore[arg-type]
        assert decode(wire) == value

    def test_of_a_bytearray_are_those_of_bytes(self) -> None:
        assert encode(bytearray(b"ab")) == encode(b"ab")  # type: ignore[arg-type]


class TestWords:
    @pytest.mark.parametrize(
        ("wire", "words"),
        [
            (b"NN", "there is something after the value"),
            (b"i\x11" + bytes(17), "a number is cut short"),
            (b"i\0", "a number is cut short"),
            (b"i\2\1", "a number is cut short"),
            (b"i\2\0\1", "a number is not in its shortest form"),
            (b"?", "an unknown or truncated item"),
            (b"b\0\0\0", "an unknown or truncated item"),
            (b"b\0\0\0\2a", "a length reaches past the end"),
            (b"d\0\0\0\1NN", "a key is not a str, or is there twice"),
            (b"l\0\0\0\1" * 13 + b"N", "the value nests too deeply"),
        ],
    )
    def test_of_what_cannot_be_decoded(self, wire: bytes, words: str) -> None:
        with pytest.raises(WireError) as caught:
            decode(wire)
        assert str(caught.value) == words

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (1 << 127, "the number is too large"),
            ("\ud800", "a text has a surrogate that stands for no byte"),
            ({1: 2}, "a key is not a str"),
            (1.5, "a float may not cross"),
        ],
    )
    def test_of_what_cannot_be_encoded(self, value: object, words: str) -> None:
        with pytest.raises(WireError) as caught:
            encode(value)  # type: ignore[arg-type]
        assert str(caught.value) == words

    def test_of_what_is_not_there(self) -> None:
        for call, words in (
            (lambda: take({"a": "x"}, "a", int), "'a' is missing or is not of type int"),
            (lambda: take_size({"a": -1}, "a"), "'a' is out of range"),
            (lambda: take_optional(None, "a", int), "'a' is missing or is not of type int"),
        ):
            with pytest.raises(WireError) as caught:
                call()
            assert str(caught.value) == words

    def test_sizes_reach_to_64_bits(self) -> None:
        assert take_size({"a": (1 << 64) - 1}, "a") == (1 << 64) - 1
        assert take_size({"a": 0}, "a", limit=0) == 0
