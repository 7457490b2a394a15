"""Open an image and let a cell describe it; grant it the files it needs, as far as the gate allows.

Shared by ``info``, ``check`` and the backing file of ``create``.
"""

from __future__ import annotations

from instar.core.errors import HostError, ImageError, SandboxError
from instar.core.image import ImageFacts
from instar.core.wire import WireError, take, take_optional
from instar.host.cells import call
from instar.host.names import combine
from instar.host.parts import call_with_parts
from instar.sandbox.cell import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from instar.core.image import Reference
    from instar.core.wire import Wire
    from instar.host.descriptors import Descriptors
    from instar.host.files import OpenFile
    from instar.host.gate import Gate
    from instar.sandbox.cell import Isolation

#: So many files are opened without a thought of limits.
_FEW = 32
#: What a cell that describes an image may use. Metadata is small; anything above is an attack or a fault.
#: The longest answer is that of a qcow2 with the 65,536 snapshots it may have.
INFO_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, reply_bytes=32 << 20)


class Described:
    """An image that a cell described: its facts, and the other files of it that were opened."""

    __slots__ = ("_room", "facts", "image", "parts", "value")

    def __init__(self, image: OpenFile, facts: ImageFacts, value: Wire) -> None:
        self.image = image
        self.facts = facts
        #: the whole reply of the operation
        self.value = value
        #: ``(role, file)`` of each file opened for the image
        self.parts: list[tuple[str, OpenFile]] = []
        self._room: Descriptors | None = None

    def make_room(self, count: int) -> None:
        """Let ``count`` parts be opened, as far as this process may."""
        from instar.host.descriptors import Descriptors

        self._room = Descriptors(count)

    def close(self) -> None:
        """Close the image and its parts."""
        self.image.close()
        for _, part in self.parts:
            part.close()
        if self._room is not None:
            self._room.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe(
    image: OpenFile,
    *,
    operation: str,
    format: str | None,
    isolation: Isolation,
    gate: Gate | None,
    generation: tuple[int, int],
    limits: Limits = INFO_LIMITS,
    share: bool = False,
    read: bool = False,
) -> Described:
    """Run ``info`` or ``check`` on an image; a second time with the files it cannot be described without, if any.

    A check may ask for the image's parent in the same way; that one may be missing.
    Without a gate no other file is opened. The result owns ``image`` and closes it. The image is locked while it is
    described, as ``locks.hold`` says of ``share`` and ``read``.

    Raises:
        ImageError, HostError, SandboxError: as ``cells.call`` and ``Gate.open``.
    """
    args: dict[str, Wire] = {"format": format, "major": generation[0], "minor": generation[1], "parts": []}
    lock = _Lock(image, format, share=share, read=read)
    args["announce"] = lock.waits
    files = [image.grant()]
    value = call(operation, args, files, isolation=isolation, limits=limits, path=image.path, serve=lock.serve)
    args["announce"] = False
    found = Described(image, _facts(operation, value), value)
    lock.confirm(found.facts.format)
    required = [r for r in found.facts.references if r.required]
    if gate is None or not required:
        if gate is not None and operation == "check" and found.facts.backing is not None:
            _check_with_parent(found, found.facts.backing, gate, lock, args, isolation, limits)
        return found
    try:
        if len(required) > _FEW:
            found.make_room(len(required))
        for reference in required:
            try:
                part = gate.open(reference.name, relative_to=image.home)
            except ImageError as error:
                error.path = error.path or image.path
                raise
            found.parts.append((reference.role, part))
            lock.take_part(part, reference)
        parts = [part for _, part in found.parts]
        found.value = call_with_parts(operation, args, image, parts, isolation=isolation, limits=limits)
        found.facts = _facts(operation, found.value)
    except BaseException:
        found.close()
        raise
    return found


def _check_with_parent(
    found: Described,
    parent: Reference,
    gate: Gate,
    lock: _Lock,
    args: dict[str, Wire],
    isolation: Isolation,
    limits: Limits,
) -> None:
    """Check an image that asked for its parent; without that if the gate does not open it."""
    files = [found.image]
    args["parts"] = [None]
    try:
        files.append(gate.open(parent.name, relative_to=found.image.home))
        args["parts"] = [1]
    except (ImageError, HostError):
        pass  # the check says so
    try:
        if len(files) > 1:
            lock.take_part(files[1], parent)
        grants = [file.grant() for file in files]
        found.value = call("check", args, grants, isolation=isolation, limits=limits, path=found.image.path)
        found.facts = _facts("check", found.value)
    except BaseException:
        found.close()
        raise
    finally:
        for file in files[1:]:
            file.close()


class _Lock:
    """The lock on an image whose format may have to be found out first."""

    __slots__ = ("_announced", "_image", "_matters", "_read", "_share", "waits")

    def __init__(self, image: OpenFile, format: str | None, *, share: bool, read: bool) -> None:
        self._image = image
        self._share = share
        self._read = read
        self._announced: str | None = None
        self._matters = read or not share
        #: which locks are right depends on the format, so a cell that has found it is to say it first
        self.waits = self._matters and format is None
        if self._matters and format is not None:
            self._take(format)

    def _take(self, format: str) -> None:
        from instar.host.locks import hold_format

        self._image.locked = True
        hold_format(self._image.fd, self._image.path, format, self._share, read=self._read)

    def take_part(self, part: OpenFile, reference: Reference) -> None:
        """Lock a further file of the image, as what is in it wants it."""
        if not self._matters:
            return
        from instar.host.locks import hold

        part.locked = True
        name = combine(self._image.path, part.path)
        try:
            hold(part.fd, name, False, self._share, read=self._read, metadata=reference.format != "raw")
        except HostError as error:
            error.image = self._image.path
            raise

    def serve(self, asked: Wire) -> Wire:
        """Answer a cell that announces, once, what format it found: lock the image."""
        if not self.waits or self._announced is not None or take(asked, "do", str) != "format":
            raise WireError("a request that this operation does not serve")
        self._announced = take(asked, "format", str)
        self._take(self._announced)
        return None

    def confirm(self, format: str) -> None:
        """Compare what a cell announced, where it was to, with what it answered at last."""
        if self._announced != format and self.waits:
            raise SandboxError("protocol", "the cell named two formats", path=self._image.path)


def _facts(operation: str, value: Wire) -> ImageFacts:
    try:
        return ImageFacts.from_wire(take(value, "facts", dict) if operation == "check" else value)
    except WireError as error:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {error}") from None


def optional_number(value: Wire, key: str) -> int | None:
    """Return a member of a reply that is a non-negative number or ``None``."""
    number = take_optional(value, key, int)
    if number is not None and number < 0:
        raise WireError(f"'{key}' is negative")
    return number
