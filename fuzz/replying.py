"""Commands whose cells answer what they please: an honest reply with something hostile at one of its places.

Law: a command gives a result or one of the library's errors, in every dialect, and prints nothing that a terminal acts
on. Cells have no walls here, so that a thousand commands take seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tests.hostile.meter import unprintable

import instar.sandbox.cell as seam
from fuzz.reading import VARIANTS, image
from instar.cli.main import main as command_line
from instar.core.wire import WireError, decode, encode
from instar.guest.main import main as honest
from instar.sandbox.inline import InlineCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from instar.core.wire import Wire
    from instar.sandbox.cell import Guest
    from instar.sandbox.files import GrantedFile

    Ask = Callable[[Wire], Wire]
    #: Keys and numbers that lead into a value; the last may be ``KEY``: the key itself.
    Place = tuple[object, ...]

KEY = object()
#: Exit codes as designed: that of a fault of instar's own is not among them.
CODES = {0, 1, 2, 3, 63, 70}
TEXT = "\x1b]0;x\x07\x1b[2J\r\n\x9b31m\u202egnp\u2066\u200b\ufeff\U000e0041\udcff{0}{value}%s'\"\\"
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 126, -(1 << 126), 1 << 31),
    *("", TEXT, "x" * 5000, "class", "raw", "qcow2", "backing", "extents.0", "../../etc/passwd", "json:{}", "{0.real}"),
    *(b"", TEXT.encode("utf-8", "surrogateescape"), b"/etc/passwd", b"x" * 5000),
    *([], [[]], [None] * 300, ["x"], {}, {"": None}, {TEXT: TEXT}, {"class": "x", "message": TEXT, "path": "y"}),
)


def places(value: object, before: Place = ()) -> Iterator[Place]:
    """Yield every place in a value, the whole first; of long lists the first few and the last."""
    yield before
    if isinstance(value, dict):
        for key, member in value.items():
            yield (*before, key, KEY)
            yield from places(member, (*before, key))
        yield (*before, TEXT)
        yield (*before, "more")
    elif isinstance(value, list):
        for index, member in enumerate(value):
            if index < 2 or index == len(value) - 1:
                yield from places(member, (*before, index))
        yield (*before, len(value))


def changed(value: object, place: Place, new: object) -> object:
    """Return a copy of a value with something else at a place, which may be one behind the last."""
    if not place:
        return new
    step, rest = place[0], place[1:]
    if isinstance(value, dict):
        if rest == (KEY,):
            key = new if isinstance(new, str) else "k"
            return {key if name == step else name: member for name, member in value.items()}
        return {**value, step: changed(value.get(step), rest, new)}
    if isinstance(value, list) and isinstance(step, int):
        return [*value[:step], changed(value[step] if step < len(value) else None, rest, new), *value[step + 1 :]]
    return new


class Replies:
    """Replies and requests that a guest made honestly, by operation; and the changes to be made to the next ones.

    ``change`` gets the operation (``ask`` before that of a request) and the value, and gives what goes out.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] = {}
        self.change: Callable[[str, Any], object] = lambda operation, value: value

    def guest(self, job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        """Do the job, and say something else."""
        operation = str(decode(job)["op"])  # type: ignore[index,call-overload]

        def asks(request: Wire) -> Wire:
            return ask(self._pass(f"ask {operation}", request))

        reply = self._pass(operation, decode(honest(job, files, asks)))
        if isinstance(reply, bytearray):
            return bytes(reply)  # not even encoded
        try:
            return encode(reply)
        except WireError:
            return encode(None)

    def _pass(self, operation: str, value: object) -> Any:  # noqa: ANN401 - it may be anything
        self.seen.setdefault(operation, []).append(value)
        return self.change(operation, value)


@contextlib.contextmanager
def cells_of(guest: Guest) -> Iterator[None]:
    """Have every cell of this process be without walls and run ``guest``."""

    def find(name: str) -> tuple[Callable[..., InlineCell], None]:
        return lambda **_: InlineCell(accept_no_isolation=True, guest=guest), None

    before = seam.find
    seam.find = find  # type: ignore[assignment]
    try:
        yield
    finally:
        seam.find = before


def run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = command_line(["instar", *words])
    out, err = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams)
    return code, out, err


