"""A guest is a clone of its interpreter and works like it; and nothing outside of what it was given is there for it."""

from __future__ import annotations

import ctypes
import decimal
import gc
import hashlib
import json
import lzma
import math
import mmap
import os
import re
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import NO_KVM
from tests.sandbox.kvm.guests import GENERAL, LOAD, STORE, Code, call_with, dies, run

from instar.core.errors import SandboxError
from instar.sandbox.cell import Limits
from instar.sandbox.kernel import syscall
from instar.sandbox.kvm import device, layout, machine
from instar.sandbox.kvm.cell import KvmCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(NO_KVM is not None, reason=f"no kvm cell can be made here: {NO_KVM}")
PAGE = 4096
MAP_FIXED = 0x10


# --- it computes ------------------------------------------------------------------------------------------------------


def _fibonacci(n: int) -> int:
    return n if n < 2 else _fibonacci(n - 1) + _fibonacci(n - 2)


def _raises() -> str:
    try:
        return [][3]  # type: ignore[no-any-return]
    except IndexError as error:
        return str(error)


DATA = b"".join(struct.pack("=I", n * n) for n in range(20_000))
TREE = {"name": "disk", "sizes": list(range(300)), "nested": [{"a": [1.5, None, True]}] * 50}
WORK: dict[str, Callable[[], object]] = {
    "integers": lambda: (sum(range(100_000)), 3**2000 % 10**50, _fibonacci(18)),
    "floats": lambda: [math.sin(n) * math.exp(n / 7) / (n + 0.1) for n in range(500)],
    "exceptions": _raises,
    "text": lambda: "".join(sorted("äöü∀x∈M: instar" * 99)).upper(),
    "zlib": lambda: (zlib.compress(DATA, 9), zlib.crc32(DATA), zlib.decompress(zlib.compress(DATA)) == DATA),
    "lzma": lambda: (hashlib.md5(lzma.compress(DATA)).hexdigest(), lzma.decompress(lzma.compress(DATA)) == DATA),
    "json": lambda: (json.dumps(TREE), json.loads(json.dumps(TREE)) == TREE),
    "struct": lambda: struct.unpack("=20000I", DATA)[::777],
    "decimal": lambda: str(decimal.Decimal(2).sqrt(decimal.Context(prec=80)) / 7),
    "hashlib": lambda: [hashlib.new(name, DATA).hexdigest() for name in ("md5", "sha1", "sha256", "sha512", "blake2b")],
    "pbkdf2": lambda: hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 1000),
    "garbage": lambda: [gc.collect() >= 0, len([[[]] for _ in range(50_000)])],
}


@pytest.mark.parametrize("name", WORK)
def test_guest_computes_what_its_interpreter_does(name: str) -> None:
    body = WORK[name]
    assert run(body) == body()


def test_guest_has_the_memory_of_the_moment_it_was_made() -> None:
    data = bytearray(os.urandom(100_000))
    assert run(lambda: hashlib.sha256(data).digest()) == hashlib.sha256(data).digest()


def test_program_may_have_many_short_read_only_mappings(tmp_path: Path) -> None:
    """As one with many modules written in C has. Here they are 400 KiB each, with holes between them."""
    (tmp_path / "module").write_bytes(bytes(range(256)) * 1600)
    nothing = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = syscall("mmap", 0, 60 << 19, 0, nothing, -1, 0)
    places = [start + (number << 19) for number in range(60)]
    fd = os.open(tmp_path / "module", os.O_RDONLY)
    try:
        for place in places:
            assert syscall("mmap", place, 400 << 10, mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_FIXED, fd, 0) == place
        assert run(lambda: {ctypes.string_at(place + 300_001, 3) for place in places}) == {b"\xe1\xe2\xe3"}
    finally:
        os.close(fd)
        syscall("mmap", start, 60 << 19, 0, nothing | MAP_FIXED, -1, 0)  # address space, no memory


