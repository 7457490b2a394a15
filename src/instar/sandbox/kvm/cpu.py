"""The processor a guest starts with: 64-bit user mode, paging on, no way into the kernel mode but one that stops it.

Law: values only. The sources are AMD64 Architecture Programmer's Manual volume 2 (chapters 3, 4, 12: control
registers, segments, tasks) and Intel's SDM volume 3 (3.4, 8.7); the same numbers are right on VT-x, AMD-V and
paravirtual KVM.
"""

from __future__ import annotations

import struct

from instar.sandbox.kvm.device import APIC_BASE, SREGS_BYTES

#: The port whose use is a system call, and the first of those whose use is an exception, one for each vector.
CALL_PORT = 0x10
EXCEPTION_PORT = 0x40
_VECTORS = 32
#: One page of code that any guest may run: ``SYSCALL`` lands on the first instruction, the guest's function returns
#: to the second piece. On VT-x and AMD-V ``SYSCALL`` enters kernel mode, where this and what follows is all the code
#: there is; on paravirtual KVM it does not even do that. Behind it an instruction for each exception.
_HANDLERS = 0x40
STUB = (
    b"\xe6" + bytes([CALL_PORT])  # out CALL_PORT, al
    + b"\x0f\x0b"  # ud2: nobody comes here, the monitor moves on itself
    + b"\xb8\xe7\x00\x00\x00"  # mov eax, 231 (exit_group)
    + b"\xbf\x04\x00\x00\x00"  # mov edi, 4 (CODE_FAULT of process.channel)
    + b"\x0f\x05"  # syscall
    + b"\x0f\x0b"
).ljust(_HANDLERS, b"\xf4")  # fmt: skip
STUB += b"".join(b"\xe6" + bytes([EXCEPTION_PORT + vector]) for vector in range(_VECTORS))
STUB_RETURN = 4

_SELECTOR_KERNEL = 0x10
_SELECTOR_DATA = 0x2B
_SELECTOR_CODE = 0x33
_SELECTOR_TASK = 0x40
#: In the descriptor page: segment table, task state, interrupt table, and the stack of exceptions down from its end.
_GDT_BYTES = 0x80
_TSS = 0x100
_IDT = 0x200
_PAGE = 0x1000
#: A 64-bit code segment of the kernel's, for the gates of the interrupt table.
_KERNEL_CODE = 0x00AF_9B00_0000_FFFF
_TSS_HEAD = 0x68
_TSS_IST1 = 0x24
#: One bit for each port; all ports but ``CALL_PORT`` are forbidden to user mode, and those past the end are, too.
_PORTS = 256

_MSR_STAR = 0xC0000081
_MSR_LSTAR = 0xC0000082
_MSR_FMASK = 0xC0000084
#: Cleared by SYSCALL: everything but the fixed bit, so also the trap flag.
_FLAGS_MASK = 0x3F7FD5

_CR0 = 0x80050033  # PG AM WP NE ET MP PE
_CR4 = 1 << 5 | 1 << 9 | 1 << 10  # PAE OSFXSR OSXMMEXCPT
_CR4_OSXSAVE = 1 << 18
_EFER = 0xD01  # NXE LMA LME SCE

#: Flags that a guest may have: carry, parity, adjust, zero, sign, direction, overflow, alignment check, identification.
_FLAGS_USER = 0x240CD5
_FLAGS_FIXED = 0x202  # the bit that is always set, and interrupts on, as programs expect it


def user_flags(flags: int) -> int:
    """Return what of ``flags`` user code may have: no I/O privilege, no single steps."""
    return flags & _FLAGS_USER | _FLAGS_FIXED


