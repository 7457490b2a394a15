"""What ``info`` says of an image is what qemu-img says, and what it refuses qemu-img refuses."""

from __future__ import annotations

import json
import random
import re
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.compat.versions import generations
from tests.formats.qcow2.images import (
    NOW,
    OLD,
    MiB,
    TiB,
    changed,
    number,
    place,
    planned,
    reader,
    snapshot_table,
    with_extensions,
    with_snapshots,
)
from tests.support import needs_qemu_img, qemu_img, run
from tests.support import reader as open_reader

from instar.core.errors import ImageError
from instar.core.image import ImageFacts
from instar.core.wire import decode, encode
from instar.formats.luks import ondisk as luks
from instar.formats.qcow2.ondisk import (
    AUTOCLEAR_BITMAPS,
    CRYPT_LUKS,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_BITMAPS,
    EXTENSION_CRYPTO_HEADER,
    EXTENSION_DATA_FILE,
    EXTENSION_FEATURE_NAMES,
    INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_DIRTY,
    MAX_LENGTH,
    MAX_SNAPSHOT_TABLE_SIZE,
    MAX_SNAPSHOTS,
    BitmapDirectoryEntry,
    BitmapsExtension,
    CryptoHeaderExtension,
    FeatureName,
    Header,
    HeaderV3,
    SnapshotEntry,
    SnapshotExtra,
)
from instar.formats.qcow2.parse import info

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = planned()
SECRET = ("--object", "secret,id=s,data=hunter2")


def facts(data: bytes, generation: tuple[int, int] = NOW) -> ImageFacts:
    return info(reader(data), (), generation=generation)


def specific(data: bytes, generation: tuple[int, int] = NOW) -> dict[str, Any]:
    found = facts(data, generation).format_specific
    assert found is not None
    assert found["type"] == "qcow2"
    return found["data"]  # type: ignore[return-value]


def refusal(data: bytes, generation: tuple[int, int] = NOW) -> ImageError:
    with pytest.raises(ImageError) as caught:
        facts(data, generation)
    assert caught.value.format == "qcow2"
    return caught.value


def survives(data: bytes) -> None:
    """Describe an image; let through nothing but an ``ImageError`` that can be printed."""
    try:
        encode(facts(data).to_wire())
    except ImageError as error:
        if not error.sentence().isprintable():
            pytest.fail(error.sentence())


def shown(found: ImageFacts) -> dict[str, Any]:
    """Return facts in the shape of ``qemu-img info --output=json``."""
    out: dict[str, Any] = {
        "virtual-size": found.virtual_size,
        "cluster-size": found.cluster_size,
        "format-specific": found.format_specific,
        "dirty-flag": found.dirty,
    }
    if found.encrypted:
        out["encrypted"] = True
    if found.snapshots:
        out["snapshots"] = found.snapshots
    if found.backing:
        out["backing-filename"] = found.backing.name.decode("utf-8", "surrogateescape")
        if found.backing.format:
            out["backing-filename-format"] = found.backing.format
    return out


def text_of(value: dict[str, Any]) -> str:
    """Return JSON text whose inner keys keep their order; what is no UTF-8 becomes one sign."""
    return re.sub(r"(\\u(dc..|fffd))+", "?", json.dumps({key: value[key] for key in sorted(value)}))


def real_info(program: Path, path: Path) -> str | None:
    """Return what a real qemu-img shows of an image, ``None`` if it does not open it."""
    done = run(program, "info", "--output=json", "-f", "qcow2", path)
    if done.returncode:
        return None
    host = ("filename", "format", "actual-size", "children", "full-backing-filename")
    return text_of({key: value for key, value in json.loads(done.stdout).items() if key not in host})


def our_info(path: Path, generation: tuple[int, int]) -> str | None:
    """Return what we show of the same."""
    with open_reader(path) as file:
        try:
            return text_of(shown(info(file, (), generation=generation)))
        except ImageError:
            return None


# --- against the real program --------------------------------------------------------------------------

