"""A granted window is all that a cell has of a file: tried from inside exploited cells, and on the filter itself."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.backends import KINDS, needs_kvm
from tests.sandbox.cells import libc, run_guest

import instar
from instar.core.errors import SandboxError
from instar.core.wire import decode, encode
from instar.sandbox.cell import Grant, Limits
from instar.sandbox.process.policy import AUDIT_ARCH, FD_FILES, RULES, build_filter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sandbox.cells import Ask

    from instar.sandbox.files import GrantedFile
    from instar.sandbox.process.policy import Row

_KILLED = "a system call that no cell may make"
#: Across a border of 32 bits, so that the carry counts.
START, SIZE = (1 << 32) - 4096, 8192
END = START + SIZE
_BUFFER = ctypes.create_string_buffer(64 << 10)
for _name in ("pread64", "pwrite64"):
    getattr(libc, _name).restype = ctypes.c_ssize_t
    getattr(libc, _name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]


@pytest.fixture
def grants(tmp_path: Path) -> Iterator[list[Grant]]:
    """File 0 a window for reading, 1 the whole file for reading, 2 a window for both."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.seek(START - 4096)
        file.write(b"b" * 4096 + b"w" * SIZE + b"a" * 4096)
    fds = [os.open(path, os.O_RDWR) for _ in range(3)]
    whole = END + 4096
    yield [
        Grant(fds[0], "r", SIZE, offset=START),
        Grant(fds[1], "r", whole),
        Grant(fds[2], "rw", SIZE, offset=START),
    ]
    for fd in fds:
        os.close(fd)


def _call(name: str, number: int, count: int, offset: int) -> int:
    """Call the system as an exploited guest can: with any words, past what ``GrantedFile`` would let through."""
    ctypes.set_errno(0)
    result = getattr(libc, name)(FD_FILES + number, ctypes.addressof(_BUFFER), count, offset)
    return -ctypes.get_errno() if result < 0 else int(result)


def _attack(kind: str, grants: list[Grant], name: str, count: int, offset: int, *, number: int = 0) -> bytes:
    """Return what a call gave and what then is in the buffer; offsets count as that kind of cell counts."""

    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        ctypes.memset(_BUFFER, ord("."), len(_BUFFER))
        result = _call(name, number, count, offset)
        return b"%d %s" % (result, bytes(sorted(set(_BUFFER.raw))))

    return run_guest(guest, grants, kind=kind, file_bytes=1 << 62)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_honest_guest_sees_a_file_of_its_own(kind: str, grants: list[Grant]) -> None:
    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        file = files[0]
        pieces = [file.read(0, SIZE), file.read(SIZE - 3, 100), file.read(SIZE, 100), file.read(1 << 40, 1)]
        files[2].write(SIZE - 2, b"zz")
        pieces.append(files[0].read(SIZE - 4, 100))
        return repr((file.size, [(len(piece), piece[-4:]) for piece in pieces], files[1].read(END, 2))).encode()

    expected = (SIZE, [(SIZE, b"wwww"), (3, b"www"), (0, b""), (0, b""), (4, b"wwzz")], b"aa")
    assert run_guest(guest, grants, kind=kind, file_bytes=1 << 62) == repr(expected).encode()
    assert os.pread(grants[1].fd, 4, END - 2) == b"zzaa"


@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize(("offset", "number"), [(-1, 22), (SIZE - 1, 27), (SIZE, 27)])
def test_honest_guest_is_told_of_a_write_that_does_not_fit(
    kind: str, offset: int, number: int, grants: list[Grant]
) -> None:
    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        try:
            files[2].write(offset, b"zz")
        except OSError as error:
            return b"%d" % (error.errno or 0)
        return b"written"

    assert run_guest(guest, grants, kind=kind, file_bytes=1 << 62) == b"%d" % number


#: What lies outside, as offset and count in the file itself.
OUTSIDE = {
    "the byte before": (START - 1, 1),
    "from the byte before": (START - 1, 2),
    "the byte behind": (END, 1),
    "a count one too long": (START, SIZE + 1),
    "the last byte and one more": (END - 1, 2),
    "the start of the file": (0, 1),
    "the end's low half, a lower high half": (END - (1 << 32) - 16, 16),
    "the same low half, a higher high half": (START + (1 << 32), 1),
    "the same low half, the sign bit": (START - (1 << 63), 1),
    "a negative offset": (-1, 1),
    "a negative offset whose end is lawful": (-1, START + 2),
    "a count that wraps to the window": (END, (1 << 64) - SIZE + 1),
    "a count of 2^31": (START, 1 << 31),
    "a count of 2^32": (START, 1 << 32),
    "a count of 2^32 and a little": (START, (1 << 32) + 1),
    "a count of 2^63": (START, 1 << 63),
    "a count of minus one": (START, (1 << 64) - 1),
    "the largest offset": ((1 << 63) - 1, 1),
}