def descriptor_page(descriptors: int, stub: int) -> bytes:
    """Return the page of the processor's own at ``descriptors``, with the stub page at ``stub`` (both guest-virtual).

    User code gets its segments ready-made, and can load no other one.
    """
    page = bytearray(_PAGE)
    struct.pack_into("<Q", page, _SELECTOR_KERNEL, _KERNEL_CODE)
    struct.pack_into("<Q", page, _TSS + _TSS_IST1, descriptors + _PAGE)
    struct.pack_into("<H", page, _TSS + 0x66, _TSS_HEAD)
    bitmap = bytearray(b"\xff" * (_PORTS // 8 + 1))
    bitmap[CALL_PORT >> 3] &= ~(1 << (CALL_PORT & 7))
    page[_TSS + _TSS_HEAD : _TSS + _TSS_HEAD + len(bitmap)] = bitmap
    for vector in range(_VECTORS):
        handler = stub + _HANDLERS + 2 * vector
        # An interrupt gate that user code cannot call, on the first stack of the task state.
        row = (handler & 0xFFFF, _SELECTOR_KERNEL, 1, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
        struct.pack_into("<HHBBHII", page, _IDT + 16 * vector, *row)
    return bytes(page)


def _segment(
    selector: int, kind: int, *, base: int = 0, limit: int = 0xFFFFFFFF, user: bool = True, long: bool = False
) -> bytes:
    """Return a ``struct kvm_segment``; ``user`` is false for system segments."""
    present, granular = 1, limit > 0xFFFFF
    return struct.pack(
        "=QIHBBBBBBBBBx",
        base, limit, selector, kind, present, 3 if user else 0, user and not long, user, long, granular, 0, 0,
    )  # fmt: skip


def special_registers(*, tables: int, descriptors: int, fs_base: int, xsave: bool) -> bytes:
    """Return ``struct kvm_sregs``.

    ``tables`` is the guest-physical address of the top page table, ``descriptors`` the guest-virtual one of the
    descriptor page, ``fs_base`` where the thread's own data is.
    """
    code = _segment(_SELECTOR_CODE, 11, long=True)
    data = _segment(_SELECTOR_DATA, 3)
    fs = _segment(_SELECTOR_DATA, 3, base=fs_base)
    task_limit = _TSS_HEAD + _PORTS // 8
    task = _segment(_SELECTOR_TASK, 11, base=descriptors + _TSS, limit=task_limit, user=False)
    local = _segment(0, 2, limit=0, user=False)
    cr4 = _CR4 | (_CR4_OSXSAVE if xsave else 0)
    registers = (
        code + data + data + fs + data + data + task + local
        + struct.pack("=QH6x", descriptors, _GDT_BYTES - 1)
        + struct.pack("=QH6x", descriptors + _IDT, 16 * _VECTORS - 1)
        + struct.pack("=7Q", _CR0, 0, tables, cr4, 0, _EFER, APIC_BASE)
    )  # fmt: skip
    return registers + bytes(SREGS_BYTES - len(registers))


def call_registers(stub: int) -> dict[int, int]:
    """Return the model-specific registers that make ``SYSCALL`` go to ``stub`` (guest-virtual)."""
    return {_MSR_STAR: _SELECTOR_KERNEL << 32 | (_SELECTOR_DATA - 8) << 48, _MSR_LSTAR: stub, _MSR_FMASK: _FLAGS_MASK}


def entry(*, function: int, argument: int, stack: int) -> tuple[int, ...]:
    """Return the general registers at the start of ``function(argument)``, in the order of ``Registers.ORDER``."""
    return (0, 0, 0, 0, 0, argument, stack, 0, *(0,) * 8, function, _FLAGS_FIXED)


#: Vector -> name (AMD64 APM volume 2, 8.2), and those that push an error code.
_NAMES = {
    **{0: "division error", 1: "debug exception", 3: "breakpoint", 4: "overflow", 5: "bound range"},
    **{6: "undefined instruction", 7: "no coprocessor", 8: "double fault", 10: "invalid task state"},
    **{11: "segment not present", 12: "stack fault", 13: "general protection fault", 14: "page fault"},
    **{16: "floating point error", 17: "misaligned access", 18: "machine check", 19: "SIMD floating point error"},
    **{21: "control protection fault"},
}
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)
PAGE_FAULT = 14


class Fault:
    """An exception that a guest met.

    Attributes:
        vector, name: which. error: its error code, 0 if it has none. rip, rsp: where the guest was.
    """

    __slots__ = ("error", "name", "rip", "rsp", "vector")

    def __init__(self, vector: int, frame: bytes) -> None:
        """Read what the processor has put on its stack; ``frame`` is all of that."""
        self.vector = vector
        self.name = _NAMES.get(vector, f"exception {vector}")
        self.error = 0
        if vector in _WITH_ERROR_CODE:
            self.error = struct.unpack_from("<Q", frame)[0]
            frame = frame[8:]
        self.rip, _segment, _flags, self.rsp = struct.unpack_from("<4Q", frame)

    def cause(self, code: bytes) -> str:
        """Return what that is to the host; ``code`` is what stands at ``rip``.

        ``instruction``, ``division``, ``call`` (a system call of another age), or ``exception`` (anything else).
        """
        if code.startswith((b"\xcd\x80", b"\x0f\x34")):  # int 0x80, sysenter
            return "call"
        if self.vector == 6 and not code.startswith(b"\xcd"):  # for "int n" that is what paravirtual KVM gives
            return "instruction"
        return "division" if self.vector in (0, 16, 19) else "exception"


def fault_of(port: int, rsp: int, descriptors: int, page: memoryview) -> Fault | None:
    """Return the exception for which the guest stopped at ``port``; ``None`` if it did not stop for one.

    ``rsp`` is the stack pointer at the stop; ``page`` is the descriptor page, which the guest has at ``descriptors``.
    """
    vector = port - EXCEPTION_PORT
    at = rsp - descriptors
    if not 0 <= vector < _VECTORS or not _IDT + 16 * _VECTORS <= at <= _PAGE - 40 - 8 * (vector in _WITH_ERROR_CODE):
        return None
    return Fault(vector, bytes(page[at:_PAGE]))
