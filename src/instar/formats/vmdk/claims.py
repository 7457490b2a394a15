"""Who holds which part of a file: bitmaps in pages, and findings that are counted, then told once.

Law: memory is bounded by the limit given, whatever the image says; a full bitmap is an ``ImageError``.
"""

from __future__ import annotations

from instar.core.errors import ImageError
from instar.core.finding import UNSEEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.core.finding import Report

_PAGE_BYTES = 4096
_PAGE_BITS = 8 * _PAGE_BYTES
#: Findings of one kind that are told one by one; the rest is a number.
_TOLD = 20


class Claims:
    """A set of units (sectors, grains) in which each can be claimed once."""

    __slots__ = ("_free", "_limit", "_pages")

    def __init__(self, limit: int) -> None:
        self._pages: dict[int, bytearray] = {}
        self._limit = limit
        self._free = limit // _PAGE_BYTES

    def claim_one(self, unit: int) -> bool:
        """Claim one unit; return whether it was free.

        Raises:
            ImageError: ``too-large``, the bitmap would pass its limit.
        """
        page = self._pages.get(unit >> 15)
        if page is None:
            page = self._new_page(unit >> 15)
        at, bit = (unit & 0x7FFF) >> 3, 1 << (unit & 7)
        if page[at] & bit:
            return False
        page[at] |= bit
        return True

    def claim(self, first: int, count: int) -> bool:
        """Claim ``count`` units; return whether all were free. Raises as ``claim_one``."""
        free = True
        while count > 0:
            number, low = divmod(first, _PAGE_BITS)
            step = min(count, _PAGE_BITS - low)
            page = self._pages.get(number)
            if page is None:
                page = self._new_page(number)
            start, end = low >> 3, (low + step + 7) >> 3
            mask = ((1 << step) - 1) << (low & 7)
            held = int.from_bytes(page[start:end], "little")
            free = free and not held & mask
            page[start:end] = (held | mask).to_bytes(end - start, "little")
            first += step
            count -= step
        return free

    def taken(self, first: int, count: int) -> bool:
        """Tell whether any of ``count`` units is claimed."""
        while count > 0:
            number, low = divmod(first, _PAGE_BITS)
            step = min(count, _PAGE_BITS - low)
            page = self._pages.get(number)
            if page is not None:
                held = int.from_bytes(page[low >> 3 : (low + step + 7) >> 3], "little")
                if held & ((1 << step) - 1) << (low & 7):
                    return True
            first += step
            count -= step
        return False

    def _new_page(self, number: int) -> bytearray:
        if not self._free:
            raise ImageError(
                "too-large",
                "grain tables",
                "the check would need more memory than it may use",
                field="bytes of bitmap",
                limit=self._limit,
            )
        self._free -= 1
        page = self._pages[number] = bytearray(_PAGE_BYTES)
        return page


class Tally:
    """Findings about one extent: the first of each kind are told one by one, the others in one number."""

    __slots__ = ("_label", "_report", "_told", "_untold")

    def __init__(self, report: Report, label: str) -> None:
        self._report = report
        self._label = label
        self._told: dict[tuple[str, str, str], int] = {}
        self._untold: dict[tuple[str, str, str], int] = {}

    def hit(
        self,
        severity: str,
        structure: str,
        detail: str,
        *,
        offset: int | None = None,
        count: int = 1,
        code: str = "",
        seen: int | None = None,
    ) -> None:
        """Note ``count`` findings. ``detail`` is one text for all of a kind; ``offset`` says where the first is.

        ``seen`` is the sector of the disk at which qemu-img comes upon it, ``None`` if it does not; ``code`` is for
        what it does come upon.
        """
        key = (severity, structure, detail)
        told = self._told.get(key, 0)
        if told < _TOLD and count:
            self._told[key] = told + 1
            told_as, values = (_code(severity), ()) if seen is None else (code, (seen,))
            self._report.add(severity, structure, self._label + detail, offset=offset, code=told_as, values=values)
            count -= 1
        if count:
            self._untold[key] = self._untold.get(key, 0) + count

    def close(self) -> None:
        """Put the numbers into the report."""
        for (severity, structure, detail), count in self._untold.items():
            self._report.add(
                severity, structure, f"{self._label}{detail} ({count} more)", count=count, code=_code(severity)
            )
        self._untold.clear()


def _code(severity: str) -> str:
    return UNSEEN if severity == "corruption" else ""
