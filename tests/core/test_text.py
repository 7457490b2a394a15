"""What reaches a terminal: nothing that it acts on, turns round or does not show."""

from __future__ import annotations

import sys
import unicodedata

from instar.core.text import UNSAFE, escaped, escaped_lines

EVERYTHING = [chr(code) for code in range(sys.maxunicode + 1)]


def test_every_unsafe_character_is_escaped_by_name_and_no_other_is_touched() -> None:
    for char in EVERYTHING:
        code = ord(char)
        unsafe = any(first <= code <= last for first, last in UNSAFE) or 0xD800 <= code <= 0xDFFF
        shown = escaped(char)
        assert (shown != char) == unsafe, f"{code:x}"
        assert shown.isascii() or not unsafe
        assert escaped_lines(char) == (char if char == "\n" else shown)


def test_table_has_all_controls_and_all_that_turn_text_round() -> None:
    for char in EVERYTHING:
        turns = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        if turns or unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs"):
            assert escaped(char) != char, f"{ord(char):x}"


def test_all_of_the_table_is_escaped_also_what_python_takes_for_a_letter() -> None:
    for first, last in UNSAFE:
        for code in (first, last):
            assert chr(code) not in escaped(f"a{chr(code)}b")
    assert escaped("a\u3164b\ufe0f") == "a\\u3164b\\ufe0f"
    assert not any(chr(code).isprintable() for first, last in UNSAFE if last < 0x80 for code in range(first, last + 1))


def test_lines_keep_their_ends_and_nothing_else() -> None:
    assert escaped_lines("a\nb\r\n\x1b[2Jc\n") == "a\nb\\x0d\n\\x1b[2Jc\n"
    assert escaped_lines("ä\n\x00\u202e\udcff\U000e0041\n\n") == "ä\n\\x00\\u202e\\xff\\U000e0041\n\n"
    assert escaped_lines("") == ""


def test_safe_text_is_the_same_object() -> None:
    text = "a line\n" * 1000
    assert escaped_lines(text) is text
    assert escaped("größe 大") == "größe 大"
