"""Time: a cell that computes, waits, asks or dribbles costs its own limit, and a chain of such no more than one budget.

``run_guest`` has limits of its own here, so that the attacks are short.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import ALL_CASES, attack, facts, image_of, obey
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import run_guest

from instar.core.errors import SandboxError
from instar.core.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _verdict(
    guest: Callable[..., bytes], kind: str, serve: Any = lambda request: None, **limits: float
) -> tuple[str, float]:
    started = time.monotonic()
    try:
        run_guest(guest, kind=kind, serve=serve, **limits)
        said = "reply"
    except SandboxError as error:
        said = error.kind
    return said, time.monotonic() - started


def _dribble(data: bytes, pause: float) -> Callable[..., bytes]:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        for byte in data:
            until = time.monotonic() + pause
            while time.monotonic() < until:
                pass
            os.write(3, bytes((byte,)))
        os._exit(0)

    return guest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"\x05\0\0\0Rhello", b"\x01\0\0\0QN" * 100, b"\x05\0\0\0Dhello" * 10])
def test_frames_that_come_byte_by_byte(data: bytes, kind: str) -> None:
    said, seconds = _verdict(_dribble(data, 0.3), kind, wall_seconds=1, cpu_seconds=10)
    assert said == "limit"
    assert seconds < 8


@pytest.mark.parametrize("kind", KINDS)
def test_cell_that_never_reads_its_job_or_answers(kind: str) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        while True:
            os.write(3, b"\x01\0\0\0QN")

    said, seconds = _verdict(guest, kind, serve=lambda request: b"x" * 100_000, wall_seconds=2)
    assert said in ("limit", "protocol")
    assert seconds < 12


@pytest.mark.parametrize("kind", KINDS)
def test_cell_that_asks_what_is_dear_to_decode(kind: str) -> None:
    """The host's time is none of the cell's if the host sets the pace; here the cell does."""
    request = b"l" + (200_000).to_bytes(4, "big") + b"l\0\0\0\0" * 200_000
    frame = len(request).to_bytes(4, "little") + b"Q" + request

    def guest(job: bytes, files: object, ask: object) -> bytes:
        for _ in range(200):
            view = memoryview(frame)
            while view:
                view = view[os.write(3, view) :]
            os.read(4, 1 << 16)
        return b"done"

    said, seconds = _verdict(guest, kind, wall_seconds=1.5, cpu_seconds=10)
    assert said in ("limit", "protocol"), (said, seconds)
    assert seconds < 6


@pytest.mark.parametrize("kind", KINDS)
def test_cell_that_asks_for_what_takes_the_host_long(kind: str) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        for _ in range(300):
            ask("slow")
        return b"done"

    said, seconds = _verdict(guest, kind, serve=lambda request: time.sleep(0.05), wall_seconds=1.5)
    assert said == "limit", (said, seconds)
    assert seconds < 8


@pytest.mark.parametrize("kind", KINDS)
def test_cell_that_computes_between_its_requests(kind: str) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        for _ in range(1000):
            until = time.process_time() + 0.2
            while time.process_time() < until:
                pass
            ask(None)
        return b"done"

    said, seconds = _verdict(guest, kind, wall_seconds=20, cpu_seconds=1)
    assert said == "limit"
    assert seconds < 15


@pytest.mark.parametrize("kind", KINDS)
def test_cell_that_writes_after_its_reply(kind: str) -> None:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        os.write(3, b"\x05\0\0\0Rhello")
        while True:
            os.write(3, b"x" * 4096)

    said, seconds = _verdict(guest, kind, wall_seconds=5)
    assert said == "reply"
    assert seconds < 5


@pytest.mark.parametrize("announced", ["raw", "vmdk", "QCOW2", "", "qcow2 ", "\x00"])
def test_cell_that_announces_another_format_than_it_replies(announced: str, tmp_path: Path) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        ask({"do": "format", "format": announced})
        return encode({"ok": facts("qcow2")})

    done = obey(attack(guest, "info", image_of(tmp_path)))
    assert done.code == 70


@pytest.mark.parametrize("times", [0, 2, 100])
def test_cell_that_answers_the_question_of_locks_not_once(times: int, tmp_path: Path) -> None:
    def guest(job: bytes, files: object, ask: Any) -> bytes:
        for _ in range(times):
            ask({"do": "format", "format": "qcow2"})
        return encode({"ok": facts("qcow2")})

    done = obey(attack(guest, "info", image_of(tmp_path)))
    assert done.code == 70


def _burning(seconds: float) -> Callable[..., bytes]:
    """Return a guest that computes, and names the image whose number is next."""

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        number = int(os.pread(5, 8, 0))
        if not number:
            ask({"do": "format", "format": "qcow2"})
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return encode({"ok": facts(references=[["backing", b"%d" % (number + 1), "qcow2", False]])})

    return guest


def _chain(folder: Path, links: int) -> Path:
    for number in range(links):
        (folder / str(number)).write_bytes(b"%8d" % number + bytes(4088))
    return folder / "0"


@pytest.mark.skipif(not ALL_CASES, reason="takes minutes of processor time; INSTAR_ALL_CASES=1 runs it")
@pytest.mark.parametrize(("links", "seconds"), [(199, 1.0), (12, 6.0), (4, 18.0)])
def test_chain_whose_cells_compute_just_below_their_limit(links: int, seconds: float, tmp_path: Path) -> None:
    """All cells of a chain together have the processor time of one operation, and some for each MiB of tables."""
    before = os.times()
    done = obey(attack(_burning(seconds), "info", "--backing-chain", _chain(tmp_path, links), seconds=300))
    spent = os.times().children_user - before.children_user
    assert done.code == 70, done
    assert spent < 45, f"{spent:.0f} s"


@pytest.mark.skipif(not ALL_CASES, reason="takes a minute of processor time; INSTAR_ALL_CASES=1 runs it")
def test_image_of_1024_parts_whose_every_cell_computes(tmp_path: Path) -> None:
    names = [f"part{n}" for n in range(1024)]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 512)

    def guest(job: bytes, files: list[Any], ask: Any) -> bytes:
        if len(files) == 1:
            ask({"do": "format", "format": "vmdk"})
        end = time.process_time() + 10
        while time.process_time() < end:
            pass
        extra = {"parts": [None] * 1024} if len(files) > 1 else {}
        references = [[f"extents.{n}", name.encode(), "raw", True] for n, name in enumerate(names)]
        return encode({"ok": facts("vmdk", references=references, extra=extra)})

    before = os.times()
    obey(attack(guest, "info", image_of(tmp_path), seconds=300))
    spent = os.times().children_user - before.children_user
    assert spent < 45, f"{spent:.0f} s"
