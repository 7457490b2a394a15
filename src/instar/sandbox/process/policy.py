"""The system calls a sealed process may make, as data: each with its reason, and a test for each.

Law: what is not in this table kills the cell. Calls on files are tied to the granted descriptor numbers.
"""

from __future__ import annotations

from instar.sandbox.process.bounds import windows_section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from instar.sandbox.process.bounds import Window

#: Descriptor numbers inside a cell: frames to the host, frames from the host, then file 0, 1, 2 …
FD_UP = 3
FD_DOWN = 4
FD_FILES = 5

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

PROT_EXEC = 4
#: What ``mmap`` must ask for, and may ask for besides: MAP_NORESERVE, MAP_STACK, MAP_HUGETLB with a size (as
#: GLIBC_TUNABLES may tell malloc to). Not MAP_SHARED; nor MAP_FIXED and MAP_GROWSDOWN, by which one page here and one
#: there cost a page table each, which no limit counts.
MAP_PRIVATE_ANONYMOUS = 0x22
MAP_OTHERS = 0x4000 | 0x20000 | 0x40000 | 0xFC000000
#: ``mremap`` without flags, or with MREMAP_MAYMOVE.
MOVES = [0, 1]
#: Real time, monotonic, processor time of this process and thread, raw and coarse ones, boot time. Other numbers are
#: clocks of other processes, by which those could be listed and watched.
CLOCKS = [0, 1, 2, 3, 4, 5, 6, 7]
#: MADV_DONTNEED, MADV_FREE, and MADV_HUGEPAGE, which GLIBC_TUNABLES may tell malloc to use. MADV_HWPOISON and its
#: like, which root could use, are not for cells.
ADVICE = [4, 8, 14]


class Rule:
    """One allowed system call.

    Attributes:
        name: as in ``syscalls(2)``.
        numbers: by machine.
        argument: what is asked of its arguments: ``any``, ``up``, ``down``, ``readable``, ``writable``
            (the descriptor, argument 0), ``memory`` (private, anonymous, never executable, at a place that the kernel
            chooses), ``moves`` (argument 3), ``advice`` (argument 2), ``clocks`` (argument 0) or ``processor`` (the
            descriptor, argument 0, and one of a few requests, argument 1).
        reason: why a cell needs it.
    """

    __slots__ = ("argument", "name", "numbers", "reason")

    def __init__(self, name: str, x86_64: int, aarch64: int, argument: str, reason: str) -> None:
        self.name = name
        self.numbers = {"x86_64": x86_64, "aarch64": aarch64}
        self.argument = argument
        self.reason = reason


# Not here, because nothing in a cell needs them: other ways to read and write (preadv2 …), rt_sigreturn (a cell
# has no signal handlers, all signals are blocked), futex (it has one thread).
RULES = (
    Rule("pread64", 17, 67, "readable", "os.pread: the guest reads a granted file"),
    Rule("pwrite64", 18, 68, "writable", "os.pwrite: the guest writes a file granted for writing"),
    Rule("read", 0, 63, "down", "the job and the host's answers come through this pipe"),
    Rule("write", 1, 64, "up", "requests and the reply go through this pipe"),
    Rule("mmap", 9, 222, "memory", "malloc and obmalloc get memory"),
    Rule("munmap", 11, 215, "any", "malloc and obmalloc give memory back"),
    Rule("mremap", 25, 216, "moves", "realloc of large blocks"),
    Rule("brk", 12, 214, "any", "malloc grows the heap"),
    Rule("madvise", 28, 233, "advice", "allocators return pages of a large heap, or wish for large pages"),
    Rule("clock_gettime", 228, 113, "clocks", "any use of a clock, on a host whose clock source the vDSO cannot read"),
    Rule("exit_group", 231, 94, "any", "the cell ends"),
)

# BPF (linux/filter.h, linux/bpf_common.h) and seccomp (linux/seccomp.h) constants.
_LD_ABS = 0x20
_AND = 0x54
_JEQ = 0x15
_JGE = 0x35
_JSET = 0x45
_JA = 0x05
_RET = 0x06
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO_ENOMEM = 0x00050000 | 12
_OFFSET_NR = 0
_OFFSET_ARCH = 4
#: First call number of the x32 ABI, which shares the architecture value of x86-64.
_X32_BIT = 0x40000000

Row = tuple[int, int, int, int]


def _argument_low(index: int) -> int:
    """Return the offset in ``struct seccomp_data`` of the low half of an argument (little endian).

    The kernel itself looks at no more: descriptors and advice are ints, and no flag is above bit 31.
    """
    return 16 + 8 * index


