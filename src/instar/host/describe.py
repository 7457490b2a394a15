"""Open an image and let a cell describe it; grant it the files it needs, as far as the gate allows.

Shared by ``info``, ``check`` and the backing file of ``create``.
"""

from __future__ import annotations

from instar.core.errors import ImageError, SandboxError
from instar.core.image import ImageFacts
from instar.core.wire import WireError, take, take_optional
from instar.host.cells import call
from instar.sandbox.cell import MAX_FILES, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from instar.core.wire import Wire
    from instar.host.files import OpenFile
    from instar.host.gate import Gate
    from instar.sandbox.cell import Isolation

#: What a cell that describes an image may use. Metadata is small; anything above is an attack or a fault.
#: The longest answer is that of a qcow2 with the 65,536 snapshots it may have.
INFO_LIMITS = Limits(cpu_seconds=20, wall_seconds=60, reply_bytes=32 << 20)


class Described:
    """An image that a cell described: its facts, and the other files of it that were opened."""

    __slots__ = ("facts", "image", "parts", "value")

    def __init__(self, image: OpenFile, facts: ImageFacts, value: Wire) -> None:
        self.image = image
        self.facts = facts
        #: the whole reply of the operation
        self.value = value
        #: ``(role, file)`` of each file opened for the image
        self.parts: list[tuple[str, OpenFile]] = []

    def close(self) -> None:
        """Close the image and its parts."""
        self.image.close()
        for _, part in self.parts:
            part.close()

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
) -> Described:
    """Run ``info`` or ``check`` on an image; a second time with the files it cannot be described without, if any.

    Without a gate no other file is opened. The result owns ``image`` and closes it.

    Raises:
        ImageError, HostError, SandboxError: as ``cells.call`` and ``Gate.open``.
    """
    args: dict[str, Wire] = {"format": format, "major": generation[0], "minor": generation[1], "parts": []}
    value = call(operation, args, [image.grant()], isolation=isolation, limits=limits, path=image.path)
    found = Described(image, _facts(operation, value), value)
    required = [r for r in found.facts.references if r.required]
    if gate is None or not required:
        return found
    try:
        if len(required) >= MAX_FILES:
            raise ImageError(
                "too-large",
                "image",
                "the image consists of too many files",
                value=len(required),
                limit=MAX_FILES - 1,
                path=image.path,
            )
        for reference in required:
            try:
                found.parts.append((reference.role, gate.open(reference.name, relative_to=image.path)))
            except ImageError as error:
                error.path = error.path or image.path
                raise
        args["parts"] = list(range(1, len(required) + 1))
        files = [image.grant(), *(part.grant() for _, part in found.parts)]
        found.value = call(operation, args, files, isolation=isolation, limits=limits, path=image.path)
        found.facts = _facts(operation, found.value)
    except BaseException:
        found.close()
        raise
    return found


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
