"""Make many images with few cells: the guest plans hundreds at once, and the host writes what it says where it says.

Law: an image's fault is its own line; every image is as atomic as by itself. Only new disks share a cell, which reads
nothing: what names a backing file or has a passphrase gets a cell of its own, as ``create`` does it. The host writes
bytes that it does not look at.
"""

from __future__ import annotations

import os
import time

from instar.core import NEWEST
from instar.core.errors import InstarError, OptionError, SandboxError
from instar.core.wire import WireError, take
from instar.host.cells import call, error_of
from instar.host.create import Prepared, carry_out, prepare
from instar.host.files import host_error
from instar.host.make import SEED_BYTES, base_name, finish, prepare_files, what_of
from instar.host.names import strip_file_protocol
from instar.host.outputs import Outputs
from instar.host.request import bounds_of
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from instar.core.wire import Wire
    from instar.host.make import CreateResult

#: How many images share a cell.
TOGETHER = 256
_LIMITS = Limits(cpu_seconds=600, wall_seconds=1800, reply_bytes=64 << 20)
#: Longest write, as ``core.plan.PIECE``.
_MOST_BYTES = 1 << 20
#: What a job may say, besides ``filename``: the parameters of ``create`` of that name.
KEYS = ("size", "format", "options", "backing", "backing_format", "open_backing")


def create_many(
    jobs: Iterable[Mapping[str, object]],
    *,
    isolation: Isolation | None = None,
    generation: tuple[int, int] = NEWEST,
    secrets: Mapping[str, bytes] | None = None,
    together: int = TOGETHER,
) -> Iterator[CreateResult | InstarError]:
    """Create an image for each job, and yield its result, or the error that it met, in the order of the jobs.

    A job is a mapping with ``filename``, and by name what else ``create`` takes: ``size``, ``format``, ``options``,
    ``backing``, ``backing_format``, ``open_backing``. For the other arguments see ``create``; ``together`` jobs are
    taken before the first of them is answered.

    Raises:
        SandboxError: no cell can be started. Whatever is about one image is yielded.
    """
    isolation = (isolation or Isolation()).for_operation()
    waiting: list[Prepared | CreateResult | InstarError] = []
    for job in jobs:
        if _names_others(job):
            yield from _make_all(waiting, isolation)
            waiting = []
        waiting.append(_prepare(job, isolation, generation, secrets))
        if len(waiting) >= together:
            yield from _make_all(waiting, isolation)
            waiting = []
    yield from _make_all(waiting, isolation)


def _prepare(
    job: Mapping[str, object], isolation: Isolation, generation: tuple[int, int], secrets: Mapping[str, bytes] | None
) -> Prepared | CreateResult | InstarError:
    """Judge a job; carry out at once one that cannot share a cell."""
    try:
        words = _words(job)
        prepared = prepare(
            **words,  # type: ignore[arg-type]
            isolation=isolation,
            generation=generation,
            as_qemu=False,
            # Also where it names none: what a program holds is nothing for a cell that looks at a backing file.
            secrets=secrets,
        )
        if prepared.secret is None and prepared.request.row.name != "raw" and not _names_others(job):
            return prepared
        return carry_out(prepared, isolation)
    except InstarError as error:
        return error


def _names_others(job: Mapping[str, object]) -> bool:
    """Tell whether a job names other files, which may be those of jobs before it."""
    options = job.get("options")
    named = options if isinstance(options, dict) else [pair[0] for pair in _pairs(options)]
    return job.get("backing") is not None or "backing_file" in named or "data_file" in named


def _pairs(options: object) -> list[tuple[str, str | None]]:
    """Return options that are given as pairs; what is none is left out."""
    return [
        (pair[0], pair[1])
        for pair in (options if isinstance(options, (list, tuple)) else ())
        if isinstance(pair, (list, tuple))
        and len(pair) == 2
        and type(pair[0]) is str
        and (pair[1] is None or type(pair[1]) is str)
    ]