CREATED = [
    "",
    "compat=0.10",
    "compression_type=zstd,extended_l2=on,lazy_refcounts=on,refcount_bits=64",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=2M",
    "encryption=on,encrypt.key-secret=s",
    *(
        f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,{more}"
        for more in (
            "encrypt.cipher-alg=aes-256",
            "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1",
            "encrypt.cipher-alg=serpent-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain",
        )
    ),
]


def create(folder: Path, name: str, *arguments: str | Path) -> Path:
    """Make an image with the newest program there is (7.2 fails with LUKS now and then)."""
    programs = generations()
    options: list[str | Path] = list(arguments)
    done = run(
        programs[max(programs)], "create", "-q", "-f", "qcow2", *SECRET, *options[:-1], folder / name, options[-1]
    )
    assert done.returncode == 0, done.stderr
    return folder / name


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make one image of each kind."""
    folder = tmp_path_factory.mktemp("zoo")
    made = [
        create(folder, f"created{index}", *(["-o", options] if options else []), "3M")
        for index, options in enumerate(CREATED)
    ]
    made.append(create(folder, "backed", "-b", "created0", "-F", "qcow2", "4M"))
    made.append(create(folder, "unformatted", "-u", "-b", "json:{}", "-F", "raw", "4M"))
    made.append(create(folder, "external", "-o", f"data_file={folder}/external.raw,data_file_raw=on", "1M"))
    made.append(create(folder, "loose", "-o", f"data_file={folder}/loose.raw", "1M"))
    full = create(folder, "full", "64M")
    for name in ("first", "snäp shot", "x" * 300):
        qemu_img("snapshot", "-c", name, full)
    qemu_img("bitmap", "--add", full, "tracking")
    qemu_img("bitmap", "--add", "-g", "512k", "--disable", full, "still")
    return [*made, full]


@needs_qemu_img
def test_shows_what_every_qemu_img_shows(zoo: list[Path]) -> None:
    for path in zoo:
        for generation, program in generations().items():
            assert our_info(path, generation) == real_info(program, path), (path.name, generation)


@needs_qemu_img
def test_refuses_what_qemu_img_refuses_when_header_fields_change(zoo: list[Path], tmp_path: Path) -> None:
    fields = [*(field.name for field in Header.FIELDS), *(field.name for field in HeaderV3.FIELDS)]
    damaged = tmp_path / "damaged"
    paths = [path for path in zoo if path.name in ("created0", "created6", "backed", "full")]
    programs = generations()
    random.seed(1)
    for name in fields:
        path = random.choice(paths)
        data = path.read_bytes()
        most = (1 << 8 * place(name)[1]) - 1
        old = number(data, name)
        for value in {
            0,
            1,
            2,
            most,
            most >> 1,
            old + 1,
            old + 65536,
            random.randrange(most),
            1 << random.randrange(32),
        }:
            damaged.write_bytes(changed(data, **{name: value & most}))
            generation = random.choice(list(programs))
            if generation == OLD and name == "crypt_method":
                continue  # 7.2 crashes where it misses the LUKS header
            assert our_info(damaged, generation) == real_info(programs[generation], damaged), (path.name, name, value)


@needs_qemu_img
def test_refuses_what_qemu_img_refuses_when_bytes_change(zoo: list[Path], tmp_path: Path) -> None:
    paths = [path for path in zoo if path.name in ("created6", "created7", "backed", "external", "full")]
    damaged = tmp_path / "damaged"
    programs = generations()
    random.seed(2)
    verdicts = []
    for turn in range(300):
        path = random.choice(paths)
        data = bytearray(path.read_bytes())
        heads = [at for at in range(0, len(data), 65536) if any(data[at : at + 160])]
        used = [at for head in heads for at in range(head, head + 600) if at >= 107 and at < len(data) and data[at]]
        for _ in range(random.choice((1, 1, 2))):
            at = random.choice(used) - random.randrange(4)
            data[at] = random.choice([0, 255, data[at] ^ 1 << random.randrange(8)])
        if random.random() < 0.1:
            del data[random.randrange(len(data)) :]
        damaged.write_bytes(data)
        generation = random.choice([known for known in programs if known != OLD] or [OLD])
        real = real_info(programs[generation], damaged)
        assert our_info(damaged, generation) == real, (turn, path.name, generation)
        verdicts.append(real is None)
    assert 8 < sum(verdicts) < 292


# --- facts ---------------------------------------------------------------------------------------------


def test_virtual_size_is_rounded_down_to_sectors() -> None:
    assert facts(changed(PLAIN, size=MiB - 1)).virtual_size == MiB - 512


def test_says_dirty_and_corrupt() -> None:
    found = facts(changed(PLAIN, incompatible_features=INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
    assert (found.dirty, found.corrupt) == (True, True)
    assert specific(changed(PLAIN, incompatible_features=INCOMPATIBLE_CORRUPT))["corrupt"] is True


def test_names_end_at_a_nul() -> None:
    data = with_extensions(PLAIN, (EXTENSION_BACKING_FORMAT, b"raw\0rest"))
    data = changed(data[:4096] + b"up/base\0rest" + data[4108:], backing_file_offset=4096, backing_file_size=12)
    backing = facts(data).backing
    assert backing is not None
    assert (backing.name, backing.format, backing.required) == (b"up/base", "raw", False)


def test_a_name_that_is_no_utf8_stays_as_it_is() -> None:
    data = changed(PLAIN[:4096] + b"\xff\xfe" + PLAIN[4098:], backing_file_offset=4096, backing_file_size=2)
    backing = facts(data).backing
    assert backing is not None
    assert backing.name == b"\xff\xfe"


def test_an_empty_backing_name_is_none() -> None:
    assert facts(changed(PLAIN, backing_file_offset=4096, backing_file_size=0)).backing is None


def test_names_the_data_file_and_does_not_ask_for_it() -> None:
    data = with_extensions(PLAIN, (EXTENSION_DATA_FILE, b"/etc/passwd"))
    [reference] = facts(changed(data, incompatible_features=INCOMPATIBLE_DATA_FILE)).references
    assert (reference.role, reference.name, reference.required) == ("data-file", b"/etc/passwd", False)
    # Without the feature bit it is not used, and qemu-img shows it all the same.
    assert facts(data).references == []
    assert specific(data)["data-file"] == "/etc/passwd"
    assert "data-file-raw" not in specific(data)


def test_snapshots_of_an_image_with_a_data_file_are_not_shown() -> None:
    table = snapshot_table([(ENTRY, b"", b"1", b"one")])
    data = with_snapshots(with_extensions(PLAIN, (EXTENSION_DATA_FILE, b"d")), table, 1)
    assert len(facts(data).snapshots) == 1
    assert facts(changed(data, incompatible_features=INCOMPATIBLE_DATA_FILE)).snapshots == []


def test_version_2_shows_what_it_can_have() -> None:
    assert specific(planned(options="compat=0.10")) == {
        "compat": "0.10",
        "compression-type": "zlib",
        "refcount-bits": 16,
    }


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"magic": 0}, "invalid-format", "magic"),
        ({"version": 1}, "unsupported-feature", "version"),
        ({"version": 4}, "unsupported-feature", "version"),
        ({"cluster_bits": 8}, "unsupported-feature", "cluster_bits"),
        ({"cluster_bits": 22}, "unsupported-feature", "cluster_bits"),
        ({"header_length": 103}, "corrupt", "header_length"),
        ({"header_length": 65537}, "too-large", "header_length"),
        ({"backing_file_offset": 65537}, "corrupt", "backing_file_offset"),
        ({"backing_file_offset": 4096, "backing_file_size": 1024}, "corrupt", "backing_file_size"),
        ({"backing_file_offset": 65530, "backing_file_size": 7}, "corrupt", "backing_file_size"),
        ({"incompatible_features": 1 << 5}, "unsupported-feature", "incompatible_features"),
        ({"incompatible_features": 1 << 3}, "corrupt", "incompatible_features"),
        ({"incompatible_features": 1 << 4, "cluster_bits": 13}, "corrupt", "cluster_bits"),
        ({"refcount_order": 7}, "corrupt", "refcount_order"),
        ({"refcount_table_clusters": 0}, "corrupt", "refcount_table_clusters"),
        ({"refcount_table_clusters": 129}, "too-large", "refcount_table_clusters"),
        ({"refcount_table_offset": 65536 + 512}, "corrupt", "refcount_table_offset"),
        ({"refcount_table_offset": (1 << 63) - 65536}, "out-of-bounds", "refcount_table_offset"),
        ({"refcount_table_offset": MAX_LENGTH}, "out-of-bounds", "end"),
        ({"nb_snapshots": MAX_SNAPSHOTS + 1}, "too-large", "nb_snapshots"),
        ({"snapshots_offset": 1}, "corrupt", "snapshots_offset"),
        ({"nb_snapshots": 1, "snapshots_offset": (1 << 63) - 65536 - 65536}, "out-of-bounds", "end"),
        ({"l1_size": (32 << 20) // 8 + 1}, "too-large", "l1_size"),
        ({"l1_size": 0}, "corrupt", "l1_size"),
        ({"l1_table_offset": 512}, "corrupt", "l1_table_offset"),
        ({"l1_table_offset": 1 << 63}, "out-of-bounds", "l1_table_offset"),
        ({"size": 1 << 60}, "too-large", "size"),
        ({"size": (1 << 64) - 1}, "out-of-bounds", "size"),
        ({"crypt_method": 2}, "corrupt", "crypt_method"),
        ({"crypt_method": 3}, "unsupported-feature", "crypt_method"),
    ],
    ids=str,
)
def test_rejects_a_header_field(fields: dict[str, int], kind: str, field: str) -> None:
    error = refusal(changed(PLAIN, **fields))
    assert (error.kind, error.field) == (kind, field)
    assert error.value is not None


def test_rejects_a_virtual_size_beyond_any_file() -> None:
    data = changed(planned(options="cluster_size=2M"), size=1 << 63)
    assert refusal(data).field in ("size", "l1_size")
    assert MAX_LENGTH < 1 << 63


def test_an_l1_table_behind_the_end_of_the_file_can_be_described() -> None:
    assert facts(changed(PLAIN, l1_table_offset=1 << 40)).virtual_size == MiB


def test_rejects_an_unknown_compression_type() -> None:
    error = refusal(PLAIN[:104] + b"\2" + PLAIN[105:])
    assert (error.kind, error.field, error.value) == ("unsupported-feature", "compression_type", 2)


def test_names_unknown_features_from_the_images_own_table() -> None:
    rows = [FeatureName(type=0, bit=40, name=b"time travel"), FeatureName(type=1, bit=41, name=b"compatible one")]
    data = with_extensions(PLAIN, (EXTENSION_FEATURE_NAMES, b"".join(row.pack() for row in rows)))
    error = refusal(changed(data, incompatible_features=1 << 40 | 1 << 41))
    assert error.detail.endswith("time travel, Unknown incompatible feature: 20000000000")


def test_a_broken_feature_table_still_names_the_bits() -> None:
    data = changed(PLAIN, incompatible_features=1 << 40)
    error = refusal(data[:112] + b"\1\2\3\4\xff\xff\xff\xff" + data[120:])
    assert error.kind == "unsupported-feature"


def test_rejects_an_extension_longer_than_its_area() -> None:
    error = refusal(PLAIN[:112] + EXTENSION_DATA_FILE.to_bytes(4, "big") + b"\0\1\0\0" + PLAIN[120:])
    assert (error.structure, error.field, error.value) == ("Header extension", "length", 65536)


def test_extensions_end_where_the_backing_name_starts() -> None:
    data = with_extensions(PLAIN, (EXTENSION_BACKING_FORMAT, b"raw"))
    assert refusal(changed(data, backing_file_offset=120, backing_file_size=1)).structure == "Header extension"


@pytest.mark.parametrize(
    "extension",
    [
        (EXTENSION_BACKING_FORMAT, b"x" * 16),
        (EXTENSION_CRYPTO_HEADER, bytes(16)),
        (EXTENSION_BITMAPS, bytes(23)),
    ],
    ids=["format", "crypto", "bitmaps"],
)
def test_rejects_an_extension(extension: tuple[int, bytes]) -> None:
    assert refusal(with_extensions(PLAIN, extension)).kind in ("corrupt", "invalid-format")


# --- snapshots -----------------------------------------------------------------------------------------

ENTRY = SnapshotEntry(
    l1_table_offset=65536,
    l1_size=1,
    id_str_size=0,
    name_size=0,
    date_sec=1_700_000_000,
    date_nsec=5,
    vm_clock_nsec=3_000_000_007,
    vm_state_size=11,
    extra_data_size=0,
)


def test_snapshots_have_all_fields_in_qemus_order() -> None:
    extra = SnapshotExtra(vm_state_size_large=1 << 40, disk_size=MiB, icount=77).pack()
    data = with_snapshots(
        PLAIN, snapshot_table([(ENTRY, extra, b"1", b"one"), (ENTRY, b"", b"2", "zwölf".encode())]), 2
    )
    first, second = facts(data).snapshots
    assert list(first) == [
        "icount",
        "vm-clock-nsec",
        "name",
        "date-sec",
        "date-nsec",
        "vm-clock-sec",
        "id",
        "vm-state-size",
    ]
    assert list(first.values()) == [77, 7, "one", 1_700_000_000, 5, 3, "1", 1 << 40]
    assert list(second.values()) == [7, "zwölf", 1_700_000_000, 5, 3, "2", 11]


def test_a_snapshots_names_are_cut_as_qemu_cuts_them() -> None:
    [row] = facts(with_snapshots(PLAIN, snapshot_table([(ENTRY, b"", b"7" * 200, b"n" * 300)]), 1)).snapshots
    assert (row["id"], row["name"]) == ("7" * 127, "n" * 255)


def test_icount_of_all_ones_is_not_recorded() -> None:
    extra = SnapshotExtra(vm_state_size_large=0, disk_size=MiB).pack()
    [row] = facts(with_snapshots(PLAIN, snapshot_table([(ENTRY, extra, b"1", b"one")]), 1)).snapshots
    assert "icount" not in row


def test_the_wide_size_of_the_vm_state_counts_if_there_is_room_for_it() -> None:
    for extra, size in ((b"", 11), (bytes(7), 11), (bytes(7) + b"\5", 5)):
        [row] = facts(with_snapshots(PLAIN, snapshot_table([(ENTRY, extra, b"1", b"one")]), 1)).snapshots
        assert row["vm-state-size"] == size


def test_rejects_a_snapshot_with_too_much_extra_data() -> None:
    error = refusal(with_snapshots(PLAIN, snapshot_table([(ENTRY, bytes(1025), b"1", b"one")]), 1))
    assert (error.kind, error.field, error.value, error.limit) == ("too-large", "extra_data_size", 1025, 1024)


def test_rejects_a_snapshot_table_that_is_too_long() -> None:
    entry = ENTRY.replace(id_str_size=65535, name_size=65535, extra_data_size=1024).pack()
    count = MAX_SNAPSHOT_TABLE_SIZE // (65535 * 2 + 1024 + 40) + 1
    data = changed(PLAIN, snapshots_offset=262144, nb_snapshots=count)
    parts = {0: data} | {262144 + index * ((65535 * 2 + 1024 + 40 + 7) // 8 * 8): entry for index in range(count)}
    image = reader(b"")
    image.parts, image.size = parts, 1 << 30
    with pytest.raises(ImageError) as caught:
        info(image, (), generation=NOW)
    assert (caught.value.kind, caught.value.limit) == ("too-large", MAX_SNAPSHOT_TABLE_SIZE)


def test_a_terabyte_with_a_hundred_snapshots_takes_few_reads() -> None:
    extra = SnapshotExtra(vm_state_size_large=0, disk_size=TiB).pack()
    rows = [(ENTRY, extra, str(index).encode(), b"snapshot") for index in range(100)]
    image = reader(with_snapshots(planned(TiB), snapshot_table(rows), 100))
    read, calls = image.read, []
    image.read = lambda offset, length: calls.append(length) or read(offset, length)  # type: ignore[method-assign]
    start = time.process_time()
    assert len(info(image, (), generation=NOW).snapshots) == 100
    assert len(calls) <= 6
    assert time.process_time() - start < 0.1  # a few milliseconds, and room for a slow machine


# --- bitmaps -------------------------------------------------------------------------------------------

BITMAP = BitmapDirectoryEntry(
    bitmap_table_offset=5 * 65536,
    bitmap_table_size=1,
    flags=0,
    type=1,
    granularity_bits=16,
    name_size=4,
    extra_data_size=0,
)


def with_bitmaps(*entries: bytes, table: int = 0, autoclear: int = AUTOCLEAR_BITMAPS, **fields: int) -> bytes:
    """Return an image with a bitmap directory in cluster 4 and a table in cluster 5."""
    directory = b"".join(entry + bytes(-len(entry) % 8) for entry in entries)
    row = BitmapsExtension(
        nb_bitmaps=len(entries), bitmap_directory_size=len(directory), bitmap_directory_offset=4 * 65536
    ).replace(**fields)
    data = changed(with_extensions(PLAIN, (EXTENSION_BITMAPS, row.pack())), autoclear_features=autoclear)
    data += bytes(4 * 65536 - len(data)) + directory
    return data + bytes(5 * 65536 - len(data)) + table.to_bytes(8, "big")


def test_bitmaps_have_flags_name_granularity() -> None:
    data = with_bitmaps(BITMAP.pack() + b"full", BITMAP.replace(flags=3, granularity_bits=9).pack() + b"busy")
    assert specific(data)["bitmaps"] == [
        {"flags": [], "name": "full", "granularity": 65536},
        {"flags": ["in-use", "auto"], "name": "busy", "granularity": 512},
    ]


def test_bitmaps_that_another_program_left_behind_are_not_shown() -> None:
    found = facts(with_bitmaps(BITMAP.pack() + b"full", autoclear=0))
    assert "bitmaps" not in found.format_specific["data"]  # type: ignore[index,operator]
    assert found.extra["inconsistent_bitmaps"] is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_bitmaps(BITMAP.replace(bitmap_table_offset=0).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(bitmap_table_offset=512).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(bitmap_table_size=0).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(bitmap_table_size=2).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(bitmap_table_size=0xFFFFFFFF).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(flags=4).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(type=2).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(granularity_bits=8).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(granularity_bits=32).pack() + b"full"),
        lambda: with_bitmaps(BITMAP.replace(name_size=1024).pack() + bytes(1024)),
        lambda: with_bitmaps(BITMAP.replace(extra_data_size=8).pack() + bytes(12)),
        lambda: with_bitmaps(BITMAP.pack() + b"same", BITMAP.pack() + b"same"),
        lambda: with_bitmaps(BITMAP.pack() + b"full", nb_bitmaps=0),
        lambda: with_bitmaps(BITMAP.pack() + b"full", nb_bitmaps=2),
        lambda: with_bitmaps(BITMAP.pack() + b"full", BITMAP.pack() + b"more", nb_bitmaps=1),
        lambda: with_bitmaps(BITMAP.pack() + b"full", nb_bitmaps=65536),
        lambda: with_bitmaps(BITMAP.pack() + b"full", reserved=1),
        lambda: with_bitmaps(BITMAP.pack() + b"full", bitmap_directory_size=0),
        lambda: with_bitmaps(BITMAP.pack() + b"full", bitmap_directory_size=27),
        lambda: with_bitmaps(BITMAP.pack() + b"full", bitmap_directory_size=1 << 40),
        lambda: with_bitmaps(BITMAP.pack() + b"full", bitmap_directory_offset=512),
        lambda: with_bitmaps(BITMAP.pack() + b"full", bitmap_directory_offset=1 << 63),
        lambda: with_bitmaps(BITMAP.pack() + b"full", table=1 << 1),
        lambda: with_bitmaps(BITMAP.pack() + b"full", table=65536 + 512),
        lambda: with_bitmaps(BITMAP.pack() + b"full", table=65536 | 1),
    ],
)
def test_rejects_a_bitmap(make: Callable[[], bytes]) -> None:
    assert refusal(make()).structure in ("Bitmap directory", "Bitmap table", "Bitmaps extension")


def test_the_table_of_a_bitmap_in_use_is_not_judged() -> None:
    facts(with_bitmaps(BITMAP.replace(flags=1).pack() + b"full", table=1 << 1))


# --- LUKS ----------------------------------------------------------------------------------------------

SLOTS = [
    luks.KeySlot(
        active=luks.KEY_ENABLED if index == 0 else luks.KEY_DISABLED,
        iterations=1000,
        salt=b"",
        key_material_offset=8 + 512 * index,
        stripes=4000,
    )
    for index in range(8)
]
LUKS = luks.Header(
    cipher_name=b"aes",
    cipher_mode=b"xts-plain64",
    hash_spec=b"sha256",
    payload_offset=4104,
    key_bytes=64,
    mk_digest=b"",
    mk_digest_salt=b"",
    mk_digest_iter=1000,
    uuid=b"12345678-1234-1234-1234-123456789abc",
)


def encrypted(header: luks.Header = LUKS, slots: list[luks.KeySlot] = SLOTS, **fields: int) -> bytes:
    """Return an image with a LUKS header in cluster 4."""
    row = CryptoHeaderExtension(offset=4 * 65536, length=65536).replace(**fields)
    data = changed(with_extensions(PLAIN, (EXTENSION_CRYPTO_HEADER, row.pack())), crypt_method=CRYPT_LUKS)
    data += bytes(4 * 65536 - len(data)) + header.pack()
    return data + b"".join(slot.pack() for slot in slots)


def test_luks_has_its_fields_in_qemus_order() -> None:
    new, old = specific(encrypted())["encrypt"], specific(encrypted(), OLD)["encrypt"]
    assert list(new) == [
        "ivgen-alg",
        "detached-header",
        "hash-alg",
        "cipher-alg",
        "uuid",
        "format",
        "cipher-mode",
        "slots",
        "payload-offset",
        "master-key-iters",
    ]
    assert list(old) == [key for key in new if key != "detached-header"]
    assert (new["cipher-alg"], new["cipher-mode"], new["payload-offset"]) == ("aes-256", "xts", 4104 * 512)
    assert new["slots"][0] == {"active": True, "iters": 1000, "key-offset": 4096, "stripes": 4000}
    assert new["slots"][1] == {"active": False, "key-offset": 520 * 512}


def test_luks_knows_the_hash_of_its_generation() -> None:
    data = encrypted(LUKS.replace(hash_spec=b"sm3"))
    assert specific(data)["encrypt"]["hash-alg"] == "sm3"
    assert refusal(data, OLD).kind == "unsupported-feature"


def slot(index: int, **fields: int) -> list[luks.KeySlot]:
    return [row.replace(**fields) if at == index else row for at, row in enumerate(SLOTS)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: encrypted(LUKS.replace(magic=b"SKUL")),
        lambda: encrypted(LUKS.replace(version=2)),
        lambda: encrypted(LUKS.replace(cipher_name=b"a" * 32)),
        lambda: encrypted(LUKS.replace(cipher_name=b"rot13")),
        lambda: encrypted(LUKS.replace(cipher_mode=b"xts")),
        lambda: encrypted(LUKS.replace(cipher_mode=b"pgp-plain64")),
        lambda: encrypted(LUKS.replace(cipher_mode=b"xts-essiv")),
        lambda: encrypted(LUKS.replace(cipher_mode=b"xts-essiv:md4")),
        lambda: encrypted(LUKS.replace(cipher_mode=b"cbc-essiv:sha1", key_bytes=32)),
        lambda: encrypted(LUKS.replace(cipher_mode=b"xts-random")),
        lambda: encrypted(LUKS.replace(hash_spec=b"crc32")),
        lambda: encrypted(LUKS.replace(payload_offset=7)),
        lambda: encrypted(LUKS.replace(payload_offset=4095)),
        lambda: encrypted(LUKS.replace(key_bytes=63)),
        lambda: encrypted(LUKS.replace(mk_digest_iter=0)),
        lambda: encrypted(slots=slot(3, stripes=1)),
        lambda: encrypted(slots=slot(3, active=1)),
        lambda: encrypted(slots=slot(0, iterations=0)),
        lambda: encrypted(slots=slot(5, key_material_offset=7)),
        lambda: encrypted(slots=slot(5, key_material_offset=100)),
        lambda: encrypted(slots=slot(5, key_material_offset=0xFFFFFFFF)),
        lambda: encrypted(length=591),
        lambda: encrypted(offset=MAX_LENGTH),
        lambda: encrypted(offset=512),
    ],
)
def test_rejects_a_luks_header(make: Callable[[], bytes]) -> None:
    error = refusal(make())
    assert "LUKS" in error.structure or "encryption" in error.structure
    assert error.sentence().isprintable()


# --- hostile bytes -------------------------------------------------------------------------------------


def rich() -> bytes:
    """Return an image with every structure that ``info`` reads."""
    extra = SnapshotExtra(vm_state_size_large=1, disk_size=MiB).pack()
    data = with_bitmaps(BITMAP.pack() + b"full", BITMAP.replace(flags=1).pack() + b"busy")
    return with_snapshots(data, snapshot_table([(ENTRY, extra, b"1", b"one"), (ENTRY, b"", b"2", b"two")]), 2)


@pytest.mark.parametrize("make", [rich, encrypted])
def test_survives_every_header_field(make: Callable[[], bytes]) -> None:
    data = make()
    random.seed(3)
    for record, base in ((Header, 0), (HeaderV3, 72)):
        for field in record.FIELDS:
            most = (1 << 8 * field.size) - 1
            for value in (0, 1, most, most >> 1, random.randrange(most), 1 << random.randrange(8 * field.size)):
                at = base + field.offset
                survives(data[:at] + value.to_bytes(field.size, "big") + data[at + field.size :])


def test_no_header_field_asks_for_memory() -> None:
    data = rich()
    for record, base in ((Header, 0), (HeaderV3, 72)):
        for field in record.FIELDS:
            at = base + field.offset
            tracemalloc.start()
            survives(data[:at] + b"\xff" * field.size + data[at + field.size :])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 * MiB, field


@pytest.mark.parametrize("make", [rich, encrypted])
def test_survives_being_cut(make: Callable[[], bytes]) -> None:
    data = make()
    for end in [*range(0, 4096, 64), *range(4096, len(data), 4096), *range(len(data) - 4096, len(data), 64)]:
        survives(data[:end])


@pytest.mark.parametrize("make", [rich, encrypted])
def test_survives_any_byte(make: Callable[[], bytes]) -> None:
    data = make()
    random.seed(4)
    places = [at for at in range(len(data)) if data[at]]
    for _ in range(400):
        out = bytearray(data)
        for _ in range(random.choice((1, 2, 8))):
            out[random.choice(places) - random.randrange(4)] = random.randrange(256)
        survives(bytes(out))


def test_a_hostile_extension_area_is_read_in_linear_time() -> None:
    data = planned(options="cluster_size=2M")
    area = (b"\x12\x34\x56\x78" + bytes(4)) * ((2 * MiB - 112) // 8 - 1)
    start = time.process_time()
    facts(data[:112] + area + data[112 + len(area) :])
    assert time.process_time() - start < 3


def test_everything_crosses_the_seam() -> None:
    value = facts(rich()).to_wire()
    assert ImageFacts.from_wire(decode(encode(value))).to_wire() == value


def test_version_2_has_no_features() -> None:
    """What stands where version 3 has its feature bits is not looked at."""
    found = facts(changed(planned(options="compat=0.10"), incompatible_features=0x1234567F << 32))
    assert (found.dirty, found.corrupt) == (False, False)


@pytest.mark.parametrize(("length", "shown"), [(64, True), (65, False)])
def test_rejects_snapshots_whose_names_are_too_long_together(length: int, shown: bool) -> None:
    """65,536 names of 382 characters would be 150 MB of JSON, and more memory than that here."""
    row = snapshot_table([(ENTRY, bytes(16), b"1", b"x" * (length - 1))])
    count = 65536
    image = with_snapshots(planned(MiB), (row + bytes(-len(row) % 8)) * count, count)
    if shown:
        assert len(info(reader(image), [], generation=NOW).snapshots) == count
    else:
        with pytest.raises(ImageError, match="too large to be shown") as caught:
            info(reader(image), [], generation=NOW)
        assert caught.value.kind == "too-large"
