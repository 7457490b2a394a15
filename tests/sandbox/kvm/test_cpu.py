"""The processor's first state, byte by byte, against layouts written down a second time; and what an exception was."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.sandbox.kvm import cpu
from instar.sandbox.kvm.device import SREGS_BYTES, Registers

U8, U16, U32, U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
_KIND = ("kind", "present", "dpl", "db", "s", "long", "g", "avl", "unusable", "padding")


class Segment(ctypes.Structure):
    """Linux's ``struct kvm_segment``."""

    _fields_ = (("base", U64), ("limit", U32), ("selector", U16), *((name, U8) for name in _KIND))


class Table(ctypes.Structure):
    """Linux's ``struct kvm_dtable``."""

    _fields_ = (("base", U64), ("limit", U16), ("padding", U16 * 3))


class Special(ctypes.Structure):
    """Linux's ``struct kvm_sregs``."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, Table) for name in ("gdt", "idt")),
        *((name, U64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupts", U64 * 4),
    )


DESCRIPTORS = 0x7F12_3456_7000
FS_BASE = 0x7F00_DEAD_BEE0


def special(*, xsave: bool = True) -> Special:
    data = cpu.special_registers(tables=0x1234_5000, descriptors=DESCRIPTORS, fs_base=FS_BASE, xsave=xsave)
    assert len(data) == SREGS_BYTES == ctypes.sizeof(Special)
    return Special.from_buffer_copy(data)


# --- special registers -----------------------------------------------------------------------------------------------


def test_code_is_64_bit_user_mode() -> None:
    cs = special().cs
    assert (cs.present, cs.s, cs.dpl, cs.long, cs.db, cs.unusable) == (1, 1, 3, 1, 0, 0)
    assert cs.kind == 11  # execute, read, accessed
    assert cs.selector & 3 == 3


@pytest.mark.parametrize("name", ["ds", "es", "fs", "gs", "ss"])
def test_data_segments_are_the_users(name: str) -> None:
    segment = getattr(special(), name)
    assert (segment.present, segment.s, segment.dpl, segment.long, segment.unusable) == (1, 1, 3, 0, 0)
    assert segment.kind == 3  # read, write, accessed
    assert segment.selector & 3 == 3
    assert segment.base == (FS_BASE if name == "fs" else 0)


def test_limits_are_consistent_with_granularity() -> None:
    """A processor of Intel's refuses to run with a limit that its granularity could not have made (SDM 3, 26.3.1.2)."""
    made = special()
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        segment = getattr(made, name)
        if segment.g:
            assert segment.limit & 0xFFF == 0xFFF
        else:
            assert segment.limit >> 20 == 0


STUB_AT = DESCRIPTORS + 4096
PAGE = cpu.descriptor_page(DESCRIPTORS, STUB_AT)


