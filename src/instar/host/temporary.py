"""Temporary names of files that are being made, where the file system has no unnamed ones.

Law: whatever ends this program, if it can be noticed, removes them. Signals are caught only where they would have
ended the program anyway, and only while there is such a name.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: SIGHUP and SIGTERM.
_ENDING_SIGNALS = (1, 15)

#: ``(descriptor of the folder, name)`` of every file that is not complete yet.
_names: set[tuple[int, str]] = set()
_handled: list[int] = []


def make_name(base: str) -> str:
    """Return a name beside ``base`` that nobody has, of at most 255 bytes, whatever the characters are."""
    stem = os.fsdecode(os.fsencode(base)[:180])
    return f".{stem}.{os.urandom(6).hex()}.instar"


def remember(folder: int, name: str) -> None:
    """Have a name removed when a signal ends this program. Called before the file exists."""
    _names.add((folder, name))
    if not _handled:
        _catch_signals()


def forget(folder: int, name: str) -> None:
    """Let go of a name: the file has another one now, or is gone."""
    _names.discard((folder, name))
    if not _names:
        _let_signals_go()


def _catch_signals() -> None:
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        return  # Python runs handlers in the main thread only, and only there they can be set
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)
            _handled.append(number)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    import signal

    for folder, name in list(_names):
        try:
            os.unlink(name, dir_fd=folder)
        except OSError:
            pass
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _let_signals_go() -> None:
    if not _handled:
        return
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        return
    while _handled:
        number = _handled.pop()
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)
