"""A small process that runs functions for a test: cells copy the process that they are made in, and pytest's is large.

Law: functions are named by their modules, what they are given and what they return is pickled. One call at a time.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Self

T = TypeVar("T")
_ROOT = Path(__file__).parent.parent


class SmallProcess:
    """The process; a context manager."""

    def __init__(self) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("INSTAR_")}
        env["PYTHONPATH"] = f"{_ROOT / 'src'}:{_ROOT}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.small"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Return what a module's function returns there.

        Raises:
            AssertionError: it raised something, which is quoted.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        _send(stdin, (function, arguments))
        good, value = pickle.load(stdout)
        assert good, value
        return value  # type: ignore[no-any-return]


def _send(file: IO[bytes], value: object) -> None:
    pickle.dump(value, file)
    file.flush()


def serve() -> None:
    """Run what is asked for until there is no more; what functions print is no answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    orders = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while True:
        try:
            function, arguments = pickle.load(orders)
        except EOFError:
            return
        try:
            _send(answers, (True, function(*arguments)))
        except BaseException:
            _send(answers, (False, traceback.format_exc()))


if __name__ == "__main__":
    serve()
