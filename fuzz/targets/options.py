"""Creation options of every format: what is accepted makes a sound plan."""

from __future__ import annotations

from fuzz.reading import VARIANTS, assert_one_line, part
from instar.core.errors import OptionError
from instar.core.options import read_settings, split_list
from instar.core.plan import Seed
from instar.core.units import parse_size
from instar.formats import creatable

#: Above this, checking the plan of a disk would take the second that a whole test has.
CHECKED_SIZE = 1 << 34


def seeds() -> list[bytes]:
    """Return ``FORMAT SIZE OPTIONS``."""
    return [
        f"{format} {size} {options}".encode()
        for format, all_ in VARIANTS.items()
        for options in all_
        for size in ("1M", "3G")
    ]


def one_input(data: bytes) -> None:
    """Any words give an ``OptionError`` or a plan that keeps its invariants."""
    name, _, rest = data.decode("utf-8", "surrogateescape").partition(" ")
    amount, _, text = rest.partition(" ")
    formats = [row.name for row in creatable()]
    format = name if name in formats else formats[len(data) % len(formats)]
    try:
        size = parse_size(amount)
    except ValueError:
        size = len(data)
    options = part(format, "options")
    try:
        settings = read_settings(options.CREATE, split_list(text) if text else [], format=format)
        chosen = options.resolve(size & (1 << 64) - 1, settings, None)
        if format == "raw" or not 0 <= size <= CHECKED_SIZE:
            return
        plan = part(format, "plan").create(size, chosen, Seed(file_name="x", secret=b"secret", pbkdf_rate=1000))
    except OptionError as error:
        assert_one_line(error)
        return
    plan.check()
    # A header that stands by itself describes no disk of a size.
    assert plan.virtual_size >= size or chosen.get("detached-header")
