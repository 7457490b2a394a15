"""VHDs for tests, built in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import BytesReader

from instar.core.plan import Seed
from instar.formats.vpc.ondisk import Footer, Header, ParentLocator, bitmap_bytes, sealed
from instar.formats.vpc.plan import create

if TYPE_CHECKING:
    from instar.core.plan import Plan

MiB = 1 << 20
NOW = (11, 1)
OLD = (7, 2)
SEED = Seed(entropy=bytes(range(64)), time=1_700_000_000)


def plan(size: int, *, subformat: str = "dynamic", force_size: bool = False, block_size: int = 2 * MiB) -> Plan:
    """Plan an image with the options as ``resolve`` gives them."""
    options: dict[str, int | bool | str] = {"subformat": subformat, "force_size": force_size}
    if subformat == "dynamic":
        options["block_size"] = block_size
    return create(size, options, SEED)


def image(made: Plan) -> bytes:
    """Return the bytes of a small image."""
    data = bytearray(made.sizes[0])
    for item in made.items:
        for offset, piece in item.pieces():
            data[offset : offset + len(piece)] = piece
    return bytes(data)


def dynamic(size: int = 10 * MiB, *, entries: dict[int, int] | None = None, **options: int) -> bytes:
    """Return a small dynamic disk; ``entries`` sets BAT entries, blocks of zeros make room for them all."""
    data = image(plan(size, **options))  # type: ignore[arg-type]
    if entries is None:
        return data
    header = Header.unpack(data, 512)
    span = bitmap_bytes(header.block_size) + header.block_size
    body = bytearray(data[:-512])
    for index, entry in entries.items():
        body[1536 + 4 * index : 1540 + 4 * index] = entry.to_bytes(4, "big")
    end = max([entry * 512 + span for entry in entries.values()], default=0)
    body += bytes(max(0, end - len(body)))
    return bytes(body) + data[-512:]


def fixed(size: int = MiB, *, force_size: bool = False) -> bytes:
    """Return a small fixed disk."""
    return image(plan(size, subformat="fixed", force_size=force_size))


def with_footer(data: bytes, *, at_end: bool = True, at_start: bool = True, **fields: object) -> bytes:
    """Return a dynamic disk with fields of its footers changed and their checksums right."""
    changed = sealed(Footer.unpack(data, 0).replace(**fields))
    if at_start:
        data = changed + data[512:]
    return data[:-512] + changed if at_end else data


def with_header(data: bytes, **fields: object) -> bytes:
    """Return a dynamic disk with fields of its header changed and the checksum right."""
    return data[:512] + sealed(Header.unpack(data, 512).replace(**fields)) + data[1536:]


def differencing(names: list[tuple[int, bytes]], *, parent_name: bytes = b"", parent_id: bytes = b"\7" * 16) -> bytes:
    """Return a differencing disk with a parent locator for each ``(platform, name)``."""
    data = dynamic(10 * MiB)
    locators = b""
    body = bytearray(data[:-512])
    for platform, name in names:
        entry = ParentLocator(platform_code=platform, data_space=1, data_length=len(name), data_offset=len(body))
        locators += entry.pack()
        body += name + bytes(-len(name) % 512)
    changed = with_header(bytes(body), parent_locators=locators, parent_name=parent_name, parent_unique_id=parent_id)
    return with_footer(changed + data[-512:], disk_type=4)


def reader(data: bytes) -> BytesReader:
    """Return a reader over bytes."""
    return BytesReader(data)