def _gates() -> list[tuple[int, int, int, int]]:
    """Return handler, selector, stack number and type of each gate (AMD64 APM volume 2, 4.8.4)."""
    table = special().idt
    assert table.base >= DESCRIPTORS
    assert table.base + table.limit < DESCRIPTORS + 4096
    found = []
    for number in range((table.limit + 1) // 16):
        low, selector, stack, kind, middle, high, none = struct.unpack_from(
            "<HHBBHII", PAGE, table.base - DESCRIPTORS + 16 * number
        )
        assert none == 0
        found.append((low | middle << 16 | high << 32, selector, stack, kind))
    return found


def test_each_exception_has_a_handler_that_stops_the_machine() -> None:
    gates = _gates()
    assert len(gates) == 32
    for vector, (handler, selector, stack, kind) in enumerate(gates):
        at = handler - STUB_AT
        assert cpu.STUB[at : at + 2] == bytes((0xE6, cpu.EXCEPTION_PORT + vector))
        assert kind == 0x8E, "present, an interrupt gate, of no use to user code"
        assert stack == 1
        assert selector == cpu._SELECTOR_KERNEL


def test_exceptions_run_in_a_code_segment_of_the_kernel_on_a_stack_that_is_not_the_guests() -> None:
    made = special()
    descriptor = struct.unpack_from("<Q", PAGE, cpu._SELECTOR_KERNEL)[0]
    access, flags = descriptor >> 40 & 0xFF, descriptor >> 52 & 0xF
    assert access & 0x9A == 0x9A, "present, ring 0, code"
    assert flags & 6 == 2, "64-bit"
    assert made.gdt.limit >= cpu._SELECTOR_KERNEL + 7
    stack = struct.unpack_from("<Q", PAGE, made.tr.base - DESCRIPTORS + 0x24)[0]
    assert stack == DESCRIPTORS + 4096
    assert made.idt.base + made.idt.limit < stack - 256, "there is room for what a processor pushes"


def test_paging_protection_and_long_mode_are_on() -> None:
    made = special()
    assert made.cr0 & 0x8001_0021 == 0x8001_0021, "paging, write protection, errors of floating point, protection"
    assert made.cr0 & 0x6000_000C == 0, "caches on, floating point usable"
    assert made.cr3 == 0x1234_5000
    assert made.cr4 & 0x620 == 0x620, "long page tables, SSE"
    assert made.cr4 & ~0x4_0620 == 0, "nothing else: no debugging, no counters for users"
    assert made.efer == 0xD01, "SYSCALL, long mode, no-execute"
    assert list(made.interrupts) == [0] * 4


def test_xsave_is_allowed_where_there_is_such_state() -> None:
    assert special(xsave=True).cr4 & 1 << 18
    assert not special(xsave=False).cr4 & 1 << 18


# --- ports -----------------------------------------------------------------------------------------------------------


def _allows(port: int, size: int) -> bool:
    """Decide as a processor does (SDM 1, 19.5.2): two bytes of the bitmap are read, and all bits must be clear."""
    task = special().tr
    page = PAGE
    start = task.base - DESCRIPTORS
    bitmap = struct.unpack_from("<H", page, start + 0x66)[0]
    at = bitmap + port // 8
    if at + 1 > task.limit:
        return False
    bits = struct.unpack_from("<H", page, start + at)[0] >> port % 8
    return not bits & (1 << size) - 1


def test_one_port_is_open_to_the_guest() -> None:
    assert [port for port in range(1 << 16) if _allows(port, 1)] == [cpu.CALL_PORT]


@pytest.mark.parametrize("size", [2, 4])
def test_no_port_is_open_to_the_guest_in_words(size: int) -> None:
    assert [port for port in range(1 << 16) if _allows(port, size)] == []


def test_task_is_busy_and_ends_with_its_page_at_the_latest() -> None:
    made = special()
    task = made.tr
    assert (task.kind, task.s, task.present, task.unusable) == (11, 0, 1, 0)
    assert task.selector & 4 == 0
    assert task.base + task.limit < DESCRIPTORS + 4096
    assert task.base + task.limit < made.idt.base
    assert made.gdt.base == DESCRIPTORS
    assert made.gdt.base + made.gdt.limit < task.base


def test_descriptors_hold_one_segment_and_no_stack_of_a_kernel_but_that_of_exceptions() -> None:
    start = special().tr.base - DESCRIPTORS
    rest = bytearray(PAGE[: start + 0x66])
    rest[cpu._SELECTOR_KERNEL : cpu._SELECTOR_KERNEL + 8] = bytes(8)
    rest[start + 0x24 : start + 0x2C] = bytes(8)
    assert not any(rest)


# --- registers -------------------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1))
def test_no_flags_give_a_guest_more_rights(flags: int) -> None:
    made = cpu.user_flags(flags)
    arithmetic = 0x240CD5  # CF PF AF ZF SF DF OF AC ID
    assert made & arithmetic == flags & arithmetic, "what a program may change, it keeps"
    assert made & ~arithmetic == 0x202, "no trap, no privilege of I/O, no nested task, no virtual mode"


def test_system_calls_clear_every_flag_that_a_user_can_set() -> None:
    masks = [value for index, value in cpu.call_registers(0).items() if index == 0xC000_0084]
    assert masks[0] & 0x25_7FD5 == 0x25_7FD5


def test_system_calls_go_to_the_stub_with_these_segments() -> None:
    msrs = cpu.call_registers(0x7000_1000)
    made = special()
    assert msrs[0xC000_0082] == 0x7000_1000
    star = msrs[0xC000_0081]
    assert (star >> 48) + 16 | 3 == made.cs.selector, "where SYSRET would return to"
    assert (star >> 48) + 8 | 3 == made.ss.selector
    assert star >> 32 & 3 == 0
    assert len(msrs) == 3


def test_stub_begins_with_the_call_and_ends_the_guest_that_returns() -> None:
    assert cpu.STUB[:2] == bytes((0xE6, cpu.CALL_PORT))
    assert cpu.STUB[2:4] == b"\x0f\x0b"
    back = cpu.STUB[cpu.STUB_RETURN :]
    assert back[0] == 0xB8
    assert int.from_bytes(back[1:5], "little") == 231
    assert back[5] == 0xBF
    assert back[10:12] == b"\x0f\x05"
    assert len(cpu.STUB) < 4096


def test_entry_is_a_call_of_a_function_with_one_argument() -> None:
    made = Registers(cpu.entry(function=0x1111, argument=0x2222, stack=0x3338))
    assert (made.rip, made.rdi, made.rsp, made.rflags) == (0x1111, 0x2222, 0x3338, 0x202)
    others = set(Registers.ORDER) - {"rip", "rdi", "rsp", "rflags"}
    assert {getattr(made, name) for name in others} == {0}


# --- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "code", "cause"),
    [
        (6, "0f 0b", "instruction"),
        (6, "06", "instruction"),
        (6, "", "instruction"),
        (0, "f7 f1", "division"),
        (16, "d8 f1", "division"),
        (19, "0f 5e", "division"),
        (14, "48 8b", "exception"),
        (13, "f4", "exception"),
        (3, "cc", "exception"),
        (13, "cd 80", "call"),
        (6, "cd 80", "call"),  # what paravirtual KVM gives
        (13, "cd 81", "exception"),
        (6, "cd 81", "exception"),
        (13, "0f 34", "call"),
        (6, "0f 34", "call"),
    ],
)
def test_cause_of(vector: int, code: str, cause: str) -> None:
    assert cpu.Fault(vector, bytes(48)).cause(bytes.fromhex(code)) == cause


