"""What the targets of all formats share: a file in memory, seeds out of our own planners, and the law itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from instar.core import NEWEST
from instar.core.errors import ImageError
from instar.core.finding import REPORT
from instar.core.image import ImageFacts
from instar.core.options import Settings, read_settings
from instar.core.plan import Allocate, Backing, Seed
from instar.core.wire import Room, decode, encode
from instar.host.budget import MEMORY, VALUES
from instar.host.describe import INFO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from instar.core.errors import InstarError

GENERATIONS = ((7, 2), (10, 0), NEWEST)

#: Options of the seeds of each format; the first is empty, the second the next in kind, and so on.
VARIANTS: dict[str, tuple[str, ...]] = {
    "raw": ("",),
    "qcow2": (
        "",
        "compat=v2",
        "preallocation=metadata,cluster_size=4k",
        "preallocation=metadata,extended_l2=on,cluster_size=16k",
        "refcount_bits=1,cluster_size=512",
        "compression_type=zstd,lazy_refcounts=on",
    ),
    "qed": ("cluster_size=4k,table_size=2", "cluster_size=8k,table_size=4"),
    "qcow": ("",),
    "vmdk": ("", "subformat=streamOptimized", "zeroed_grain=on"),
    "vpc": ("", "subformat=fixed", "force_size=on"),
    "vdi": ("", "static=on"),
    "parallels": ("cluster_size=4k", "preallocation=metadata,cluster_size=64k"),
    "luks": ("key-secret=s,cipher-alg=aes-128,cipher-mode=cbc", "key-secret=s,detached-header=on,cipher-alg=aes-128"),
    "vhdx": ("block_size=1M", "subformat=fixed,block_state_zero=off,block_size=1M"),
}
SEED_SIZE = 1 << 20
#: What the parsers of formats that know their parents give as ``identity``.
IDENTITIES = {
    "vpc": bytes(range(16)) + SEED_SIZE.to_bytes(8, "big") + b"\xff\xff\x10\xff",
    "vhdx": bytes(range(32)) + b"\0\2\0\0\0\2\0\0" + bytes(4),
}


class Memory:
    """A file in memory as a parser sees it."""

    def __init__(self, data: bytes, number: int = 0) -> None:
        self.data = data
        self.number = number
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; a negative number is a bug of the caller's."""
        assert offset >= 0, f"read at {offset}"
        assert length >= 0, f"read of {length} bytes"
        return self.data[offset : offset + length]


def part(format: str, name: str) -> ModuleType:
    """Return one module of a format."""
    return import_module(f"instar.formats.{format}.{name}")


def assert_one_line(error: InstarError) -> None:
    """Hold a sentence to its law: one line of bounded length that no terminal can be hurt by."""
    text = str(error)
    assert len(text) < 10_000
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text), repr(text)


def image(format: str, options: str, *, size: int = SEED_SIZE, backing: str | None = None) -> bytes:
    """Return a whole image out of our own planner."""
    if format == "raw":
        return bytes(4096)
    pairs: list[tuple[str, str | None]] = []
    for word in options.split(",") if options else ():
        key, _, value = word.partition("=")
        pairs.append((key, value))
    settings = read_settings(part(format, "options").CREATE, pairs, format=format) if pairs else Settings()
    base = (
        None
        if backing is None
        else Backing(
            backing,
            format,
            virtual_size=size,
            content_id=7,
            identity=IDENTITIES.get(format),
            relative=backing,
            absolute=f"/{backing}",
        )
    )
    chosen = part(format, "options").resolve(size, settings, base)
    plan = part(format, "plan").create(
        size, chosen, Seed(entropy=bytes(range(64)), file_name="seed", backing=base, secret=b"seed")
    )
    out = bytearray(plan.sizes[0])
    for item in plan.items:
        if not isinstance(item, Allocate):
            for offset, data in item.pieces():
                out[offset : offset + len(data)] = data
    return bytes(out)


def images(format: str) -> Iterator[bytes]:
    """Yield the seeds of a format."""
    for options in VARIANTS[format]:
        yield image(format, options)
    if format in ("qcow2", "qed", "qcow", "vmdk", *IDENTITIES):
        yield image(format, "", backing="base.img")


def read(format: str, data: bytes, *, check: bool) -> None:
    """Hold a format to its law: a value that survives the way out of a cell, or an ``ImageError``."""
    generation = GENERATIONS[len(data) % len(GENERATIONS)]
    source = Memory(data)
    try:
        facts = part(format, "parse").info(source, [], generation=generation)
        needed = [r for r in facts.references if r.required]
        parts = [Memory(data, n) if n % 2 else None for n, _ in enumerate(needed[:8], 1)]
        if needed:
            facts = part(format, "parse").info(source, parts, generation=generation)
        elif format in IDENTITIES and facts.backing is not None:
            parts = [source]  # no better parent is at hand
        reply = encode(facts.to_wire())
        if len(reply) <= INFO_LIMITS.reply_bytes:
            value = decode(reply, Room(values=VALUES, memory=MEMORY))
            ImageFacts.from_wire(value, part(format, "facts").SHAPE)
        if check:
            report = part(format, "check").check(source, parts, generation=generation)
            REPORT(decode(encode(report.to_wire())))
    except ImageError as error:
        assert_one_line(error)
