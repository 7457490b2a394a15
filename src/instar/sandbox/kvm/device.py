"""KVM's interface as three objects: the device, a virtual machine, its processor; and an exit as a typed value.

Law: nothing here knows what runs in the machine. Request numbers and layouts of ``linux/kvm.h`` (API version 12,
x86-64) stand here and nowhere else.
"""

from __future__ import annotations

import fcntl
import os
import struct

from instar.sandbox.kvm.native import map_shared, view_at

DEVICE = "/dev/kvm"

API_VERSION = 12
_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_CHECK_EXTENSION = 0xAE03
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
#: The two requests that a processor still needs when its machine runs.
RUN = 0xAE80
GET_SREGS = 0x8138AE83
_SET_MSRS = 0x4008AE89
_SET_CPUID2 = 0x4008AE90
_SET_XCRS = 0x4188AEA7

_CAP_SYNC_REGS = 74
_CAP_READONLY_MEM = 81
_MEM_READONLY = 2
_SYNC_REGS = 1
_SYNC_SREGS = 2

# struct kvm_run
_EXIT_REASON = 8
_EXIT_DATA = 32
_VALID_REGS = 288
_DIRTY_REGS = 296
_REGS = 304
_SREGS = _REGS + 144
_EXIT_IO = 2
_EXIT_MMIO = 6
_EXIT_SHUTDOWN = 8
_EXIT_FAIL_ENTRY = 9
_EXIT_INTERNAL_ERROR = 17
_NAMES = {1: "exception", 3: "hypercall", 4: "debug", 5: "hlt", 7: "irq window", 24: "system event"}

_MEMORY_REGION = struct.Struct("=IIQQQ")
_CPUID_ENTRY = struct.Struct("=7I12x")
_REGISTERS = struct.Struct("=18Q")
_ONE = struct.Struct("=Q")
_TWO = struct.Struct("=2Q")
#: From the exit's reason on: reason; direction, size, port and count of an access to a port.
_EXIT = struct.Struct("=I20xBBHI")
_MOST_CPUID_ENTRIES = 256
_XCRS_BYTES = 0x188
#: struct kvm_sregs: 312 bytes; cr2 follows eight segments, two tables and cr0.
SREGS_BYTES = 312
_CR2 = 8 * 24 + 2 * 16 + 8
APIC_BASE = 0xFEE00000


class Registers:
    """The general registers, in the order of ``struct kvm_regs``."""

    __slots__ = (
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "rax", "rbp", "rbx", "rcx", "rdi", "rdx", "rflags", "rip", "rsi", "rsp",
    )  # fmt: skip

    ORDER = (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
    )  # fmt: skip

    def __init__(self, values: tuple[int, ...]) -> None:
        (
            self.rax, self.rbx, self.rcx, self.rdx, self.rsi, self.rdi, self.rsp, self.rbp,
            self.r8, self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15, self.rip, self.rflags,
        ) = values  # fmt: skip


class Exit:
    """Why a processor stopped."""

    __slots__ = ()


class PortAccess(Exit):
    """The guest used an I/O port: wrote (``out``) or read ``size`` bytes, ``count`` times."""

    __slots__ = ("count", "out", "port", "size")

    def __init__(self, port: int, *, out: bool, size: int, count: int) -> None:
        self.port = port
        self.out = out
        self.size = size
        self.count = count


class Shutdown(Exit):
    """The processor met an exception that it could not deliver (a triple fault)."""

    __slots__ = ()


class Interrupted(Exit):
    """A signal for this process came."""

    __slots__ = ()


class Broken(Exit):
    """The machine cannot go on: ``what`` says why, in KVM's words and numbers."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


class Kvm:
    """The opened device.

    Raises:
        OSError: it cannot be opened (for the constructor), or as KVM says.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC) if fd is None else fd

    def why_unusable(self) -> str | None:
        """Say what this KVM lacks; ``None`` if nothing."""
        version = fcntl.ioctl(self.fd, _GET_API_VERSION, 0)
        if version != API_VERSION:
            return f"{DEVICE} speaks version {version} of its interface, not {API_VERSION}"
        if not fcntl.ioctl(self.fd, _CHECK_EXTENSION, _CAP_READONLY_MEM):
            return "KVM has no read-only memory"
        if fcntl.ioctl(self.fd, _CHECK_EXTENSION, _CAP_SYNC_REGS) & 3 != 3:
            return "KVM has no synchronised registers (Linux before 4.17)"
        return None

    def create_machine(self) -> Vm:
        """Make a machine without memory or processor. It belongs to this process and to no child of it."""
        while True:
            try:
                return Vm(self, fcntl.ioctl(self.fd, _CREATE_VM, 0))
            except InterruptedError:
                continue  # this process was stopped, or frozen, and goes on

    def processor_bytes(self) -> int:
        """Return how many bytes a processor shares with its program."""
        return fcntl.ioctl(self.fd, _GET_VCPU_MMAP_SIZE, 0)

    def supported_cpuid(self) -> bytearray:
        """Return what processor a guest may be given, as ``struct kvm_cpuid2``."""
        table = bytearray(8 + _MOST_CPUID_ENTRIES * _CPUID_ENTRY.size)
        struct.pack_into("=I", table, 0, _MOST_CPUID_ENTRIES)
        fcntl.ioctl(self.fd, _GET_SUPPORTED_CPUID, table)
        return table


