"""Make many images with few cells: the guest plans hundreds at once, and the host writes what it says where it says.

Law: all is as if the jobs were done one after the other: files, results, errors. So what waits for a shared cell has
its plan made there in advance, and nothing else: every job meets the files in its own turn. Only new disks share a
cell, which reads nothing. The host writes bytes that it does not look at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping  # noqa: TID253 - who makes many images can wait for it once
from itertools import pairwise

from instar.core import NEWEST
from instar.core.errors import InstarError, OptionError, SandboxError, printable
from instar.core.wire import WireError
from instar.guest.create_many import MOST_BYTES, MOST_REPLY
from instar.host.arguments import (
    all_of,
    backing_of,
    count_of,
    flag_of,
    format_of,
    generation_of,
    isolation_of,
    options_of,
    secrets_of,
    text_of,
    word_of,
)
from instar.host.cells import call
from instar.host.create import Prepared, carry_out, prepare, read
from instar.host.files import host_error
from instar.host.make import SEED_BYTES, base_name, finish, prepare_files, what_of
from instar.host.names import strip_file_protocol
from instar.host.outputs import Outputs
from instar.host.request import bounds_of
from instar.sandbox.cell import Isolation, Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from instar.core.wire import Wire
    from instar.host.make import CreateResult

#: How many images share a cell.
TOGETHER = 256
#: What that cell may say: the bytes of its plans, and around them some forty for each write.
_LIMITS = Limits(cpu_seconds=600, wall_seconds=1800, reply_bytes=MOST_REPLY + (8 << 20))
#: What a job may say, besides ``filename``: the parameters of ``create`` of that name.
KEYS = ("size", "format", "options", "backing", "backing_format", "open_backing")


def create_many(
    jobs: Iterable[Mapping[str, object]],
    *,
    isolation: Isolation | str | None = None,
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
    isolation, generation = isolation_of(isolation).for_operation(), generation_of(generation)
    secrets = secrets_of(secrets)
    together = count_of(together, "together")
    waiting: list[Prepared | InstarError] = []
    for job in all_of(jobs, "jobs"):
        try:
            words = _words(job)
            open_backing = bool(words.pop("open_backing"))
            request = read(**words, generation=generation, as_qemu=False)  # type: ignore[arg-type]
            if alone := "backing_file" in request.settings.values:
                # It may be one of the images that are to be made before.
                yield from _make_all(waiting, isolation)
                waiting = []
            one: Prepared | InstarError = prepare(
                request,
                open_backing=open_backing,
                isolation=isolation,
                generation=generation,
                as_qemu=False,
                # Also where it names none: what a program holds is nothing for a cell that looks at a backing file.
                secrets=secrets,
            )
        except InstarError as error:
            if _is_no_cell(error):
                raise
            one, alone = error, False
        waiting.append(one)
        if alone or len(waiting) >= together:
            yield from _make_all(waiting, isolation)
            waiting = []
    yield from _make_all(waiting, isolation)


def _shares(one: Prepared) -> bool:
    """Tell whether an image can be planned together with others."""
    return one.secret is None and one.request.row.name != "raw" and one.request.backing is None


def _words(job: object) -> dict[str, object]:
    """Return what ``create.read`` takes of a job, and ``open_backing``.

    Raises:
        OptionError: ``bad-job``, it is none.
    """
    if not isinstance(job, Mapping):
        raise OptionError("bad-job", f"a job is a mapping, not of type {type(job).__name__}")
    if unknown := [str(key) for key in job if key not in ("filename", *KEYS)]:
        raise OptionError(
            "bad-job", f"a job has no key '{printable(unknown[0], 80)}'; it has filename, {', '.join(KEYS)}"
        )
    if "filename" not in job:
        raise OptionError("bad-job", "a job's 'filename' is missing")
    path = text_of(job["filename"], "filename")
    backing, pairs = backing_of(job.get("backing")), options_of(job.get("options", ()))
    for text in (path, backing, *(text for pair in pairs for text in pair)):
        try:
            (text or "").encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise OptionError("bad-job", "a job has half a character in a text (a surrogate by itself)") from None
    return {
        "path": path,
        "size": job.get("size"),
        "format": format_of(job.get("format", "raw")),
        "options": pairs,
        "backing": backing,
        "backing_format": word_of(job.get("backing_format"), "backing_format"),
        "open_backing": flag_of(job.get("open_backing", True), "open_backing"),
    }


def _make_all(waiting: list[Prepared | InstarError], isolation: Isolation) -> Iterator[CreateResult | InstarError]:
    """Have one cell plan all that can share it, then make one image after another.

    Raises:
        SandboxError: ``unavailable``.
    """
    try:
        planned = _plan([one for one in waiting if isinstance(one, Prepared) and _shares(one)], isolation)
    except InstarError:
        planned = {}  # whichever was too much for the cell that all share: in cells of their own only that one fails
    for one in waiting:
        try:
            if isinstance(one, InstarError):
                yield one
            elif id(one) in planned:
                yield _make(one, planned[id(one)], isolation)
            else:
                yield carry_out(one, isolation)
        except InstarError as error:
            if _is_no_cell(error):
                raise
            yield error


def _is_no_cell(error: InstarError) -> bool:
    return isinstance(error, SandboxError) and error.kind == "unavailable"


def _plan(several: list[Prepared], isolation: Isolation) -> dict[int, dict[str, Any]]:
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
    rows: Any = call("create-many", {"groups": asked}, [], isolation=isolation, limits=_LIMITS, path="")
    if len(rows) != len(several):
        raise SandboxError("protocol", "the cell's reply cannot be used: it has not one row for each image")
    found: dict[int, dict[str, Any]] = {}
    left = iter(rows)
    for _, alike in groups.values():
        last: dict[str, Any] = {"alone": True}
        for one in alike:
            row = next(left)
            found[id(one)] = last = last if "same" in row else row
    return found


def _make(prepared: Prepared, row: dict[str, Any], isolation: Isolation) -> CreateResult:
    """Make one image out of what the cell says of it."""
    if "alone" in row:
        return carry_out(prepared, isolation)
    request, writes = prepared.request, row["writes"]
    bounds = bounds_of(request, prepared.options)
    try:
        _judge(writes, [bound.length for bound in bounds], [False, *(c.keep for c in prepared.companions)])
    except WireError as fault:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {fault}", path=request.path) from None
    with Outputs(strip_file_protocol(request.path), prepared.companions) as outputs:
        outputs.begin()
        warnings = prepare_files(request, outputs)
        for file, offset, length, content in writes:
            output = outputs[file]
            try:
                # In a file the zeros are holes; a device has something there.
                _write(output.fd, offset, content.ljust(length, b"\0") if output.is_device else content)
            except OSError as error:
                raise host_error(error, output.path, "write it") from None
        result = finish(request, outputs, prepared.options, [row["ok"]], bounds, warnings)
        outputs.commit()
        result.isolation = isolation.weakest
        return result


def _judge(writes: list[list[Any]], lengths: list[int], kept: list[bool]) -> None:
    """Judge the writes of one image.

    Raises:
        WireError: one leaves its file, or is in one that is kept; a byte is written twice; there is too much.
    """
    spans: list[list[tuple[int, int]]] = [[] for _ in lengths]
    total = 0
    for file, offset, length, content in writes:
        end = offset + length
        if file >= len(lengths) or kept[file] or end > lengths[file] or len(content) > length:
            raise WireError("a write out of bounds")
        total += length
        spans[file].append((offset, end))
    if total > MOST_BYTES:
        raise WireError("more is written than together with others")
    for span in spans:
        span.sort()
        if any(start < end for (_, end), (start, _) in pairwise(span)):
            raise WireError("a byte is written twice")


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
