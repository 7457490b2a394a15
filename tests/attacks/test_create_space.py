"""Cells that make images: whatever they ask for or write, the disk loses no more than what the caller asked for."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import attack, obey
from tests.sandbox.backends import KINDS, KVM
from tests.sandbox.exploited import by_operation, changing, exploited

import instar
from instar.core.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MiB, GiB = 1 << 20, 1 << 30


def _totals(**changes: Any) -> Any:
    value = {"virtual_size": MiB, "unit": 65536, "unit_name": "cluster", "sizes": [262_144], "metadata_bytes": 4096}
    return {**value, **changes}


def _doing(do: Callable[[list[Any], Any], object], **changes: Any) -> Any:
    """Return a guest that does something, and then replies as if all was well."""

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        do(files, ask)
        return encode({"ok": _totals(**changes)})

    return by_operation({"create": guest})


def _ask(**changes: Any) -> Any:
    return {"do": "allocate", "file": 0, "offset": 0, "length": MiB, "mode": "falloc", **changes}


def _used(folder: Path) -> int:
    """Return the bytes of storage that everything in a folder takes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _many(requests: Any) -> Callable[[list[Any], Any], object]:
    return lambda files, ask: [ask(request) for request in requests]


_REQUESTS: dict[str, Callable[[], Any]] = {
    "4 GiB": lambda: [_ask(length=4 * GiB)],
    "16 GiB in full": lambda: [_ask(length=16 * GiB, mode="full")],
    "of another mode": lambda: [_ask(mode="full")],
    "without a mode": lambda: [_ask(mode="")],
    "of a mode that is none": lambda: [_ask(mode="metadata")],
    "of length 0": lambda: [_ask(length=0)] * 10_000,
    "of length 2^63": lambda: [_ask(length=1 << 63)],
    "of length -1": lambda: [_ask(length=-1)],
    "at offset 2^63": lambda: [_ask(offset=1 << 63)],
    "at offset -1": lambda: [_ask(offset=-1)],
    "of file 1": lambda: [_ask(file=1)],
    "of file -1": lambda: [_ask(file=-1)],
    "of file True": lambda: [_ask(file=True)],
    "again and again": lambda: [_ask()] * 10_000,
    "that overlap": lambda: [_ask(offset=n * 4096) for n in range(10_000)],
    "of one byte": lambda: [_ask(offset=n, length=1) for n in range(20_000)],
    "of one byte each page": lambda: [_ask(offset=n * 4096, length=1) for n in range(20_000)],
    "of one byte each MiB": lambda: [_ask(offset=n * MiB, length=1) for n in range(4_000)],
    "that leave holes, far out": lambda: [_ask(offset=15 * GiB + n * MiB, length=4096) for n in range(200)],
    "with a key too many": lambda: [_ask(more=b"x" * MiB)],
    "of progress 2^100": lambda: [{"do": "progress", "done": 1 << 100}] * 100,
    "of progress -1": lambda: [{"do": "progress", "done": -1}] * 100,
    "of progress that is text": lambda: [{"do": "progress", "done": "\x1b[2J"}],
    "that is a format": lambda: [{"do": "format", "format": "raw"}],
    "that is none": lambda: [None],
    "that is a list": lambda: [[{"do": "allocate"}]],
}


@pytest.mark.parametrize("size", [262_144, 4 * GiB, 16 * GiB])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc"])
@pytest.mark.parametrize("request_", _REQUESTS)
def test_request(request_: str, preallocation: str, size: int, tmp_path: Path) -> None:
    """The reply says that the file is so long, as what is behind its end would be cut off."""
    words = ["create", "-q", "-f", "qcow2", "-o", f"preallocation={preallocation}", tmp_path / "new", "1M"]
    started, before = time.monotonic(), os.times()
    done = obey(attack(_doing(_many(_REQUESTS[request_]()), sizes=[size]), *words))
    assert _used(tmp_path) <= 8 * MiB, f"{_used(tmp_path) >> 20} MiB are gone"
    assert time.monotonic() - started < 60
    assert os.times().user + os.times().system - before.user - before.system < 20
    if done.code:
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_request_for_more_than_the_disk_has_in_the_mode_that_was_asked_for(
    mode: str, kind: str, tmp_path: Path
) -> None:
    words = ["create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}", tmp_path / "new", "1M"]
    requests = [_ask(mode=mode, length=64 * MiB, offset=n * 64 * MiB) for n in range(64)]
    obey(attack(_doing(_many(requests), sizes=[4 * GiB]), *words, kind=kind))
    assert _used(tmp_path) <= 80 * MiB, f"{_used(tmp_path) >> 20} MiB are gone"


