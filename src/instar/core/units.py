"""Sizes: constants, rounding, and the two directions between a number and what people type or read.

Law: every function is total over its stated domain and raises nothing but ``ValueError``.
"""

from __future__ import annotations

from instar.core import NEWEST

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

_DIGITS = frozenset("0123456789")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_BLANKS = " \t\n\v\f\r"
#: More digits than any size has; also for what stands behind a point.
_MOST_DIGITS = 400
#: QEMU 8.1: a size may begin with its point. QEMU 8.0: no suffix behind hexadecimal digits.
_POINT_FIRST = (8, 1)
_NO_HEX_SUFFIX = (8, 0)

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


def parse_size(text: str, generation: tuple[int, int] = NEWEST) -> int:
    """Read a size as qemu-img does: decimal digits, then one of ``bkMGTPE``, or hexadecimal digits after ``0x``.

    Suffixes are powers of 1024 in either case. A fraction needs a suffix above ``b`` (unless it is zero) and is rounded
    to the nearest byte, half up; it has the precision of a C double. Leading blanks and ``+`` are accepted, as by C's
    ``strtoull``. Before 8.1 there must be a digit before the point, and before 8.0 a hexadecimal number takes a suffix.

    Returns:
        Bytes; may exceed 2^64 and may be negative (the caller knows its own limit).

    Raises:
        ValueError: the text is not a size.
    """
    body = text.lstrip(_BLANKS)
    sign = 1
    if body[:1] in ("+", "-"):
        sign = -1 if body[0] == "-" else 1
        body = body[1:]
    if body[:2].lower() == "0x":
        return sign * _hexadecimal(body[2:], text, sign, generation)
    end = 0
    while end < len(body) and body[end] in _DIGITS:
        end += 1
    whole, rest = body[:end], body[end:]
    fraction = ""
    if rest.startswith("."):
        end = 1
        while end < len(rest) and rest[end] in _DIGITS:
            end += 1
        fraction, rest = rest[1:end], rest[end:]
        if not whole and (generation < _POINT_FIRST or not fraction):
            raise ValueError(text)
    shift = _SUFFIXES.get(rest.lower())
    if shift is None or not (whole or fraction):
        raise ValueError(text)
    value = int(whole or "0") if len(whole) <= _MOST_DIGITS else 1 << 128
    if sign < 0 or value > UINT64_MAX:
        # Neither is anything but a bare number out of range; and before 8.1 a small negative one is none at all.
        if body[len(whole) :] or (sign < 0 and value <= UINT64_MAX and generation < _POINT_FIRST):
            raise ValueError(text)
        return sign * max(value, 1)
    part = 0
    if fraction:
        scaled = float("0." + fraction[:_MOST_DIGITS]) * 2.0**64
        part = int(scaled)
        if part > UINT64_MAX:  # as near to 1 as makes no difference; older versions lost it
            part, value = 0, value + (generation >= _POINT_FIRST)
    if part and shift == 0:
        raise ValueError(text)
    return (value << shift) + ((part << shift >> 63) + 1 >> 1)


def _hexadecimal(digits: str, text: str, sign: int, generation: tuple[int, int]) -> int:
    end = 0
    while end < len(digits) and digits[end] in _HEX_DIGITS:
        end += 1
    rest = digits[end:].lower()
    shift = _SUFFIXES.get(rest, 0)
    if not end or end > _MOST_DIGITS or rest not in _SUFFIXES or (rest and generation >= _NO_HEX_SUFFIX):
        raise ValueError(text)
    if sign < 0 and generation < _POINT_FIRST:
        raise ValueError(text)
    return int(digits[:end], 16) << shift


def warns_of_size(text: str, generation: tuple[int, int]) -> bool:
    """Tell whether qemu-img warns of what may be a size: a hexadecimal number with a suffix, before 8.0."""
    body = text.lstrip(_BLANKS + "+-").lower()
    if generation >= _NO_HEX_SUFFIX or not body.startswith("0x"):
        return False
    digits = body[2:].lstrip("0123456789abcdef")
    return len(digits) < len(body) - 2 and digits[:1] in tuple("kmgtpe")


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