class TestProcess:
    @pytest.mark.parametrize("name", ["pread64", "pwrite64"])
    @pytest.mark.parametrize("attack", OUTSIDE)
    def test_touching_what_is_outside_kills_the_cell(self, attack: str, name: str, grants: list[Grant]) -> None:
        offset, count = OUTSIDE[attack]
        with pytest.raises(SandboxError, match=_KILLED):
            _attack("process", grants, name, count, offset, number=2)
        assert os.pread(grants[1].fd, 4096, START - 4096) == b"b" * 4096
        assert os.pread(grants[1].fd, 9999, END) == b"a" * 4096

    @pytest.mark.parametrize(
        ("offset", "count"),
        [(START, 1), (START, SIZE), (END - 1, 1), (END, 0), (START, 0), ((1 << 32) - 1, 2), (1 << 32, 4096)],
    )
    def test_what_is_inside_is_read_where_it_is(self, offset: int, count: int, grants: list[Grant]) -> None:
        assert _attack("process", grants, "pread64", count, offset) == b"%d .%s" % (count, b"w" if count else b"")

    def test_another_file_is_not_bound_by_a_window(self, grants: list[Grant]) -> None:
        assert _attack("process", grants, "pread64", 4096, START - 4096, number=1) == b"4096 .b"
        assert _attack("process", grants, "pread64", 1 << 32, END, number=1) == b"4096 .a"

    def test_window_for_reading_is_not_written(self, grants: list[Grant]) -> None:
        with pytest.raises(SandboxError, match=_KILLED):
            _attack("process", grants, "pwrite64", 1, START)


@needs_kvm
class TestMonitor:
    """In a machine a window begins at zero, and what is behind its end is not there."""

    @pytest.mark.parametrize("attack", OUTSIDE)
    def test_nothing_outside_is_read(self, attack: str, grants: list[Grant]) -> None:
        offset, count = OUTSIDE[attack]
        for words in ((count, offset - START), (count, offset)):
            reply = _attack("kvm", grants, "pread64", *words)
            assert set(reply.partition(b" ")[2]) <= set(b".w"), words
            assert int(reply.partition(b" ")[0]) <= SIZE

    @pytest.mark.parametrize("attack", OUTSIDE)
    def test_nothing_outside_is_written(self, attack: str, grants: list[Grant]) -> None:
        offset, count = OUTSIDE[attack]
        for words in ((count, offset - START), (count, offset)):
            _attack("kvm", grants, "pwrite64", *words, number=2)
        assert os.pread(grants[1].fd, 4096, START - 4096) == b"b" * 4096
        assert os.pread(grants[1].fd, 9999, END) == b"a" * 4096

    def test_another_file_is_not_bound_by_a_window(self, grants: list[Grant]) -> None:
        assert _attack("kvm", grants, "pread64", 4096, START - 4096, number=1) == b"4096 .b"

    def test_window_for_reading_is_not_written(self, grants: list[Grant]) -> None:
        with pytest.raises(SandboxError, match=_KILLED):
            _attack("kvm", grants, "pwrite64", 1, 0)

    def test_process_around_the_machine_is_bound_by_its_own_filter(self, grants: list[Grant]) -> None:
        from instar.sandbox.kvm import calls
        from instar.sandbox.kvm.memory import WRITE

        def escaped(self: calls.Calls, fd: int, address: int, length: int, offset: int, *_: int) -> int:
            return self._transfer("pread64", fd, address, length, WRITE, START - 1)

        number = next(rule.numbers["x86_64"] for rule in RULES if rule.name == "pread64")
        before = calls._HANDLERS[number]
        calls._HANDLERS[number] = escaped
        try:
            with pytest.raises(SandboxError, match="SIGSYS"):
                _attack("kvm", grants, "pread64", 1, 0)
        finally:
            calls._HANDLERS[number] = before


@pytest.mark.parametrize("kind", KINDS)
def test_fork_server_hands_the_window_on(kind: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    instar.create(str(inner), "1M", format="qcow2")
    data = inner.read_bytes()
    (tmp_path / "outer").write_bytes(b"x" * 4096 + data + b"y" * 512)
    fd = os.open(tmp_path / "outer", os.O_RDONLY)
    job = encode({"op": "info", "args": {"format": None, "major": 11, "minor": 1, "parts": []}})
    try:
        for _ in range(3):  # of kvm cells the second may be a spare
            cell = instar.Isolation(kind).open()
            reply = decode(cell.run(job, [Grant(fd, "r", len(data), offset=4096)], Limits(), lambda asked: None))
            assert isinstance(reply, dict)
            assert reply["ok"]["format"] == "qcow2"  # type: ignore[index, call-overload]
    finally:
        os.close(fd)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (1 << 63, 0), ((1 << 63) - 1, 1), (1, (1 << 63) - 1)])
