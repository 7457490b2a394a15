"""Sizes: constants, rounding, and the two directions between a number and what people type or read.

Law: every function is total over its stated domain and raises nothing but ``ValueError``.
"""

from __future__ import annotations

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40
PiB = 1 << 50
EiB = 1 << 60

SECTOR = 512

#: Largest size that a signed 64-bit file offset can express.
INT64_MAX = (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1

_SUFFIXES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


def ceil_div(value: int, divisor: int) -> int:
    """Divide and round towards positive infinity."""
    return -(-value // divisor)


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment`` (any positive number)."""
    return -(-value // alignment) * alignment


def is_power_of_two(value: int) -> bool:
    """Tell whether exactly one bit of ``value`` is set."""
    return value > 0 and value & (value - 1) == 0


def parse_size(text: str) -> int:
    """Read a size as qemu-img 10.0 and later do: decimal or ``0x`` digits, then one of ``bkMGTPE``.

    Suffixes are powers of 1024 in either case. A fraction needs a suffix above ``b`` and is rounded
    to the nearest byte, half up. A hexadecimal number takes no suffix. Leading blanks and ``+`` are
    accepted, as by C's ``strtoull``.

    Returns:
        Bytes; may exceed 2^64 (the caller knows its own limit) and may be negative.

    Raises:
        ValueError: the text is not a size.
    """
    body = text.lstrip(" \t\n\v\f\r")
    sign = 1
    if body[:1] in ("+", "-"):
        sign = -1 if body[0] == "-" else 1
        body = body[1:]
    if body[:2].lower() == "0x" and len(body) > 2:
        digits = body[2:]
        if not all(c in "0123456789abcdefABCDEF" for c in digits):
            raise ValueError(text)
        return sign * int(digits, 16)
    end = 0
    while end < len(body) and body[end] in "0123456789.":
        end += 1
    number, suffix = body[:end], body[end:].lower()
    if suffix not in _SUFFIXES or len(body) - end > 1:
        raise ValueError(text)
    whole, dot, fraction = number.partition(".")
    if "." in fraction or not (whole or fraction):
        raise ValueError(text)
    shift = _SUFFIXES[suffix]
    value = int(whole or "0") << shift
    if dot:
        if shift == 0:
            raise ValueError(text)
        if fraction:
            scaled = int(fraction) << shift
            unit: int = 10 ** len(fraction)
            value += (2 * scaled + unit) // (2 * unit)
    return sign * value


def format_size(size: int) -> str:
    """Write a byte count as qemu-img does: three significant digits, next unit from 1000 on.

    >>> format_size(1 << 30), format_size(197120), format_size(0)
    ('1 GiB', '192 KiB', '0 B')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = 0
    value = float(size)
    while index < len(units) - 1 and value >= 1000.0:
        value /= 1024
        index += 1
    return f"{value:.3g} {units[index]}"
