"""A plan: the writes that make an image, as a value. It can be printed, compared and checked before a byte moves.

Law: items never overlap, never reach past the file's final size, and every item yields its bytes in
bounded pieces, so a plan for a 64 TiB image is as small as one for a floppy disk.
"""

from __future__ import annotations

import struct
import sys

from instar.core.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: Largest piece of bytes an item yields.
PIECE = 1 << 20


class Write:
    """Literal bytes at ``offset`` of file number ``file``."""

    __slots__ = ("data", "file", "label", "length", "offset")

    def __init__(self, offset: int, data: bytes, label: str, *, file: int = 0) -> None:
        self.file = file
        self.offset = offset
        self.data = data
        self.length = len(data)
        self.label = label

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        for start in range(0, self.length, PIECE):
            yield self.offset + start, self.data[start : start + PIECE]

    def describe(self) -> str:
        """Return what is written, for people."""
        shown = self.data.rstrip(b"\0")
        tail = f" +{self.length - len(shown)} zeros" if len(shown) < self.length else ""
        return f"write  {shown[:64].hex()}{'…' if len(shown) > 64 else ''}{tail}"


class Fill:
    """``length`` bytes from ``offset`` on, repeating ``pattern``; ``length`` is a multiple of its length."""

    __slots__ = ("file", "label", "length", "offset", "pattern")

    def __init__(self, offset: int, length: int, label: str, *, pattern: bytes = b"\0", file: int = 0) -> None:
        self.file = file
        self.offset = offset
        self.length = length
        self.pattern = pattern
        self.label = label

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        step = max(1, PIECE // len(self.pattern)) * len(self.pattern)
        block = self.pattern * (min(step, self.length) // len(self.pattern))
        for start in range(0, self.length, step):
            size = min(step, self.length - start)
            yield self.offset + start, block if size == len(block) else block[:size]

    def describe(self) -> str:
        """Return what is written, for people."""
        return f"fill   {self.pattern.hex()} × {self.length // len(self.pattern)}"


class Series:
    """A table whose entries grow evenly: entry *k* is ``first + k * step``, ``count`` of them.

    ``width`` is 4 or 8 bytes, ``endian`` ``>`` or ``<``. Flag bits that all entries share belong to ``first``.
    """

    __slots__ = ("count", "endian", "file", "first", "label", "length", "offset", "step", "width")

    def __init__(
        self,
        offset: int,
        count: int,
        label: str,
        *,
        first: int,
        step: int,
        width: int = 8,
        endian: str = ">",
        file: int = 0,
    ) -> None:
        self.file = file
        self.offset = offset
        self.count = count
        self.length = count * width
        self.first = first
        self.step = step
        self.width = width
        self.endian = endian
        self.label = label

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``."""
        per_piece = PIECE // self.width
        for start in range(0, self.count, per_piece):
            number = min(per_piece, self.count - start)
            low = self.first + start * self.step
            entries = range(low, low + number * self.step, self.step) if self.step else [low] * number
            yield self.offset + start * self.width, self._pack(entries)

    def _pack(self, entries: Sequence[int]) -> bytes:
        code = "Q" if self.width == 8 else "I"
        # ``array`` is twice as fast but 3 ms of start-up: it is used where somebody thought it worth importing.
        module = sys.modules.get("array")
        if module is None:
            return struct.pack(f"{self.endian}{len(entries)}{code}", *entries)
        table = module.array(code, entries)
        if (self.endian == ">") == (sys.byteorder == "little"):
            table.byteswap()
        data: bytes = table.tobytes()
        return data

    def describe(self) -> str:
        """Return what is written, for people."""
        return f"series {self.first:#x} + k·{self.step:#x}, {self.count} × {8 * self.width} bit {self.endian}"


class Allocate:
    """A range the host reserves (``falloc``) or reserves and makes zero (``full``), between the items around it."""

    __slots__ = ("file", "label", "length", "mode", "offset")

    def __init__(self, offset: int, length: int, label: str, *, mode: str, file: int = 0) -> None:
        self.file = file
        self.offset = offset
        self.length = length
        self.mode = mode
        self.label = label

    def describe(self) -> str:
        """Return what is done, for people."""
        return f"alloc  {self.mode}"


if TYPE_CHECKING:
    Item = Write | Fill | Series | Allocate


class Plan:
    """All that makes one image.

    Attributes:
        items: the writes; any object that can be iterated more than once.
        sizes: final length in bytes of each file, by file number.
        virtual_size: size of the virtual disk in bytes.
        unit: bytes of the format's unit of allocation (cluster, grain, block); 0 if it has none.
        unit_name: the field's word for it.
    """

    __slots__ = ("items", "sizes", "unit", "unit_name", "virtual_size")

    def __init__(
        self,
        items: Iterable[Item],
        *,
        sizes: tuple[int, ...],
        virtual_size: int,
        unit: int = 0,
        unit_name: str = "cluster",
    ) -> None:
        self.items = items
        self.sizes = sizes
        self.virtual_size = virtual_size
        self.unit = unit
        self.unit_name = unit_name

    def check(self) -> None:
        """Verify the invariants; for tests and for planners' own doubts.

        What an ``Allocate`` reserves may be written to by items that follow it.

        Raises:
            InternalError: two items overlap, or one lies outside its file's final size.
        """
        spans: list[tuple[int, int, int, str]] = []
        reserved: list[tuple[int, int, int, str]] = []
        for item in self.items:
            span = (item.file, item.offset, item.offset + item.length, item.label)
            if isinstance(item, Allocate):
                if any(file == span[0] and start < span[2] and end > span[1] for file, start, end, _ in spans):
                    raise InternalError(f"plan: {item.label!r} would be reserved after something in it was written")
                reserved.append(span)
            elif item.length:
                spans.append(span)
        self._check_spans(sorted(spans))
        self._check_spans(sorted(reserved))

    def _check_spans(self, spans: list[tuple[int, int, int, str]]) -> None:
        previous = (-1, 0, 0, "")
        for span in spans:
            file, start, end, label = span
            if file >= len(self.sizes) or start < 0 or end > self.sizes[file]:
                raise InternalError(f"plan: {label!r} at {start}..{end} is outside file {file}")
            if file == previous[0] and start < previous[2]:
                raise InternalError(
                    f"plan: {label!r} at {start}..{end} overlaps {previous[3]!r} at {previous[1]}..{previous[2]}"
                )
            previous = span

    def metadata_bytes(self) -> int:
        """Return how many bytes the plan writes, not counting reserved space."""
        return sum(item.length for item in self.items if not isinstance(item, Allocate))

    def text(self) -> str:
        """Return the plan as text, one item a line, for review and golden tests."""
        head = f"virtual_size {self.virtual_size}  {self.unit_name} {self.unit}  files {' '.join(map(str, self.sizes))}"
        return "\n".join(
            [
                head,
                *(
                    f"{item.file} {item.offset:#014x} {item.length:#010x} {item.label}: {item.describe()}"
                    for item in self.items
                ),
            ]
        )


class Bound:
    """What a plan can need of one file, in bytes; ``formats/*/options.bounds`` knows it before there is a plan.

    Attributes:
        length: how long the file can become.
        reserved: how much of it is reserved, by the mode of an ``Allocate``; in a mode that is not there, nothing.
    """

    __slots__ = ("length", "reserved")

    def __init__(self, length: int, reserved: Mapping[str, int] | None = None) -> None:
        self.length = length
        self.reserved = {mode: most for mode, most in (reserved or {}).items() if most}


class Companion:
    """A further file of an image, as ``formats/*/options.companions`` names it; the plan's file 1, 2 and so on.

    Attributes:
        name: as seen from the image's folder.
        keep: the file must be there and is used as it is: it can become longer, but nothing in it is replaced.
        from_cwd: the name is as typed, seen from the working folder (as QEMU opens a qcow2 data file).
    """

    __slots__ = ("from_cwd", "keep", "name")

    def __init__(self, name: str, *, keep: bool = False, from_cwd: bool = False) -> None:
        self.name = name
        self.keep = keep
        self.from_cwd = from_cwd

    def __repr__(self) -> str:
        return f"Companion({self.name!r}, keep={self.keep})"


class Backing:
    """What a planner may know of the backing file: its name as typed and what a cell reported of it.

    Attributes:
        content_id: CID of a VMDK.
        identity: what the parser of a VHD or VHDX gave for its children to record, ``None`` if it cannot be a parent.
            Opaque to all but that format.
        modified: seconds since 1970-01-01 UTC, of the file's last change.
        relative, absolute: the file's name as seen from the new image's folder, and from the root.
    """

    __slots__ = ("absolute", "content_id", "format", "identity", "modified", "name", "relative", "virtual_size")

    def __init__(
        self,
        name: str,
        format: str | None,
        *,
        virtual_size: int | None = None,
        content_id: int | None = None,
        identity: bytes | None = None,
        modified: int = 0,
        relative: str = "",
        absolute: str = "",
    ) -> None:
        self.name = name
        self.format = format
        self.virtual_size = virtual_size
        self.content_id = content_id
        self.identity = identity
        self.modified = modified
        self.relative = relative
        self.absolute = absolute


class Seed:
    """What a planner may not take from anywhere else: randomness, time, names. Makes plans reproducible.

    Attributes:
        entropy: 64 random bytes; a planner documents which it uses for what.
        time: seconds since 1970-01-01 UTC.
        file_name: base name of the image, for formats whose metadata names it.
        backing: the backing file, or ``None``.
        secret: the passphrase of an encrypted image, or ``None``. Never part of an error, and not of ``repr``.
        pbkdf_rate: iterations of PBKDF2, with the hash that the options name, that this host does in a second for
            one block of output; 0 if nobody measured.
    """

    __slots__ = ("backing", "entropy", "file_name", "pbkdf_rate", "secret", "time")

    def __init__(
        self,
        *,
        entropy: bytes = bytes(64),
        time: int = 0,
        file_name: str = "",
        backing: Backing | None = None,
        secret: bytes | None = None,
        pbkdf_rate: int = 0,
    ) -> None:
        self.entropy = entropy
        self.time = time
        self.file_name = file_name
        self.backing = backing
        self.secret = secret
        self.pbkdf_rate = pbkdf_rate