def _one_of(argument: int, numbers: list[int]) -> list[Row]:
    """Allow if an argument is one of at most 250 numbers, else kill."""
    code = [(_LD_ABS, 0, 0, _argument_low(argument))]
    for index, number in enumerate(numbers):
        code.append((_JEQ, len(numbers) - index, 0, number))
    return [*code, (_RET, 0, 0, _KILL_PROCESS), (_RET, 0, 0, _ALLOW)]


def _memory() -> list[Row]:
    """Allow ``mmap`` of what its rule says. A wish for a place is no crime of an allocator, but is not granted."""
    return [
        (_LD_ABS, 0, 0, _argument_low(2)),
        (_JSET, 10, 0, PROT_EXEC),
        (_LD_ABS, 0, 0, _argument_low(3)),
        (_JSET, 8, 0, 0xFFFFFFFF & ~(MAP_PRIVATE_ANONYMOUS | MAP_OTHERS)),
        (_AND, 0, 0, MAP_PRIVATE_ANONYMOUS),
        (_JEQ, 0, 6, MAP_PRIVATE_ANONYMOUS),
        (_LD_ABS, 0, 0, _argument_low(0)),
        (_JEQ, 0, 3, 0),
        (_LD_ABS, 0, 0, _argument_low(0) + 4),
        (_JEQ, 0, 1, 0),
        (_RET, 0, 0, _ALLOW),
        (_RET, 0, 0, _ERRNO_ENOMEM),
        (_RET, 0, 0, _KILL_PROCESS),
    ]


def _files(numbers: list[int], windows: Mapping[int, Window]) -> list[Row]:
    """Allow if argument 0 is one of at most 200 files, else kill; what has a window is judged in a part of its own.

    The jump to that part is the last line, for ``build_filter`` to fill in.
    """
    code = [(_LD_ABS, 0, 0, _argument_low(0))]
    left = len(numbers)
    for number in numbers:
        left -= 1
        code.append((_JEQ, left + (2 if number in windows else 1), 0, number))
    return [*code, (_RET, 0, 0, _KILL_PROCESS), (_RET, 0, 0, _ALLOW), (_JA, 0, 0, 0)]


def build_filter(
    machine: str,
    *,
    readable: list[int],
    writable: list[int],
    windows: Mapping[int, Window] | None = None,
    rules: tuple[Rule, ...] = RULES,
    processor: tuple[int, list[int]] = (-1, []),
) -> list[Row]:
    """Return the seccomp program as ``(code, jump_true, jump_false, k)`` rows.

    ``readable`` and ``writable`` are descriptor numbers inside the cell, at most 200 each; of those in ``windows``
    only the bytes from a start to an end can be had. ``processor`` is the descriptor of a virtual machine's processor
    and what may be asked of it.
    """
    descriptors = {"up": [FD_UP], "down": [FD_DOWN], "readable": readable, "writable": writable}
    windows = windows or {}
    far: list[int] = []
    program = [
        (_LD_ABS, 0, 0, _OFFSET_ARCH),
        (_JEQ, 1, 0, AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD_ABS, 0, 0, _OFFSET_NR),
        (_JGE, 0, 1, _X32_BIT),
        (_RET, 0, 0, _KILL_PROCESS),
    ]
    for rule in rules:
        if rule.argument == "any":
            block = [(_RET, 0, 0, _ALLOW)]
        elif rule.argument == "memory":
            block = _memory()
        elif rule.argument == "moves":
            block = _one_of(3, MOVES)
        elif rule.argument == "clocks":
            block = _one_of(0, CLOCKS)
        elif rule.argument == "advice":
            block = _one_of(2, ADVICE)
        elif rule.argument == "processor":
            fd, requests = processor
            block = [(_LD_ABS, 0, 0, _argument_low(0)), (_JEQ, 1, 0, fd & 0xFFFFFFFF), (_RET, 0, 0, _KILL_PROCESS)]
            block += _one_of(1, requests)
        elif windows and rule.argument in ("readable", "writable"):
            block = _files(descriptors[rule.argument], windows)
            far.append(len(program) + len(block))
        else:
            block = _one_of(0, descriptors[rule.argument])
        program.append((_JEQ, 0, len(block), rule.numbers[machine]))
        program += block
    program.append((_RET, 0, 0, _KILL_PROCESS))
    if windows:
        for place in far:
            program[place] = (_JA, 0, 0, len(program) - place - 1)
        program += windows_section(windows)
    return program
