"""The arguments of the library: whatever is given, a call has a result or one of the errors that it may have."""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

import instar
from fuzz.choices import FromBytes
from fuzz.reading import assert_one_line
from instar.formats import TABLE

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

#: What is left of a call that may fail.
ERRORS = (instar.OptionError, instar.ImageError, instar.HostError, instar.SandboxError)
_MiB = 1 << 20


class _Index:
    """A number of a type of its own, as numpy's are."""

    def __index__(self) -> int:
        return 4096


class _Wrong:
    """An object whose every answer is of the wrong type, or an exception."""

    def __fspath__(self) -> str:
        raise RuntimeError("no path")

    def __index__(self) -> int:
        raise RuntimeError("no number")

    def __iter__(self) -> object:
        raise RuntimeError("nothing to iterate")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def fileno(self) -> int:
        """Have no descriptor."""
        raise RuntimeError("no descriptor")


class _Text(str):
    """A text of a type of its own."""

    def __str__(self) -> str:
        return "something else"


class _World:
    """A folder with an image in it, and files that are open."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="instar-arguments-")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.image = self.path("disk.qcow2")
        instar.create(self.image, "1M", format="qcow2", isolation="none")
        self.overlay = self.path("top.qcow2")
        instar.create(self.overlay, format="qcow2", backing="disk.qcow2", backing_format="qcow2", isolation="none")
        self.read = os.open(self.image, os.O_RDONLY)
        self.named = os.open(self.folder, os.O_PATH)
        self.write = os.open(self.path("open"), os.O_RDWR | os.O_CREAT)

    def path(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return os.path.join(self.folder, name)


_worlds: list[_World] = []


def world() -> _World:
    """Return the folder, which is made when it is first needed."""
    if not _worlds:
        _worlds.append(_World())
    return _worlds[0]


def seeds() -> list[bytes]:
    """Return choices: of a function, then of each argument."""
    return [
        bytes([call]) + bytes((call * 7 + n * step) % 256 for n in range(80)) for call in range(6) for step in range(5)
    ]


def _anything(chance: random.Random) -> object:
    """Return a value that is right nowhere, or anywhere."""
    return chance.choice(
        (
            *(
                None,
                True,
                False,
                0,
                -1,
                1,
                7,
                10**5000,
                -(1 << 64),
                1.5,
                float("nan"),
                1j,
                "",
                "x",
                "1M",
                "\0",
                "\ud800",
            ),
            *(
                "\udcff",
                b"",
                b"x",
                b"\xff\0",
                (),
                [],
                {},
                [None],
                ["x"],
                [("a",)],
                [("a", 1)],
                {"a": None},
                {1: 2},
                {"a": "b"},
            ),
            *(set(), iter(()), range(3), object(), object, len, _Wrong(), _Index(), _Text("raw"), pathlib.Path("x")),
            *(
                memoryview(b"x"),
                bytearray(b"x"),
                Ellipsis,
                NotImplemented,
                ValueError("x"),
                "x" * 5000,
                "9" * 5000,
                (7, 2),
            ),
        )
    )


def _path(chance: random.Random) -> object:
    place = world()
    text = chance.choice((place.image, place.overlay, place.path("new"), place.path("none/new"), place.folder))
    kinds: tuple[Callable[[str], object], ...] = (
        *(str, os.fsencode, pathlib.Path, _Text, lambda text: f"file:{text}"),
        lambda _: instar.Fd(chance.choice((place.read, place.named, place.write, 999_999))),
    )
    return chance.choice(kinds)(text)


def _options(chance: random.Random) -> object:
    names = ("cluster_size", "nocow", "compat", "subformat", "lazy_refcounts", "x", _Text("nocow"))
    rows = [
        (chance.choice(names), chance.choice((512, True, "on", "4k", b"v3", pathlib.Path("p"), None, 1.5)))
        for _ in range(chance.randrange(3))
    ]
    return chance.choice((dict(rows), rows, tuple(rows), iter(rows)))


#: Values of each argument that are right, or nearly.
RIGHT: dict[str, Callable[[random.Random], object]] = {
    "path": _path,
    "filename": _path,
    "size": lambda chance: chance.choice((None, 0, 512, "1M", "3k", _Index(), _Text("1M"))),
    "format": lambda chance: chance.choice((None, *(row.name for row in TABLE), "vhd", "none", _Text("raw"))),
    "options": _options,
    "backing": lambda chance: chance.choice((None, "disk.qcow2", b"disk.qcow2", _path(chance))),
    "backing_format": lambda chance: chance.choice((None, "qcow2", "raw", "x")),
    "open_backing": lambda chance: chance.random() < 0.5,
    "allow": lambda chance: chance.choice(((), world().folder, [pathlib.Path(world().folder)], [b"/"], {"/tmp"})),
    "generation": lambda chance: chance.choice(((7, 2), [10, 0], (11, 1), (999, 999), (5, 2))),
    "force_share": lambda chance: chance.random() < 0.5,
    "secrets": lambda chance: chance.choice((None, {}, {"s": b"x"}, [("s", b"x")])),
    "announce": lambda _: None,
    "progress": lambda _: lambda _done, _all: None,
    "warn": lambda _: print,
    "as_qemu": lambda chance: chance.random() < 0.5,
    "together": lambda chance: chance.choice((1, 2, 256)),
}
_INSPECT = ("path", "format", "allow", "generation", "force_share")
_CREATE = ("path", "size", "format", "options", "backing", "backing_format", "open_backing", "generation", "secrets")
CALLS: tuple[tuple[Callable[..., object], tuple[str, ...]], ...] = (
    (instar.info, _INSPECT),
    (instar.info_chain, _INSPECT),
    (instar.check, _INSPECT),
    (instar.create, (*_CREATE, "announce", "progress", "warn", "as_qemu")),
    (instar.create, _CREATE),
    (instar.create_many, ("generation", "secrets", "together")),
)
_JOB = ("filename", "size", "format", "options", "backing", "backing_format", "open_backing")


def _value(chance: random.Random, name: str) -> object:
    return _anything(chance) if chance.random() < 0.15 else RIGHT[name](chance)


def _some(chance: random.Random, names: tuple[str, ...]) -> dict[str, object]:
    first, *others = names
    chosen = {name: _value(chance, name) for name in others if chance.random() < 0.4}
    return {first: _value(chance, first), **chosen}


def one_input(data: bytes) -> None:
    """Any arguments give a result or one of four errors; descriptors of others stay open, and their offsets."""
    chance = FromBytes(data)
    call, names = CALLS[chance.randrange(len(CALLS))]
    place = world()
    try:
        arguments = _some(chance, names)
        # In this process, as cells are another matter and take their time.
        arguments["isolation"] = _anything(chance) if chance.random() < 0.1 else "none"
        if arguments["isolation"] is None:
            arguments["isolation"] = "none"
        if call is instar.create_many:
            jobs = [
                _some(chance, _JOB) if chance.random() < 0.8 else _anything(chance) for _ in range(chance.randrange(4))
            ]
            for found in instar.create_many(jobs or _anything(chance), **arguments):  # type: ignore[arg-type]
                assert not isinstance(found, instar.InstarError) or isinstance(found, ERRORS)
        else:
            call(**arguments)
    except ERRORS as error:
        assert_one_line(error)
    finally:
        for fd in (place.read, place.named, place.write):
            os.fstat(fd)
        assert os.lseek(place.read, 0, os.SEEK_CUR) == 0
        os.truncate(place.write, 0)
