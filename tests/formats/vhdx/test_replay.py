from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.formats.vhdx import images
from tests.formats.vhdx.images import BAT, HEADERS, LOG, METADATA, MiB, u64
from tests.support import QEMU_IO, BytesReader, needs_qemu_io, qemu_img, reader, run

from instar.core.errors import ImageError
from instar.formats.vhdx import check, log, ondisk, parse, replay
from instar.formats.vhdx.crc32c import checksum

GUID = b"this is the log."
SECTOR = 4096
NOW = (11, 1)

#: ``(file offset, the sector's bytes)`` or ``(file offset, length of a run of zeros)``
Change = tuple[int, bytes | int]


def entry(number: int, changes: list[Change], *, tail: int = 0, last: int = 0) -> bytes:
    """Make a log entry."""
    rows, data = b"", b""
    for offset, what in changes:
        if isinstance(what, int):
            row = ondisk.LogDescriptor(
                signature=b"zero", leading_bytes=what, file_offset=offset, sequence_number=number
            )
        else:
            row = ondisk.LogDescriptor(
                trailing_bytes=what[-4:],
                leading_bytes=int.from_bytes(what[:8], "little"),
                file_offset=offset,
                sequence_number=number,
            )
            data += b"data" + (number >> 32).to_bytes(4, "little") + what[8:-4] + number.to_bytes(8, "little")[:4]
        rows += row.pack()
    size = -(-(64 + len(rows)) // SECTOR) * SECTOR + len(data)
    head = ondisk.LogEntryHeader(
        entry_length=size,
        tail=tail,
        sequence_number=number,
        descriptor_count=len(changes),
        log_guid=GUID,
        flushed_file_offset=0,
        last_file_offset=last,
    )
    raw = (head.pack() + rows).ljust(size - len(data), b"\0") + data
    return raw[:4] + checksum(raw).to_bytes(4, "little") + raw[8:]


def replayed(source: BytesReader, entries: list[bytes], length: int = MiB) -> replay.Replayed:
    """Return ``source`` with entries that stand one behind the other in its log."""
    source.parts[LOG] = b"".join(entries)
    found = log.Log(source, LOG, length, GUID)
    return replay.Replayed(found, found.active_sequence())


def dirty(*entries: bytes, edits: dict[int, bytes] | None = None) -> BytesReader:
    """Return an image with a log."""
    return images.changed({**images.both(HEADERS, 48, GUID), LOG: b"".join(entries), **(edits or {})})


def test_a_sector_of_the_log_is_read_in_its_place() -> None:
    sector = bytes(range(256)) * 16
    target = replayed(BytesReader(b"", size=8 * MiB), [entry(1, [(3 * MiB, sector)])])
    assert target.read(3 * MiB - 1, SECTOR + 2) == b"\0" + sector + b"\0"
    assert target.read(3 * MiB + 4000, 100) == sector[4000:] + bytes(4)


def test_of_two_changes_in_one_place_the_later_one_stays() -> None:
    old, new = b"o" * SECTOR, b"n" * SECTOR
    first = entry(1, [(0, old), (SECTOR, old), (2 * SECTOR, 2 * SECTOR)])
    second = entry(2, [(0, new), (SECTOR, SECTOR), (3 * SECTOR, new)])
    target = replayed(BytesReader(b"?" * 5 * SECTOR, size=8 * MiB), [first, second])
    assert target.read(0, 5 * SECTOR) == new + bytes(2 * SECTOR) + new + b"?" * SECTOR


def test_reads_as_if_every_change_had_been_made_in_turn() -> None:
    rng = random.Random(7)
    size = 64 * SECTOR
    for _ in range(40):
        model = bytearray(rng.randbytes(size))
        source = BytesReader(bytes(model), size=LOG + MiB)
        entries, at = [], 0
        for number in range(1, rng.randint(2, 6)):
            changes: list[Change] = []
            for _ in range(rng.randint(0, 9)):
                offset = rng.randrange(64) * SECTOR
                length = rng.randint(0, 64 - offset // SECTOR) * SECTOR
                changes.append((offset, rng.choice([length, rng.randbytes(SECTOR)])))
            for offset, what in changes:
                data = bytes(what) if isinstance(what, int) else what
                model[offset : offset + len(data)] = data
            entries.append(entry(number, changes))
            at += len(entries[-1])
        target = replayed(source, entries)
        for _ in range(30):
            offset, length = rng.randrange(size), rng.randrange(size)
            end = min(offset + length, size)
            assert target.read(offset, end - offset) == model[offset:end]


def test_changes_may_wrap_around_the_end_of_the_log() -> None:
    sector = b"w" * SECTOR
    raw = entry(1, [(0, sector), (SECTOR, sector)], tail=MiB - 2 * SECTOR)
    source = BytesReader(b"", size=8 * MiB, parts={LOG: raw[2 * SECTOR :], LOG + MiB - 2 * SECTOR: raw[: 2 * SECTOR]})
    found = log.Log(source, LOG, MiB, GUID)
    assert replay.Replayed(found, found.active_sequence()).read(0, 2 * SECTOR) == 2 * sector


def test_the_file_grows_to_what_the_last_entry_says() -> None:
    target = replayed(BytesReader(b"", size=8 * MiB), [entry(1, [], last=9 * MiB), entry(2, [], last=12 * MiB)])
    assert target.size == 12 * MiB
    assert target.read(10 * MiB, 100) == bytes(100)
    assert target.read(12 * MiB - 1, 100) == b"\0"
    assert target.read(13 * MiB, 100) == b""


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (entry(1, [], last=1 << 63), "last_file_offset"),
        (entry(1, [((1 << 63) - SECTOR, 2 * SECTOR)]), "descriptor_offset"),
        (entry(1, [((1 << 64) - SECTOR, b"x" * SECTOR)]), "descriptor_offset"),
        (entry(1, [(0, (1 << 64) - SECTOR)]), "descriptor_offset"),
    ],
)
def test_refuses_changes_where_no_file_reaches(raw: bytes, field: str) -> None:
    with pytest.raises(ImageError) as caught:
        replayed(BytesReader(b"", size=8 * MiB), [raw])
    assert (caught.value.kind, caught.value.field) == ("corrupt", field)


