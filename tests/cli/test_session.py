"""The only door to the terminal: what it lets through is lines, whoever forgot to escape what is in them."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest
from tests.hostile.meter import unprintable

from instar.cli import session
from instar.cli.json import dumps, pieces

HOSTILE = "\x1b]52;c;eA==\x07\x1b[2J\r\x9b31m\u202egnp\u2066\u200b\ufeff\xad\U000e0041\udcff\ud800\x00"
SHOWN = r"\x1b]52;c;eA==\x07\x1b[2J\x0d\x9b31m\u202egnp\u2066\u200b\ufeff\xad\U000e0041\xff\ud800\x00"  # one line


class Streams:
    """Standard output and standard error of a test: only what has been written, in bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(self.out, "ascii"))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(self.err, "ascii"))


def test_what_nobody_escaped_is_escaped_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    session.say(f"ä: {HOSTILE}\nmore\n")
    session.say_all(iter([f"{HOSTILE[:3]}", f"{HOSTILE[3:]}\n"]))
    session.complain(f"oh: {HOSTILE}")
    out, err = streams.out.getvalue().decode(), streams.err.getvalue().decode()
    assert out == f"ä: {SHOWN}\nmore\n{SHOWN}\n"
    assert err == f"oh: {SHOWN}\n"
    assert not unprintable(out + err)


def test_json_of_anything_is_json_and_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    value = {"name": HOSTILE, "key\x1b": [b"\xff\x1b", 1]}
    session.say_all(pieces(value))
    text = streams.out.getvalue().decode("ascii")
    assert text == dumps(value)
    assert not unprintable(text)
    assert "\U000e0041" in json.loads(text)["name"]


def test_stream_without_bytes_below_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    session.say(f"{HOSTILE}\n")
    assert stream.getvalue() == f"{SHOWN}\n"


def test_long_output_is_printed_in_pieces_and_ascii_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    line = "a line of harmless text, as there are many\n"
    count = (40 << 20) // len(line)
    before = time.process_time()
    session.say_all(line for _ in range(count))
    assert time.process_time() - before < 5
    assert len(streams.out.getvalue()) == count * len(line)
