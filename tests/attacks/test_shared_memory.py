"""Memory that a caller shares: no cell writes it, however it came to be shared, and the caller goes on with it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import facts, image_of
from tests.sandbox.backends import KINDS
from tests.sandbox.cells import libc, run_guest
from tests.sandbox.exploited import exploited

import instar
from instar.core.errors import InstarError
from instar.core.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OWN = b"the caller's own data"
WRITTEN = b"WRITTEN BY THE CELL!!"

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAPPED: list[Any] = []


def _address(buffer: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _by_mmap(folder: Path) -> int:
    area = mmap.mmap(-1, 1 << 16)
    _MAPPED.append(area)
    return _address(area)


def _by_raw_array(folder: Path) -> int:
    array = multiprocessing.RawArray("c", 4096)
    _MAPPED.append(array)
    return ctypes.addressof(array)


def _by_value(folder: Path) -> int:
    array = multiprocessing.Array("c", 4096)
    _MAPPED.append(array)
    return ctypes.addressof(array.get_obj())


def _by_shared_memory(folder: Path) -> int:
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.unlink()
    _MAPPED.append(block)
    return _address(block.buf)


def _by_file(folder: Path) -> int:
    path = folder / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        area = mmap.mmap(file.fileno(), 4096)
    _MAPPED.append(area)
    return _address(area)


def _by_removed_file(folder: Path) -> int:
    address = _by_file(folder)
    (folder / "mapped").unlink()
    return address


def _by_file_in_shm(folder: Path) -> int:
    name = f"/dev/shm/attacked-{os.getpid()}"
    with open(name, "w+b") as file:
        file.truncate(4096)
        area = mmap.mmap(file.fileno(), 4096)
    os.unlink(name)
    _MAPPED.append(area)
    return _address(area)


def _by_memfd(folder: Path) -> int:
    fd = os.memfd_create("attacked")
    os.truncate(fd, 4096)
    area = mmap.mmap(fd, 4096)
    os.close(fd)
    _MAPPED.append(area)
    return _address(area)


def _by_strange_name(folder: Path) -> int:
    path = folder / "x\n7f0000000000-7fffffffffff rw-p 00000000 00:00 0 \n"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        area = mmap.mmap(file.fileno(), 4096)
    _MAPPED.append(area)
    return _address(area)


def _map(protection: int, flags: int, length: int = 1 << 16) -> int:
    address = libc.mmap(None, length, protection, flags, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def _writable_and_executable(folder: Path) -> int:
    return _map(7, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


def _between_pages_of_other_rights(folder: Path) -> int:
    """Map five pages and take rights from some of them, so that the mapping is in pieces."""
    start = _map(3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, 5 * mmap.PAGESIZE)
    for page, rights in ((0, 0), (2, 1), (4, 0)):
        assert libc.mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), rights) == 0
    return start + mmap.PAGESIZE


def _one_of_five_hundred(folder: Path) -> int:
    areas = [_map(3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, mmap.PAGESIZE) for _ in range(500)]
    return areas[250]


def _by_ctypes_from_buffer(folder: Path) -> int:
    address = _by_mmap(folder)
    view = (ctypes.c_char * 64).from_address(address + 512)
    _MAPPED.append(view)
    return address + 512


WAYS: tuple[Callable[[Path], int], ...] = (
    _by_raw_array,
    _by_mmap,
    _by_value,
    _by_shared_memory,
    _by_file,
    _by_removed_file,
    _by_file_in_shm,
    _by_memfd,
    _by_strange_name,
    _writable_and_executable,
    _between_pages_of_other_rights,
    _one_of_five_hundred,
    _by_ctypes_from_buffer,
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    _MAPPED.clear()


def _writing(address: int, then: bytes) -> Any:
    def guest(job: bytes, files: object, ask: object) -> bytes:
        ctypes.memmove(address, WRITTEN, len(WRITTEN))
        return then

    return guest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_memory_shared(way: Callable[[Path], int], kind: str, tmp_path: Path) -> None:
    address = way(tmp_path)
    ctypes.memmove(address, OWN, len(OWN))
    image = image_of(tmp_path)
    guest = _writing(address, encode({"ok": facts("raw")}))
    # A cell that has not the memory at all dies of it; one that has it to itself goes on.
    with exploited(guest, kind) as isolation, contextlib.suppress(instar.SandboxError):
        instar.info(str(image), format="raw", isolation=isolation)
    assert ctypes.string_at(address, len(OWN)) == OWN
    ctypes.memmove(address, WRITTEN, len(WRITTEN))  # the caller can go on with it
    assert ctypes.string_at(address, len(WRITTEN)) == WRITTEN


def _raise(result: object) -> None:
    assert isinstance(result, InstarError)
    raise result


@pytest.mark.parametrize("operation", ["check", "create", "create_many", "info_chain"])
def test_memory_shared_with_every_operation(operation: str, tmp_path: Path) -> None:
    address = _by_mmap(tmp_path)
    ctypes.memmove(address, OWN, len(OWN))
    image, new = str(image_of(tmp_path)), str(tmp_path / "new")
    operations = {
        "create": lambda: instar.create(new, "1M", format="qcow2", isolation=isolation),
        "create_many": lambda: _raise(*instar.create_many([job], isolation=isolation)),
        "check": lambda: instar.check(image, isolation=isolation),
        "info_chain": lambda: instar.info_chain(image, isolation=isolation),
    }
    job = {"filename": new, "size": "1M", "format": "qcow2"}
    with exploited(_writing(address, b"")) as isolation, pytest.raises(InstarError):
        operations[operation]()
    assert ctypes.string_at(address, len(OWN)) == OWN


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_shared_file_says_later_does_not_reach_a_cell(kind: str, tmp_path: Path) -> None:
    """A cell that reads the caller's shared memory while it lives would have a way to be told things."""
    address = _by_mmap(tmp_path)
    ctypes.memmove(address, OWN, len(OWN))
    later = b"said later by another"

    def guest(job: bytes, files: object, ask: Any) -> bytes:
        ask("now")
        return ctypes.string_at(address, len(later))

    def serve(request: Any) -> None:
        ctypes.memmove(address, later, len(later))

    seen = b""
    with contextlib.suppress(instar.SandboxError):
        seen = run_guest(guest, kind=kind, serve=serve)
    assert seen != later


@pytest.mark.parametrize("kind", KINDS)
def test_shared_memory_that_is_read_only_is_not_made_writable(kind: str, tmp_path: Path) -> None:
    address = _by_mmap(tmp_path)
    ctypes.memmove(address, OWN, len(OWN))
    page = address & -mmap.PAGESIZE
    assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 1) == 0

    def guest(job: bytes, files: object, ask: object) -> bytes:
        libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3)
        ctypes.memmove(address, WRITTEN, len(WRITTEN))
        return b"done"

    with pytest.raises(instar.SandboxError):
        run_guest(guest, kind=kind)
    assert ctypes.string_at(address, len(OWN)) == OWN
    libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3)
