"""What stands behind the backing file of a new image: none of it may be what the new image replaces.

Law: it is looked at only if something is there that would be replaced. Files are opened by the backing file's gate, as
``info --backing-chain`` opens them. A name that does not pass is compared by its text alone, so that an image cannot
learn from the answer what there is elsewhere.
"""

from __future__ import annotations

import os

from instar.core.errors import HostError, ImageError, OptionError, printable
from instar.host.describe import describe
from instar.host.names import protocol_of, source_of, strip_file_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from instar.core.image import Reference
    from instar.host.gate import Gate
    from instar.host.output import Output
    from instar.sandbox.cell import Isolation

#: Most images that are looked at; QEMU itself fails somewhere below that.
_MAX_IMAGES = 200


class Behind:
    """What a backing file names: its own backing file, its data file, its extents."""

    __slots__ = ("_gate", "_generation", "_home", "_isolation", "_references")

    def __init__(
        self,
        gate: Gate,
        home: str,
        references: list[Reference],
        isolation: Isolation,
        generation: tuple[int, int],
    ) -> None:
        self._gate = gate
        self._home = home
        self._references = references
        self._isolation = isolation
        self._generation = generation

    def refuse_loss(self, outputs: Iterable[Output]) -> None:
        """Compare all that is there with what is about to be replaced.

        Raises:
            OptionError: ``backing-same-file``. SandboxError: a cell failed.
        """
        targets = [output for output in outputs if output.exists]
        if not targets:
            return
        by_identity = {output.identity(): output for output in targets}
        by_name = {name: output for output in targets for name in _names_of(output.path)}
        seen: set[object] = set()
        todo = [(self._home, self._references)]
        while todo and len(seen) < _MAX_IMAGES:
            home, references = todo.pop()
            for reference in references:
                try:
                    file = self._gate.open(reference.name, relative_to=home)
                except (ImageError, HostError):
                    if (output := by_name.get(self._text_of(reference, home))) is not None:
                        raise _is_needed(output, home) from None
                    continue
                with file:
                    if file.identity in by_identity:
                        raise _is_needed(by_identity[file.identity], home)
                    if reference.role != "backing" or reference.format == "raw" or file.identity in seen:
                        continue
                    seen.add(file.identity)
                    below = file.home or ""
                    try:
                        with describe(
                            file,
                            operation="info",
                            format=reference.format,
                            isolation=self._isolation,
                            gate=None,
                            generation=self._generation,
                            share=True,
                        ) as found:
                            todo.append((below, found.facts.references))
                    except (ImageError, HostError):
                        continue  # what cannot be read names nothing

    def _text_of(self, reference: Reference, home: str) -> str:
        """Return the path that a name stands for, by its text alone; nothing if it is no file's."""
        name = os.fsdecode(reference.name)
        if protocol_of(name) is None:
            folder = os.path.realpath(os.path.dirname(home) or ".")
            path = os.path.normpath(os.path.join(folder, name))
            return path[1:] if path.startswith("//") else path
        try:
            return os.path.abspath(source_of(name, generation=self._generation).path)
        except OptionError:
            return ""


def _names_of(path: str) -> set[str]:
    """Return the names of a file that the caller named."""
    plain = strip_file_protocol(path)
    folder, base = os.path.split(plain)
    return {os.path.abspath(plain), os.path.realpath(plain), os.path.join(os.path.realpath(folder or "."), base)}


def _is_needed(output: Output, home: str) -> OptionError:
    shown = printable(output.path)
    return OptionError(
        "backing-same-file",
        f"{shown} is part of the chain behind the backing file: {printable(home)} stands on it, and would lose it",
        path=output.path,
    )
