r"""Characters that must not reach a terminal as they are, and what is shown in their place.

Law: one table for all that is shown. A terminal acts on control characters; others change the direction of what stands
around them, or are not seen at all, so that a name is not what it looks like.

>>> print(escaped("a\x1b[2Jb\u202ec\U000e0041"))
a\x1b[2Jb\u202ec\U000e0041
"""

from __future__ import annotations

#: First and last, but for surrogates: control characters (Unicode's Cc), and what has no picture of its own: those of
#: Cf, Zl and Zp (bidirectional ones, joiners, tags, separators of lines) and all of Default_Ignorable_Code_Point
#: (fillers, variation selectors); the empty Braille pattern.
UNSAFE = (
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
#: Surrogates; of these the ones that stand for a byte that is not UTF-8.
_SURROGATES, _BYTES = range(0xD800, 0xE000), range(0xDC80, 0xDD00)
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code != 0x0A)
_table: dict[int, str] = {}


def escaped(text: str) -> str:
    """Return a text with its unsafe characters escaped, line ends too."""
    return text if text.isascii() and text.isprintable() else text.translate(_escapes())


def escaped_lines(text: str) -> str:
    """Return lines with their unsafe characters escaped, but for the line ends; no time is lost on harmless ASCII."""
    if text.isascii():
        data = text.encode("ascii")
        if len(data.translate(None, _CONTROLS)) == len(data):
            return text
    return "\n".join([escaped(line) for line in text.split("\n")])


def _escapes() -> dict[int, str]:
    if not _table:
        for first, last in UNSAFE:
            for code in range(first, last + 1):
                _table[code] = _escape(code)
        for code in _SURROGATES:
            _table[code] = f"\\x{code - 0xDC00:02x}" if code in _BYTES else f"\\u{code:04x}"
    return _table


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
