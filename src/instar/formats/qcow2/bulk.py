"""Whole tables at once: a table of 64-bit entries as one large integer.

Law: nothing here knows what an entry means. CPython multiplies, adds and masks large integers in C, so that a
question to all entries of a table costs a few microseconds.
"""

from __future__ import annotations

#: Tables that are kept ready, by ``(count, stride)``: a few lengths come again and again.
_ones: dict[tuple[int, int], int] = {}
_ramps: dict[tuple[int, int], int] = {}
_MAX_KEPT = 8


def ones(count: int, stride: int = 8) -> int:
    """Return a table of ``count`` entries of ``stride`` bytes, each the number 1.

    >>> hex(ones(2))
    '0x10000000000000001'
    """
    key = count, stride
    if key not in _ones:
        if len(_ones) >= _MAX_KEPT:
            _ones.clear()
        _ones[key] = int.from_bytes(count * (bytes(stride - 1) + b"\1"), "big")
    return _ones[key]


def ramp(count: int, stride: int = 8) -> int:
    """Return a table of the numbers 0, 1, 2 … ``count - 1``.

    >>> hex(ramp(3))
    '0x10000000000000002'
    """
    key = count, stride
    if key not in _ramps:
        if len(_ramps) >= _MAX_KEPT:
            _ramps.clear()
        _ramps[key] = int.from_bytes(b"".join(number.to_bytes(stride, "big") for number in range(count)), "big")
    return _ramps[key]


def any_bits(data: bytes, mask: int) -> bool:
    """Tell whether any 64-bit entry of a table, big endian, has one of the bits of ``mask``."""
    return bool(int.from_bytes(data, "big") & mask * ones(len(data) // 8))
