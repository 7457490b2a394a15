"""Where instar's answer to a case is not that of a version of qemu-img, each with its reason.

Law: a difference is named here, or in the rules of the dialect (``tests/cli/dialect/differences``), or it is a fault;
and one that is named must be there. What is random or dated is taken out before: ``tests/compat/differences``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tests.baselines.cases import RECORDED

if TYPE_CHECKING:
    from tests.baselines.cases import Case
    from tests.baselines.store import Version

OLD = (RECORDED[0],)


class Named(NamedTuple):
    """A difference: why, for which versions, in which cases, in answers to which lines, and in what of them."""

    reason: str
    versions: tuple[Version, ...]
    cases: str
    lines: str = ""
    parts: tuple[str, ...] = ("code", "out", "err", "files")

    def covers(self, case: Case, line: str, version: Version) -> bool:
        """Tell whether the answer to a line may differ."""
        return (
            version in self.versions
            and re.search(self.cases, f"{case.group} {case.name}") is not None
            and re.search(self.lines, line) is not None
        )


NAMED = (
    Named("Debian built 5.2 without Parallels, which instar reads and makes as any version.", OLD, "/parallels "),
    Named("Debian built 5.2 without zstd.", OLD, "zstd"),
    Named(
        "5.2 knows no `ddb.toolsVersion`, a line that instar always writes.", OLD, "create/vmdk ", "^create", ("files",)
    ),
    Named(
        "5.2 makes no tables for a raw data file; instar does, as 6.0 and later.",
        OLD,
        "data_file_raw=on",
        "^create",
        ("files",),
    ),
    Named(
        "5.2 guesses a backing file's format, which whoever writes to that file decides; instar refuses, as 6.1 does.",
        OLD,
        r"create/.* -b base\.\w+, ",
        "^create -b",
    ),
    Named("An encrypted image is checked without its key.", RECORDED, " encrypted ", "^check"),
    Named(
        "Parallels: `check` of a cluster outside of the file ends by a failed assertion; instar goes on and counts.",
        RECORDED[2:],
        "/parallels cluster past",
        "^check",
    ),
)


def of(case: Case, line: str, version: Version) -> list[Named]:
    """Return the differences that an answer may show."""
    return [named for named in NAMED if named.covers(case, line, version)]
