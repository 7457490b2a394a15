"""The writes that make a LUKS volume.

Law: pure. The same size, options and seed give the same plan. The header and the material of the first key slot
are written; all else is left as it is, or reserved if that was asked for.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.plan import Allocate, Plan, Write
from instar.core.units import INT64_MAX, SECTOR, align_up
from instar.formats.luks.make import judge, make, passphrase_of, preload
from instar.formats.luks.ondisk import FORMAT
from instar.formats.luks.options import header_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.core.plan import Item, Seed

__all__ = ["create", "preload"]

#: QEMU's largest file.
MAX_FILE = (INT64_MAX >> 30) << 30


def create(size: int, options: Mapping[str, int | bool | str], seed: Seed) -> Plan:
    """Plan a volume whose disk has ``size`` bytes (not rounded), or a header alone (``detached-header``).

    See ``make.make`` for what is taken of the seed.

    Raises:
        OptionError: what ``make.make`` raises; ``luks-size``, ``luks-size-offset``.
    """
    detached = bool(options["detached-header"])
    passphrase_of(options, "", seed.secret)
    judge(options)
    if not detached:
        _judge_size(size, header_size(options))
    made = make(options, seed, detached=detached)
    end = made.size if detached else made.size + size
    material_end = made.material_offset + len(made.material)
    items: list[Item] = [
        Write(0, made.header, "LUKS header"),
        Write(made.material_offset, made.material, "key material of slot 0"),
    ]
    mode = str(options["preallocation"])
    if mode != "off":
        gap = made.material_offset - len(made.header)
        items.append(Allocate(len(made.header), gap, "rest of the header", mode=mode))
        items.append(Allocate(material_end, end - material_end, "other key slots and data", mode=mode))
    return Plan(items, sizes=(end,), virtual_size=0 if detached else size, unit_name="sector")


def _judge_size(size: int, offset: int) -> None:
    """Refuse a disk of ``size`` bytes whose file would be too long, with ``offset`` bytes of header."""
    end = size + offset
    if align_up(end, SECTOR) > MAX_FILE:
        raise OptionError(
            "luks-size" if end > INT64_MAX else "luks-size-offset",
            f"a LUKS volume has at most {MAX_FILE - offset} bytes, not {size}",
            format=FORMAT,
            value=str(end),
            limit=str(MAX_FILE),
        )