def test_refuses_more_changes_than_can_be_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_DESCRIPTORS", 9)
    entries = [entry(number, [(0, SECTOR)] * 5) for number in (1, 2)]
    assert replayed(BytesReader(b"", size=8 * MiB), entries[:1]).read(0, 1) == b"\0"
    with pytest.raises(ImageError) as caught:
        replayed(BytesReader(b"", size=8 * MiB), entries)
    assert (caught.value.kind, caught.value.field) == ("too-large", "descriptor_count")


def test_the_most_changes_are_put_in_order_in_seconds() -> None:
    """Each begins later and ends earlier than the one before, so that all are there at once in the middle."""
    count = replay.MAX_DESCRIPTORS
    nested = [(n * SECTOR, (2 * count - n) * SECTOR, None) for n in range(count)]
    assert len(replay._flatten(nested)) == 2 * count - 1
    assert len(replay._flatten(nested[::-1])) == 1 + 2 * (count - 1)


def test_a_data_sector_that_is_elsewhere_is_not_taken_for_another_one() -> None:
    raw = bytearray(entry(1, [(0, b"x" * SECTOR)]) + bytes(SECTOR))
    raw[2 * SECTOR :], raw[SECTOR : 2 * SECTOR] = raw[SECTOR : 2 * SECTOR], bytes(SECTOR)
    raw[8:12] = len(raw).to_bytes(4, "little")
    raw[4:8] = bytes(4)
    raw[4:8] = checksum(bytes(raw)).to_bytes(4, "little")
    with pytest.raises(ImageError) as caught:
        replayed(BytesReader(b"", size=8 * MiB), [bytes(raw)])
    assert caught.value.field == "data_sector"


