"""A mutation runner: no coverage, no dependencies, a few thousand inputs a second.

Law: a run is repeatable from its number. An input that breaks a law is kept in ``fuzz/regressions/TARGET``,
where the ordinary tests run it from then on.
"""

from __future__ import annotations

import hashlib
import random
import signal
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, NoReturn

from fuzz.structure import change_number, places

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType, ModuleType

    from fuzz.structure import Place

HERE = Path(__file__).parent
REGRESSIONS = HERE / "regressions"

#: Seconds of processor time that no input may take; a cell that describes an image has 20.
PATIENCE = 10.0
MAX_INPUT = 16 << 20
_STEP = 4096


class Broken(Exception):
    """A target let something out that it must not; ``data`` is the input."""

    def __init__(self, target: str, data: bytes, cause: BaseException) -> None:
        super().__init__(f"{target}: {type(cause).__name__}: {cause} (input of {len(data)} bytes)")
        self.target = target
        self.data = data

    def keep(self) -> Path:
        """Write the input where the tests find it."""
        path = REGRESSIONS / self.target / hashlib.sha256(self.data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


def names() -> list[str]:
    """Return the names of all targets."""
    return [module.name for module in iter_modules([str(HERE / "targets")])]


def load(name: str) -> ModuleType:
    """Return the module of a target."""
    return import_module(f"fuzz.targets.{name}")


def seeds(name: str, *, real: bool = False) -> list[bytes]:
    """Return the seeds of a target: its own, and everything that once broke it.

    ``real``: also images of its format that each qemu-img of this machine makes, with data in them.
    """
    kind, _, format = name.partition("_")
    made = []
    if real and kind in ("parse", "check", "detect"):
        from fuzz.images import made_by_others

        made = [data for data in made_by_others(format) if len(data) <= MAX_INPUT]
    return [*load(name).seeds(), *made, *regressions(name)]


def regressions(name: str) -> list[bytes]:
    """Return the inputs that once broke a target."""
    return [p.read_bytes() for p in sorted((REGRESSIONS / name).glob("*"))]


@contextmanager
def _watch() -> Iterator[None]:
    def alarm(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TimeoutError(f"it took more than {PATIENCE:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_one(name: str, data: bytes) -> None:
    """Give a target one input.

    Raises:
        Broken: it let an exception out, or took too long.
    """
    try:
        with _watch():
            load(name).one_input(data)
    except Exception as error:
        raise Broken(name, data, error) from error


def mutables(name: str, *, real: bool = False) -> list[Mutable]:
    """Return the seeds of a target (see ``seeds``), with what is known of their structures."""
    return [Mutable(data, places(load(name).one_input, data)) for data in seeds(name, real=real)]


def run(name: str, seconds: float, number: int) -> int:
    """Give a target its seeds and mutants of them for some time; return how many inputs it took.

    Raises:
        Broken: see ``run_one``.
    """
    chance = random.Random(f"{name} {number}")
    corpus = mutables(name)
    repair = getattr(load(name), "repair", None)
    deadline = time.monotonic() + seconds
    count = 0
    for seed in corpus:
        run_one(name, seed.data)
        count += 1
    while time.monotonic() < deadline:
        data = chance.choice(corpus).mutate(chance, corpus)
        if repair is not None and chance.random() < 0.8:
            data = repair(data)
        run_one(name, data)
        count += 1
    return count


class Mutable:
    """A seed, and where in it something stands: images are mostly zeros, and a change there says little.

    ``places`` are those of the fields of its structures, if that is known.
    """

    def __init__(self, data: bytes, places: Sequence[Place] = ()) -> None:
        self.data = data
        self.places = places
        # First in large steps: most of an image is zeros.
        large = [at for at in range(0, len(data), _STEP) if data.count(0, at, at + _STEP) != len(data[at : at + _STEP])]
        small = (at for start in large for at in range(start, min(start + _STEP, len(data)), 64))
        self.spots = [at for at in small if any(data[at : at + 64])] or [0]

    def _place(self, chance: random.Random, length: int) -> int:
        if chance.random() < 0.1:
            return chance.randrange(length)
        return min(chance.choice(self.spots) + chance.randrange(64), length - 1)

    def mutate(self, chance: random.Random, corpus: list[Mutable]) -> bytes:
        """Return a changed copy: one to eight changes, most of them of numbers."""
        out = bytearray(self.data)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            if not out:
                out += chance.randbytes(chance.randrange(1, 64))
            if self.places and chance.random() < 0.5:
                place, width, order = chance.choice(self.places)
                if place < len(out):
                    change_number(chance, out, place, width, order)
                continue
            at = self._place(chance, len(out))
            kind = chance.random()
            if kind < 0.15:
                out[at] ^= 1 << chance.randrange(8)
            elif kind < 0.3:
                out[at] = chance.randrange(256)
            elif kind < 0.75:
                width = chance.choice((1, 2, 4, 4, 8, 8))
                change_number(chance, out, at - at % width, width, chance.choice(("big", "little")))
            elif kind < 0.8:
                del out[at : at + chance.randrange(1, 64)]
            elif kind < 0.85:
                out[at:at] = chance.randbytes(chance.randrange(1, 64))
            elif kind < 0.9:
                other = chance.choice(corpus).data
                start = chance.randrange(len(other) + 1)
                piece = other[start : start + chance.choice((4, 8, 64, 512))]
                out[at : at + len(piece)] = piece
            elif kind < 0.95:
                del out[at:]
            else:
                start = self._place(chance, len(out))
                piece = bytes(out[start : start + chance.choice((4, 8, 16, 64, 512))])
                out[at : at + len(piece)] = piece
        del out[MAX_INPUT:]
        return bytes(out)
