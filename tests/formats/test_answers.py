"""Plans, facts and reports of small images, and of the same images with a word changed, are those that were decided on.

Law: each answer has its line in ``answers/FORMAT.txt``, with its numbers, places and words, so that none changes
unseen; of a changed image only what differs. That they are right, the comparison with qemu-img shows.
``INSTAR_RENEW_FACTS=1 ./dev test tests/formats -n0`` writes the files again.
"""

from __future__ import annotations

import itertools
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from fuzz.reading import IDENTITIES, SEED_SIZE, VARIANTS, Memory, part

from instar.core import NEWEST
from instar.core.errors import ImageError, OptionError
from instar.core.finding import SEVERITIES
from instar.core.options import Settings, read_settings
from instar.core.plan import Allocate, Backing, Plan, Seed

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOKS = Path(__file__).parent / "answers"
WITH_BACKING = ("qcow2", "qed", "qcow", "vmdk", *IDENTITIES)
LITTLE = ("vdi", "vhdx", "qed", "vmdk", "parallels")
MOST_WORDS = 80
#: Plans that only differ in what they reserve, or that are of several files.
PLANNED: dict[str, tuple[str, ...]] = {
    "qcow2": (
        "preallocation=falloc",
        "preallocation=full,cluster_size=512",
        "data_file=d",
        "data_file=file:a:b,data_file_raw=on",
        "data_file=d,data_file_raw=on,keep_data_file=on",
        "data_file=d,keep_data_file=on,preallocation=metadata",
        "encrypt.format=luks,encrypt.key-secret=s,preallocation=metadata",
        "encrypt.format=aes,encrypt.key-secret=s",
    ),
    "qcow": ("encrypt.format=aes,encrypt.key-secret=s",),
    "vmdk": (
        "preallocation=metadata",
        "preallocation=full",
        "subformat=monolithicFlat",
        "subformat=monolithicFlat,preallocation=falloc",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat,adapter_type=lsilogic,hwversion=10",
    ),
    "vpc": ("preallocation=metadata", "subformat=fixed,preallocation=full", "block_size=512k,preallocation=falloc"),
    "vhdx": ("preallocation=metadata", "preallocation=falloc", "subformat=fixed,preallocation=full", "log_size=2M"),
    "vdi": ("static=on,preallocation=full", "static=on,preallocation=falloc"),
    "parallels": ("preallocation=full",),
    "luks": ("key-secret=s,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha1",),
}
#: Choices that exclude one another.
REFUSED: dict[str, tuple[str, ...]] = {
    "qcow2": (
        "keep_data_file=on",
        "data_file=d,keep_data_file=on",
        "data_file=d,keep_data_file=on,preallocation=full",
        "data_file=nbd:x",
        "data_file_raw=on",
        "compat=v2,data_file=d",
        "cluster_size=512,data_file=" + 500 * "d",
        "cluster_size=3",
        "encrypt.format=luks",
        "preallocation=some",
    ),
    "vmdk": ("subformat=monolithicFlat,zeroed_grain=on", "adapter_type=x", "grain_size=1", 'hwversion=a"b'),
    "vpc": ("subformat=x", "block_size=3"),
    "vhdx": ("block_size=3M", "subformat=x", "log_size=4G"),
    "vdi": ("preallocation=full",),
    "parallels": ("cluster_size=4G", "cluster_size=0"),
    "qed": ("cluster_size=1", "table_size=3"),
    "qcow": ("encryption=on", "encrypt.format=luks"),
    "luks": ("", "key-secret=s,cipher-alg=x", "key-secret=s,iter-time=400000"),
}
#: Of an image of more than a mebibyte.
FEWER_WORDS = 30
#: What a word is replaced with: bits that no image has, one more than was there, nothing.
CHANGES = {"ffffffff": lambda word: 0xFFFFFFFF, "+1": lambda word: (word + 1) % (1 << 32), "0": lambda word: 0}