@pytest.mark.parametrize("format", ["vdi", "vhdx", "vmdk", "vpc", "qed", "parallels", "qcow"])
def test_request_of_the_cell_of_another_format(format: str, tmp_path: Path) -> None:
    words = ["create", "-q", "-f", format, tmp_path / "new", "1M"]
    obey(attack(_doing(_many([_ask(length=GiB), _ask(length=GiB, offset=GiB)]), sizes=[2 * GiB]), *words))
    assert _used(tmp_path) <= 8 * MiB


def _writes(offset: int, data: bytes, times: int = 1, step: int = 0) -> Callable[[list[Any], Any], object]:
    def do(files: list[Any], ask: Any) -> None:
        for number in range(times):
            os.pwrite(5, data, offset + number * step)

    return do


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("offset", "times", "step"),
    [(1 << 62, 1, 0), (20 * GiB, 1, 0), (0, 300, MiB), (GiB, 300, MiB), (15 * GiB, 300, MiB), (0, 300, 0)],
)
def test_writes_past_the_end_of_what_was_asked_for(
    offset: int, times: int, step: int, kind: str, tmp_path: Path
) -> None:
    guest = _doing(_writes(offset, b"x" * MiB, times, step), sizes=[16 * GiB])
    done = obey(attack(guest, "create", "-q", "-f", "qcow2", tmp_path / "new", "1M", kind=kind))
    assert _used(tmp_path) <= 64 * MiB, f"{_used(tmp_path) >> 20} MiB are gone"
    if done.code:
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("sizes", [[1 << 62], [1 << 63], [-1], [], [1, 1], [True], ["1"], [15 * GiB], None, [None]])
def test_sizes_in_the_reply(sizes: Any, tmp_path: Path) -> None:
    done = obey(attack(_doing(lambda f, a: None, sizes=sizes), "create", "-q", "-f", "qcow2", tmp_path / "new", "1M"))
    assert _used(tmp_path) <= 8 * MiB
    if not done.code:
        assert (tmp_path / "new").stat().st_size <= 20 * GiB


@pytest.mark.parametrize(
    "changes",
    [
        {"virtual_size": 1 << 100}, {"virtual_size": -1}, {"virtual_size": 0}, {"unit": "x"}, {"unit_name": "\x1b[2J"},
        {"metadata_bytes": 1 << 80}, {"metadata_bytes": None}, {"filename": "/etc/passwd"}, {"files": ["/etc/passwd"]},
    ],
)  # fmt: skip
def test_totals_in_the_reply(changes: Any, tmp_path: Path) -> None:
    for words in ([], ["--output=json"]):
        done = attack(_doing(lambda f, a: None, **changes), "create", *words, "-f", "qcow2", tmp_path / "new", "1M")
        obey(done, json_asked=bool(words) and not done.code)
        assert "/etc/passwd" not in done.out


def test_reply_before_anything_is_written_gives_an_image_or_an_error(tmp_path: Path) -> None:
    done = obey(attack(_doing(lambda f, a: None), "create", "-q", "-f", "qcow2", tmp_path / "new", "1M"))
    assert done.code == 0 or not (tmp_path / "new").exists()


def test_existing_image_stays_when_the_cell_that_replaces_it_dies(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"the caller's image")

    def die(files: list[Any], ask: Any) -> None:
        os.pwrite(5, b"x" * MiB, 0)
        os._exit(0)

    done = obey(attack(_doing(die), "create", "-q", "-f", "qcow2", tmp_path / "new", "1M"))
    assert done.code == 70
    assert (tmp_path / "new").read_bytes() == b"the caller's image"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# --- many at once ---


def _row(writes: Any, **changes: Any) -> Any:
    changes.setdefault("sizes", [16 * GiB] if len(writes) > 100 else [262_144])
    return {"ok": _totals(**changes), "writes": writes}


