"""Serve what a cell that makes an image asks of its host: to reserve space in the files that it was given.

Law: a cell gets the space that its plan can need (see ``core.plan.Bound``), in the mode that the command asked for,
and no byte twice. What it asks beyond that is a breach of the protocol, and nothing is reserved.
"""

from __future__ import annotations

from instar.core.units import MiB
from instar.core.wire import WireError, take, take_size
from instar.host.files import host_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.plan import Bound
    from instar.core.wire import Wire
    from instar.host.output import Output
    from instar.host.space import Progress

#: Most ranges that a plan has reserved of one file: two around the key material of an encrypted image, and the data.
_MOST_RANGES = 3
#: How slow a file system may be, in bytes a second, before the time counts against the cell: zeros that are written to
#: a memory card or over a slow network.
_SLOWEST = 1 * MiB


class Reservations:
    """What the cells of one image may reserve, and have reserved. ``bounds`` belong to ``outputs`` one by one."""

    def __init__(self, outputs: Sequence[Output], bounds: Sequence[Bound], progress: Progress | None) -> None:
        self._outputs = outputs
        self._progress = progress or _quiet
        self._bounds = bounds
        self._left = [{} if o.keep else dict(b.reserved) for o, b in zip(outputs, bounds, strict=True)]
        self._ranges: list[list[tuple[int, int]]] = [[] for _ in bounds]

    def requests(self, numbers: Sequence[int]) -> int:
        """Return how many requests a cell that makes these files can need."""
        return sum(_MOST_RANGES for number in numbers if self._left[number])

    def seconds(self, numbers: Sequence[int]) -> float:
        """Return how long serving them may take before it counts as the cell's time."""
        return sum(sum(self._left[number].values()) for number in numbers) / _SLOWEST

    def serve(self, asked: Wire, numbers: Sequence[int]) -> None:
        """Reserve what a cell that makes the files ``numbers`` asks for.

        Raises:
            WireError: its plan cannot need that.
            HostError: there is no such space.
        """
        if take(asked, "do", str) != "allocate":
            raise WireError("a request that create does not serve")
        number = take_size(asked, "file")
        if number not in numbers:
            raise WireError("space in a file that is not the cell's")
        mode, bound, ranges = take(asked, "mode", str), self._bounds[number], self._ranges[number]
        offset, length = (take_size(asked, key, limit=bound.length) for key in ("offset", "length"))
        end = offset + length
        if not length or end > bound.length or len(ranges) == _MOST_RANGES:
            raise WireError("an allocation out of bounds")
        if any(offset < last and first < end for first, last in ranges):
            raise WireError("an allocation of what was allocated before")
        left = self._left[number]
        if length > left.get(mode, 0):
            raise WireError("an allocation that nobody asked for")
        left[mode] -= length
        ranges.append((offset, end))
        reserve(self._outputs[number], offset, length, mode, self._progress)


def reserve(output: Output, offset: int, length: int, mode: str, progress: Progress | None = None) -> None:
    """Reserve space, as ``space.allocate``.

    Raises:
        HostError: the system refuses.
    """
    from instar.host.space import allocate

    try:
        allocate(output.fd, offset, length, mode, device=output.is_device, progress=progress or _quiet)
    except OSError as error:
        raise host_error(error, output.path, f"give it {length} bytes of storage") from None


def _quiet(done: int, total: int) -> None:
    pass
