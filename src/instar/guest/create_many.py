"""Plan many images at once, for a host that writes them: a machine is left once for all, not once for each write.

Law: one image's fault is no other's. No file is granted, and nothing but what the host itself wants is read.
"""

from __future__ import annotations

from instar.core.plan import Allocate, Seed
from instar.core.wire import take
from instar.guest.create import plan_of, totals
from instar.guest.create import preload as preload_one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.plan import Plan
    from instar.core.wire import Wire
    from instar.guest.main import Ask
    from instar.sandbox.files import GrantedFile

#: An image with more metadata is made by itself; most of it are zeros, which are not sent.
MOST_BYTES = 16 << 20
#: What the images of one reply may take together.
MOST_REPLY = 16 << 20
#: How many writes they may have together.
MOST_WRITES = 1 << 16

_ZEROS = bytes(1 << 20)


class _Watched:
    """A seed that remembers whether what only one image has was looked at."""

    __slots__ = ("seed", "used")

    def __init__(self, seed: Seed) -> None:
        self.seed = seed
        self.used = False

    def __getattr__(self, name: str) -> object:
        if name in ("entropy", "time", "file_name"):
            self.used = True
        return getattr(self.seed, name)


def preload(args: dict[str, Wire]) -> None:
    """Import the planners that the jobs need, or all of them."""
    groups = args.get("groups")
    if not isinstance(groups, list):
        preload_one({"format": None})
        return
    for format in dict.fromkeys(take(group, "format", str) for group in groups):
        preload_one({"format": format, "size": 0, "options": {}})


def run(args: dict[str, Wire], files: Sequence[GrantedFile], ask: Ask) -> Wire:
    """Return a row for each image of each group, which are images alike but for their seeds.

    A row has ``ok``, totals, and ``writes``; or ``alone``: too much to write, or something is wrong; or ``same``: as
    the one before it, because the plan asked for nothing that only one image has. A write is ``[file, offset, length,
    bytes]``: bytes, and zeros up to the length.
    """
    left, most = MOST_REPLY, MOST_WRITES
    rows: list[Wire] = []
    for group in take(args, "groups", list):
        shared = False
        for entropy, time, file_name in take(group, "seeds", list):
            if shared:
                rows.append({"same": True})
                continue
            seed = _Watched(Seed(entropy=entropy, time=time, file_name=file_name))
            try:
                plan = plan_of(group, seed)  # type: ignore[arg-type]
                writes, length, sent = _writes(plan, left, most)
            except Exception:
                writes = None  # it fails again where it is made by itself, and in its turn
            if writes is None:
                rows.append({"alone": True})
                continue
            left -= sent
            most -= len(writes)
            shared = not seed.used
            rows.append({"ok": totals(plan, length), "writes": writes})
    return rows


def _writes(plan: Plan, left: int, most: int) -> tuple[list[Wire] | None, int, int]:
    """Return what is to be written, its length, and that without zeros; no writes if there is more to do, or too much.

    ``left`` is how much without zeros may be sent, in ``most`` writes.
    """
    writes: list[Wire] = []
    length = sent = 0
    for item in plan.items:
        length += item.length
        if isinstance(item, Allocate) or length > MOST_BYTES:
            return None, 0, 0
        for offset, data in item.pieces():
            short = _without_zeros(data)
            sent += len(short)
            if sent > left or len(writes) == most:
                return None, 0, 0
            writes.append([item.file, offset, len(data), short])
    return writes, length, sent


def _without_zeros(data: bytes) -> bytes:
    """Return the bytes without the zeros at their end, found in halves: most is zeros."""
    end = len(data)
    while end > 64 and data[end // 2 : end] == _ZEROS[: end - end // 2]:
        end //= 2
    return data[:end].rstrip(b"\0")
