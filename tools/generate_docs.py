"""Write the parts of the documentation that are generated from tables: ``python -m tools.generate_docs [--check]``.

Law: what stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` comes from here, everything else is left
alone. With ``--check`` nothing is written, and the exit code says whether something would be.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from instar.core.options import Option
from instar.core.units import format_size
from instar.formats import TABLE, find
from instar.host.check import CHECK_LIMITS
from instar.host.describe import INFO_LIMITS
from instar.host.request import FILE_OPTIONS, option_rows
from instar.sandbox.kvm.monitor import MONITOR_RULES
from instar.sandbox.process.policy import RULES, Rule

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- generated: ([^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
#: More choices than this are not listed.
MAX_CHOICES = 8

_ARGUMENTS = {
    "any": "any",
    "up": "only the pipe to the host",
    "down": "only the pipe from the host",
    "readable": "only files granted for reading, of a window only its bytes",
    "writable": "only files granted for writing, of a window only its bytes",
    "memory": "only new memory of its own that cannot be executed, at a place that the kernel chooses",
    "moves": "only to a place that the kernel chooses, leaving nothing behind",
    "clocks": "only those of time, and of its own processor time",
    "advice": "only giving pages back, and wishing for large ones",
    "processor": "only the machine's processor: run, and read its registers",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _default(row: Option) -> str:
    if row.default is None:
        return ""
    if isinstance(row.default, bool):
        return "on" if row.default else "off"
    if row.type == "size":
        return format_size(int(row.default))
    return str(row.default)


def _values(row: Option) -> str:
    if row.type == "choice":
        names = [*row.choices, *row.aliases]
        return ", ".join(f"`{name}`" for name in names[:MAX_CHOICES]) + (" …" if len(names) > MAX_CHOICES else "")
    return {"size": "size", "num": "number", "bool": "`on`, `off`", "str": "text"}[row.type]


def _meaning(row: Option) -> str:
    words = row.help.strip().rstrip(".") + "."
    if row.note:
        words += f" {row.note[0].upper()}{row.note[1:].rstrip('.')}."
    if row.since > (7, 2):
        words += f" In qemu-img since {row.since[0]}.{row.since[1]}."
    return words + (" Only in instar." if row.extension else "")


def options(rows: tuple[Option, ...]) -> str:
    """Return creation options as a table."""
    cells = [[f"`{row.name}`", _values(row), _default(row), _meaning(row)] for row in rows]
    return table(["option", "values", "default", "meaning"], sorted(cells))


def switches(command: str) -> str:
    """Return a command's switches as a table."""
    rows = []
    for switch in import_module(f"instar.cli.commands.{command}").SWITCHES:
        argument = switch.metavar
        forms = [f"`-{switch.short} {argument}`".replace(" `", "`")] if switch.short else []
        if switch.long:
            forms.append(f"`--{switch.long}{'=' if argument else ''}{argument}`")
        rows.append([", ".join(forms), switch.help + ("; only in instar" if switch.extension else "")])
    return table(["switch", "meaning"], rows)


def formats() -> str:
    """Return what instar does with each format."""
    rows = []
    for row in TABLE:
        names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
        does = "recognised, refused by name"
        if row.readable:
            check = "check" if row.name != "raw" else ""
            does = ", ".join(word for word in ("create" if row.creatable else "", "info", check) if word)
        rows.append([names, row.title, does])
    return table(["format", "", "instar can"], rows)


def cell_calls() -> str:
    """Return the system calls of a process cell."""
    return _calls(RULES)


def monitor_calls() -> str:
    """Return what the monitor of a kvm cell may call beyond that."""
    return _calls([rule for rule in MONITOR_RULES if rule not in RULES])


def _calls(rules: Sequence[Rule]) -> str:
    rows = [[f"`{rule.name}`", _ARGUMENTS[rule.argument], rule.reason] for rule in rules]
    return table(["call", "with", "because"], rows)


def limits() -> str:
    """Return what cells may use."""
    rows = []
    for name, given in (("`info`", INFO_LIMITS), ("`check`", CHECK_LIMITS)):
        memory, reply = format_size(given.memory), format_size(given.reply_bytes)
        rows.append([name, memory, f"{given.cpu_seconds} s", f"{given.wall_seconds:g} s", reply])
    return table(["cell of", "memory", "processor time", "time to answer", "longest answer"], rows)


def block(name: str) -> str:
    """Return the text of a generated part.

    Raises:
        KeyError: nothing of that name is generated.
    """
    kind, _, of = name.partition(" ")
    if kind == "switches":
        return switches(of)
    if kind == "options" and of == "file":
        return options(FILE_OPTIONS)
    if kind == "options" and find(of) is not None:
        return options(option_rows(of, with_file=False))
    return {"formats": formats, "cell-calls": cell_calls, "monitor-calls": monitor_calls, "limits": limits}[name]()


def renewed(text: str) -> str:
    """Return a page with its generated parts as they should be."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found[2])}\n{found[3]}", text)


def pages() -> list[Path]:
    """Return all pages of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def main(argv: list[str]) -> int:
    """Renew all pages, or with ``--check`` tell which are out of date."""
    stale = [page for page in pages() if renewed(page.read_text()) != page.read_text()]
    for page in stale:
        print(page.relative_to(ROOT))
        if "--check" not in argv:
            page.write_text(renewed(page.read_text()))
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
