"""Check images: the cell finds, the host adds names and decides nothing."""

from __future__ import annotations

from instar.core import NEWEST
from instar.core.errors import SandboxError
from instar.core.finding import REPORT, Report
from instar.core.wire import WireError
from instar.host.arguments import flag_of, folders_of, generation_of, isolation_of, word_of
from instar.host.budget import Budget
from instar.host.describe import describe
from instar.host.files import open_source
from instar.host.gate import Gate
from instar.host.names import as_source
from instar.sandbox.cell import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from instar.core.wire import Wire
    from instar.host.arguments import Fd, Path
    from instar.host.names import Source
    from instar.host.window import Window
    from instar.sandbox.cell import Isolation

#: A check reads all metadata: 16 million L2 entries for each TiB of a fully allocated qcow2.
CHECK_LIMITS = Limits(memory=512 << 20, cpu_seconds=600, wall_seconds=1800, requests=1, serving_seconds=60)


class CheckResult:
    """What a check found.

    Attributes:
        filename, format: of the image.
        findings: in the order found, at most ``MAX_FINDINGS``; the totals count all.
        corruptions, leaks, check_errors: totals in qemu-img's units.
        false_leaks: clusters that qemu-img counts as leaked and that are not; not among ``leaks``.
        unseen: corruptions that qemu-img does not look for, among ``corruptions``; the code of their findings.
        image_end_offset, total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters:
            as qemu-img prints them, ``None`` where the format does not count them.
        isolation: the weakest kind of cell that read it: ``kvm``, ``process`` or ``none``.
    """

    __slots__ = (
        "allocated_clusters",
        "check_errors",
        "compressed_clusters",
        "corruptions",
        "false_leaks",
        "filename",
        "findings",
        "format",
        "fragmented_clusters",
        "image_end_offset",
        "isolation",
        "leaks",
        "total_clusters",
        "unseen",
    )

    def __init__(self, filename: str, format: str, wire: Wire) -> None:
        """Take over a report out of a cell.

        Raises:
            WireError: it is none.
        """
        REPORT(wire)
        report = Report.from_checked(wire)  # type: ignore[arg-type]
        if report.unseen > report.corruptions:
            raise WireError("more corruptions are unseen than there are")
        self.filename = filename
        self.format = format
        self.isolation: str | None = None
        self.findings = report.findings
        self.corruptions = report.corruptions
        self.unseen = report.unseen
        self.leaks = report.leaks
        self.false_leaks = report.false_leaks
        self.check_errors = report.check_errors
        self.image_end_offset = report.image_end_offset
        self.total_clusters = report.total_clusters
        self.allocated_clusters = report.allocated_clusters
        self.fragmented_clusters = report.fragmented_clusters
        self.compressed_clusters = report.compressed_clusters

    @property
    def clean(self) -> bool:
        """Nothing is wrong with the image."""
        return not (self.corruptions or self.leaks or self.check_errors)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 the check could not be done in full, 2 corruption, 3 leaks only: qemu-img's, in its order."""
        if self.check_errors:
            return 1
        if self.corruptions:
            return 2
        return 3 if self.leaks else 0

    def __repr__(self) -> str:
        totals = f"corruptions={self.corruptions}, leaks={self.leaks}, check_errors={self.check_errors}"
        return f"CheckResult({self.filename!r}, {totals})"


def check(
    path: Path | Fd | Window | Source,
    *,
    format: str | None = None,
    allow: Path | Iterable[Path] = (),
    isolation: Isolation | str | None = None,
    generation: tuple[int, int] = NEWEST,
    force_share: bool = False,
    as_qemu: bool = False,
) -> CheckResult:
    """Check the metadata of one image. Arguments as in ``info``.

    Raises:
        ImageError: it cannot be opened as an image at all, or its format has nothing to check
            (``unsupported-feature``, for raw).
        HostError, SandboxError: see ``instar.core.errors``.
        OptionError: an argument is of a type or a value that it cannot be; ``path`` is a window outside its file.
    """
    format = word_of(format, "format")
    folders, isolation = folders_of(allow), isolation_of(isolation).for_operation()
    generation, force_share = generation_of(generation), flag_of(force_share, "force_share")
    source = as_source(path)
    image = open_source(source)
    shown = image.path = path if isinstance(path, str) else source.path
    with (
        image,
        describe(
            image,
            operation="check",
            format=format or source.format,
            isolation=isolation,
            gate=Gate(image, folders),
            generation=generation,
            budget=Budget(CHECK_LIMITS),
            share=force_share,
            read=True,
            as_qemu=as_qemu,
            view=source.view,
        ) as found,
    ):
        try:
            result = CheckResult(shown, found.facts.format, found.value["report"])
            result.isolation = isolation.weakest
            return result
        except WireError as error:
            raise SandboxError("protocol", f"the cell's reply cannot be used: {error}", path=shown) from None
