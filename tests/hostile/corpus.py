"""Images that somebody made to hurt whoever looks at them, each by a few lines; nothing of them is kept in the tree.

Law: a case writes at most a few MiB of data, but for a few ``large`` ones; what is longer is a hole.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

KiB, MiB, GiB, TiB, PiB = (1 << 10 * n for n in range(1, 6))
#: Sizes at which arithmetic has gone wrong before: 2 EiB, and what 63 and 64 bits end with.
SIZES = (1 << 61, (1 << 63) - 512, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1)
_PAGE = 64 * KiB
#: The modules that have cases, in the order in which they are tried.
MODULES = ("qcow2", "qcow2_tables", "qcow_qed", "vmdk", "hyperv", "others", "names", "chains")


#: Bytes at an offset, or what makes them, when it takes long.
Part: TypeAlias = "bytes | Callable[[], bytes]"


class Hostile:
    """One case.

    Attributes:
        format, name: what it is called.
        make: writes it into a folder, as ``image`` and perhaps further files.
        judged: whether the real qemu-img is asked; what it would wait for, it is not.
        large: tried by ``INSTAR_ALL_CASES=1`` only.
        seconds: processor time that a check of it may take, where that is more than usual.
    """

    def __init__(
        self,
        format: str,
        name: str,
        made: Callable[[Path], object] | Mapping[int, Part] | bytes,
        *,
        size: int = 0,
        judged: bool = True,
        large: bool = False,
        seconds: float = 0,
    ) -> None:
        self.format = format
        self.name = name
        self.judged = judged
        self.large = large
        self.seconds = seconds
        self._made = made
        self._size = size

    def __repr__(self) -> str:
        return f"{self.format}: {self.name}"

    def make(self, folder: Path) -> Path:
        """Write the case into an empty folder; return the image."""
        path = folder / "image"
        if callable(self._made):
            self._made(folder)
        else:
            sparse(path, {0: self._made} if isinstance(self._made, bytes) else self._made, self._size)
        return path


def cases_of(*modules: str) -> Iterator[Hostile]:
    """Yield the cases of some modules one at a time, so that nobody holds them all."""
    for name in modules:
        yield from import_module(f"tests.hostile.{name}").cases()


def sparse(path: Path, parts: Mapping[int, Part], size: int = 0) -> Path:
    """Write a file that has bytes at these offsets and holes elsewhere, and is at least ``size`` bytes long."""
    end = size
    with path.open("wb") as file:
        for offset, part in parts.items():
            data = part() if callable(part) else part
            end = max(end, offset + len(data))
            for at in range(0, len(data), _PAGE):
                if data.count(0, at, at + _PAGE) != len(data[at : at + _PAGE]):
                    file.seek(offset + at)
                    file.write(data[at : at + _PAGE])
        file.truncate(end)
    return path