def test_guest_gets_memory_and_gives_it_back() -> None:
    def body() -> list[int]:
        seen = []
        for _ in range(30):
            big = bytearray(20 << 20)
            seen.append(any(big[::PAGE]) + big[-1])
            big[:] = b"x" * len(big)
            del big
        return seen

    assert run(body, memory=96 << 20) == [0] * 30


def test_guest_that_wants_too_much_memory_is_told_so() -> None:
    with pytest.raises(SandboxError, match="out of memory") as caught:
        run(lambda: bytearray(100 << 20), memory=64 << 20)
    assert caught.value.kind == "limit"


def test_guest_knows_the_time() -> None:
    def body() -> list[float]:
        before = time.monotonic()
        _fibonacci(16)
        return [time.time(), time.time_ns() / 1e9, time.monotonic(), time.perf_counter(), time.monotonic() - before]

    wall, wall_ns, steady, precise, passed = run(body)  # type: ignore[misc]
    assert abs(wall - time.time()) < 1
    assert abs(wall_ns - time.time()) < 1
    assert 0 <= time.monotonic() - steady < 1
    assert 0 <= time.perf_counter() - precise < 1
    assert 0 < passed < 1


# --- registers --------------------------------------------------------------------------------------------------------

_PRESERVED = ("rbx", "rbp", "rdi", "rsi", "rdx", "r8", "r9", "r10", "r12", "r13", "r14", "r15")
#: All flags that a user has for himself: CF PF AF ZF SF DF OF, alternating.
_FLAGS = 0x8D5 | 0x400


@pytest.mark.parametrize("flags", [_FLAGS, 0, 0x495, 0x840])
@pytest.mark.parametrize("wide", [False, True], ids=["xmm", "ymm"])
def test_system_call_keeps_all_registers_but_those_of_the_convention(wide: bool, flags: int) -> None:
    if wide and " avx " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the processor has no AVX")
    registers = {name: 0x1122334455667788 * (n + 3) & (1 << 64) - 1 for n, name in enumerate(_PRESERVED)}
    registers["rdx"] = 0xDEAD_BEEF_0000_0008  # MADV_FREE in the low half, of an address that is none
    registers["rdi"] |= 1
    registers["rax"] = 28  # madvise
    code = Code(call_with(registers, flags, wide=wide))
    vectors = os.urandom(512)

    def body() -> list[bytes]:
        seen = set()
        for _ in range(100):
            buffer = ctypes.create_string_buffer(vectors, 2048)
            code.call(buffer)
            seen.add(buffer.raw)
        return list(seen)

    seen = run(body)
    assert isinstance(seen, list)
    assert len(seen) == 1, "not the same each time"
    raw = seen[0]
    assert raw[LOAD : LOAD + 512] == vectors
    for number in range(16):
        length = 32 if wide else 16
        assert raw[STORE + 32 * number :][:length] == vectors[32 * number :][:length], f"vector {number}"
    words = struct.unpack_from(f"={len(registers) + 1}Q", raw, GENERAL)
    after = dict(zip(reversed(list(registers)), words, strict=False))
    assert after.pop("rax") == (1 << 64) - 22  # EINVAL
    del registers["rax"]
    assert after == registers
    assert words[-1] & ~0x202 == flags, "the flags"


def test_floats_survive_many_system_calls() -> None:
    def body() -> str:
        value = 1.0
        for n in range(1, 3000):
            value = value * 1.0000001 + 1 / n
            time.monotonic()
        return value.hex()

    assert run(body) == body()


# --- what is not there ------------------------------------------------------------------------------------------------