class Vm:
    """A virtual machine."""

    __slots__ = ("_kvm", "_slots", "fd")

    def __init__(self, kvm: Kvm, fd: int) -> None:
        self._kvm = kvm
        self._slots = 0
        self.fd = fd

    def add_memory(self, physical: int, length: int, address: int, *, readonly: bool = False) -> None:
        """Give the guest ``length`` bytes of this process's memory at ``address`` as guest-physical ``physical``."""
        row = _MEMORY_REGION.pack(self._slots, _MEM_READONLY if readonly else 0, physical, length, address)
        fcntl.ioctl(self.fd, _SET_USER_MEMORY_REGION, row)
        self._slots += 1

    def create_processor(self) -> Vcpu:
        """Make the machine's one processor."""
        return Vcpu(fcntl.ioctl(self.fd, _CREATE_VCPU, 0), self._kvm.processor_bytes())


class Vcpu:
    """A processor. Its registers are exchanged with each run, through the page that it shares with this process.

    Attributes:
        shared: from where to where that page and those behind it are, which no guest must ever get.
        has_xsave: whether it has state that only XSAVE saves (AVX and later); known after ``set_cpuid``.
    """

    __slots__ = ("_page", "fd", "has_xsave", "shared")

    def __init__(self, fd: int, length: int) -> None:
        self.fd = fd
        address = map_shared(fd, length)
        self.shared = (address, address + length)
        self._page = view_at(address, _SREGS + SREGS_BYTES, writable=True)
        self.has_xsave = False
        struct.pack_into("=Q", self._page, _VALID_REGS, _SYNC_REGS)

    def set_cpuid(self, table: bytearray) -> None:
        """Say what processor it is, and allow it every state component that this processor has."""
        fcntl.ioctl(self.fd, _SET_CPUID2, table)
        components = 0
        for number in range(struct.unpack_from("=I", table)[0]):
            leaf, index, _flags, low, _ebx, _ecx, high = _CPUID_ENTRY.unpack_from(table, 8 + number * _CPUID_ENTRY.size)
            if leaf == 0xD and index == 0:
                components = low | high << 32
                break
        self.has_xsave = components != 0
        if components:
            row = struct.pack("=IIIIQ", 1, 0, 0, 0, components)
            fcntl.ioctl(self.fd, _SET_XCRS, row + bytes(_XCRS_BYTES - len(row)))

    def set_msrs(self, values: dict[int, int]) -> None:
        """Set model-specific registers.

        Raises:
            OSError: KVM refused one.
        """
        rows = b"".join(struct.pack("=IIQ", index, 0, value) for index, value in values.items())
        done = fcntl.ioctl(self.fd, _SET_MSRS, bytearray(struct.pack("=II", len(values), 0) + rows))
        # The answer is how many were set. CPython gives it back for buffers that may change.
        if done != len(values):
            raise OSError(22, f"KVM set {done} of {len(values)} registers")

    def set_registers(self, general: tuple[int, ...], special: bytes) -> None:
        """Set all registers for the first run: in the order of ``Registers.ORDER``, and a ``struct kvm_sregs``."""
        _REGISTERS.pack_into(self._page, _REGS, *general)
        self._page[_SREGS : _SREGS + SREGS_BYTES] = special
        _ONE.pack_into(self._page, _DIRTY_REGS, _SYNC_REGS | _SYNC_SREGS)

    def resume(self, rax: int, rip: int, rflags: int) -> None:
        """Set three registers for the next run, and the special ones to what they were for the first.

        All others are as the guest left them. The special ones are not: a system call has put the processor into
        kernel mode, save on paravirtual KVM.
        """
        page = self._page
        _ONE.pack_into(page, _REGS, rax)
        _TWO.pack_into(page, _REGS + 16 * 8, rip, rflags)  # the last two
        _ONE.pack_into(page, _DIRTY_REGS, _SYNC_REGS | _SYNC_SREGS)

    def registers(self) -> Registers:
        """Return the general registers as of the last exit."""
        return Registers(_REGISTERS.unpack_from(self._page, _REGS))

    def fault_address(self) -> int:
        """Return CR2: where the last page fault was."""
        special = fcntl.ioctl(self.fd, GET_SREGS, bytes(SREGS_BYTES))
        return int(struct.unpack_from("=Q", special, _CR2)[0])

    def run(self) -> Exit:
        """Run the guest until it needs somebody."""
        try:
            fcntl.ioctl(self.fd, RUN, 0)
        except InterruptedError:
            return Interrupted()
        except OSError as error:
            return Broken(f"KVM_RUN: {error.strerror}")
        reason, direction, size, port, count = _EXIT.unpack_from(self._page, _EXIT_REASON)
        if reason == _EXIT_IO:
            return PortAccess(port, out=direction == 1, size=size, count=count)
        if reason == _EXIT_SHUTDOWN:
            return Shutdown()
        if reason == _EXIT_MMIO:
            return Broken(f"it used physical memory that it does not have, at {self._number(_EXIT_DATA):#x}")
        if reason == _EXIT_FAIL_ENTRY:
            return Broken(f"the processor cannot be entered (hardware reason {self._number(_EXIT_DATA):#x})")
        if reason == _EXIT_INTERNAL_ERROR:
            return Broken(f"KVM's internal error {struct.unpack_from('=I', self._page, _EXIT_DATA)[0]}")
        return Broken(_NAMES.get(reason, f"exit {reason}"))

    def _number(self, offset: int) -> int:
        return int(_ONE.unpack_from(self._page, offset)[0])
