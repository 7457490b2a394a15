"""How often each cluster of an image file is referenced, counted while its tables are read.

Law: memory is bounded whatever the tables say. Counts live in pages of one byte for each cluster; a page whose
clusters all have the same count is one of 255 shared constants; counts above 254 are kept aside.
"""

from __future__ import annotations

from instar.core.finding import MAX_FINDINGS
from instar.formats.qcow2.header import bad
from instar.formats.qcow2.ondisk import MAX_LARGE_REFERENCES, MAX_REFERENCE_PAGES, REFERENCE_PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.core.finding import Report
    from instar.formats.qcow2.header import Image

PAGE = REFERENCE_PAGE
#: In a page: the count is this or more, see ``References.get``.
LARGE = 255
_SHIFT = PAGE.bit_length() - 1
_MASK = PAGE - 1
#: From so many references to each cluster of a list on it pays to count them first.
_REPEATS = 8

_uniform: dict[int, bytes] = {}


def uniform(count: int) -> bytes:
    """Return the page in which every cluster has ``count`` references (0 to 254)."""
    if count not in _uniform:
        _uniform[count] = bytes([count]) * PAGE
    return _uniform[count]


class References:
    """Counts of references, and the findings that counting makes.

    Attributes:
        clusters: length of the file in clusters; a reference to the rest of the last one lengthens it.
        inside: the same, but never lengthened: a whole cluster must lie before it.
        maximum: the largest count that a refcount of the image can store.
        pages: page number to counts; a page that is not there is all zeros.
    """

    __slots__ = (
        "_additions",
        "_bits",
        "_ceiling",
        "_end",
        "_large",
        "_mutable",
        "_report",
        "_size",
        "clusters",
        "inside",
        "maximum",
        "pages",
    )

    def __init__(self, image: Image, report: Report) -> None:
        self._report = report
        self._bits = image.cluster_bits
        self._size = image.cluster_size
        self._end = image.file_end
        self.maximum = (1 << image.refcount_bits) - 1
        self._ceiling = min(self.maximum, LARGE - 1)
        self.inside = -(-image.file_end // image.cluster_size)
        self.clusters = self.inside
        self.pages: dict[int, bytes | bytearray] = {}
        self._large: dict[int, int] = {}
        self._mutable = 0
        self._additions: dict[int, bytes] = {}

    def region(self, structure: str, offset: int, size: int, weight: int = 1) -> bool:
        """Count ``weight`` references to each cluster that the ``size`` bytes at ``offset`` touch.

        A region that ends in the cluster in which the file ends is in order, one that ends further behind is a
        corruption, and is not counted. Returns whether it was counted.
        """
        if size <= 0:
            return True
        if offset + size - self._end >= self._size:
            self._outside(structure, offset, size, weight)
            return False
        first = offset >> self._bits
        last = offset + size - 1 >> self._bits
        if last >= self.clusters:
            self.clusters = last + 1
        self._count(structure, first, last - first + 1, weight)
        return True

    def run(self, structure: str, first: int, count: int, weight: int = 1) -> None:
        """Count references to whole clusters, each of them judged as in ``region``."""
        inside = min(count, max(0, self.inside - first))
        if inside:
            self._count(structure, first, inside, weight)
        shown = min(count - inside, max(0, MAX_FINDINGS - len(self._report.findings)))
        for cluster in range(first + inside, first + inside + shown):
            self._outside(structure, cluster << self._bits, self._size, weight)
        if inside + shown < count:
            self._outside(
                structure, first + inside + shown << self._bits, self._size, weight * (count - inside - shown)
            )

    def _outside(self, structure: str, offset: int, size: int, weight: int) -> None:
        detail = f"{size} bytes at {offset:#x} lie behind the end of the file"
        self._report.add(
            "corruption",
            structure,
            detail,
            offset=offset,
            count=weight,
            code="qcow2-outside-file",
            values=(offset, size),
        )

    def singles(self, structure: str, clusters: list[int], weight: int = 1) -> None:
        """Count references to whole clusters that do not follow one another; as ``run``, for each."""
        pages, inside, room = self.pages, self.inside, self._ceiling - weight
        if self._repeated(clusters, weight):
            return
        for cluster in clusters:
            if cluster < inside:
                page = pages.get(cluster >> _SHIFT)
                if page.__class__ is bytearray and page[cluster & _MASK] <= room:
                    page[cluster & _MASK] += weight
                else:
                    self._count(structure, cluster, 1, weight)
            else:
                self.run(structure, cluster, 1, weight)

    def _repeated(self, clusters: list[int], weight: int) -> bool:
        """Count a list that is mostly a few clusters again and again, if that is all there is to do."""
        distinct = set(clusters)
        if len(distinct) * _REPEATS > len(clusters):
            return False
        found = []
        for cluster in distinct:
            page = self.pages.get(cluster >> _SHIFT)
            if cluster >= self.inside or not isinstance(page, bytearray):
                return False
            count = page[cluster & _MASK] + clusters.count(cluster) * weight
            if count > self._ceiling:
                return False
            found.append((page, cluster & _MASK, count))
        for page, place, count in found:
            page[place] = count
        return True

    def get(self, cluster: int) -> int:
        """Return the count of one cluster."""
        page = self.pages.get(cluster // PAGE)
        if page is None:
            return 0
        count = page[cluster % PAGE]
        return self._large[cluster] if count == LARGE else count

    def others(self, first: int, count: int, expected: int = 1) -> Iterator[int]:
        """Yield the clusters of a range that have another count than ``expected`` (0 to 254)."""
        for number, low, high in pieces(first, count):
            page = self.pages.get(number, uniform(0))
            if page.count(expected, low, high) != high - low:
                yield from (number * PAGE + at for at in range(low, high) if page[at] != expected)

    def settle(self, number: int, page: bytes) -> None:
        """Put other counts in the place of a page, for good; nothing may be counted afterwards."""
        constant = page[0] != LARGE and page.count(page[0]) == PAGE
        self.pages[number] = uniform(page[0]) if constant else page

    def _count(self, structure: str, first: int, count: int, weight: int) -> None:
        for number, low, high in pieces(first, count):
            page = self.pages.get(number, uniform(0))
            if weight > self._ceiling:
                self._add_slowly(structure, number, self._writable(number, page), range(low, high), weight)
                continue
            new = page[low:high].translate(self._addition(weight))
            if LARGE in new:
                self._add_slowly(structure, number, self._writable(number, page), range(low, high), weight)
            elif high - low == PAGE:
                self._replace(number, page, new)
            else:
                writable = self._writable(number, page)
                writable[low:high] = new
                if high == PAGE:
                    self._fold(number, writable)

    def _addition(self, weight: int) -> bytes:
        """Return a translation that adds ``weight`` to each count, and gives ``LARGE`` where that is too much."""
        if weight not in self._additions:
            sums = (count + weight for count in range(256))
            self._additions[weight] = bytes(new if new <= self._ceiling else LARGE for new in sums)
        return self._additions[weight]

    def _add_slowly(self, structure: str, number: int, page: bytearray, places: range, weight: int) -> None:
        """Add where counts may pass what a page or a refcount can hold."""
        for at in places:
            cluster = number * PAGE + at
            new = (self._large[cluster] if page[at] == LARGE else page[at]) + weight
            if new > self.maximum:
                offset = cluster << self._bits
                detail = f"a cluster has more references than its refcount can count ({self.maximum})"
                code, over = "qcow2-refcount-overflow", new - self.maximum
                self._report.add(
                    "corruption", structure, detail, offset=offset, count=over, code=code, values=(offset,)
                )
                new = self.maximum
            if new >= LARGE:
                self._large[cluster] = new
            page[at] = min(new, LARGE)
        if len(self._large) > MAX_LARGE_REFERENCES:
            detail = "too many clusters are referenced more than 254 times"
            raise bad("too-large", "References", detail, limit=MAX_LARGE_REFERENCES)

    def _replace(self, number: int, old: bytes | bytearray, new: bytes | bytearray) -> None:
        """Put a page in the place of another."""
        if type(old) is bytearray:
            self._mutable -= 1
        if new.count(new[0]) == PAGE and new[0] != LARGE:
            self.pages[number] = uniform(new[0])
        else:
            self.pages[number] = bytearray(new)
            self._grow()

    def _writable(self, number: int, page: bytes | bytearray) -> bytearray:
        if type(page) is bytearray:
            return page
        writable = bytearray(page)
        self.pages[number] = writable
        self._grow()
        return writable

    def _fold(self, number: int, page: bytearray) -> None:
        """Keep a page as a constant if it has become uniform."""
        if page[0] == page[PAGE - 1] != LARGE and page.count(page[0]) == PAGE:
            self.pages[number] = uniform(page[0])
            self._mutable -= 1

    def _grow(self) -> None:
        self._mutable += 1
        if self._mutable > MAX_REFERENCE_PAGES:
            for number, page in list(self.pages.items()):
                if type(page) is bytearray:
                    self._fold(number, page)
            # Were little room enough, this would soon be done again for every new page.
            if self._mutable > MAX_REFERENCE_PAGES * 15 // 16:
                detail = "the references are too scattered to be counted in the memory that a check may use"
                raise bad(
                    "too-large", "References", detail, value=self._mutable * PAGE, limit=MAX_REFERENCE_PAGES * PAGE
                )


def pieces(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range of clusters at the borders of pages: page number, first place, place behind the last."""
    end = first + count
    while first < end:
        number, low = divmod(first, PAGE)
        high = min(PAGE, low + end - first)
        yield number, low, high
        first += high - low