_ROWS: dict[str, Callable[[], Any]] = {
    "20,000 MiB of zeros": lambda: [_row([[0, n * MiB, MiB, b""] for n in range(15_000)])],
    "zeros that overlap": lambda: [_row([[0, 0, MiB, b""]] * 100_000)],
    "zeros at the end of the largest file": lambda: [_row([[0, 16 * GiB, MiB, b""]])],
    "a byte in each MiB": lambda: [_row([[0, n * MiB, MiB, b"x"] for n in range(15_000)])],
    "writes that overlap": lambda: [_row([[0, n, 4096, b"x" * 4096] for n in range(10_000)])],
    "more bytes than the length": lambda: [_row([[0, 0, 1, b"xx"]])],
    "a length of 2^62": lambda: [_row([[0, 0, 1 << 62, b""]])],
    "a negative length": lambda: [_row([[0, 0, -1, b""]])],
    "a negative offset": lambda: [_row([[0, -1, 1, b"x"]])],
    "file 1": lambda: [_row([[1, 0, 1, b"x"]])],
    "file -1": lambda: [_row([[-1, 0, 1, b"x"]])],
    "file True": lambda: [_row([[True, 0, 1, b"x"]])],
    "three members": lambda: [_row([[0, 0, 1]])],
    "no row": lambda: [],
    "two rows": lambda: [_row([]), _row([])],
    "a million rows": lambda: [None] * 1_000_000,
    "same first": lambda: [{"same": True}],
    "same with writes": lambda: [{"same": True, "writes": [[0, 0, MiB, b""]]}],
    "alone": lambda: [{"alone": True}],
    "alone and an error": lambda: [{"alone": True, "error": {"class": "internal", "detail": "x"}}],
    "an internal error": lambda: [{"error": {"class": "internal", "detail": "x"}}],
    "an error with keys of its own": lambda: [
        {
            "error": {
                "class": "option",
                "code": "bad-image-size",
                "detail": "x",
                "values": {"class": "X", "message": "ok"},
            }
        }
    ],
    "an error of text": lambda: [{"error": "x"}],
    "no totals": lambda: [{"ok": {}, "writes": []}],
    "no ok": lambda: [{"writes": []}],
    "a size of 2^62": lambda: [_row([], sizes=[1 << 62])],
    "a size of 15 GiB": lambda: [_row([], sizes=[15 * GiB])],
    "a row that is a list": lambda: [[]],
    "rows that are a dict": lambda: {"a": 1},
}


@pytest.mark.parametrize("row", _ROWS)
def test_row_of_a_batch(row: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text(
        json.dumps({"filename": str(tmp_path / "new"), "size": "1M", "format": "qcow2"}) + "\n"
    )
    data = encode({"ok": _ROWS[row]()})
    started = time.monotonic()
    done = obey(
        attack(by_operation({"create-many": lambda job, files, ask: data}), "create", "--batch", tmp_path / "jobs")
    )
    assert time.monotonic() - started < 30
    assert _used(tmp_path) <= 8 * MiB, f"{_used(tmp_path) >> 20} MiB are gone"
    (line,) = done.out.splitlines()
    answer = json.loads(line)
    if done.code:
        assert not (tmp_path / "new").exists()
        assert answer["error"]["class"].endswith("Error")
        assert answer["error"].get("message") != "ok"


@pytest.mark.parametrize("kind", [KVM])
def test_row_of_a_batch_out_of_a_machine(kind: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text(
        json.dumps({"filename": str(tmp_path / "new"), "size": "1M", "format": "qcow2"}) + "\n"
    )
    data = encode({"ok": _ROWS["zeros that overlap"]()})
    guest = by_operation({"create-many": lambda job, files, ask: data})
    obey(attack(guest, "create", "--batch", tmp_path / "jobs", kind=kind))
    assert _used(tmp_path) <= 8 * MiB


def test_same_and_alone_for_256_images_of_a_library_call(tmp_path: Path) -> None:
    def change(reply: Any) -> Any:
        reply["ok"] = [{"same": True} if n % 2 else {"alone": True} for n in range(len(reply["ok"]))]
        return reply

    jobs = [{"filename": str(tmp_path / f"{n}"), "size": "1M", "format": "qcow2"} for n in range(16)]
    with exploited(by_operation({"create-many": changing(change)})) as isolation:
        results = list(instar.create_many(jobs, isolation=isolation))
    assert len(results) == 16
    assert _used(tmp_path) <= 32 * MiB
