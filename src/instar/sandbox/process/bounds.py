"""The part of a seccomp filter that holds reads and writes of a file within a window of it.

Law: the kernel's filter knows 32-bit words only, so the sum of offset and count is made of halves, with the carry. It
is exact: a call passes if and only if every byte that it may touch lies in the window.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from instar.sandbox.process.policy import Row

# BPF (linux/bpf_common.h, linux/filter.h) and seccomp (linux/seccomp.h).
_LD_ABS, _LD_IMM, _LD_MEM, _LDX_MEM, _ST = 0x20, 0x00, 0x60, 0x61, 0x02
_ADD_K, _ADD_X, _TAX = 0x04, 0x0C, 0x07
_JA, _JEQ, _JEQ_X, _JGT_X, _JGE_X = 0x05, 0x15, 0x1D, 0x2D, 0x3D
_RET = 0x06
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000

# Scratch memory: the window, and the low half of where the call would end.
_START_LOW, _START_HIGH, _END_LOW, _END_HIGH, _SUM_LOW = range(5)
# ``struct seccomp_data`` of pread64 and pwrite64 (little endian): count and offset in halves.
_COUNT_LOW, _COUNT_HIGH = 32, 36
_OFFSET_LOW, _OFFSET_HIGH = 40, 44

Window = tuple[int, int]
#: ``(operation, operand, where to go if true, where to go if not)``; no place is the next line.
_Line = tuple[int, int, str, str]


def windows_section(windows: Mapping[int, Window]) -> list[Row]:
    """Return the program that judges a call on one of these descriptors, by ``(start, end)`` in bytes.

    It is entered with the descriptor's number as the accumulator. No window reaches past the largest file offset.
    """
    judge = _assemble(_JUDGE)
    kill = len(judge) - 2
    code: list[Row] = []
    for left, (fd, (start, end)) in zip(reversed(range(len(windows))), windows.items(), strict=True):
        if not 0 <= start <= end < 1 << 63:
            raise ValueError("a window that no file can have")
        numbers = (start & 0xFFFFFFFF, start >> 32, end & 0xFFFFFFFF, end >> 32)
        body = [row for place, number in enumerate(numbers) for row in ((_LD_IMM, 0, 0, number), (_ST, 0, 0, place))]
        # The judge comes right behind a jump to it: the kernel insists that what it loads was stored, and after
        # anything but a jump it would count in the ways on which nothing was.
        body.append((_JA, 0, 0, left * (len(body) + 2)))
        code += [(_JEQ, 0, len(body) + (0 if left else kill), fd), *body]
    return [*code, *judge]


#: No lawful end is above the 2^31 that a high half may be, so an offset that passes the first comparison cannot make
#: the sum wrap around.
_JUDGE: dict[str, Sequence[_Line]] = {
    "count": [(_LD_ABS, _COUNT_HIGH, "", ""), (_JEQ, 0, "", "kill")],
    "start": [
        (_LDX_MEM, _END_HIGH, "", ""),
        (_LD_ABS, _OFFSET_HIGH, "", ""),
        (_JGT_X, 0, "kill", ""),
        (_LDX_MEM, _START_HIGH, "", ""),
        (_JGT_X, 0, "end", ""),
        (_JEQ_X, 0, "", "kill"),
        (_LDX_MEM, _START_LOW, "", ""),
        (_LD_ABS, _OFFSET_LOW, "", ""),
        (_JGE_X, 0, "", "kill"),
    ],
    "end": [
        (_LD_ABS, _COUNT_LOW, "", ""),
        (_TAX, 0, "", ""),
        (_LD_ABS, _OFFSET_LOW, "", ""),
        (_ADD_X, 0, "", ""),
        (_ST, _SUM_LOW, "", ""),
        (_JGE_X, 0, "", "carry"),
        (_LD_ABS, _OFFSET_HIGH, "", ""),
        (_JEQ_X, 0, "high", "high"),
    ],
    "carry": [(_LD_ABS, _OFFSET_HIGH, "", ""), (_ADD_K, 1, "", "")],
    "high": [
        (_LDX_MEM, _END_HIGH, "", ""),
        (_JGT_X, 0, "kill", ""),
        (_JEQ_X, 0, "", "allow"),
        (_LD_MEM, _SUM_LOW, "", ""),
        (_LDX_MEM, _END_LOW, "", ""),
        (_JGT_X, 0, "kill", "allow"),
    ],
    "kill": [(_RET, _KILL_PROCESS, "", "")],
    "allow": [(_RET, _ALLOW, "", "")],
}


def _assemble(parts: Mapping[str, Sequence[_Line]]) -> list[Row]:
    """Put numbers in the place of names."""
    starts: dict[str, int] = {}
    at = 0
    for name, lines in parts.items():
        starts[name] = at
        at += len(lines)
    code: list[Row] = []
    for lines in parts.values():
        for operation, operand, true, false in lines:
            behind = len(code) + 1
            jumps = [starts[name] - behind if name else 0 for name in (true, false)]
            code.append((operation, jumps[0], jumps[1], operand))
    return code
