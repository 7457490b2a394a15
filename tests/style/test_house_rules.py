"""Rules of the house that no linter knows: what a room may call, how long a file may be, what a format folder has."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from instar.cli.main import COMMANDS
from instar.core.options import Option
from instar.formats import TABLE, creatable, readable
from instar.guest.main import OPERATIONS

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "instar"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 500

#: Calls by which code reaches a file or runs what is not written there.
BANNED = ("open", "eval", "exec", "compile", "__import__", "input", "breakpoint")
PURE = ("core", "formats", "guest")
#: Guests import a format by its name in the table, before the walls close.
MAY_IMPORT_BY_NAME = ("guest",)

FORMATS = sorted(path.name for path in (SOURCE / "formats").iterdir() if (path / "__init__.py").exists())


def name_of(path: Path) -> str:
    """Return a path as tests show it."""
    return str(path.relative_to(ROOT))


def calls(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the built-in functions that code calls, with line numbers."""
    return [(n.func.id, n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]


@pytest.mark.parametrize("path", [p for room in PURE for p in MODULES if p.is_relative_to(SOURCE / room)], ids=name_of)
def test_pure_rooms_open_nothing_and_run_no_text(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    allowed = {"__import__"} if room in MAY_IMPORT_BY_NAME else set()
    found = [f"{name} in line {line}" for name, line in calls(ast.parse(path.read_text())) if name in BANNED]
    assert [text for text in found if text.partition(" ")[0] not in allowed] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated_anywhere(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    # To pickle is not to unpickle: errors try whether they can be.
    names |= {n.module or "" for n in froms if (n.module, [a.name for a in n.names]) != ("pickle", ["dumps"])}
    assert not names & {"pickle", "marshal", "shelve", "subprocess", "importlib"}
    assert not {name for name, _ in calls(tree)} & {"eval", "exec", "compile", "breakpoint"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_opens_with_a_sentence(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    assert text.split("\n\n")[0].rstrip().endswith((".", ":")), "the first paragraph is no sentence"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES, "split it along the chapters of its specification"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name not in ("__init__.py", "__main__.py")], ids=name_of)
def test_annotations_are_not_evaluated(path: Path) -> None:
    """Records need their annotations as text, and evaluating them costs start-up time."""
    assert "from __future__ import annotations" in path.read_text()


# --- formats --------------------------------------------------------------------------------------------------------


def test_every_folder_is_a_row_of_the_table_and_the_reverse() -> None:
    assert sorted({row.name for row in TABLE if row.readable or row.creatable}) == FORMATS


@pytest.mark.parametrize("format", FORMATS)
def test_format_folder_has_the_same_parts(format: str) -> None:
    parts = {path.name for path in (SOURCE / "formats" / format).iterdir()}
    wanted = {"__init__.py", "README.md", "options.py", "parse.py", "check.py", "facts.py"}
    if format != "raw":  # has no structures, and the host makes it
        wanted |= {"ondisk.py", "plan.py"}
    assert wanted <= parts


@pytest.mark.parametrize("format", [row.name for row in creatable()])
def test_options_of_a_format_are_rows_with_help(format: str) -> None:
    rows = import_module(f"instar.formats.{format}.options").CREATE
    assert all(isinstance(row, Option) and row.help for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    assert "size" in {row.name for row in rows}


@pytest.mark.parametrize("format", [row.name for row in readable()])
def test_format_has_its_tests_and_fuzz_targets(format: str) -> None:
    tests = {path.name for path in (ROOT / "tests" / "formats" / format).glob("test_*.py")}
    parts = ["options", "parse", "check"] + ([] if format == "raw" else ["ondisk", "plan"])
    assert {f"test_{part}.py" for part in parts} <= tests
    assert all((ROOT / "fuzz" / "targets" / f"{kind}_{format}.py").exists() for kind in ("parse", "check"))


# --- operations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", sorted(COMMANDS))
def test_operation_has_the_same_name_in_every_room(operation: str) -> None:
    # What tests the cells themselves has guests that no image ever meets, beside the cells.
    guest = "sandbox/selftest.py" if operation == "sandbox" else f"guest/{operation}.py"
    assert operation in OPERATIONS or operation == "sandbox"
    for place in (guest, f"host/{operation}.py", f"cli/commands/{operation}.py"):
        assert (SOURCE / place).exists()
    assert (ROOT / "docs" / f"{operation}.md").exists()
