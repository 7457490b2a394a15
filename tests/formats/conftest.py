"""The facts of errors and findings are an interface: scripts look them up, and people search for the words.

Law: whatever a test of the formats meets, on purpose or by chance, has its line in ``facts.txt``: kind, structure,
field, which numbers come with it, and the words, with ``#`` for numbers and ``'…'`` for what is quoted. A new line is a
decision, and so is a changed one. ``INSTAR_RENEW_FACTS=1 ./dev test tests/formats -n0`` adds what is new.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instar.core.errors import ImageError, OptionError
from instar.core.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOOK = Path(__file__).parent / "facts.txt"
RENEW = bool(os.environ.get("INSTAR_RENEW_FACTS"))
_QUOTED = re.compile(r"(?<!\w)b?('[^']*'|\"[^\"]*\"|“[^”]*”)(?!\w)")
_NUMBER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|(?<=: )[0-9a-f]+(?=$|,)|\d+")

known = set(BOOK.read_text(encoding="utf-8").splitlines()) if BOOK.exists() else set()
met: set[str] = set()


def shape(text: object) -> str:
    """Return words without what differs from image to image."""
    return _NUMBER.sub("#", _QUOTED.sub("'…'", str(text))).replace("\n", " ")


def words(structure: str, detail: str) -> str:
    """Return what is said; where it ends with a line out of a descriptor, without that line."""
    said, colon, _ = detail.partition(": ")
    return shape(f"{said}: …" if colon and structure == "descriptor" else detail)


def _of_image_error(e: ImageError) -> str:
    numbers = " ".join(
        name for name in ("offset", "value", "limit", "expected", "name") if getattr(e, name) is not None
    )
    return f"{e.kind} | {shape(e.structure)} | {shape(e.field)} | {numbers} | {words(e.structure, e.detail)}"


def _of_option_error(e: OptionError) -> str:
    named = " ".join(sorted(key for key, value in e.values.items() if value is not None))
    return f"option {e.code} | {named} | {shape(e.detail)}"


def _of_finding(f: Finding) -> str:
    offset = "" if f.offset is None else "offset"
    said = words(f.structure, f.detail)
    return f"{f.severity} | {shape(f.structure)} | {f.code} | {offset} | {len(f.values)} | {said}"


def _watch(cls: type, line: Callable[..., str]) -> None:
    made = cls.__init__

    @functools.wraps(made)
    def init(self: object, *args: object, **named: object) -> None:
        made(self, *args, **named)
        met.add(line(self))

    cls.__init__ = init  # type: ignore[misc]


_watch(ImageError, _of_image_error)
_watch(OptionError, _of_option_error)
_watch(Finding, _of_finding)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test that meets what is not in the book."""
    if not RENEW:
        met.clear()
    yield
    if not RENEW:
        new = sorted(met - known)
        assert not new, "not in tests/formats/facts.txt (INSTAR_RENEW_FACTS=1 adds it): " + "\n".join(new)


def pytest_sessionfinish() -> None:
    """Add to the book, where that is wanted."""
    if RENEW:
        BOOK.write_text("".join(f"{line}\n" for line in sorted(known | met)), encoding="utf-8")