def faults(words: Sequence[str], done: tuple[int, str, str]) -> Iterator[str]:
    """Yield what a command did that it must not."""
    code, out, err = done
    if code not in CODES:
        yield f"exit code {code}: {err[:300]}"
    if bad := unprintable(out + err):
        yield f"unsafe characters: {sorted(bad)!r}"
    if code and not err + out:
        yield "it fails and says nothing"
    if "--output=json" in words and code == 0:
        json.loads(out)
    if "--output=json" in words and "--dialect=qemu-img" not in words and err.startswith("{"):
        error = json.loads(err)["error"]
        if error["class"] not in ("ImageError", "HostError", "SandboxError", "OptionError"):
            yield f"an error of class {error['class']}"


_QEMU = ("--dialect=qemu-img",)
_OLD = ("--dialect=qemu-img", "--qemu-version=7.2")


def commands(format: str) -> dict[str, list[tuple[str, ...]]]:
    """Return the commands that have cells of each operation; the image is ``image``, its overlay ``top``."""
    info = [
        ("info", "image"),
        (*_QEMU, "info", "image"),
        ("info", "--output=json", "image"),
        (*_OLD, "info", "--backing-chain", "image"),
        (*_QEMU, "info", "--output=json", "--backing-chain", "image"),
        ("create", "-f", "qcow2", "-b", "image", "-F", format, "new"),
        (*_OLD, "create", "-f", "qcow2", "-b", "image", "new"),
        (*_QEMU, "info", "-f", format, "image"),
        ("-v", "info", "--backing-chain", "--output=json", "top"),
        ("-v", "create", "-f", "qcow2", "-b", "image", "new"),
    ]
    check = [
        ("check", "image"),
        (*_QEMU, "check", "image"),
        ("-v", "check", "--output=json", "image"),
        (*_OLD, "check", "--output=json", "image"),
        (*_QEMU, "check", "-f", format, "image"),
    ]
    create = [
        ("create", "-f", format, "new", "1M"),
        (*_QEMU, "create", "-f", format, "new", "1M"),
        ("create", "--output=json", "-f", format, "new", "1M"),
    ]
    found = {"info": info, "check": check}
    # A cell that finds the format out says it first.
    for operation, several in list(found.items()):
        found[f"ask {operation}"] = [words for words in several if operation in words and "-f" not in words]
    if format == "qcow2":
        info.append(("info", "locked"))
    if format not in ("raw", "luks"):  # made by the host, and after a second of key derivation
        found.update({"create": create, "create-many": [("create", "--batch", "jobs")]})
    if format == "qcow2":
        found["ask create"] = [("create", "-f", format, "-o", "preallocation=falloc", "new", "1M")]
    return found


def prepare(folder: Path, format: str) -> Replies:
    """Make the files that ``commands`` name, and see what honest guests answer to each."""
    if format == "vmdk":
        run(["create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "image", "1M"])
    elif format == "qcow2":
        made = import_module("tests.formats.qcow2.test_parse")  # tests are not type-checked as strictly
        (folder / "image").write_bytes(made.rich())
        (folder / "locked").write_bytes(made.encrypted())
    else:
        (folder / "image").write_bytes(image(format, VARIANTS[format][0]))
    rows = [json.dumps({"filename": f"many{n}", "format": format, "size": "1M"}) for n in range(2)]
    (folder / "jobs").write_text("".join(f"{row}\n" for row in rows))
    run(["create", "-f", "qcow2", "-b", "image", "-F", format, "top"])
    replies = Replies()
    with cells_of(replies.guest):
        for operation, several in commands(format).items():
            for words in several:
                run(["--isolation=process", *words])
            assert replies.seen.get(operation), f"{operation} of {format} was not seen"
    return replies


def clean(folder: Path) -> None:
    """Remove what a command may have made."""
    for name in os.listdir(folder):
        if name.startswith(("new", "many")):
            (folder / name).unlink()
