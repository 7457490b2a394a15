"""What a check finds, and the totals that decide an exit code."""

from __future__ import annotations

from instar.core.schema import choice, number, optional, record, row, rows, text, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from instar.core.wire import Wire

#: ``corruption``: data can be lost or misread. ``leak``: space is lost, data is safe. ``error``: the check
#: itself could not look at a part. ``warning``: unusual, harmless; never changes an exit code.
SEVERITIES = ("corruption", "leak", "error", "warning")

#: ``Finding.code`` of a corruption that qemu-img does not look for.
UNSEEN = "unseen"

#: Findings beyond this many are counted but not kept.
MAX_FINDINGS = 1000
#: Longest texts of a finding, in characters, and most values of its code.
MAX_STRUCTURE, MAX_DETAIL, MAX_VALUES = 200, 1000, 8

_TOTALS = ("corruptions", "unseen", "leaks", "false_leaks", "check_errors")
_SIZES = ("image_end_offset", "total_clusters", "allocated_clusters", "fragmented_clusters", "compressed_clusters")
_WIDE = number((1 << 127) - 1, least=1 - (1 << 127))


def _code(value: Wire) -> None:
    if value != "":
        _NAME(value)


_NAME = word()
_FINDING = row(
    choice(*SEVERITIES),
    text(MAX_STRUCTURE),
    text(MAX_DETAIL),
    optional(_WIDE),
    _code,
    rows(_WIDE, MAX_VALUES),
)
#: The check for what ``Report.to_wire`` makes.
REPORT = record(
    {
        "findings": rows(_FINDING, MAX_FINDINGS),
        **{name: number() for name in _TOTALS},
        **{name: optional(number()) for name in _SIZES},
    }
)


class Finding:
    """One result of a check: how bad, which structure (the specification's word), what, where (host offset).

    ``code`` and ``values`` are the same facts for other wordings: a stable identifier and its numbers.
    """

    __slots__ = ("code", "detail", "offset", "severity", "structure", "values")

    def __init__(
        self,
        severity: str,
        structure: str,
        detail: str,
        *,
        offset: int | None = None,
        code: str = "",
        values: tuple[int, ...] = (),
    ) -> None:
        self.severity = severity
        self.structure = structure
        self.detail = detail
        self.offset = offset
        self.code = code
        self.values = values

    def __repr__(self) -> str:
        return f"Finding({self.severity!r}, {self.structure!r}, {self.detail!r}, offset={self.offset})"


class Report:
    """The findings of one check and its totals, in the units that qemu-img prints.

    ``image_end_offset`` … ``compressed_clusters`` stay ``None`` where a format does not count them.
    ``false_leaks`` are clusters that qemu-img takes for leaks and that are none; they are not among ``leaks``.
    ``unseen`` are corruptions that qemu-img does not look for; they are among ``corruptions``.
    """

    __slots__ = (
        "allocated_clusters",
        "check_errors",
        "compressed_clusters",
        "corruptions",
        "false_leaks",
        "findings",
        "fragmented_clusters",
        "image_end_offset",
        "leaks",
        "total_clusters",
        "unseen",
    )

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.corruptions = 0
        self.unseen = 0
        self.leaks = 0
        self.false_leaks = 0
        self.check_errors = 0
        self.image_end_offset: int | None = None
        self.total_clusters: int | None = None
        self.allocated_clusters: int | None = None
        self.fragmented_clusters: int | None = None
        self.compressed_clusters: int | None = None

    def add(
        self,
        severity: str,
        structure: str,
        detail: str,
        *,
        offset: int | None = None,
        count: int = 1,
        code: str = "",
        values: tuple[int, ...] = (),
    ) -> None:
        """Count ``count`` findings of a severity and keep one, as long as there is room."""
        if severity == "corruption":
            self.corruptions += count
            self.unseen += count if code == UNSEEN else 0
        elif severity == "leak":
            self.leaks += count
        elif severity == "error":
            self.check_errors += count
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(severity, structure, detail, offset=offset, code=code, values=values))

    def mark_unseen(self) -> None:
        """Take all corruptions so far for such that qemu-img does not look for."""
        self.unseen = self.corruptions
        for finding in self.findings:
            if finding.severity == "corruption":
                finding.code = UNSEEN

    def to_wire(self) -> Wire:
        """Return the report as values that cross the seam."""
        found: list[Wire] = [
            [f.severity, f.structure[:MAX_STRUCTURE], f.detail[:MAX_DETAIL], f.offset, f.code, list(f.values)]
            for f in self.findings
        ]
        return {"findings": found, **{name: getattr(self, name) for name in self.__slots__ if name != "findings"}}

    @classmethod
    def from_checked(cls, value: dict[str, Any]) -> Report:
        """Rebuild a report from values that ``REPORT`` has accepted."""
        self = cls()
        for severity, structure, detail, offset, code, values in value["findings"]:
            finding = Finding(severity, structure, detail, offset=offset, code=code, values=tuple(values))
            self.findings.append(finding)
        for name in (*_TOTALS, *_SIZES):
            setattr(self, name, value[name])
        return self