def test_window_that_no_file_has_cannot_be_granted(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Grant(0, "r", size, offset=offset)


# The filter's code, on a machine of its own: cBPF as seccomp has it (linux/filter.h, kernel/seccomp.c).


def _run(program: list[Row], words: list[int]) -> int:
    """Return what a filter says of a call: ``words`` are the 32-bit words of ``struct seccomp_data``."""
    accumulator = index = 0
    memory: dict[int, int] = {}
    at = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == 0x20:
            assert k % 4 == 0
            accumulator = words[k // 4]
        elif code == 0x00:
            accumulator = k
        elif code == 0x60:
            accumulator = memory[k]
        elif code == 0x61:
            index = memory[k]
        elif code == 0x02:
            assert 0 <= k < 16
            memory[k] = accumulator
        elif code == 0x07:
            index = accumulator
        elif code == 0x54:
            accumulator &= k
        elif code in (0x04, 0x0C):
            accumulator = accumulator + (k if code == 0x04 else index) & 0xFFFFFFFF
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return k
        else:
            operand = index if code & 8 else k
            holds = {
                0x10: accumulator == operand,
                0x20: accumulator > operand,
                0x30: accumulator >= operand,
                0x40: bool(accumulator & operand),
            }[code & 0x70]
            assert code & 0x87 == 5
            at += true if holds else false


def _allows(program: list[Row], machine: str, name: str, *arguments: int) -> bool:
    number = next(rule.numbers[machine] for rule in RULES if rule.name == name)
    words = [number, AUDIT_ARCH[machine], 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    return {0x7FFF0000: True, 0x80000000: False}[_run(program, words)]


_ANCHORS = [0, 1, 512, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 512, 3 << 32, (1 << 63) - 1]
_near = st.builds(lambda anchor, by: anchor + by, st.sampled_from(_ANCHORS), st.integers(-3, 3))
_place = (_near | st.integers(0, (1 << 63) - 1)).filter(lambda n: 0 <= n < 1 << 63)
_windows = st.lists(st.builds(lambda a, b: (min(a, b), max(a, b)), _place, _place), min_size=1, max_size=5)


class TestFilter:
    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    @given(windows=_windows, data=st.data())
    def test_lets_pass_what_lies_in_the_window_and_nothing_else(
        self, machine: str, windows: list[tuple[int, int]], data: st.DataObject
    ) -> None:
        # Every second file has none.
        table = {FD_FILES + 2 * n: window for n, window in enumerate(windows)}
        numbers = list(range(FD_FILES, FD_FILES + 2 * len(windows)))
        program = build_filter(machine, readable=numbers, writable=numbers[:3], windows=table)
        fd = data.draw(st.sampled_from([*numbers, 0, 3, 4, numbers[-1] + 1]))
        start, end = table.get(fd, (0, 0))
        edges = st.sampled_from([start - 1, start, start + 1, end - 1, end, end + 1, -1, -(1 << 63)])
        offset = data.draw(edges | _near | st.integers(-(1 << 63), (1 << 63) - 1)) & (1 << 64) - 1
        fitting = st.integers(-2, 2).map(lambda by: end - offset + by)
        counts = fitting | _near | st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 1 << 31, (1 << 64) - 1])
        count = data.draw(counts) & (1 << 64) - 1
        if fd in table:
            expected = count < 1 << 32 and start <= offset and offset + count <= end
        else:
            expected = fd in numbers
        assert _allows(program, machine, "pread64", fd, 0, count, offset) == expected
        assert _allows(program, machine, "pwrite64", fd, 0, count, offset) == (expected and fd in numbers[:3])

    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_two_hundred_windows_fit_and_each_is_its_own(self, machine: str) -> None:
        numbers = list(range(FD_FILES, FD_FILES + 200))
        table = {fd: (fd << 33, (fd << 33) + 10) for fd in numbers}
        program = build_filter(machine, readable=numbers, writable=numbers, windows=table)
        assert len(program) <= 4096  # BPF_MAXINSNS
        assert all(0 <= true <= 255 and 0 <= false <= 255 for _, true, false, _ in program)
        for fd in numbers:
            for name in ("pread64", "pwrite64"):
                assert _allows(program, machine, name, fd, 0, 10, fd << 33)
                assert not _allows(program, machine, name, fd, 0, 11, fd << 33)
                assert not _allows(program, machine, name, fd, 0, 1, (fd + 1) << 33)

    def test_other_calls_stay_what_they_are(self) -> None:
        with_window = build_filter("x86_64", readable=[5, 6], writable=[], windows={5: (0, 512)})
        without = build_filter("x86_64", readable=[5, 6], writable=[])
        for rule in RULES[2:]:
            for words in ((0, 4096, 3, 0x22), (3, 0, 0, 0), (4, 0, 4, 0), (5, 0, 0, 0)):
                same = _allows(with_window, "x86_64", rule.name, *words)
                assert same == _allows(without, "x86_64", rule.name, *words), rule.name

    def test_is_no_longer_without_windows(self) -> None:
        plain = build_filter("x86_64", readable=[5, 6], writable=[6])
        assert build_filter("x86_64", readable=[5, 6], writable=[6], windows={}) == plain
