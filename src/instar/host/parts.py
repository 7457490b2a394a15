"""Have an image read whose files are more than one cell may have: several cells in turn, each with some of them.

Law: what one cell says of its files goes to the next as it is, and means nothing here. The last one has been told of
all, so its answer is the image's; the findings of a check are those of all cells together.
"""

from __future__ import annotations

from instar.core.errors import SandboxError
from instar.core.finding import MAX_FINDINGS
from instar.core.wire import WireError, take, take_size
from instar.host.cells import call
from instar.sandbox.cell import MAX_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.core.wire import Wire
    from instar.host.files import OpenFile
    from instar.sandbox.cell import Isolation, Limits

_COUNTS = ("corruptions", "leaks", "check_errors")


def call_with_parts(
    operation: str,
    args: dict[str, Wire],
    image: OpenFile,
    parts: Sequence[OpenFile],
    *,
    isolation: Isolation,
    limits: Limits,
) -> Wire:
    """Run ``info`` or ``check`` with all the files that an image consists of, and return its answer.

    Raises:
        ImageError, HostError, SandboxError: as ``cells.call``.
    """
    known: list[Wire] = [None] * len(parts)
    answers: list[Wire] = []
    step = MAX_FILES - 1
    for start in range(0, len(parts), step):
        window = range(start, min(start + step, len(parts)))
        rows: list[Wire] = [n - start + 1 if n in window else [fact] for n, fact in enumerate(known)]
        grants = [image.grant(), *(parts[n].grant() for n in window)]
        answer = call(operation, {**args, "parts": rows}, grants, isolation=isolation, limits=limits, path=image.path)
        answers.append(answer)
        if len(window) < len(parts):
            try:
                facts = take(answer, "facts", dict) if operation == "check" else answer
                said = take(take(facts, "extra", dict), "parts", list)
                if len(said) != len(parts):
                    raise WireError("not as many parts as there are")
            except WireError as error:
                raise SandboxError("protocol", f"the cell's reply cannot be used: {error}", path=image.path) from None
            known[window.start : window.stop] = said[window.start : window.stop]
    if operation == "check" and len(answers) > 1:
        return _together(answers, image.path)
    return answers[-1]


def _together(answers: Sequence[Wire], path: str) -> Wire:
    """Return the last answer, with what all reports found."""
    try:
        last = take({"answer": answers[-1]}, "answer", dict)
        reports = [take(answer, "report", dict) for answer in answers]
        findings = [row for report in reports for row in take(report, "findings", list)[:MAX_FINDINGS]]
        counts: dict[str, Wire] = {name: sum(take_size(report, name) for report in reports) for name in _COUNTS}
        return {**last, "report": {**reports[-1], **counts, "findings": findings[:MAX_FINDINGS]}}
    except WireError as error:
        raise SandboxError("protocol", f"the cell's reply cannot be used: {error}", path=path) from None