def test_an_image_is_described_and_checked_as_it_is_after_the_replay() -> None:
    """The block lies past the end of the file until the log says that it is not there."""
    bad = {BAT: u64(MiB << 20 | 6)}
    with pytest.raises(ImageError):
        parse.info(images.changed(bad), (), generation=NOW)
    source = dirty(entry(1, [(BAT, SECTOR)]), edits=bad)
    facts = parse.info(source, (), generation=NOW)
    assert facts.dirty
    assert not parse.info(images.changed({}), (), generation=NOW).dirty
    report = check.check(source, (), generation=NOW)
    assert (report.corruptions, report.check_errors) == (0, 0)
    assert [(f.severity, f.structure) for f in report.findings] == [("warning", "log")]


def test_the_log_may_damage_what_was_right() -> None:
    facts = dirty(entry(1, [(METADATA, SECTOR)]))
    with pytest.raises(ImageError, match="metadata"):
        parse.info(facts, (), generation=NOW)


def unclean(path: Path) -> None:
    """Make an image with qemu-img, and let a write by qemu-io die between log and table."""
    qemu_img("create", "-q", "-f", "vhdx", path, "64M")
    config = path.with_name("debug")
    config.write_text('[inject-error]\nevent = "pwritev"\nerrno = "5"\nonce = "off"\nsector = "4096"\n')
    options = f"driver=vhdx,file.driver=blkdebug,file.config={config},file.image.driver=file,file.image.filename={path}"
    subprocess.run([QEMU_IO, "-c", "write -P 7 0 64k", "--image-opts", options], capture_output=True, check=False)
    assert "needs to be replayed" in run("qemu-img", "info", path).stderr


@needs_qemu_io
def test_reads_the_log_of_qemu_as_qemu_replays_it(tmp_path: Path) -> None:
    path, repaired = tmp_path / "t", tmp_path / "repaired"
    unclean(path)
    shutil.copy(path, repaired)
    qemu_img("check", "-q", "-r", "all", repaired)
    with reader(path) as before, reader(repaired) as after:
        ours, theirs = parse.load(before), parse.load(after)
        assert (ours.replayed, theirs.replayed) == (1, 0)
        assert ours.image.size == theirs.image.size
        for offset in range(ours.bat, theirs.image.size, MiB):
            assert ours.image.read(offset, MiB) == theirs.image.read(offset, MiB), hex(offset)
        assert before.read(ours.bat, 64) != after.read(ours.bat, 64)
        told, known = parse.info(before, (), generation=NOW), parse.info(after, (), generation=NOW)
        assert (told.virtual_size, told.cluster_size) == (known.virtual_size, known.cluster_size)


def test_reads_the_log_that_qemu_left() -> None:
    disk = parse.load(images.qemu_dirty())
    assert disk.replayed == 1
    assert disk.image.read(BAT, 16) == u64(8 * MiB | 6) + u64(2)


@pytest.mark.parametrize("record", [ondisk.LogEntryHeader, ondisk.LogDescriptor])
def test_any_field_of_a_log_may_be_anything(record: type) -> None:
    base = 0 if record is ondisk.LogEntryHeader else 64
    for field in record.FIELDS:  # type: ignore[attr-defined]
        for value in (bytes(field.size), b"\1".ljust(field.size, b"\0"), b"\xff" * field.size, b"\x5a" * field.size):
            raw = entry(1, [(BAT, b"y" * SECTOR), (BAT, SECTOR)])
            at = base + field.offset
            raw = raw[:at] + value + raw[at + field.size :]
            if field.name != "checksum":
                raw = raw[:4] + bytes(4) + raw[8:]
                raw = raw[:4] + checksum(raw).to_bytes(4, "little") + raw[8:]
            try:
                check.check(dirty(raw), (), generation=NOW)
            except ImageError as error:
                assert error.kind in ("corrupt", "too-large", "out-of-bounds")  # noqa: PT017
