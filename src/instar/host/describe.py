"""Open an image and let a cell describe it; grant it the files it needs, as far as the gate allows.

Shared by ``info``, ``check`` and the backing file of ``create``.
"""

from __future__ import annotations

from instar.core.errors import HostError, ImageError, SandboxError
from instar.core.image import ImageFacts
from instar.core.wire import WireError
from instar.formats import find
from instar.host.budget import Budget
from instar.host.cells import call
from instar.host.gate import blame
from instar.host.names import combine
from instar.host.parts import call_with_parts
from instar.sandbox.cell import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from instar.core.image import Reference
    from instar.core.wire import Wire
    from instar.host.descriptors import Descriptors
    from instar.host.files import OpenFile
    from instar.host.gate import Gate
    from instar.host.window import View
    from instar.sandbox.cell import Isolation

#: So many files are opened without a thought of limits.
_FEW = 32
#: What a cell that describes an image may use. Metadata is small; anything above is an attack or a fault.
#: The longest answer is that of a qcow2 with the 65,536 snapshots it may have.
#: The one request is what locks the image, which may take its time.
INFO_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, reply_bytes=32 << 20, requests=1, serving_seconds=60)
#: Seconds that all cells of one operation may run, one after another, however many images and files there are.
INFO_SECONDS = 120


class Described:
    """An image that a cell described: its facts, and the other files of it that were opened."""

    __slots__ = ("_room", "facts", "image", "parts", "value")

    def __init__(self, image: OpenFile, facts: ImageFacts, value: dict[str, Any]) -> None:
        self.image = image
        self.facts = facts
        #: the whole reply of the operation
        self.value = value
        #: ``(role, file)`` of each file opened for the image
        self.parts: list[tuple[str, OpenFile]] = []
        self._room: Descriptors | None = None

    def take(self, operation: str, value: dict[str, Any]) -> None:
        """Take another reply in the place of the first."""
        self.value = value
        self.facts = _facts(operation, value)

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


def info_budget() -> Budget:
    """Return what one ``info`` may cost, of an image or of a chain."""
    return Budget(INFO_LIMITS, wall_seconds=INFO_SECONDS)


def describe(
    image: OpenFile,
    *,
    operation: str,
    format: str | None,
    isolation: Isolation,
    gate: Gate | None,
    generation: tuple[int, int],
    budget: Budget | None = None,
    share: bool = False,
    read: bool = False,
    probe: bool = False,
    as_qemu: bool = False,
    view: View | None = None,
) -> Described:
    """Run ``info`` or ``check`` on an image; a second time with the files it cannot be described without, if any.

    A check may ask for the image's parent in the same way; that one may be missing.
    Without a gate no other file is opened. The result owns ``image`` and closes it. The image is locked while it is
    described, as ``locks.hold`` says of ``share`` and ``read``. ``budget`` is the whole operation's. With ``probe`` the
    cell says what the image looks like, whatever its format; ``as_qemu`` refuses what qemu-img does not open.
    ``view`` is that by which it was opened.

    Raises:
        ImageError, HostError, SandboxError: as ``cells.call`` and ``Gate.open``.
        OptionError: as ``View.settle``.
    """
    args: dict[str, Wire] = {"format": format, "major": generation[0], "minor": generation[1], "parts": []}
    if probe:
        args["probe"] = True
    lock = _Lock(image, format, share=share, read=read)
    args["announce"] = lock.waits
    budget = budget or info_budget()
    files = [image.grant()]
    value: Any
    try:
        value = call(operation, args, files, isolation=isolation, limits=budget, path=image.path, serve=lock.serve)
    except ImageError as error:
        if view is not None and error.structure == "check":
            view.judge(image, error.format)  # it was opened, and only then refused
        raise
    args["announce"] = False
    found = Described(image, _facts(operation, value), value)
    if view is not None:
        view.settle(image, found.facts)
    lock.confirm(found.facts.format)
    if as_qemu and (refused := refusal(found.facts)) is not None:
        refused.path = image.path
        raise refused
    required = [r for r in found.facts.references if r.required]
    if gate is None or not required:
        if gate is not None and operation == "check" and found.facts.backing is not None:
            _check_with_parent(found, found.facts.backing, gate, lock, args, isolation, budget)
        budget.keep()
        return found
    try:
        if len(required) > _FEW:
            found.make_room(len(required))
        for reference in required:
            try:
                part = gate.open(reference.name, relative_to=image.home)
            except (ImageError, HostError) as error:
                blame(error, image.path, reference)
                raise
            found.parts.append((reference.role, part))
            lock.take_part(part, reference)
        parts = [part for _, part in found.parts]
        found.take(operation, call_with_parts(operation, args, image, parts, isolation=isolation, budget=budget))
        lock.confirm(found.facts.format)
        budget.keep()
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
    budget: Budget,
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
        value: Any = call("check", args, grants, isolation=isolation, limits=budget, path=found.image.path)
        found.take("check", value)
        lock.confirm(found.facts.format)
    except BaseException:
        found.close()
        raise
    finally:
        for file in files[1:]:
            file.close()


def _facts(operation: str, value: dict[str, Any]) -> ImageFacts:
    return ImageFacts.from_checked(value["facts"] if operation == "check" else value)


class _Lock:
    """The lock on an image whose format may have to be found out first."""

    __slots__ = ("_format", "_image", "_matters", "_read", "_share", "waits")

    def __init__(self, image: OpenFile, format: str | None, *, share: bool, read: bool) -> None:
        self._image = image
        self._share = share
        self._read = read
        row = None if format is None else find(format)
        #: what the caller says, or a cell has announced or answered
        self._format = None if row is None else row.name
        # On a file that is shared with the caller they would be the caller's, and end with ours.
        self._matters = (read or not share) and not image.is_shared
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
        if not self.waits or self._format is not None or not isinstance(asked, dict):
            raise WireError("a request that this operation does not serve")
        self._format = str(asked["format"])  # as ``replies`` has judged it
        self._take(self._format)
        return None

    def confirm(self, format: str) -> None:
        """Compare an answer with what the caller, or a cell before, has said: who is asked twice cannot change it."""
        if self.waits and self._format is None:
            raise SandboxError("protocol", "the cell did not announce the format", path=self._image.path)
        if self._format not in (None, format):
            raise SandboxError("protocol", "the cell named two formats", path=self._image.path)
        self._format = format


def refusal(facts: ImageFacts) -> ImageError | None:
    """Return what qemu-img says of an image that it does not open, or opens as something smaller; else ``None``."""
    said: Any = facts.extra.get("refusal")
    if said is None:
        return None
    kind, field, detail = said
    return ImageError(kind, "descriptor", detail, field=field, format=facts.format)
