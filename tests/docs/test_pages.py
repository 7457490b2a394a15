"""The documentation is true: its examples run, its generated parts are current, its links lead somewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.docs.examples import ROOT, blocks, programs, run_console, run_python
from tools.generate_docs import BLOCK, pages, renewed

if TYPE_CHECKING:
    from pathlib import Path

PAGES = pages()


def name_of(page: Path) -> str:
    """Return a page as tests show it."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_examples_print_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = programs(tmp_path / "programs")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for kind, text in blocks(page):
        if kind == "console":
            run_console(text, folder, path)
        else:
            run_python(text, page, names)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name_of)
def test_generated_parts_are_current(page: Path) -> None:
    assert renewed(page.read_text()) == page.read_text(), "run ./dev docs"


def test_a_table_that_drifts_is_noticed() -> None:
    page = ROOT / "docs" / "create.md"
    assert renewed(page.read_text().replace("64 KiB", "32 KiB")) == page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        queue += [page.parent / target for target in targets if "://" not in target]
    assert {page.resolve() for page in PAGES} <= seen


def test_ci_runs_the_second_command_of_the_readme_and_nothing_else() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', commands[1].strip()]
