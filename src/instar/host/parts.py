"""Have an image read whose files are more than one cell may have: several cells in turn, each with some of them.

Law: what one cell says of its files goes to the next as it is, and means nothing here. The last one has been told of
all, so its answer is the image's; the findings of a check are those of all cells together.
"""

from __future__ import annotations

from instar.core.errors import SandboxError
from instar.core.finding import MAX_FINDINGS
from instar.host.cells import call
from instar.sandbox.cell import MAX_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from instar.core.wire import Wire
    from instar.host.budget import Budget
    from instar.host.files import OpenFile
    from instar.sandbox.cell import Isolation

_COUNTS = ("corruptions", "unseen", "leaks", "check_errors")


def call_with_parts(
    operation: str,
    args: dict[str, Wire],
    image: OpenFile,
    parts: Sequence[OpenFile],
    *,
    isolation: Isolation,
    budget: Budget,
) -> dict[str, Any]:
    """Run ``info`` or ``check`` with all the files that an image consists of, and return its answer.

    Raises:
        ImageError, HostError, SandboxError: as ``cells.call``.
    """
    known: list[Wire] = [None] * len(parts)
    reports: list[dict[str, Any]] = []
    answer: Any = {}
    step = MAX_FILES - 1
    for start in range(0, len(parts), step):
        window = range(start, min(start + step, len(parts)))
        rows: list[Wire] = [n - start + 1 if n in window else [fact] for n, fact in enumerate(known)]
        grants = [image.grant(), *(parts[n].grant() for n in window)]
        # What the cell before said is given up before this one speaks, but for what the next one is told.
        answer = {}
        answer = call(operation, {**args, "parts": rows}, grants, isolation=isolation, limits=budget, path=image.path)
        if operation == "check":
            reports.append(_report_of(answer, image.path))
        if len(window) < len(parts):
            facts = answer["facts"] if operation == "check" else answer
            said = facts["extra"].get("parts", ())
            if len(said) != len(parts):
                detail = "the cell's reply cannot be used: it has not as many parts as there are"
                raise SandboxError("protocol", detail, path=image.path)
            known[window.start : window.stop] = said[window.start : window.stop]
    if len(reports) > 1:
        answer = {**answer, "report": _together(reports)}
    whole: dict[str, Any] = answer
    return whole


def _report_of(answer: dict[str, Any], path: str) -> dict[str, Any]:
    report: dict[str, Any] | None = answer["report"]
    if report is None:
        raise SandboxError("protocol", "the cell's reply cannot be used: it has no report", path=path)
    return report


def _together(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the last report, with what all of them found."""
    findings = [row for report in reports for row in report["findings"]]
    counts = {name: sum(report[name] for report in reports) for name in _COUNTS}
    return {**reports[-1], **counts, "findings": findings[:MAX_FINDINGS]}