def pair_of(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value


def plan(
    format: str,
    options: str,
    backing: str | None,
    *,
    identity: bytes | None = None,
    size: int = SEED_SIZE,
    entropy: bytes = bytes(range(64)),
) -> Plan:
    pairs = [pair_of(word) for word in options.split(",") if word]
    settings = read_settings(part(format, "options").CREATE, pairs, format=format) if pairs else Settings()
    base = backing and Backing(
        backing,
        format,
        virtual_size=size,
        content_id=7,
        identity=identity or IDENTITIES.get(format),
        modified=1_000_000_000,
        relative=backing,
        absolute=f"/{backing}",
    )
    chosen = part(format, "options").resolve(size, settings, base or None)
    seed = Seed(entropy=entropy, time=1_700_000_000, file_name="seed", backing=base or None, secret=b"seed")
    made = part(format, "plan").create(size, chosen, seed)
    assert isinstance(made, Plan)
    return made


def refusal(format: str, options: str) -> str:
    with pytest.raises(OptionError) as caught:
        plan(format, options, None)
    return f"{caught.value.code} {caught.value} {sorted(caught.value.values.items())}"


class Changed(Memory):
    """An image with one word changed."""

    def __init__(self, data: bytes, place: int, word: bytes) -> None:
        super().__init__(data)
        self.place = place
        self.word = word

    def read(self, offset: int, length: int) -> bytes:
        found = super().read(offset, length)
        low, high = max(offset, self.place), min(offset + len(found), self.place + len(self.word))
        if low >= high:
            return found
        word = self.word[low - self.place : high - self.place]
        return found[: low - offset] + word + found[high - offset :]


def image(made: Plan) -> bytes:
    out = bytearray(made.sizes[0])
    for item in made.items:
        if item.file == 0 and not isinstance(item, Allocate):
            for offset, data in item.pieces():
                out[offset : offset + len(data)] = data
    return bytes(out)


def told(made: Plan) -> str:
    """Return a plan as text, with a checksum of all that it writes, as the text shows the beginning of each item."""
    checksum = 0
    for item in made.items:
        if not isinstance(item, Allocate):
            for offset, data in item.pieces():
                checksum = zlib.crc32(data, zlib.crc32(f"{item.file} {offset} ".encode(), checksum))
    return f"{made.text()}\nchecksum {checksum:08x}"


def words(made: Plan) -> list[int]:
    """Return places of metadata: the first words of each item, and where it is short, all."""
    found: set[int] = set()
    for item in made.items:
        if item.file == 0 and not isinstance(item, Allocate) and item.label != "data":
            found |= set(range(item.offset, item.offset + min(item.length, 128) // 4 * 4, 4))
    return sorted(place for place in found if place + 4 <= made.sizes[0])[
        : MOST_WORDS if made.sizes[0] < 1 << 20 else FEWER_WORDS
    ]


def said(error: ImageError) -> str:
    return f"{error.kind} {error}"


def info_of(format: str, file: Memory, *parts: Memory | None) -> list[str]:
    try:
        facts = part(format, "parse").info(file, parts, generation=NEWEST)
    except ImageError as error:
        return [said(error)]
    return [f"{key}={value!r}" for key, value in facts.to_wire().items() if value not in (None, False, [], {})]


def check_of(format: str, file: Memory, *parts: Memory | None) -> list[str]:
    try:
        report = part(format, "check").check(file, parts, generation=NEWEST)
    except ImageError as error:
        return [said(error)]
    totals = {key: value for key, value in report.to_wire().items() if key != "findings"}
    parts = [f"{key}={value}" for key, value in totals.items() if value]
    for severity in SEVERITIES:
        found = [f for f in report.findings if f.severity == severity]
        parts += [
            f"{len(found)} {severity}: {f.structure}: {f.detail} {f.offset} {f.code} {f.values}" for f in found[:1]
        ]
    return parts


def lines(format: str) -> Iterator[str]:
    order: Literal["little", "big"] = "little" if format in LITTLE else "big"
    cases = [(options, None) for options in VARIANTS[format]]
    for number, (options, backing) in enumerate([*cases, *([("", "base.img")] if format in WITH_BACKING else [])]):
        made = plan(format, options, backing)
        good = image(made)
        normal = info_of(format, Memory(good)), check_of(format, Memory(good))
        yield f"== {options or 'defaults'}{' with a backing file' if backing else ''}"
        yield told(made)
        yield f"info: {' '.join(normal[0])}"
        yield f"check: {'; '.join(normal[1])}"
        if number and not backing:
            continue
        last = ""
        for how, change in CHANGES.items():
            for place in words(made):
                word = change(int.from_bytes(good[place : place + 4], order))
                file = Changed(good, place, word.to_bytes(4, order))
                info = " ".join(fact for fact in info_of(format, file) if fact not in normal[0])
                check = "; ".join(fact for fact in check_of(format, file) if fact not in normal[1])
                found = info if info == check else f"{info} / {check}"
                if found and found != last:
                    last = found
                    yield f"{place:#x} {how}: {found}"


def families(format: str) -> Iterator[str]:
    """Yield what is said of a child beside its parent, beside others, and without any."""
    parents = [Memory(image(plan(format, "", None, size=size))) for size in (SEED_SIZE, 2 * SEED_SIZE)]
    facts = part(format, "parse").info(parents[0], (), generation=NEWEST)
    identity = facts.extra["identity"]
    assert isinstance(identity, bytes)
    child = Memory(image(plan(format, "", "base.img", identity=identity, size=facts.virtual_size)))
    stranger = Memory(image(plan(format, "", None, entropy=bytes(range(64, 128)))))
    for name, above in [
        ("its parent", parents[0]),
        ("a larger one", parents[1]),
        ("another one", stranger),
        ("no image", Memory(bytes(4096))),
        ("nothing", None),
    ]:
        yield f"beside {name}: {'; '.join(check_of(format, child, above))}"
    yield f"info: {' '.join(info_of(format, child))}"
    found = part(format, "parse").lineage(child, generation=NEWEST)
    assert found is not None
    yield f"lineage: {found.role} {found.name!r} {found.format} {found.required}"
    assert part(format, "parse").lineage(parents[0], generation=NEWEST) is None


def further(format: str) -> Iterator[str]:
    for options in PLANNED.get(format, ()):
        yield f"== {options}"
        yield told(plan(format, options, None))
        settings = read_settings(
            part(format, "options").CREATE, [pair_of(word) for word in options.split(",")], format=format
        )
        named = getattr(part(format, "options"), "companions", None)
        if named is not None:
            chosen = part(format, "options").resolve(SEED_SIZE, settings, None)
            for file in named(SEED_SIZE, chosen, "seed"):
                yield f"file {file.name} keep={file.keep} from_cwd={file.from_cwd}"
    for options in REFUSED.get(format, ()):
        yield f"refused {options}: {refusal(format, options)}"
    if format in IDENTITIES:
        yield from families(format)


@pytest.mark.parametrize("format", [name for name in VARIANTS if name != "raw"])
def test_answers_are_those_that_were_decided_on(format: str) -> None:
    book = BOOKS / f"{format}.txt"
    found = "".join(f"{line}\n" for line in itertools.chain(lines(format), further(format))).splitlines()
    if os.environ.get("INSTAR_RENEW_FACTS"):
        BOOKS.mkdir(exist_ok=True)
        book.write_text("".join(f"{line}\n" for line in found), encoding="utf-8", errors="backslashreplace")
    written = book.read_text(encoding="utf-8").splitlines()
    for ours, theirs in zip(found, written, strict=False):
        assert ours.encode("utf-8", "backslashreplace").decode() == theirs
    assert len(found) == len(written)
