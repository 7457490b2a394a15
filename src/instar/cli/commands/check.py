"""``check``: look for damage in an image's metadata."""

from __future__ import annotations

from instar.cli.argv import Switch
from instar.cli.commands.shared import (
    ALLOW,
    COMMON,
    HELP,
    OBJECT,
    OUTPUT,
    Stop,
    judge_cache,
    look,
    one_image,
    read,
    report,
    switch_lines,
    wants_json,
)
from instar.cli.session import complain, say
from instar.core.errors import ImageError, InstarError, printable
from instar.core.finding import UNSEEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.cli.argv import Parsed
    from instar.cli.session import Session
    from instar.host.check import CheckResult

#: The format has nothing that could be checked (qemu-img's own code).
EXIT_UNSUPPORTED = 63

SWITCHES = (
    Switch("quiet", "q", "quiet", "", "print nothing but errors"),
    Switch("format", "f", "format", "FMT", "the image's format; found out if not given"),
    OUTPUT,
    Switch("force-share", "U", "force-share", "", "look also at an image that another program has open for writing"),
    OBJECT,
    ALLOW,
    *COMMON,
    HELP,
)


def help_text() -> str:
    """Return the help of the command."""
    return f"""usage: instar check [OPTION]... FILE

Look for damage in FILE's metadata: counts, tables, overlaps, checksums. Nothing is changed.

{switch_lines(SWITCHES)}

Exit code: 0 nothing is wrong, 1 it could not be checked (in full), 2 there is damage,
3 there are leaked clusters (space is lost, no data), 63 the format has nothing to check.
Example: instar check disk.qcow2
"""


def run(session: Session, argv: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        parsed = read(session, "check", SWITCHES, argv, help_text)
        path = one_image(session, "check", parsed)
        json = wants_json(session, "check", parsed)
        judge_cache(parsed, "source ")
    except Stop as stop:
        return stop.code
    from instar.host.check import check

    try:
        try:
            _, result = look(session, parsed, path, check)
        except ImageError as error:
            _judge_unchecked(session, parsed, path, error.format)
            raise
        result.filename = path
        _judge_unchecked(session, parsed, path, result.format)
    except InstarError as error:
        from instar.cli.messages import inspect_words

        if isinstance(error, ImageError) and error.structure == "check" and error.kind == "unsupported-feature":
            report(session, error, lambda _: "qemu-img: This image format does not support checks", json=json)
            return EXIT_UNSUPPORTED
        return report(session, error, lambda e: inspect_words(e, path, session.generation), json=json)
    session.explain()
    if session.as_qemu:
        result.leaks += result.false_leaks
        result.corruptions -= result.unseen
        result.findings = [finding for finding in result.findings if finding.code != UNSEEN]
    if session.as_qemu and result.format == "vmdk" and result.corruptions:
        # QEMU's VMDK check stops at the first fault and counts nothing.
        seen = [finding for finding in result.findings if finding.severity == "corruption"]
        result.findings = sorted(seen, key=lambda finding: finding.values)[:1]
        _show(session, result, json=False, quiet=True)
        complain("qemu-img: Check failed: Invalid argument")
        return 1
    _show(session, result, json=json, quiet=parsed.has("quiet"))
    if session.as_qemu and result.check_errors:
        complain("qemu-img: Check failed")
    return result.exit_code


def _judge_unchecked(session: Session, parsed: Parsed, path: str, format: str | None) -> None:
    """Refuse, as qemu-img does, to check an image of a format that it opens and has no check for.

    Raises:
        InstarError: the image cannot be opened; ``unsupported-feature``, it can.
    """
    from instar.formats import find

    row = None if format is None else find(format)
    if not session.as_qemu or row is None or row.qemu_checks:
        return
    from instar.host.info import info

    look(session, parsed, path, info, again=True)
    detail = "this format has nothing to check"
    raise ImageError("unsupported-feature", "check", detail, format=format, path=path) from None


def _show(session: Session, result: CheckResult, *, json: bool, quiet: bool) -> None:
    for finding in result.findings:
        if session.as_qemu:
            from instar.cli.messages import finding_words

            words = finding_words(finding, result.format)
            if words:
                complain(words)
            elif words is None and finding.severity != "warning":
                complain(f"ERROR {printable(finding.structure)}: {printable(finding.detail)}")
        elif not json:
            place = "" if finding.offset is None else f" (at byte {finding.offset})"
            complain(f"{finding.severity}: {printable(finding.structure)}: {printable(finding.detail)}{place}")
    if quiet:
        return
    if json:
        from instar.cli.json import dumps
        from instar.cli.render import check_object

        say(dumps(check_object(result, details=not session.as_qemu)) + "\n")
        return
    from instar.cli.render import check_text

    say(check_text(result))
