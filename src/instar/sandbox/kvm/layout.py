"""Where everything of a guest lies: in its own addresses, in its machine's physical memory, and in this process.

Law: values only. The guest gets its own copy of what this process may write, sees read-only what it may only read,
and nothing else of it.

    own     page 0 for the processor's descriptors, page 1 for the stub, page 2 of zeros; the photo; page tables
    pool    the stack, then what ``mmap`` gives
    shared  large read-only mappings of this process, one after another

``own`` and ``pool`` are one block, and have the same addresses in the guest as here, as far as they are in its map at
all; the photo has those of what it shows.
"""

from __future__ import annotations

from instar.sandbox.kvm.memory import HUGE, PAGE, READ, WRITE, Region
from instar.sandbox.kvm.photo import Album, PhotoError

STACK_BYTES = 8 << 20
_LEAST_STACK = 1 << 20
#: Between the stack and what lies below it.
_GUARD = 1 << 20
#: Pages of ``own`` before the photo.
DESCRIPTORS, STUB, ZEROS, PHOTO = 0, PAGE, 2 * PAGE, 3 * PAGE


def own_bytes(photo: int, mapped: int) -> int:
    """Return how long ``own`` must be for a photo of ``photo`` bytes and the page tables of ``mapped`` bytes."""
    # Tables: 8 bytes a page, twice that for what touches one only in part, and something for those above.
    return PHOTO + photo + (2 << 20) + mapped // 256 + HUGE - 1 & -HUGE


def pool_bytes(memory: int) -> int:
    """Return how long a pool must be that a stack and ``memory`` bytes find room in."""
    return STACK_BYTES + HUGE + memory + HUGE - 1 & -HUGE


class Block:
    """Memory of this process that is given to the machine whole: ``physical`` is its address there."""

    __slots__ = ("address", "length", "physical")

    def __init__(self, address: int, length: int, physical: int = 0) -> None:
        self.address = address
        self.length = length
        self.physical = physical


class Layout:
    """The layout of a guest that lives in the photo of ``album``.

    ``own`` is the length of that part of ``block``, the rest of which is the pool; ``memory`` bytes of it may be given
    out.

    Attributes:
        block: what the guest may write, and what it does not see. shared: read-only blocks.
        regions: all that is in the guest's map and can be named in a call. zeros: pages that it sees as zeros.
        tables: the block for page tables. heap, stack: ranges of guest addresses.
        stack_host: where the end of the stack is here.

    Raises:
        PhotoError: there is no room.
    """

    __slots__ = ("block", "heap", "regions", "shared", "stack", "stack_host", "tables", "zeros")

    def __init__(self, album: Album, block: Block, *, own: int, memory: int) -> None:
        self.block = block
        self.regions: list[Region] = []
        at = PHOTO
        for start, end, access, name, offset in album.copied:
            self._add(start, end, access, block.address + at, block.physical + at, name, offset)
            at += end - start
        self.tables = Block(block.address + at, own - at, block.physical + at)
        self.zeros = [(start, end) for start, end, *_ in album.zeros]
        self.shared: list[Block] = []
        physical = block.physical + block.length
        for start, end, access, name, offset in album.shared:
            self._add(start, end, access, start, physical, name, offset)
            if self.shared and self.shared[-1].address + self.shared[-1].length == start:
                self.shared[-1].length += end - start
            else:
                self.shared.append(Block(start, end - start, physical))
            physical += end - start
        # The stack lies in its huge pages as it does in the guest's, so that these can be mapped whole; what is left
        # of the last one is the first memory to be given out.
        room = _room_below(album)
        self.stack = (album.stack - room, album.stack)
        top = own + STACK_BYTES + album.stack % HUGE
        self.stack_host = block.address + top
        self._add(*self.stack, READ | WRITE, self.stack_host - room, block.physical + top - room, "stack")
        self.heap = (self.stack_host, self.stack_host + (memory & -PAGE))
        self._add(*self.heap, READ | WRITE, self.stack_host, block.physical + top, "heap")

    def _add(
        self, start: int, end: int, access: int, host: int, physical: int, name: str = "", offset: int = 0
    ) -> None:
        self.regions.append(Region(start, end, access, host=host, physical=physical, name=name, offset=offset))


def _room_below(album: Album) -> int:
    """Return how long the guest's stack can be, below the one that this process has."""
    below = [area[1] for area in (*album.copied, *album.shared, *album.zeros) if area[1] <= album.stack]
    room = album.stack - max(below, default=0) - _GUARD
    if not album.stack or room < _LEAST_STACK:
        raise PhotoError("there is no room for a stack")
    return min(room & -PAGE, STACK_BYTES)
