"""What the tests of machines share: how to run a guest, and machine code for it."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.cells import serve_nothing

from instar.core.errors import SandboxError
from instar.sandbox.cell import Limits
from instar.sandbox.kvm.cell import KvmCell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from instar.core.wire import Wire
    from instar.sandbox.cell import Grant


def run(
    body: Callable[[], object],
    files: Sequence[Grant] = (),
    *,
    serve: Callable[[Wire], Wire] = serve_nothing,
    **limits: int,
) -> object:
    """Return what ``body`` gives in a machine; the value travels as text."""
    cell = KvmCell(direct=True, guest=lambda job, files, ask: repr(body()).encode())
    return eval(
        cell.run(
            b"", list(files), Limits(**{"wall_seconds": 20, "file_bytes": 1 << 20, "requests": 100, **limits}), serve
        )
    )


def dies(body: Callable[[], object]) -> SandboxError:
    """Run what no guest survives, and return what is said of its death."""
    with pytest.raises(SandboxError) as caught:
        run(body)
    assert caught.value.kind == "died", caught.value
    return caught.value


class Code:
    """Machine code in memory of its own, which a guest that is made afterwards has, too."""

    def __init__(self, code: bytes) -> None:
        self._pages = mmap.mmap(
            -1,
            4096,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )
        self._pages[: len(code)] = code
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(self.address)


#: Numbers of registers in instructions (AMD64 APM volume 3, table 1-10).
NUMBERS = {
    "rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7,
    "r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15,
}  # fmt: skip
_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")


def _push(register: str) -> bytes:
    number = NUMBERS[register]
    return (b"\x41" if number > 7 else b"") + bytes([0x50 + number % 8])


def _pop(register: str) -> bytes:
    number = NUMBERS[register]
    return (b"\x41" if number > 7 else b"") + bytes([0x58 + number % 8])


def _move(register: str, value: int) -> bytes:
    number = NUMBERS[register]
    return bytes([0x49 if number > 7 else 0x48, 0xB8 + number % 8]) + value.to_bytes(8, "little")


def _vector(number: int, place: int, *, store: bool, wide: bool) -> bytes:
    """Return ``movdqu`` or ``vmovdqu`` between a vector register and ``[rdi + place]``."""
    operation = 0x7F if store else 0x6F
    operand = bytes([0x87 | number % 8 << 3]) + place.to_bytes(4, "little")
    if wide:
        return bytes([0xC5, 0x7E if number > 7 else 0xFE, operation]) + operand
    return b"\xf3" + (b"\x44" if number > 7 else b"") + bytes([0x0F, operation]) + operand


#: Where in its buffer ``call_with`` has vectors to load, vectors stored, and general registers stored.
LOAD, STORE, GENERAL = 0, 512, 1024


def call_with(registers: dict[str, int], flags: int, *, wide: bool) -> bytes:
    """Return a function of a buffer: load all registers, make a system call, store them all.

    ``registers`` has no ``rsp``, ``rcx`` and ``r11``, which a call may not choose or does not keep.
    """
    code = b"".join(map(_push, _SAVED)) + _push("rdi")
    for number in range(16):
        code += _vector(number, LOAD + 32 * number, store=False, wide=wide)
    code += b"\x68" + flags.to_bytes(4, "little") + b"\x9d"  # push flags; popfq
    for name, value in registers.items():
        code += _move(name, value)
    code += b"\x0f\x05"  # syscall
    code += b"\x9c"  # pushfq
    stored = tuple(registers)
    code += b"".join(map(_push, stored))
    code += b"\xfc"  # cld
    code += b"\x48\x8b\xbc\x24" + (8 * (len(stored) + 1)).to_bytes(4, "little")  # mov rdi, [rsp + ...]
    for number in range(16):
        code += _vector(number, STORE + 32 * number, store=True, wide=wide)
    for index in range(len(stored) + 1):  # the last pushed first, the flags last
        code += b"\x8f\x87" + (GENERAL + 8 * index).to_bytes(4, "little")  # pop [rdi + ...]
    code += (b"\xc5\xf8\x77" if wide else b"") + _pop("rdi") + b"".join(map(_pop, reversed(_SAVED)))
    return code + b"\xc3"
