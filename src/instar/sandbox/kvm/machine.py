"""A virtual machine whose guest is a clone of this interpreter, and the loop that runs it.

Law: nothing that the monitor made for itself is in the guest's map (see ``layout``). Every way in which a guest can
stop ends in a call that is answered, or in a ``Death`` with a reason.
"""

from __future__ import annotations

import os

from instar.sandbox.kernel import syscall
from instar.sandbox.kvm import cpu
from instar.sandbox.kvm.calls import Calls, Ended, Forbidden
from instar.sandbox.kvm.device import Broken, Exit, Interrupted, Kvm, PortAccess
from instar.sandbox.kvm.layout import DESCRIPTORS, PHOTO, STUB, ZEROS, Block, Layout, own_bytes, pool_bytes
from instar.sandbox.kvm.memory import EXECUTE, HUGE, PAGE, READ, USER_END, WRITE, GuestMemory
from instar.sandbox.kvm.native import new_memory, symbol, view_at
from instar.sandbox.kvm.photo import MOST_SHORT_ONES, PhotoError, open_proc, take_photo
from instar.sandbox.kvm.tables import PageTables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from instar.sandbox.cell import Grant
    from instar.sandbox.kvm.device import Registers, Vcpu

#: How much this process may grow between the look at its size and the photo.
_SLACK = 8 << 20
_MOST_COPIED = 1 << 30
_ARCH_GET_FS = 0x1003
_WORD = (1 << 64) - 1


