"""Mutants of a module: each is the module with one place changed, as mutmut's operators change it.

What only type checkers read, docstrings, ``__repr__`` and ``__slots__`` are left alone, and by mutmut properties too.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Mutant(NamedTuple):
    """One changed place: where it is, which statement it is in, and how to write the module with it."""

    path: str
    number: int
    line: int
    #: First and last line of the innermost statement; of one with a body, those of its head.
    statement: tuple[int, int]
    #: First and last line of the body of the function around it; none where the code runs when it is imported.
    function: tuple[int, int] | None
    make: Callable[[], str]

    @property
    def name(self) -> str:
        """What ``./dev mutate`` takes in place of a module."""
        return f"{self.path.removeprefix('src/instar/')}#{self.number}"


class Place(NamedTuple):
    """A statement of a module."""

    head: tuple[int, int]
    function: tuple[int, int] | None
    counts: bool


def places(text: str) -> dict[int, Place]:
    """Return, for each line, its innermost statement; those only for type checkers and ``__repr__`` do not count."""
    found: dict[int, Place] = {}

    def visit(node: ast.AST, function: tuple[int, int] | None, counts: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                continue
            inside, counted = function, counts
            words = ast.unparse(child).splitlines()[0]
            if words.startswith(("if TYPE_CHECKING", "TYPE_CHECKING =", "def __repr__")):
                counted = False
            body = getattr(child, "body", None)
            first = child.pattern.lineno if isinstance(child, ast.match_case) else child.lineno
            end = child.body[-1].end_lineno if isinstance(child, ast.match_case) else child.end_lineno
            last = max(first, body[0].lineno - 1) if body else end or first
            if isinstance(child, ast.FunctionDef):
                inside = inside or (body[0].lineno, child.end_lineno)  # type: ignore[index,assignment]
            for line in range(first, (end or last) + 1):
                found[line] = Place((first, last), function, counted)
            visit(child, inside, counted)

    visit(ast.parse(text), None, True)
    return found


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """Yield the mutants of a module, in order of the source."""
    cst = importlib.import_module("libcst")
    metadata = importlib.import_module("libcst.metadata")
    create = importlib.import_module("mutmut.mutation.file_mutation").create_mutations
    text = (root / path).read_text(encoding="utf-8")
    known = places(text)
    module, mutations, *_ = create(path, text)
    wrapper = metadata.MetadataWrapper(module, unsafe_skip_copy=True)
    where = wrapper.resolve(metadata.PositionProvider)
    whole = wrapper.resolve(metadata.WhitespaceInclusivePositionProvider)
    starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    for number, mutation in enumerate(mutations):
        node = mutation.original_node
        position = where.get(node)
        place = known.get(position.start.line) if position else None
        if position is None or place is None or not place.counts:
            continue
        if isinstance(node, cst.Assign) and module.code_for_node(node).startswith("__slots__"):
            continue

        def make(node: object = node, mutated: object = mutation.mutated_node) -> str:
            first, last = whole[node].start, whole[node].end
            before = text[: starts[first.line - 1] + first.column]
            return f"{before}{module.code_for_node(mutated)}{text[starts[last.line - 1] + last.column :]}"

        yield Mutant(path, number, position.start.line, place.head, place.function, make)


def compiles(mutant: Mutant, text: str) -> str | None:
    """Return the source with the mutant, if that is Python and says something else."""
    mutated = mutant.make()
    try:
        tree = ast.parse(mutated)
        compile(mutated, mutant.path, "exec")
    except (SyntaxError, ValueError):
        return None
    return None if ast.dump(tree) == _meaning(text) else mutated


@functools.cache
def _meaning(text: str) -> str:
    return ast.dump(ast.parse(text))


def change(before: str, after: str) -> list[str]:
    """Return the lines that differ, with ``-`` and ``+``."""
    old, new = before.splitlines(), after.splitlines()
    top = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    end = 0
    while end < min(len(old), len(new)) - top and old[-1 - end] == new[-1 - end]:
        end += 1
    return [f"-{line}" for line in old[top : len(old) - end]] + [f"+{line}" for line in new[top : len(new) - end]]