_made: dict[str, tuple[int, int]] = {}


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, int]]]:
    """Where the monitor's memory is. It is learnt before the photo, so the guest knows it, too."""
    real_memory, real_own, real_page = machine.new_memory, machine.own_bytes, device.map_shared
    own = []

    def own_bytes(photo: int, mapped: int) -> int:
        own.append(real_own(photo, mapped))
        return own[-1]

    def new_memory(length: int, *, align: int) -> int:
        address = real_memory(length, align=align)
        _made["own"] = (address, own[-1])
        _made["pool"] = (address + own[-1], length - own[-1])
        return address

    def map_shared(fd: int, length: int) -> int:
        address = real_page(fd, length)
        _made["page"] = (address, length)
        return address

    monkeypatch.setattr(machine, "own_bytes", own_bytes)
    monkeypatch.setattr(machine, "new_memory", new_memory)
    monkeypatch.setattr(device, "map_shared", map_shared)
    _made.clear()
    yield _made
    assert not _made, "only the monitor fills it"


PROBES: dict[str, Callable[[], int]] = {
    "descriptors": lambda: _made["own"][0] + layout.DESCRIPTORS,
    "zeros": lambda: _made["own"][0] + layout.ZEROS,
    "photo": lambda: _made["own"][0] + layout.PHOTO + 64 * PAGE,
    "tables": lambda: sum(_made["own"]) - PAGE,
    "before own": lambda: _made["own"][0] - 1,
    "pool": lambda: _made["pool"][0],
    "end of the pool": lambda: sum(_made["pool"]) - 1,
    "stack by its other address": lambda: _made["pool"][0] + layout.STACK_BYTES - 1,
    "behind the pool": lambda: sum(_made["pool"]),
    "page of the processor": lambda: _made["page"][0],
    "end of the page of the processor": lambda: sum(_made["page"]) - 1,
}


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("name", PROBES)
def test_monitors_memory_is_not_there(name: str, write: bool) -> None:
    def body() -> object:
        address = PROBES[name]()
        return ctypes.memset(address, 0, 1) if write else ctypes.string_at(address, 1)

    assert "page fault" in str(dies(body).story)


@pytest.mark.usefixtures("places")
def test_stub_can_be_read_but_not_written() -> None:
    assert run(lambda: ctypes.string_at(_made["own"][0] + layout.STUB, 2)) == b"\xe6\x10"
    assert "page fault" in str(dies(lambda: ctypes.memset(_made["own"][0] + layout.STUB, 0x90, 1)).story)


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("name", ["descriptors", "tables", "photo", "page of the processor", "pool"])
def test_system_calls_do_not_reach_the_monitors_memory(name: str) -> None:
    """The monitor makes calls for its guest, and would itself be allowed to write there."""

    def body() -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.argtypes = (ctypes.c_long,) * 4
        result = libc.syscall(228, 0, PROBES[name](), 0)  # clock_gettime
        return result, ctypes.get_errno()

    assert run(body) == (-1, 14)  # EFAULT


def _mapping(rights: str, name: str) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f" {rights} " in line and name in line:
            return int(line.partition("-")[0], 16)
    raise AssertionError(f"no mapping {rights} {name}")


@pytest.mark.parametrize("rights", ["r--p", "r-xp"])
def test_what_is_read_only_can_be_read_and_not_written(rights: str) -> None:
    address = _mapping(rights, "/")
    assert run(lambda: ctypes.string_at(address, 16)) == ctypes.string_at(address, 16)
    before = ctypes.string_at(address, PAGE)
    assert f"page fault at {address + 8:#x}" in str(dies(lambda: ctypes.memset(address + 8, 0, 1)).story)
    assert ctypes.string_at(address, PAGE) == before


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_what_is_shared_with_other_processes_is_not_there(write: bool) -> None:
    shared = mmap.mmap(-1, PAGE)
    shared[:4] = b"host"
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    story = str(dies(lambda: ctypes.memset(address, 0, 1) if write else ctypes.string_at(address, 1)).story)
    assert f"page fault at {address:#x}" in story
    assert shared[:4] == b"host"


