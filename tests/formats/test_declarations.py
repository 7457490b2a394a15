"""What a format is stands in its declarations: layouts, numbers, options. Each has its line in ``declared.txt``.

Law: a changed declaration is a decision, so it is seen twice. That they are right, the comparison with qemu-img and the
specifications show elsewhere. ``INSTAR_RENEW_FACTS=1 ./dev test tests/formats -n0`` writes the file again.
"""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import instar.core
import instar.formats
from instar.core.options import TYPES, Option
from instar.core.record import Record
from instar.formats import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

BOOK = Path(__file__).parent / "declared.txt"
#: Longer values are tables, which tests of their own go through.
LONGEST = 600


def modules() -> Iterator[ModuleType]:
    for package in (instar.core, instar.formats):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield import_module(found.name)


def declared(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield what a module itself gives a name, without what it imports."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target), getattr(module, ast.unparse(target), None)
        elif isinstance(node, ast.ClassDef):
            yield node.name, getattr(module, node.name)


def attributes(row: object) -> str:
    return " ".join(f"{name}={getattr(row, name)!r}" for name in type(row).__slots__ if getattr(row, name))  # type: ignore[attr-defined]


def line(name: str, value: object) -> str | None:
    """Return the line of a declaration; ``None`` if it needs none."""
    if isinstance(value, type):
        if not issubclass(value, Record) or value is Record:
            return None
        fields = " ".join(f"{f.name}:{f.code}@{f.offset}" for f in value.FIELDS)
        defaults = " ".join(f"{key}={default!r}" for key, default in value.DEFAULTS.items())
        return f"{name}: {value.STRUCT.format[0]} {value.SIZE} bytes, {fields}; defaults {defaults or 'none'}"
    if isinstance(value, Option):
        return f"{name}: {attributes(value)}"
    last = name.rpartition(".")[2]
    if last.isupper() and last[0] != "_" and isinstance(value, int | str | bytes | tuple | dict):
        shown = repr(value)
        return None if " at 0x" in shown or "Option" in shown or len(shown) > LONGEST else f"{name}: {shown}"
    return None


def lines() -> Iterator[str]:
    for module in modules():
        short = module.__name__.removeprefix("instar.")
        named = [value for _, value in declared(module) if isinstance(value, Option)]
        for name, value in declared(module):
            if name != "TYPE_CHECKING":
                made = line(f"{short}.{name}", value)
                if made is not None:
                    yield made.replace("\n", " ")
            # Rows that formats share are made by functions.
            if name == "CREATE" and isinstance(value, tuple):
                yield from (f"{short}.CREATE: {attributes(row)}" for row in value if row not in named)
    for row in TABLE:
        probes = " ".join(f"{probe.offset}:{probe.magic!r}" for probe in row.probes)
        yield f"formats.TABLE {probes} {attributes(row)}".replace(f"probes={row.probes!r} ", "")


def test_declarations_are_those_that_were_decided_on() -> None:
    found = list(lines())
    if os.environ.get("INSTAR_RENEW_FACTS"):
        BOOK.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    written = BOOK.read_text(encoding="utf-8").splitlines()
    assert sorted(set(found) - set(written)) == [], (
        "not in tests/formats/declared.txt (INSTAR_RENEW_FACTS=1 writes it again)"
    )
    assert sorted(set(written) - set(found)) == [], "in tests/formats/declared.txt and nowhere else"


def test_create_lists_each_option_once_and_by_a_known_type() -> None:
    for module in modules():
        for rows in (value for name, value in declared(module) if name == "CREATE"):
            assert isinstance(rows, tuple)
            assert len({row.name for row in rows}) == len(rows)
            assert {row.type for row in rows} <= set(TYPES)
