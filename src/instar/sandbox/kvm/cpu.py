"""The processor a guest starts with: 64-bit user mode, paging on, no way into the kernel mode but one that stops it.

Law: values only. The sources are AMD64 Architecture Programmer's Manual volume 2 (chapters 3, 4, 12: control
registers, segments, tasks) and Intel's SDM volume 3 (3.4, 8.7); the same numbers are right on VT-x, AMD-V and
paravirtual KVM.
"""

from __future__ import annotations

import struct

from instar.sandbox.kvm.device import APIC_BASE, SREGS_BYTES

#: The port whose use is a system call.
CALL_PORT = 0x10
#: One page of code that any guest may run: ``SYSCALL`` lands on the first instruction, the guest's function returns
#: to the second piece. On VT-x and AMD-V ``SYSCALL`` enters kernel mode, where this is all the code there is; on
#: paravirtual KVM it does not even do that.
STUB = (
    b"\xe6" + bytes([CALL_PORT])  # out CALL_PORT, al
    + b"\x0f\x0b"  # ud2: nobody comes here, the monitor moves on itself
    + b"\xb8\xe7\x00\x00\x00"  # mov eax, 231 (exit_group)
    + b"\xbf\x04\x00\x00\x00"  # mov edi, 4 (CODE_FAULT of process.channel)
    + b"\x0f\x05"  # syscall
    + b"\x0f\x0b"
)  # fmt: skip
STUB_RETURN = 4

_SELECTOR_KERNEL = 0x10
_SELECTOR_DATA = 0x2B
_SELECTOR_CODE = 0x33
_SELECTOR_TASK = 0x40
_GDT_BYTES = 0x80
_TSS_OFFSET = 0x100
_TSS_HEAD = 0x68
#: One bit for each port; all ports but ``CALL_PORT`` are forbidden, and those past the end are, too.
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
#: What CR2 holds while there was no page fault. No address looks like this.
NO_FAULT = 0x8BAD_F00D_0000_0000

#: Flags that a guest may have: carry, parity, adjust, zero, sign, direction, overflow, alignment check, identification.
_FLAGS_USER = 0x240CD5
_FLAGS_FIXED = 0x202  # the bit that is always set, and interrupts on, as programs expect it


def user_flags(flags: int) -> int:
    """Return what of ``flags`` user code may have: no I/O privilege, no single steps."""
    return flags & _FLAGS_USER | _FLAGS_FIXED


def descriptor_page() -> bytes:
    """Return the page with the task state, whose bitmap allows one port. The descriptor table is zeros.

    Segments are given to the processor ready-made; no guest can load another one.
    """
    bitmap = bytearray(b"\xff" * (_PORTS // 8 + 1))
    bitmap[CALL_PORT >> 3] &= ~(1 << (CALL_PORT & 7))
    head = bytearray(_TSS_HEAD)
    struct.pack_into("<H", head, 0x66, _TSS_HEAD)
    return bytes(_TSS_OFFSET) + bytes(head) + bytes(bitmap)


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
    task_limit = len(descriptor_page()) - _TSS_OFFSET - 1
    task = _segment(_SELECTOR_TASK, 11, base=descriptors + _TSS_OFFSET, limit=task_limit, user=False)
    local = _segment(0, 2, limit=0, user=False)
    cr4 = _CR4 | (_CR4_OSXSAVE if xsave else 0)
    registers = (
        code + data + data + fs + data + data + task + local
        + struct.pack("=QH6x", descriptors, _GDT_BYTES - 1)
        + struct.pack("=QH6x", 0, 0)  # no interrupt table: every exception is the end
        + struct.pack("=7Q", _CR0, NO_FAULT, tables, cr4, 0, _EFER, APIC_BASE)
    )  # fmt: skip
    return registers + bytes(SREGS_BYTES - len(registers))


def call_registers(stub: int) -> dict[int, int]:
    """Return the model-specific registers that make ``SYSCALL`` go to ``stub`` (guest-virtual)."""
    return {_MSR_STAR: _SELECTOR_KERNEL << 32 | (_SELECTOR_DATA - 8) << 48, _MSR_LSTAR: stub, _MSR_FMASK: _FLAGS_MASK}


def entry(*, function: int, argument: int, stack: int) -> tuple[int, ...]:
    """Return the general registers at the start of ``function(argument)``, in the order of ``Registers.ORDER``."""
    return (0, 0, 0, 0, 0, argument, stack, 0, *(0,) * 8, function, _FLAGS_FIXED)


#: First bytes of what is no instruction in 64-bit mode, and prefixes that change nothing about that.
_UNDEFINED = bytes((0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x9A, 0xCE, 0xEA))
_UNDEFINED_0F = bytes((0x04, 0x0A, 0x0B, 0x0C, 0x37, 0xAA, 0xB9, 0xFF))
_PREFIXES = bytes((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3, *range(0x40, 0x50)))


def cause_of_exception(code: bytes) -> str:
    """Guess from the instruction what exception it met that was no page fault.

    Returns ``instruction`` (it is undefined), ``division``, ``call`` (a system call of another age), or ``exception``
    (anything else: a privileged instruction, an address that cannot be one, a trap).
    """
    code = code.lstrip(_PREFIXES)
    if code.startswith((b"\xcd\x80", b"\x0f\x34")):  # int 0x80, sysenter
        return "call"
    if code[:1] == b"\x0f":
        return "instruction" if code[1:2] and code[1] in _UNDEFINED_0F else "exception"
    if code[:1] in (b"\xf6", b"\xf7") and len(code) > 1 and code[1] >> 3 & 7 in (6, 7):
        return "division"
    return "instruction" if code[:1] and code[0] in _UNDEFINED else "exception"