class Death(Exception):
    """The guest's end: ``cause`` is one of ``channel.CAUSES``, ``detail`` says where, for who wants to know."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail


class Machine:
    """One machine with one processor, whose guest will call ``body`` on its own stack, and never come back from it.

    Making it takes the photo, so what this process does later is not in the guest. ``memory`` is how many bytes the
    guest may have beyond what it is born with.

    Raises:
        PhotoError, OSError, MemoryError: it cannot be made.
    """

    def __init__(self, kvm: Kvm, body: Callable[[], NoReturn], memory: int) -> None:
        self._vm = kvm.create_machine()
        self._vcpu = self._vm.create_processor()
        self._vcpu.set_cpuid(kvm.supported_cpuid())
        self._layout = layout = self._take_photo(memory)
        self._memory = GuestMemory(layout.regions)
        self.calls = Calls(self._memory, (), heap=layout.heap, file_bytes=0)
        self._give_memory()
        self._set_processor(self._map_memory(), body)
        # From here on the processor is all that is needed.
        os.close(self._vm.fd)
        self._body = body
        self._stop: Exit = Interrupted()

    def _take_photo(self, memory: int) -> Layout:
        with open_proc("/proc/self/statm") as source:
            sizes = source.readall().split()
        mapped, writable = int(sizes[0]) * PAGE, int(sizes[5]) * PAGE
        room = writable + MOST_SHORT_ONES + _SLACK
        if room > _MOST_COPIED:
            raise PhotoError(f"the program is too large to be copied ({writable >> 20} MiB)")
        own = own_bytes(room, mapped + memory)
        length = own + pool_bytes(memory)
        block = Block(new_memory(length, align=HUGE), length)
        without = [(block.address, block.address + length), self._vcpu.shared]
        album = take_photo(block.address + PHOTO, room, without)
        return Layout(album, block, own=own, memory=memory)

    def _give_memory(self) -> None:
        for block in (self._layout.block, *self._layout.shared):
            readonly = block is not self._layout.block
            self._vm.add_memory(block.physical, block.length, block.address, readonly=readonly)

    def _map_memory(self) -> PageTables:
        layout, own, block = self._layout, self._layout.block, self._layout.tables
        tables = PageTables(view_at(block.address, block.length, writable=True), block.physical)
        for region in layout.regions:
            tables.map(region.start, region.end, region.physical, region.access)
        for start, end in layout.zeros:
            for page in range(start, end, PAGE):
                tables.map(page, page + PAGE, own.physical + ZEROS, READ)
        tables.map(own.address, own.address + PAGE, own.physical, READ | WRITE, user=False)
        tables.map(own.address + STUB, own.address + STUB + PAGE, own.physical + STUB, READ | EXECUTE)
        return tables

    def _set_processor(self, tables: PageTables, body: Callable[[], NoReturn]) -> None:
        layout, vcpu = self._layout, self._vcpu
        own = layout.block.address
        view = view_at(own, ZEROS, writable=True)
        page = cpu.descriptor_page(own + DESCRIPTORS, own + STUB)
        for offset, data in ((DESCRIPTORS, page), (STUB, cpu.STUB)):
            view[offset : offset + len(data)] = data
        vcpu.set_msrs(cpu.call_registers(own + STUB))
        special = cpu.special_registers(
            tables=tables.top, descriptors=own + DESCRIPTORS, fs_base=_fs_base(own + ZEROS), xsave=vcpu.has_xsave
        )
        # As after a call: the return address on top, and the stack aligned but for it.
        view_at(layout.stack_host - 8, 8, writable=True)[:] = (own + STUB + cpu.STUB_RETURN).to_bytes(8, "little")
        general = cpu.entry(function=symbol("PyObject_CallNoArgs"), argument=id(body), stack=layout.stack[1] - 8)
        self._entry = (general, special)

    @property
    def processor(self) -> Vcpu:
        """Return the machine's processor."""
        return self._vcpu

    def start(self) -> None:
        """Run the guest up to its first system call, which shows that the machine works.

        Raises:
            Death: it does not.
        """
        self._vcpu.set_registers(*self._entry)
        stop = self._vcpu.run()
        while type(stop) is Interrupted:
            stop = self._vcpu.run()
        if not _is_call(stop):
            raise self._death(stop)
        self._stop = stop

    def grant(self, files: Sequence[Grant], file_bytes: int) -> None:
        """Say which files the guest has, and how long it may make them (see ``Calls``)."""
        self.calls = Calls(self._memory, files, heap=self._layout.heap, file_bytes=file_bytes)

    def run(self) -> int:
        """Run the guest from its first system call to its end, and return the code that it ends with.

        Raises:
            Death: it ended in another way.
        """
        vcpu, answer = self._vcpu, self.calls.answer
        stop = self._stop
        while True:
            if _is_call(stop):
                r = vcpu.registers()
                number = r.rax & 0xFFFFFFFF
                try:
                    result = answer(number, (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9))
                except Ended as end:
                    return end.code
                except Forbidden:
                    words = ", ".join(f"{word:#x}" for word in (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9))
                    raise Death("call", f"system call {number} ({words}), {self._where(r, r.rcx)}") from None
                if r.rcx >= USER_END:
                    raise Death("exception", f"return to {r.rcx:#x}, which is no address of a program")
                vcpu.resume(result & _WORD, r.rcx, cpu.user_flags(r.r11))
            elif type(stop) is not Interrupted:
                raise self._death(stop)
            stop = vcpu.run()

    def where(self) -> str:
        """Say where the guest was at the last exit."""
        r = self._vcpu.registers()
        return self._where(r, r.rip)

    def _death(self, stop: object) -> Death:
        r = self._vcpu.registers()
        if isinstance(stop, PortAccess):
            own = self._layout.block.address + DESCRIPTORS
            fault = cpu.fault_of(stop.port, r.rsp, own, view_at(own, PAGE))
            if fault is not None:
                return self._death_of(fault, r)
            return Death("exception", f"access to port {stop.port:#x}, {self._where(r, r.rip)}")
        if isinstance(stop, Broken):
            return Death("machine", f"{stop.what}, {self._where(r, r.rip)}")
        # Not even the first instruction of a handler could be run. Some processors forget all registers then.
        return Death("exception", f"triple fault, {self._where(r, r.rip)}")

    def _death_of(self, fault: cpu.Fault, r: Registers) -> Death:
        what = fault.name
        if fault.vector == cpu.PAGE_FAULT:
            address = self._vcpu.fault_address()
            low, high = self._layout.stack
            overflow = low - HUGE <= address < low and low - HUGE <= fault.rsp < high
            what = f"{'stack overflow' if overflow else what} at {address:#x}"
        elif fault.error:
            what += f" ({fault.error:#x})"
        r.rsp = fault.rsp
        pieces = self._memory.pieces(fault.rip, 2, EXECUTE) or ()
        code = b"".join(bytes(view_at(host, size)) for host, size in pieces)
        return Death(fault.cause(code), f"{what}, {self._where(r, fault.rip)}")

    def _where(self, r: Registers, rip: int) -> str:
        """Say where the guest was, in terms that a debugger takes."""
        region = self._memory.find(rip)
        place = f" ({region.name}+{rip - region.start + region.offset:#x})" if region and region.name else ""
        return f"rip {rip:#x}{place}, rsp {r.rsp:#x}, rax {r.rax:#x}, rdi {r.rdi:#x}, rsi {r.rsi:#x}, rdx {r.rdx:#x}"


def _is_call(stop: Exit) -> bool:
    """Tell whether the guest stopped for a system call. It can use that port in more ways than one."""
    return isinstance(stop, PortAccess) and stop.port == cpu.CALL_PORT and stop.out and stop.size == stop.count == 1


def _fs_base(scratch: int) -> int:
    """Return where the C library keeps what is this thread's own; ``scratch`` is 8 zero bytes, and zeros again."""
    view = view_at(scratch, 8, writable=True)
    syscall("arch_prctl", _ARCH_GET_FS, scratch)
    base = int.from_bytes(view, "little")
    view[:] = bytes(8)
    return base
