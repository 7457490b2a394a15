"""Which units of a file (clusters, sectors) are in use: one bit each, for checkers.

Law: memory is ``count / 8`` bytes whatever is noted; every call takes time linear in the units it is about.
"""

from __future__ import annotations

#: Bytes of the bitmap that are looked at in one go.
_PIECE = 1 << 20


class Bits:
    """``count`` units, none of them in use at first; ``data`` has their bits, from the lowest one on."""

    __slots__ = ("count", "data")

    def __init__(self, count: int) -> None:
        self.count = count
        self.data = bytearray(count // 8 + 1)

    def _window(self, first: int, count: int) -> tuple[int, int, int]:
        return first >> 3, (first + count + 7) >> 3, ((1 << count) - 1) << (first & 7)

    def taken(self, first: int, count: int) -> int:
        """Return how many of ``count`` units from ``first`` on are in use. All of them must be among those counted."""
        low, high, mask = self._window(first, count)
        return (int.from_bytes(self.data[low:high], "little") & mask).bit_count()

    def take(self, first: int, count: int) -> int:
        """Note ``count`` units from ``first`` on as in use; return how many already were."""
        low, high, mask = self._window(first, count)
        there = int.from_bytes(self.data[low:high], "little")
        self.data[low:high] = (there | mask).to_bytes(high - low, "little")
        return (there & mask).bit_count()

    def gaps(self, first: int, run: int = 1) -> tuple[int, int]:
        """Return how many units from ``first`` on lie in gaps of at least ``run``, and the first of them (or -1).

        ``run`` is a power of two. A gap that crosses a multiple of 2^23 units counts as two.

        >>> bits = Bits(20)
        >>> bits.take(4, 1), bits.take(6, 2)
        (0, 0)
        >>> bits.gaps(3), bits.gaps(3, 4)
        ((14, 3), (12, 8))
        """
        lost, place = 0, -1
        for low in range(first >> 3, len(self.data), _PIECE):
            piece = self.data[low : low + _PIECE]
            end = min(8 * len(piece), self.count - 8 * low)
            if end <= 0:
                break
            empty = ~int.from_bytes(piece, "little") & ((1 << end) - 1)
            if 8 * low < first:
                empty = empty >> (first & 7) << (first & 7)
            # A bit that stays stands for a gap of ``run`` units from there on.
            step = 1
            while step < run and empty:
                empty &= empty >> step
                step *= 2
            if not empty:
                continue
            starts = (empty & ~(empty << 1)).bit_count()
            lost += empty.bit_count() + starts * (run - 1)
            if place < 0:
                place = 8 * low + (empty & -empty).bit_length() - 1
        return lost, place
