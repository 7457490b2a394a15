"""What is to be undone if this program ends while files are being made.

That are temporary names, where the file system has no unnamed files, and the length of files that are written in place.

Law: whatever ends this program, if it can be noticed, undoes that. Signals are caught only where they would have ended
the program anyway, and only while there is something to undo.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal

#: SIGHUP and SIGTERM.
_ENDING_SIGNALS = (1, 15)

#: ``(descriptor of the folder, name)`` of every file that is not complete yet.
_names: set[tuple[int, str]] = set()
#: Length to go back to, by descriptor of a file that is not complete yet.
_lengths: dict[int, int] = {}
_handled: list[int] = []
#: The signal that is ending the program.
_ending: list[int] = []


class Ended(BaseException):
    """A signal that ends the program has come. When all is undone it ends the program; nobody is to catch this."""


def make_name(base: str) -> str:
    """Return a name beside ``base`` that nobody has, of at most 255 bytes, whatever the characters are."""
    stem = os.fsdecode(os.fsencode(base)[:180])
    return f".{stem}.{os.urandom(6).hex()}.instar"


def remember(folder: int, name: str) -> None:
    """Have a name removed when a signal ends this program. Called before the file exists."""
    _names.add((folder, name))
    _catch_signals()


def forget(folder: int, name: str) -> None:
    """Let go of a name: the file has another one now, or is gone."""
    _names.discard((folder, name))
    _let_signals_go()


def remember_length(fd: int, length: int) -> None:
    """Have a file cut to a length when a signal ends this program. Called before it is written."""
    _lengths[fd] = length
    _catch_signals()


def forget_length(fd: int) -> None:
    """Let go of a file: it is complete, or has its old length again."""
    _lengths.pop(fd, None)
    _let_signals_go()


def _catch_signals() -> None:
    if _handled:
        return
    for number in _ENDING_SIGNALS:
        if _signal.getsignal(number) == _signal.SIG_DFL:
            try:
                _signal.signal(number, _on_signal)
            except ValueError:
                return  # they can be set in the main thread of the main interpreter only
            _handled.append(number)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    for folder, name in list(_names):
        try:
            os.unlink(name, dir_fd=folder)
        except OSError:
            pass
    if _lengths and not _ending:
        # A cell may be writing: it has to be ended first, as everywhere on the way out.
        _ending.append(number)
        raise Ended
    for fd, length in _lengths.items():
        try:
            os.ftruncate(fd, length)
        except OSError:
            pass
    _die(number)


def _die(number: int) -> None:
    try:
        _signal.signal(number, _signal.SIG_DFL)
    except ValueError:
        return  # another thread than the main one, which is on its way out
    _signal.raise_signal(number)


def _let_signals_go() -> None:
    if _names or _lengths:
        return
    if _ending:
        _die(_ending.pop())
    while _handled:
        number = _handled[-1]
        if _signal.getsignal(number) == _on_signal:
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except ValueError:
                return  # another thread: the next file of the main one sees to it
        _handled.pop()
