"""The monitor of a kvm cell, judged by the kernel: once sealed it runs its machine and answers it, and nothing else.

What a guest could do that had broken out of its machine is done here in its place: by a monitor that is made and
sealed as always, whose ``run`` then is somebody else's.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import needs_kvm
from tests.sandbox.cells import children, raw, run_guest, status_of
from tests.sandbox.forbidden import FORBIDDEN

from instar.core.errors import SandboxError
from instar.sandbox.cell import Grant
from instar.sandbox.kvm import monitor
from instar.sandbox.kvm.monitor import MONITOR_RULES, Monitor
from instar.sandbox.process import seal
from instar.sandbox.process.policy import FD_FILES, RULES, Rule, build_filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sandbox.cells import Ask

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile

pytestmark = [needs_kvm, pytest.mark.skipif(platform.machine() != "x86_64", reason="call numbers are x86-64's")]

_KILLED = r"a system call that no cell may make \(SIGSYS\)"
_IOCTL = 16
_BUFFER = ctypes.create_string_buffer(4096)
_AT = ctypes.addressof(_BUFFER)
RUN, GET_SREGS = 0xAE80, 0x8138AE83

#: Requests of KVM and of others (linux/kvm.h, asm-generic/ioctls.h).
REQUESTS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_CREATE_DEVICE": 0xC00CAEE0,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_TRANSLATE": 0xC018AE85,
    "KVM_INTERRUPT": 0x4004AE86,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_SET_GUEST_DEBUG": 0x4048AE9B,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "TIOCSTI": 0x5412,
    "FIONREAD": 0x541B,
    "FIOCLEX": 0x5451,
    "FICLONE": 0x40049409,
}


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch, files: list[Grant]) -> Callable[[Callable[[Monitor], int]], bytes]:
    """Have a sealed monitor do something else than run its guest, and end with the code that this gives."""

    def do(what: Callable[[Monitor], int]) -> bytes:
        monkeypatch.setattr(Monitor, "run", lambda self, channel: what(self))
        return run_guest(lambda job, granted, ask: b"", files, kind="kvm")

    return do


Instead = "Callable[[Callable[[Monitor], int]], bytes]"


class TestCalls:
    @pytest.mark.parametrize(
        ("number", "arguments"),
        [row[1:] for row in FORBIDDEN if row[0] != "rt_sigreturn"],
        ids=[row[0] for row in FORBIDDEN if row[0] != "rt_sigreturn"],
    )
    def test_that_no_guest_may_make_no_monitor_may(
        self, number: int, arguments: tuple[int, ...], instead: Instead
    ) -> None:
        with pytest.raises(SandboxError, match=_KILLED) as caught:
            instead(lambda _: raw(number, *arguments) & 127)
        assert caught.value.kind == "died"

    @pytest.mark.parametrize("request_number", REQUESTS.values(), ids=REQUESTS)
    def test_of_ioctl_on_the_processor_are_two(self, request_number: int, instead: Instead) -> None:
        with pytest.raises(SandboxError, match=_KILLED):
            instead(lambda it: raw(_IOCTL, it.processor_fd, request_number, _AT) & 127)

    @pytest.mark.parametrize("request_number", [RUN, GET_SREGS])
    @pytest.mark.parametrize("fd", [-1, 0, 3, 4, 5, 6, 7, 9, 10, 1 << 31, 1 << 32])
    def test_of_ioctl_are_on_the_processor_alone(self, fd: int, request_number: int, instead: Instead) -> None:
        with pytest.raises(SandboxError, match=_KILLED):
            instead(lambda it: raw(_IOCTL, fd, request_number, _AT) & 127)

    @pytest.mark.parametrize("high", [0, 1 << 32, -1 << 32])
    def test_of_ioctl_that_it_needs_work(self, high: int, instead: Instead) -> None:
        """High bits, at which neither the filter nor the kernel looks, change nothing."""

        def look(it: Monitor) -> int:
            assert raw(_IOCTL, high | it.processor_fd, high | GET_SREGS, _AT) == 0
            return 77 if any(_BUFFER.raw[:312]) else 78

        with pytest.raises(SandboxError, match="ended with code 77"):
            instead(look)

    @pytest.mark.parametrize("name", ["ioctl", "rt_sigreturn"])
    def test_of_its_own_are_needed(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
            return b"%d" % sum(range(10_000_000))

        monkeypatch.setattr(monitor, "MONITOR_RULES", tuple(r for r in MONITOR_RULES if r.name != name))
        with pytest.raises(SandboxError, match=r"SIGSYS|nobody saw|ended without") as caught:
            run_guest(guest, kind="kvm")
        assert caught.value.kind in ("died", "unavailable")

    def test_are_those_of_a_process_cell_and_two_more(self) -> None:
        assert MONITOR_RULES[: len(RULES)] == RULES
        assert [rule.name for rule in MONITOR_RULES[len(RULES) :]] == ["ioctl", "rt_sigreturn"]
        assert all(rule.reason for rule in MONITOR_RULES)

    def test_of_a_return_from_no_signal_end_it(self, instead: Instead) -> None:
        """It can only jump within itself, which who runs in it can already; the frame here is no frame."""
        with pytest.raises(SandboxError) as caught:
            instead(lambda _: raw(15) & 127)
        assert caught.value.kind == "died"

    @pytest.mark.parametrize("count", [0, 1, 200])
    def test_make_a_filter_whose_jumps_stay_inside(self, count: int) -> None:
        numbers = list(range(FD_FILES, FD_FILES + count))
        program = build_filter(
            "x86_64", readable=numbers, writable=numbers, rules=MONITOR_RULES, processor=(FD_FILES + count, [1, 2])
        )
        assert len(program) <= 4096
        for index, (code, true, false, _) in enumerate(program):
            if code & 7 == 5:
                assert index + 1 + max(true, false) < len(program)


class TestFiles:
    def test_are_beyond_it_even_with_the_system_call(
        self, instead: Instead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if seal.landlock_version() < 1:
            pytest.skip("this kernel has no Landlock")
        victim = tmp_path / "victim"
        victim.touch()
        path = ctypes.create_string_buffer(str(victim).encode())
        unlink = Rule("unlink", 87, 35, "any", "for this test")
        monkeypatch.setattr(monitor, "MONITOR_RULES", (*MONITOR_RULES, unlink))
        with pytest.raises(SandboxError, match="ended with code 13"):
            instead(lambda _: -raw(87, ctypes.addressof(path)))
        assert victim.exists()

    def test_that_were_granted_are_used_as_granted(self, instead: Instead, files: list[Grant]) -> None:
        def use(_: Monitor) -> int:
            return raw(17, FD_FILES, _AT, 5, 0) * 10 + raw(18, FD_FILES + 1, _AT, 3, 0)

        with pytest.raises(SandboxError, match="ended with code 53"):
            instead(use)


def look(see: Callable[[int], object], files: list[Grant] | None = None, **limits: float) -> object:
    """Look at a monitor whose guest waits for an answer."""
    seen: list[object] = []

    def guest(job: bytes, granted: list[GrantedFile], ask: Ask) -> bytes:
        ask("look")
        return b"done"

    def serve(request: Wire) -> Wire:
        (pid,) = children()
        seen.append(see(pid))
        return None

    assert run_guest(guest, files or [], kind="kvm", serve=serve, **limits) == b"done"
    return seen[0]


class TestFromOutside:
    def test_has_no_rights_and_can_gain_none(self) -> None:
        status = look(status_of)
        assert isinstance(status, dict)
        for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"

    def test_has_one_thread_beside_the_kernel_s_own(self) -> None:
        def see(pid: int) -> list[str]:
            return [Path(f"/proc/{pid}/task/{n}/comm").read_text().strip() for n in os.listdir(f"/proc/{pid}/task")]

        names = look(see)
        assert isinstance(names, list)
        assert len([name for name in names if not name.startswith("kvm-")]) == 1, names

    def test_has_the_channel_the_granted_files_and_a_processor(self, files: list[Grant], tmp_path: Path) -> None:
        """Neither the device nor the machine: it can make no other, and give this one no other memory."""
        seen = look(
            lambda pid: {int(n): os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}, files
        )
        assert isinstance(seen, dict)
        assert sorted(seen) == [3, 4, 5, 6, 7, 8]
        assert seen[3].startswith("pipe:") and seen[4].startswith("pipe:")
        assert [seen[n] for n in (5, 6, 7)] == [str(tmp_path / name) for name in ("r", "w", "rw")]
        assert seen[8] == "anon_inode:kvm-vcpu:0"