def _words(job: Mapping[str, object]) -> dict[str, object]:
    """Return what ``prepare`` takes of a job.

    Raises:
        OptionError: ``bad-job``, it is none.
    """
    if unknown := [str(key) for key in job if key not in ("filename", *KEYS)]:
        raise OptionError("bad-job", f"a job has no key '{unknown[0]}'; it has filename, {', '.join(KEYS)}")
    words = {
        "path": job.get("filename"),
        "size": job.get("size"),
        "format": job.get("format", "raw"),
        "options": job.get("options", {}),
        "backing": job.get("backing"),
        "backing_format": job.get("backing_format"),
        "open_backing": job.get("open_backing", True),
    }
    for key, kinds, optional in (
        ("path", (str,), False),
        ("size", (int, str), True),
        ("format", (str,), False),
        ("options", (dict, list, tuple), False),
        ("backing", (str,), True),
        ("backing_format", (str,), True),
        ("open_backing", (bool,), False),
    ):
        value = words[key]
        if (type(value) not in kinds) and not (optional and value is None):
            name = "filename" if key == "path" else key
            said = "is missing" if value is None else f"is not of type {' or '.join(kind.__name__ for kind in kinds)}"
            raise OptionError("bad-job", f"a job's '{name}' {said}")
    options = words["options"]
    pairs: list[tuple[object, object]] = [*options.items()] if isinstance(options, dict) else [*_pairs(options)]
    if len(pairs) != len(options):  # type: ignore[arg-type]
        raise OptionError("bad-job", "a job's 'options' has something that is no pair of a name and a text")
    for text in (words["path"], words["backing"], words["backing_format"], *(text for pair in pairs for text in pair)):
        try:
            str(text).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise OptionError("bad-job", "a job has half a character in a text (a surrogate by itself)") from None
    return words


def _make_all(
    waiting: list[Prepared | CreateResult | InstarError], isolation: Isolation
) -> Iterator[CreateResult | InstarError]:
    """Have one cell plan all that wait for it, and write what it says, one after another."""
    try:
        rows = _plan([one for one in waiting if isinstance(one, Prepared)], isolation)
    except SandboxError as error:
        if error.kind == "unavailable":
            raise
        rows = {}  # whichever was too much for the cell that all share: in cells of their own only that one fails
    for one in waiting:
        if isinstance(one, Prepared):
            try:
                yield _make(one, rows[id(one)], isolation) if rows else carry_out(one, isolation)
            except InstarError as error:
                yield error
        else:
            yield one


def _plan(several: list[Prepared], isolation: Isolation) -> dict[int, Wire]:
    """Return the cell's row for each."""
    if not several:
        return {}
    groups: dict[str, tuple[dict[str, Wire], list[Prepared]]] = {}
    for one in several:
        key = f"{one.request.row.name} {one.request.size} {one.options}"
        if key not in groups:
            groups[key] = (what_of(one.request, one.options), [])
        groups[key][1].append(one)
    now = int(time.time())
    asked: list[Wire] = []
    for job, alike in groups.values():
        seeds: list[Wire] = [[os.urandom(SEED_BYTES), now, base_name(one.request)] for one in alike]
        asked.append({**job, "seeds": seeds})
    rows = call("create-many", {"groups": asked}, [], isolation=isolation, limits=_LIMITS, path="")
    if not isinstance(rows, list) or len(rows) != len(several):
        raise SandboxError("protocol", "the cell's reply cannot be used: it has not one row for each image")
    found: dict[int, Wire] = {}
    left = iter(rows)
    for _, alike in groups.values():
        last: Wire = None
        for one in alike:
            row = next(left)
            last = last if isinstance(row, dict) and "same" in row else row
            found[id(one)] = last
    return found


def _make(prepared: Prepared, row: Wire, isolation: Isolation) -> CreateResult:
    """Make one image out of what the cell says of it."""
    request = prepared.request
    bounds = bounds_of(request, prepared.options)
    file_bytes = max(bound.length for bound in bounds)
    try:
        if not isinstance(row, dict):
            raise WireError("a row is none")
        if "error" in row:
            raise error_of(take(row, "error", dict), request.path, _LIMITS)
        if "alone" in row:
            return carry_out(prepared, isolation)
        writes = take(row, "writes", list)
        with Outputs(strip_file_protocol(request.path), prepared.companions) as outputs:
            outputs.begin()
            warnings = prepare_files(request, outputs)
            for write in writes:
                number, offset, data = _write_of(write, len(outputs), file_bytes)
                try:
                    _write(outputs[number].fd, offset, data)
                except OSError as error:
                    raise host_error(error, outputs[number].path, "write it") from None
            result = finish(request, outputs, prepared.options, [row["ok"]], bounds, warnings)
            outputs.commit()
            result.isolation = isolation.weakest
            return result
    except WireError as fault:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {fault}", path=request.path) from None


def _write_of(write: Wire, files: int, file_bytes: int) -> tuple[int, int, bytes]:
    """Return the file's number, the offset and the bytes of a write.

    Raises:
        WireError: it is none, or leaves the file.
    """
    if not isinstance(write, list) or len(write) != 4:
        raise WireError("a write is none")
    number, offset, length, data = write
    if type(number) is not int or type(offset) is not int or type(length) is not int or type(data) is not bytes:
        raise WireError("a write is none")
    if not 0 <= number < files or not len(data) <= length <= _MOST_BYTES or not 0 <= offset <= file_bytes - length:
        raise WireError("a write out of bounds")
    return number, offset, data.ljust(length, b"\0")


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
