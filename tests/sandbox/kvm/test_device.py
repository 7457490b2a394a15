"""Every number of KVM's interface is the one in ``linux/kvm.h``, as a C compiler sees it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from instar.sandbox.kvm import device
from instar.sandbox.kvm.cell import why_unavailable
from instar.sandbox.kvm.device import Registers

COMPILER = shutil.which("cc")
RUN = "struct kvm_run"
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
#: What stands in the module, and what C has for it.
CONSTANTS = {
    "API_VERSION": "KVM_API_VERSION",
    "_GET_API_VERSION": "KVM_GET_API_VERSION",
    "_CREATE_VM": "KVM_CREATE_VM",
    "_CHECK_EXTENSION": "KVM_CHECK_EXTENSION",
    "_GET_VCPU_MMAP_SIZE": "KVM_GET_VCPU_MMAP_SIZE",
    "_GET_SUPPORTED_CPUID": "KVM_GET_SUPPORTED_CPUID",
    "_CREATE_VCPU": "KVM_CREATE_VCPU",
    "_SET_USER_MEMORY_REGION": "KVM_SET_USER_MEMORY_REGION",
    "RUN": "KVM_RUN",
    "GET_SREGS": "KVM_GET_SREGS",
    "_SET_MSRS": "KVM_SET_MSRS",
    "_SET_CPUID2": "KVM_SET_CPUID2",
    "_SET_XCRS": "KVM_SET_XCRS",
    "_CAP_SYNC_REGS": "KVM_CAP_SYNC_REGS",
    "_CAP_READONLY_MEM": "KVM_CAP_READONLY_MEM",
    "_MEM_READONLY": "KVM_MEM_READONLY",
    "_SYNC_REGS": "KVM_SYNC_X86_REGS",
    "_SYNC_SREGS": "KVM_SYNC_X86_SREGS",
    "_EXIT_REASON": f"offsetof({RUN}, exit_reason)",
    "_EXIT_DATA": f"offsetof({RUN}, io)",
    "_VALID_REGS": f"offsetof({RUN}, kvm_valid_regs)",
    "_DIRTY_REGS": f"offsetof({RUN}, kvm_dirty_regs)",
    "_REGS": f"offsetof({RUN}, s.regs.regs)",
    "_SREGS": f"offsetof({RUN}, s.regs.sregs)",
    "_EXIT_IO": "KVM_EXIT_IO",
    "_EXIT_MMIO": "KVM_EXIT_MMIO",
    "_EXIT_SHUTDOWN": "KVM_EXIT_SHUTDOWN",
    "_EXIT_FAIL_ENTRY": "KVM_EXIT_FAIL_ENTRY",
    "_EXIT_INTERNAL_ERROR": "KVM_EXIT_INTERNAL_ERROR",
    "_XCRS_BYTES": "sizeof(struct kvm_xcrs)",
    "SREGS_BYTES": "sizeof(struct kvm_sregs)",
    "_CR2": "offsetof(struct kvm_sregs, cr2)",
}
#: What is packed with a format: where C has each number of it, and how long the whole is.
LAYOUTS: dict[str, tuple[str, str, list[str]]] = {
    "io exit": ("=BBHI", "", [
        f"offsetof({RUN}, io.{n}) - offsetof({RUN}, io)" for n in ("direction", "size", "port", "count")]),
    "memory region": (
        device._MEMORY_REGION.format,
        "struct kvm_userspace_memory_region",
        ["slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"],
    ),
    "cpuid entry": (
        device._CPUID_ENTRY.format,
        "struct kvm_cpuid_entry2",
        ["function", "index", "flags", "eax", "ebx", "ecx", "edx"],
    ),
    "registers": (device._REGISTERS.format, "struct kvm_regs", list(Registers.ORDER)),
    "cpuid head": ("=II", "", ["offsetof(struct kvm_cpuid2, nent)", "offsetof(struct kvm_cpuid2, padding)"]),
    "msr entry": ("=IIQ", "struct kvm_msr_entry", ["index", "reserved", "data"]),
    "xcrs": (
        "=IIIIQ", "", [f"offsetof(struct kvm_xcrs, {n})" for n in (
            "nr_xcrs", "flags", "xcrs[0].xcr", "xcrs[0].reserved", "xcrs[0].value")],
    ),
    "segment": (
        "=QIHBBBBBBBBBx",
        "struct kvm_segment",
        ["base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable"],
    ),
    "table": ("=QH6x", "struct kvm_dtable", ["base", "limit"]),
}  # fmt: skip


def places(format: str) -> list[int]:
    """Return the offset of each number of a format."""
    out, text = [], format[1:]
    spelled = ""
    number = ""
    for letter in text:
        if letter.isdigit():
            number += letter
        else:
            spelled += letter * int(number or 1)
            number = ""
    for index, letter in enumerate(spelled):
        if letter != "x":
            out.append(struct.calcsize("=" + spelled[:index]))
    return out


def _expressions() -> dict[str, tuple[str, int]]:
    """Return what is compared: a name, a C expression, and our number for it."""
    rows: dict[str, tuple[str, int]] = {}
    for name, text in CONSTANTS.items():
        rows[name] = (text, getattr(device, name))
    for name, (format, record, fields) in LAYOUTS.items():
        for field, place in zip(fields, places(format), strict=True):
            rows[f"{name}: {field}"] = (f"offsetof({record}, {field})" if record else field, place)
        if record:
            rows[f"{name}: length"] = (f"sizeof({record})", struct.calcsize(format))
    for index, name in enumerate((*SEGMENTS, "gdt", "idt")):
        place = index * 24 if index < 8 else 8 * 24 + (index - 8) * 16
        rows[f"sregs: {name}"] = (f"offsetof(struct kvm_sregs, {name})", place)
    for index, name in enumerate(("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")):
        rows[f"sregs: {name}"] = (f"offsetof(struct kvm_sregs, {name})", device._CR2 - 8 + index * 8)
    rows["msrs head"] = ("offsetof(struct kvm_msrs, entries)", 8)
    rows["cpuid entries"] = ("offsetof(struct kvm_cpuid2, entries)", 8)
    rows["direction out"] = ("KVM_EXIT_IO_OUT", 1)
    rows["physical address of MMIO"] = (f"offsetof({RUN}, mmio.phys_addr)", device._EXIT_DATA)
    rows["hardware reason"] = (f"offsetof({RUN}, fail_entry.hardware_entry_failure_reason)", device._EXIT_DATA)
    rows["suberror"] = (f"offsetof({RUN}, internal.suberror)", device._EXIT_DATA)
    words = {1: "EXCEPTION", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 7: "IRQ_WINDOW_OPEN", 24: "SYSTEM_EVENT"}
    for number, word in words.items():
        assert number in device._NAMES
        rows[f"exit {device._NAMES[number]}"] = (f"KVM_EXIT_{word}", number)
    return rows


def test_every_number_is_the_one_of_the_header(tmp_path: Path) -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the header of x86-64 Linux is what is compared with")
    if COMPILER is None:
        pytest.skip("no C compiler is installed (Debian: gcc)")
    rows = _expressions()
    lines = [f'    printf("%llu\\n", (unsigned long long)({text}));' for text, _ in rows.values()]
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\n    return 0;\n}\n"
    )
    if subprocess.run(
        [COMPILER, "-E", "-include", "linux/kvm.h", "-x", "c", os.devnull], capture_output=True
    ).returncode:
        pytest.skip("there is no linux/kvm.h (Debian: linux-libc-dev)")
    done = subprocess.run([COMPILER, source, "-o", tmp_path / "numbers"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True).stdout.split()
    theirs = dict(zip(rows, map(int, said), strict=True))
    assert {name: number for name, (_, number) in rows.items()} == theirs


def test_every_constant_of_the_module_is_compared() -> None:
    """A number that is added there has to be added here."""
    numbers = {
        name
        for name, value in vars(device).items()
        if isinstance(value, int) and (name.isupper() or name[1:].isupper()) and name not in ("TYPE_CHECKING",)
    }
    of_their_own = {"_MOST_CPUID_ENTRIES", "APIC_BASE"}
    assert numbers - of_their_own <= set(CONSTANTS)


def test_registers_are_named_in_the_order_of_their_places() -> None:
    made = Registers(tuple(range(18)))
    assert [getattr(made, name) for name in Registers.ORDER] == list(range(18))
    assert set(Registers.ORDER) == set(Registers.__slots__)


def test_processor_keeps_to_the_numbers_that_it_is_given() -> None:
    """KVM gives back the special registers that it was given, so no byte of theirs is misplaced."""
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    program = f"""
import os, fcntl, struct, sys
sys.path.insert(0, {str(Path(device.__file__).parents[3])!r})
from instar.sandbox.kvm import cpu, device
kvm = device.Kvm()
vm = kvm.create_machine()
vcpu = vm.create_processor()
vcpu.set_cpuid(kvm.supported_cpuid())
given = cpu.special_registers(tables=0x5000, descriptors=0x7000, fs_base=0x7F0000001230, xsave=vcpu.has_xsave)
fcntl.ioctl(vcpu.fd, 0x4138AE84, given)  # KVM_SET_SREGS
got = fcntl.ioctl(vcpu.fd, device.GET_SREGS, bytes(device.SREGS_BYTES))
print(given.hex(), got.hex(), vcpu.fault_address())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given, got, fault = done.stdout.split()
    assert got == given
    assert int(fault) == 0
