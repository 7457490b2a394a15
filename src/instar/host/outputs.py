"""The files of one image appear together or not at all.

Law: nothing that was there is given up before every new file is in its place; the file that names the others comes
last. An error or an interrupt on the way puts back what was there. Only SIGKILL or a power cut between the first and
the last rename can leave a mixture, and then what was replaced is still there, as ``.NAME.….instar``.
"""

from __future__ import annotations

import errno
import os

from instar.core.errors import HostError, OptionError, plain_file_hint, printable
from instar.host.names import protocol_of, strip_file_protocol
from instar.host.output import Output, close_quietly
from instar.sandbox.posix import hold_signals, let_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from instar.core.plan import Companion
    from instar.host.descriptors import Descriptors

#: So many files are opened without a thought of limits.
_FEW = 32


class Outputs:
    """All files of an image being made: number 0 is the image, then its companions."""

    __slots__ = ("_files", "_folders", "_room")

    def __init__(self, path: str, companions: Sequence[Companion] = ()) -> None:
        """Judge every target and open a place to write each.

        Raises:
            OptionError: ``unknown-protocol``; ``companion-same-file``, two of the files are one.
            HostError: see ``Output``; the error's ``role`` is ``companion`` where it is about one.
        """
        self._files: list[Output] = []
        self._folders: dict[object, int] = {}
        self._room: Descriptors | None = None
        try:
            if len(companions) > _FEW:
                # A target that is there already is open as well.
                self._make_room(2 * len(companions), path)
            self._files.append(Output(path, self._folders))
            seen = {*_places(self.image)}
            for companion in companions:
                output = self._open(companion_path(path, companion), companion.keep, seen)
                self._files.append(output)
                # A file that is not there yet is known by its place only.
                if not seen.isdisjoint(_places(output)):
                    raise _same_file(output.path)
                seen.update(_places(output))
        except BaseException:
            self.abandon()
            raise

    def _open(self, path: str, keep: bool, seen: set[object]) -> Output:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            found = None  # ``Output`` says what is wrong, if anything is
        # Before it is opened, as its own lock would be in the way.
        if found is not None and (found.st_dev, found.st_ino) in seen:
            raise _same_file(path)
        try:
            return Output(path, self._folders, keep=keep)
        except HostError as error:
            error.role = "companion"
            raise

    def _make_room(self, count: int, path: str) -> None:
        """Make room for many open files, as far as this process may.

        Raises:
            HostError: the hard limit is lower.
        """
        from instar.host.descriptors import Descriptors

        self._room = Descriptors(count)
        if not self._room.enough:
            hint = f"its files need {self._room.needed} open at once; raise 'ulimit -Hn', which is {self._room.hard}"
            raise HostError(errno.EMFILE, path, "create it", os.strerror(errno.EMFILE), hint=hint)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Output:
        return self._files[number]

    def __iter__(self) -> Iterator[Output]:
        return iter(self._files)

    @property
    def image(self) -> Output:
        """The file that names the others."""
        return self._files[0]

    @property
    def in_place(self) -> str | None:
        """Why a file is written in place that could not be replaced as a whole, or ``None``."""
        return next((o.in_place for o in self._files if o.in_place is not None and not o.keep), None)

    def begin(self) -> None:
        """Start writing: everything about the job has been checked."""
        for output in self._files:
            output.begin()

    def commit(self) -> None:
        """Put all files in their places.

        Raises:
            HostError: one could not be placed; all that was there is as it was.
        """
        if len(self._files) == 1:
            self.image.commit()
            return
        try:
            output = self.image
            # If anything is replaced, what replaces it must be on the disk; new files alone lose nobody anything.
            lasting = any(o.replaces for o in self._files)
            for output in self._files:
                output.settle(lasting=lasting)
        except OSError as error:
            raise output.not_placed(error) from None
        held = hold_signals()
        try:
            self._place()
        finally:
            let_signals(held)

    def _place(self) -> None:
        started: list[Output] = []
        try:
            for output in (*self._files[1:], self.image):
                started.append(output)
                output.put_in_place(backup=output is not self.image)
        except BaseException as error:
            # An interrupt of another thread can strike after the last step.
            if self.image.in_place is not None or not self.image.is_placed():
                left = self._take_back(started)
                if isinstance(error, OSError):
                    fault = started[-1].not_placed(error)
                    fault.detail = fault.detail or left
                    raise fault from None
                raise
            if not isinstance(error, Exception):
                self._finish()
                raise
        self._finish()

    def _finish(self) -> None:
        for output in self._files:
            output.drop_backup()

    def _take_back(self, started: list[Output]) -> str:
        """Undo what was started, last first; return what could not be undone, for people."""
        left = []
        for output in reversed(started):
            try:
                output.take_back()
            except OSError:
                left.append(printable(output.path))
        return f"the earlier {', '.join(left)} are under temporary names beside" if left else ""

    def abandon(self) -> None:
        """Leave nothing behind; harmless after ``commit`` and when done twice."""
        for output in self._files:
            output.abandon()
        while self._folders:
            close_quietly(self._folders.popitem()[1])
        if self._room is not None:
            self._room.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def _places(output: Output) -> Iterator[object]:
    """Yield what a file is known by: device and inode if it is there, and its folder and name."""
    identity = output.identity()
    if identity is not None:
        yield identity
    folder, base = output.place()
    home = os.fstat(folder)
    yield home.st_dev, home.st_ino, base


def _same_file(path: str) -> OptionError:
    return OptionError("companion-same-file", f"{printable(path)} would be two files of the image at once", path=path)


def companion_path(path: str, companion: Companion) -> str:
    """Return the name by which a companion of the image ``path`` is opened.

    Raises:
        OptionError: ``unknown-protocol``, it is not a plain file's.
    """
    name = companion.name
    protocol = protocol_of(name)
    if protocol is not None and companion.from_cwd:
        if protocol != "file":
            raise OptionError(
                "unknown-protocol",
                f"'{printable(name)}' names protocol '{protocol}', and instar makes plain files"
                + plain_file_hint(name),
                protocol=protocol,
            )
        name = strip_file_protocol(name)
    return name if companion.from_cwd else os.path.join(os.path.dirname(path), name)