@pytest.mark.parametrize(("vector", "error"), [(14, 6), (13, 0x402), (6, 0), (0, 0)])
def test_fault_is_read_off_the_stack_that_the_processor_left(vector: int, error: int) -> None:
    frame = struct.pack("<5Q", 0x1234, 0x33, 0x246, 0x7FFF_0000, 0x2B)
    if vector in (13, 14):
        frame = struct.pack("<Q", error) + frame
    page = bytearray(4096)
    page[-len(frame) :] = frame
    fault = cpu.fault_of(cpu.EXCEPTION_PORT + vector, DESCRIPTORS + 4096 - len(frame), DESCRIPTORS, memoryview(page))
    assert fault is not None
    assert (fault.vector, fault.error, fault.rip, fault.rsp) == (vector, error, 0x1234, 0x7FFF_0000)


@given(st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1))
def test_any_port_and_stack_is_a_fault_or_none(port: int, rsp: int) -> None:
    fault = cpu.fault_of(port, rsp, DESCRIPTORS, memoryview(bytes(4096)))
    assert fault is None or 0 <= fault.vector < 32


@given(st.integers(0, 4096))
def test_stack_outside_of_the_page_is_no_fault(back: int) -> None:
    for rsp in (DESCRIPTORS - back - 1, DESCRIPTORS + 4096 - 39 + back):
        assert cpu.fault_of(cpu.EXCEPTION_PORT + 6, rsp, DESCRIPTORS, memoryview(bytes(4096))) is None
