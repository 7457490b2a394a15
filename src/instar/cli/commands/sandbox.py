"""``sandbox``: say which cells this host can start, and test them."""

from __future__ import annotations

from instar.cli.argv import Switch
from instar.cli.commands.shared import COMMON, HELP, OUTPUT, Stop, read, report, switch_lines, wants_json
from instar.cli.session import complain, say
from instar.core.errors import InstarError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.cli.session import Session
    from instar.host.sandbox import CellResult, SelfTestResult, TrialResult

SWITCHES = (
    Switch("quiet", "q", "quiet", "", "print nothing but what failed"),
    Switch("quick", "", "quick", "", "leave out the tests that wait for a limit of time"),
    OUTPUT,
    Switch("isolation", "", "isolation", "KIND", "test one kind only: kvm or process; auto is both", extension=True),
    *(switch for switch in COMMON if switch.name != "isolation"),
    HELP,
)


def help_text() -> str:
    """Return the help of the command."""
    return f"""usage: instar sandbox [OPTION]...

Say which cells this host can start, why not the others, and which one --isolation=auto takes. Cells are where image
bytes are read and written. Each kind that starts is tested: what it must do, what it must not, what must stop it.
Nothing is written, and it may be run by any user.

{switch_lines(SWITCHES)}

Exit code: 0 there is a cell, and all tests of those that start passed; 1 wrong words; 70 otherwise.
Example: instar sandbox --isolation=kvm -v
"""


def run(session: Session, argv: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        parsed = read(session, "sandbox", SWITCHES, argv, help_text)
        json = wants_json(session, "sandbox", parsed)
    except Stop as stop:
        return stop.code
    if parsed.words:
        complain(f"instar: sandbox takes no file name, not '{printable(parsed.words[0])}'; see 'instar sandbox --help'")
        return 1
    from instar.host.sandbox import self_test

    try:
        result = self_test(isolation=session.isolation, quick=parsed.has("quick"))
    except InstarError as error:
        return report(session, error, str, json=json)
    if json:
        from instar.cli.json import dumps

        say(dumps({**result_object(result), **_configuration_object(session)}, qemu_order=False) + "\n")
    elif parsed.has("quiet"):
        _complain_of_failures(result)
    else:
        say(_configuration_text(session) + result_text(result, verbose=session.verbose))
    return result.exit_code


def _configuration_object(session: Session) -> dict[str, object]:
    """Return what the operator of the machine has decided, as ``--output=json`` prints it."""
    found = session.configuration
    if found is None:
        return {}
    version = None if found.generation is None else ".".join(map(str, found.generation))
    return {
        "configuration": {
            "path": found.path,
            "minimum-isolation": found.minimum_isolation,
            "allow-path": list(found.allow),
            "qemu-version": version,
        }
    }


def _configuration_text(session: Session) -> str:
    """Return the same for people."""
    found = _configuration_object(session).get("configuration")
    if not isinstance(found, dict):
        return ""
    lines = [f"{printable(str(found.pop('path')))}:"]
    for key, value in found.items():
        if value:
            lines.append(f"  {key}: {', '.join(map(printable, value)) if isinstance(value, list) else value}")
    return "\n".join([*lines, "", ""])


def result_object(result: SelfTestResult) -> dict[str, object]:
    """Return what ``--output=json`` prints."""
    return {
        "isolation": result.isolation,
        "taken": result.taken,
        "passed": result.passed,
        "cells": [
            {
                "kind": cell.kind,
                "available": cell.available,
                "reason": cell.reason,
                "hint": cell.hint,
                "launch-microseconds": None if cell.launch_seconds is None else round(cell.launch_seconds * 1e6),
                "passed": cell.passed,
                "tests": [_trial_object(trial) for trial in cell.trials],
            }
            for cell in result.cells
        ],
    }


def _trial_object(trial: TrialResult) -> dict[str, object]:
    return {
        "name": trial.name,
        "because": trial.reason,
        "passed": trial.passed,
        "microseconds": round(trial.seconds * 1e6),
        "said": trial.said,
        "story": trial.story,
    }


def result_text(result: SelfTestResult, *, verbose: bool) -> str:
    """Return what people see."""
    lines = []
    for cell in result.cells:
        lines += [*_cell_lines(cell, verbose=verbose), ""]
    return "\n".join([*lines, _verdict(result)]) + "\n"


def _cell_lines(cell: CellResult, *, verbose: bool) -> list[str]:
    if cell.reason is not None:
        hint = [f"  {cell.hint}"] if cell.hint else []
        return [f"{cell.kind}: cannot be started: {printable(cell.reason)}", *hint]
    good = sum(trial.passed for trial in cell.trials)
    launch = "" if cell.launch_seconds is None else f", {cell.launch_seconds * 1000:.1f} ms from launch to result"
    lines = [f"{cell.kind}: can be started, {good} of {len(cell.trials)} tests passed{launch}"]
    for trial in cell.trials:
        verdict = "ok" if trial.passed else "FAILED"
        failure = "" if trial.passed else f": {printable(trial.said)}"
        lines.append(f"  {verdict:<6} {trial.seconds * 1000:6.0f} ms  {trial.name}{failure}")
        if verbose:
            lines.append(f"{'':20}because: {trial.reason}")
            if trial.passed and trial.said != "ok":
                lines.append(f"{'':20}{printable(trial.said)}")
            if trial.story:
                lines.append(f"{'':20}{printable(trial.story)}")
    return lines


def _verdict(result: SelfTestResult) -> str:
    word = f"--isolation={result.isolation}"
    if result.taken is None:
        return f"{word} has no cell on this host."
    failed = "" if result.passed else " Some tests FAILED: do not rely on these cells."
    takes = f" takes {result.taken}" if result.isolation == "auto" else " can be used"
    return f"{word}{takes} on this host.{failed}"


def _complain_of_failures(result: SelfTestResult) -> None:
    for cell in result.cells:
        for trial in cell.trials:
            if not trial.passed:
                complain(f"instar: {cell.kind}: FAILED: {trial.name}: {printable(trial.said)}")
    if result.taken is None:
        for cell in result.cells:
            complain(f"instar: {cell.kind}: cannot be started: {printable(str(cell.reason))}")