@pytest.mark.parametrize("address", [1, PAGE, 0xFFFF_8000_0000_0000, (1 << 64) - PAGE, (1 << 47) - PAGE])
def test_what_no_program_has_is_not_there(address: int) -> None:
    assert "page fault" in str(dies(lambda: ctypes.string_at(address, 1)).story)


def test_data_is_not_run() -> None:
    plain = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    plain[:1] = b"\xc3"
    address = ctypes.addressof(ctypes.c_char.from_buffer(plain))
    function = ctypes.CFUNCTYPE(None)(address)
    assert f"page fault at {address:#x}" in str(dies(function).story)


def test_memory_that_was_given_is_not_run() -> None:
    def body() -> object:
        given = ctypes.create_string_buffer(b"\xc3" * (1 << 20))
        return ctypes.CFUNCTYPE(None)(ctypes.addressof(given) + PAGE)()

    assert "page fault" in str(dies(body).story)


def test_what_the_guest_writes_stays_in_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the host nor the monitor sees it; the second looks by itself when its guest has ended."""
    data = bytearray(b"before" * 1000)
    table = {"kept": 1}
    real = machine.Machine.run

    def run_and_look(self: machine.Machine) -> int:
        code = real(self)
        return code if data == b"before" * 1000 and table == {"kept": 1} else 99

    monkeypatch.setattr(machine.Machine, "run", run_and_look)

    def guest(job: bytes, files: object, ask: object) -> bytes:
        data[:] = b"after!" * 1000
        table["kept"] = 2
        os._exit(7)

    with pytest.raises(SandboxError, match="ended with code 7 "):
        KvmCell(direct=True, guest=guest).run(b"", [], Limits(), lambda request: None)
    assert data == b"before" * 1000
    assert table == {"kept": 1}


def test_no_guest_sees_what_another_one_wrote() -> None:
    data = bytearray(8)

    def body() -> bytes:
        data[0] += 1
        return bytes(data)

    assert {bytes(run(body)) for _ in range(3)} == {b"\1" + bytes(7)}  # type: ignore[call-overload]


# --- instructions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("f4", "used memory or an instruction"),  # hlt
        ("fa", "used memory or an instruction"),  # cli
        ("0f 20 d8", "used memory or an instruction"),  # mov rax, cr3
        ("b9 80 00 00 c0 0f 32", "used memory or an instruction"),  # rdmsr
        ("e6 80", "used memory or an instruction"),  # out 0x80, al
        ("66 e7 10", "used memory or an instruction"),  # out 0x10, ax
        ("e4 10 eb fe", "used memory or an instruction|virtual machine stopped"),  # in al, 0x10
        ("cc", "used memory or an instruction"),  # int3
        ("0f 0b", "there is not"),
        ("31 c9 f7 f1", "divided by zero"),
        ("cd 80", "system call"),
    ],
)
def test_instruction_that_no_program_may_use_ends_the_guest(code: str, said: str) -> None:
    made = Code(bytes.fromhex(code) + b"\xc3")
    error = dies(lambda: made.call(None))
    assert re.search(said, str(error)), str(error)
    assert "rip 0x" in str(error.story)


def test_guest_cannot_ask_for_more_rights_by_its_flags() -> None:
    """POPF ignores them, and the monitor drops them from what a system call gives back."""
    made = Code(
        bytes.fromhex(
            "b8 0c 00 00 00"  # mov eax, 12 (brk)
            "48 8d 0d 0d 00 00 00"  # lea rcx, [rip + 13]: behind the out
            "49 c7 c3 02 33 00 00"  # mov r11, IOPL 3 and the trap flag
            "e6 10"  # out 0x10, al: a call by hand
            "0f 0b 0f 0b"  # not reached; the lea points behind
            "90 90 90"
            "9c 58 c3"  # pushfq; pop rax; ret
        )
    )
    flags = run(lambda: made.call(None))
    assert isinstance(flags, int)
    assert flags & 0x3100 == 0
