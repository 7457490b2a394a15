"""``create --batch``: many images by one program. JSON lines in, JSON lines out, one for each image and in that order.

Law: a line that fails is answered like any other, and the next one is done. What can be read at once is done together.
"""

from __future__ import annotations

import errno
import json  # noqa: TID253 - who makes many images can wait for it once
import os

from instar.cli.commands.create import result_object
from instar.cli.session import complain, say
from instar.core.errors import HostError, InstarError, OptionError, printable
from instar.host.files import open_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from instar.cli.session import Session

_PIECE = 1 << 18
#: Longest line; what is longer is no job.
_MAX_LINE = 1 << 20


def run_batch(session: Session, source: str) -> int:
    """Make the images that the lines of ``source`` (``-``: standard input) ask for; return the exit code.

    It is 0 if all were made, else that of the first error.
    """
    from instar.host.create_many import create_many

    code = 0
    try:
        fd = 0 if source == "-" else open_stream(source)
        for lines in _pieces(fd):
            jobs: list[dict[str, object] | OptionError] = [_job(line) for line in lines if line.strip()]
            good = [job for job in jobs if isinstance(job, dict)]
            results = create_many(
                good, isolation=session.isolation, generation=session.generation, secrets=session.secrets
            )
            for job in jobs:
                result = next(results) if isinstance(job, dict) else job
                if isinstance(result, InstarError):
                    code = code or result.exit_code
                    name = job.get("filename") if isinstance(job, dict) else None
                    say(_line({"filename": name, "error": result.facts()}))
                else:
                    say(_line(result_object(result)))
    except OSError as error:
        fault = HostError(error.errno or errno.EIO, source, "read it", os.strerror(error.errno or errno.EIO))
        complain(f"instar: {fault}")
        return fault.exit_code
    except InstarError as error:
        complain(f"instar: {error}")
        return error.exit_code
    session.explain()
    return code


def _line(value: dict[str, object]) -> str:
    return json.dumps(value) + "\n"


def _pieces(fd: int) -> Iterator[list[bytes]]:
    """Yield lines as they come: as many as there are when they are asked for."""
    rest = b""
    while piece := os.read(fd, _PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            yield lines
        if len(rest) > _MAX_LINE:
            raise OptionError("bad-job", f"a line is longer than {_MAX_LINE} bytes")
    if rest:
        yield [rest]


def _job(line: bytes) -> dict[str, object] | OptionError:
    try:
        job = json.loads(line)
    except (ValueError, RecursionError) as error:
        return OptionError("bad-job", f"'{printable(line, 80)}' is not JSON: {error}")
    if not isinstance(job, dict):
        return OptionError("bad-job", f"'{printable(line, 80)}' is no JSON object")
    return job
