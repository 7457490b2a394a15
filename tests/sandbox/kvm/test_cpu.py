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


def test_no_exception_has_a_handler() -> None:
    assert (special().idt.base, special().idt.limit) == (0, 0)


def test_paging_protection_and_long_mode_are_on() -> None:
    made = special()
    assert made.cr0 & 0x8001_0021 == 0x8001_0021, "paging, write protection, errors of floating point, protection"
    assert made.cr0 & 0x6000_000C == 0, "caches on, floating point usable"
    assert made.cr3 == 0x1234_5000
    assert made.cr4 & 0x620 == 0x620, "long page tables, SSE"
    assert made.cr4 & ~0x4_0620 == 0, "nothing else: no debugging, no counters for users"
    assert made.efer == 0xD01, "SYSCALL, long mode, no-execute"
    assert made.cr2 == cpu.NO_FAULT
    assert list(made.interrupts) == [0] * 4


def test_xsave_is_allowed_where_there_is_such_state() -> None:
    assert special(xsave=True).cr4 & 1 << 18
    assert not special(xsave=False).cr4 & 1 << 18


def test_no_address_is_the_mark_for_no_fault() -> None:
    assert cpu.NO_FAULT >> 47 not in (0, (1 << 17) - 1)


# --- ports -----------------------------------------------------------------------------------------------------------


def _allows(port: int, size: int) -> bool:
    """Decide as a processor does (SDM 1, 19.5.2): two bytes of the bitmap are read, and all bits must be clear."""
    task = special().tr
    page = cpu.descriptor_page()
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
    made, page = special(), cpu.descriptor_page()
    task = made.tr
    assert (task.kind, task.s, task.present, task.unusable) == (11, 0, 1, 0)
    assert task.selector & 4 == 0
    assert task.base + task.limit < DESCRIPTORS + 4096
    assert task.base + task.limit + 1 == DESCRIPTORS + len(page), "the bitmap ends with the segment"
    assert made.gdt.base == DESCRIPTORS
    assert made.gdt.base + made.gdt.limit < task.base


def test_descriptors_hold_no_other_segment_and_no_stack_of_a_kernel() -> None:
    page = cpu.descriptor_page()
    start = special().tr.base - DESCRIPTORS
    assert not any(page[: start + 0x66])


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
    ("code", "cause"),
    [
        ("0f 0b", "instruction"),  # ud2
        ("0f b9 c0", "instruction"),  # ud1
        ("0f ff c0", "instruction"),  # ud0
        ("66 0f 0b", "instruction"),
        ("48 0f 0b", "instruction"),
        ("06", "instruction"),  # push es
        ("ce", "instruction"),  # into
        ("ea 00 00 00 00 00 00", "instruction"),  # far jump
        ("60", "instruction"),  # pusha
        ("f7 f1", "division"),  # div ecx
        ("48 f7 f9", "division"),  # idiv rcx
        ("49 f7 f0", "division"),  # div r8
        ("f6 f3", "division"),  # div bl
        ("48 f7 3c 25 00 10 00 00", "division"),  # idiv qword [0x1000]
        ("66 f7 f1", "division"),
        ("f7 d9", "exception"),  # neg ecx
        ("f7 c1 00 00 00 00", "exception"),  # test ecx, 0
        ("f4", "exception"),  # hlt
        ("fa", "exception"),  # cli
        ("cc", "exception"),  # int3
        ("cd 80", "call"),  # int 0x80
        ("0f 34", "call"),  # sysenter
        ("cd 81", "exception"),
        ("ec", "exception"),  # in al, dx
        ("0f 30", "exception"),  # wrmsr
        ("0f 01 d0", "exception"),  # xgetbv
        ("0f 22 d8", "exception"),  # mov cr3, rax
        ("48 8b 00", "exception"),  # mov rax, [rax]
        ("0f", "exception"),
        ("f7", "exception"),
        ("48 66 67", "exception"),
        ("", "exception"),
    ],
)
def test_cause_of(code: str, cause: str) -> None:
    assert cpu.cause_of_exception(bytes.fromhex(code)) == cause


@given(st.binary(max_size=16))
def test_any_bytes_have_a_cause(code: bytes) -> None:
    assert cpu.cause_of_exception(code) in ("instruction", "division", "call", "exception")
