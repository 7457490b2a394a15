"""Which kind of cell is had: the strongest that starts, never none, and never a second one for a job that began."""

from __future__ import annotations

import errno
import os
import posix
import sys
from typing import TYPE_CHECKING

import pytest
from tests.sandbox.backends import KVM, NO_KVM, needs_kvm
from tests.sandbox.cells import SOURCE, has_children, serve_nothing

import instar
from instar.core.errors import OptionError, SandboxError
from instar.sandbox.cell import Grant, Isolation, Limits
from instar.sandbox.inline import InlineCell
from instar.sandbox.kvm import cell as kvm_cell
from instar.sandbox.kvm import machine, monitor
from instar.sandbox.kvm.photo import BlurredError, PhotoError
from instar.sandbox.process import cell as process_cell
from instar.sandbox.process import seal
from instar.sandbox.process.cell import ProcessCell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.sandbox.cells import Ask, Guest

    from instar.core.wire import Wire
    from instar.sandbox.files import GrantedFile


def use(monkeypatch: pytest.MonkeyPatch, guest: Guest) -> None:
    """Have every cell that is made from here run this guest."""
    monkeypatch.setitem(ProcessCell.__init__.__kwdefaults__, "guest", guest)


def _echo(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
    return job


class TestNames:
    def test_without_walls_must_be_asked_for_by_name(self) -> None:
        with pytest.raises(SandboxError):
            InlineCell()
        assert Isolation("none").open().name == "none"

    def test_there_are_four(self) -> None:
        with pytest.raises(OptionError, match="auto, kvm, process, none"):
            Isolation("vm")

    @needs_kvm
    def test_each_gives_its_own_kind(self) -> None:
        for name in ("kvm", "process", "none"):
            isolation = Isolation(name, single_threaded=True)
            assert isolation.open().name == name
            assert isolation.said == []


class TestAuto:
    @needs_kvm
    def test_prefers_a_machine(self) -> None:
        isolation = Isolation("auto", single_threaded=True)
        assert isolation.open().name == "kvm"
        assert isolation.said == []

    @pytest.mark.skipif(NO_KVM is None, reason="there is KVM here")
    def test_takes_a_process_here_and_says_why(self) -> None:
        isolation = Isolation("auto", single_threaded=True)
        assert isolation.open().name == "process"
        assert isolation.said == [f"kvm: {NO_KVM}"]

    def test_takes_a_process_where_there_is_no_kvm_and_says_why_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kvm_cell, "why_unavailable", lambda: "/dev/kvm: No such file or directory")
        use(monkeypatch, _echo)
        isolation = Isolation("auto", single_threaded=True)
        for _ in range(3):
            cell = isolation.open()
            assert cell.name == "process"
            assert cell.run(b"job", [], Limits(), serve_nothing) == b"job"
        assert isolation.said == ["kvm: /dev/kvm: No such file or directory"]

    def test_fails_where_no_cell_can_be_had_and_says_how_to_do_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kvm_cell, "why_unavailable", lambda: "no such device")
        monkeypatch.setattr(process_cell, "why_unavailable", lambda: "no seccomp")
        isolation = Isolation("auto")
        with pytest.raises(SandboxError, match="--isolation=none") as caught:
            isolation.open()
        assert caught.value.kind == "unavailable"
        assert isolation.said == ["kvm: no such device", "process: no seccomp"]
        assert "kvm: no such device; process: no seccomp" in str(caught.value)


def _raise(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


#: What can speak against a machine between ``open`` and the first instruction of its guest, for as long as the host is
#: as it is: where, what with, and what is said of it.
FAILURES: tuple[tuple[object, str, object, str], ...] = (
    (kvm_cell, "DEVICE", "/no/such/device", "/no/such/device: No such file or directory"),
    (machine, "take_photo", _raise(PhotoError("/proc/self/pagemap: No such file or directory")), "pagemap: No such"),
    (machine.Machine, "__init__", _raise(OSError(16, "Device or resource busy")), "Device or resource busy"),
    (machine.Machine, "__init__", _raise(MemoryError("the page tables are full")), "page tables are full"),
    (monitor, "seal", _raise(OSError(1, "Operation not permitted")), "not permitted"),
)


def _end(*_: object) -> object:
    os._exit(9)


#: The same, where the next machine may well start.
MISHAPS: tuple[tuple[object, str, object, str], ...] = (
    (machine, "take_photo", _raise(BlurredError("its memory does not stand still")), "does not stand still"),
    (
        machine.Machine,
        "start",
        _raise(machine.Death("machine", "the processor cannot be entered")),
        "cannot be entered",
    ),
    (machine.cpu, "entry", lambda **_: (0,) * 18, "page fault at 0x0"),
    (machine.Machine, "__init__", _end, "ended with code 9"),
    (machine.Machine, "start", _end, "ended with code 9"),
)


@needs_kvm
class TestFallingOver:
    @pytest.mark.parametrize(("owner", "name", "value", "said"), FAILURES, ids=[f"{f[1]}: {f[3]}" for f in FAILURES])
    def test_from_a_machine_that_does_not_start_to_a_process(
        self, owner: object, name: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, _echo)
        isolation = Isolation("auto", single_threaded=True)
        cell = isolation.open()
        assert cell.name == "kvm"
        monkeypatch.setattr(owner, name, value)
        assert cell.run(b"job", [], Limits(), serve_nothing) == b"job"
        assert cell.name == "process"
        (reason,) = isolation.said
        assert reason.startswith("kvm: ") and said in reason
        assert not has_children()

    @pytest.mark.parametrize(("owner", "name", "value", "said"), FAILURES, ids=[f"{f[1]}: {f[3]}" for f in FAILURES])
    def test_not_where_a_machine_was_asked_for_by_name(
        self, owner: object, name: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, _echo)
        cell = Isolation("kvm", single_threaded=True).open()
        monkeypatch.setattr(owner, name, value)
        with pytest.raises(SandboxError) as caught:
            cell.run(b"job", [], Limits(), serve_nothing)
        assert caught.value.kind == "unavailable"
        assert said in str(caught.value)

    @pytest.mark.parametrize(("owner", "name", "value", "said"), MISHAPS, ids=[f"{f[1]}: {f[3]}" for f in MISHAPS])
    @pytest.mark.parametrize("asked", ["auto", "kvm"])
    def test_not_where_another_machine_may_start(
        self, asked: str, owner: object, name: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is tried once more, and then is an error that says how to do with less."""
        use(monkeypatch, _echo)
        forks = []
        fork = posix.fork
        monkeypatch.setattr(posix, "fork", lambda: forks.append(1) or fork())
        monkeypatch.setattr(owner, name, value)
        isolation = Isolation(asked, single_threaded=True)
        with pytest.raises(SandboxError, match=said) as caught:
            isolation.open().run(b"job", [], Limits(), serve_nothing)
        assert caught.value.kind == "unavailable"
        assert "--isolation=process" in caught.value.detail
        assert len(forks) == 2
        assert isolation.said == []
        assert not has_children()

    @pytest.mark.parametrize(("owner", "name", "value", "said"), MISHAPS, ids=[f"{f[1]}: {f[3]}" for f in MISHAPS])
    def test_not_where_the_second_machine_starts(
        self, owner: object, name: str, value: object, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(monkeypatch, _echo)
        fork, before, forks = posix.fork, getattr(owner, name), []

        def fork_and_mend() -> int:
            forks.append(1)
            if len(forks) == 2:
                monkeypatch.setattr(owner, name, before)
            return fork()

        monkeypatch.setattr(posix, "fork", fork_and_mend)
        monkeypatch.setattr(owner, name, value)
        cell = Isolation("auto", single_threaded=True).open()
        assert cell.run(b"job", [], Limits(), serve_nothing) == b"job"
        assert (cell.name, len(forks)) == ("kvm", 2)

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    def test_not_where_the_program_is_short_of_something(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who can make a program run out of descriptors does not choose its cells."""
        use(monkeypatch, _echo)
        cell = Isolation("auto", single_threaded=True).open()
        fails = _raise(OSError(number, os.strerror(number)))
        monkeypatch.setattr(kvm_cell.os, "open", fails)
        with pytest.raises(SandboxError, match=f"{os.strerror(number)}.*--isolation=process"):
            cell.run(b"job", [], Limits(), serve_nothing)
        with pytest.raises(SandboxError, match=f"{os.strerror(number)}.*--isolation=process"):
            Isolation("auto", single_threaded=True).open()

    def test_not_when_a_cell_that_had_started_dies(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            times = files[0].read(0, 100)
            files[0].write(len(times), b"x")
            os._exit(7)

        use(monkeypatch, guest)
        fd = os.open(tmp_path / "times", os.O_RDWR | os.O_CREAT)
        isolation = Isolation("auto", single_threaded=True)
        try:
            with pytest.raises(SandboxError, match="ended with code 7") as caught:
                isolation.open().run(b"", [Grant(fd, "rw", 0)], Limits(file_bytes=100), serve_nothing)
        finally:
            os.close(fd)
        assert caught.value.kind == "died"
        assert (tmp_path / "times").read_bytes() == b"x"
        assert isolation.said == []

    @pytest.mark.parametrize("limits", [{"wall_seconds": 0.3}, {"cpu_seconds": 1}, {"reply_bytes": 100}])
    def test_not_when_a_cell_passes_a_limit(self, limits: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            while "reply_bytes" not in limits:
                pass
            return bytes(1000)

        use(monkeypatch, guest)
        isolation = Isolation("auto", single_threaded=True)
        with pytest.raises(SandboxError) as caught:
            isolation.open().run(b"", [], Limits(**limits), serve_nothing)  # type: ignore[arg-type]
        assert caught.value.kind == "limit"
        assert isolation.said == []

    def test_not_when_the_host_itself_fails_to_serve_a_cell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also when what it fails with is that it can make no further cell."""

        def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
            ask("question")
            return b""

        asked = []

        def serve(request: Wire) -> Wire:
            asked.append(request)
            raise SandboxError("unavailable", "no further cell")

        use(monkeypatch, guest)
        isolation = Isolation("auto", single_threaded=True)
        with pytest.raises(SandboxError, match="no further cell"):
            isolation.open().run(b"", [], Limits(requests=1), serve)
        assert asked == ["question"]
        assert isolation.said == []


class TestWithoutKvm:
    """A host that has none, or not for us: the reason is the system's, and names the device."""

    @pytest.mark.parametrize(
        ("device", "reason"),
        [
            ("/no/such/device", "/no/such/device: No such file or directory"),
            ("/dev/null", "/dev/null: Inappropriate ioctl for device"),
            (str(SOURCE), f"{SOURCE}: Is a directory"),
        ],
    )
    def test_is_unavailable_by_name_with_the_reason(
        self, device: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (machine, kvm_cell, __import__("instar.sandbox.kvm.device", fromlist=["DEVICE"])):
            monkeypatch.setattr(module, "DEVICE", device, raising=False)
        monkeypatch.setattr(kvm_cell, "machine", lambda: "x86_64")  # on others the device is not asked
        isolation = Isolation("kvm", single_threaded=True)
        with pytest.raises(SandboxError) as caught:
            isolation.open()
        assert caught.value.kind == "unavailable"
        assert reason in str(caught.value)
        assert "--isolation=process may work" in str(caught.value)
        assert isolation.said == [f"kvm: {reason}"]

    def test_is_known_for_processors_of_other_kinds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kvm_cell, "machine", lambda: "aarch64")
        assert kvm_cell.why_unavailable() == "no machine is known for aarch64, only for x86_64"

    def test_is_known_for_a_32_bit_program_before_anything_is_asked_of_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
        monkeypatch.setattr(seal, "syscall", None)
        for module in (kvm_cell, process_cell):
            assert module.why_unavailable() == "this Python is a 32-bit program; cells need a 64-bit one"

    @needs_kvm
    def test_is_what_a_kvm_that_lacks_something_comes_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kvm_cell.Kvm, "why_unusable", lambda self: "KVM has no read-only memory")
        isolation = Isolation("auto", single_threaded=True)
        assert isolation.open().name == "process"
        assert isolation.said == ["kvm: KVM has no read-only memory"]

    def test_leaves_no_descriptor_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = os.listdir("/proc/self/fd")
        for _ in range(10):
            kvm_cell.why_unavailable()
        assert len(os.listdir("/proc/self/fd")) == len(before)


class TestWhatWasUsed:
    @pytest.mark.parametrize("kind", ["none", "process", KVM])
    def test_is_told_by_every_result(self, kind: str, tmp_path: Path) -> None:
        isolation = Isolation(kind, single_threaded=True)
        top, base = str(tmp_path / "top"), str(tmp_path / "base")
        assert instar.create(base, "1M", format="qcow2", isolation=isolation).isolation == kind
        made = instar.create(top, format="qcow2", backing="base", backing_format="qcow2", isolation=isolation)
        assert made.isolation == kind
        assert instar.info(top, isolation=isolation).isolation == kind
        assert [image.isolation for image in instar.info_chain(top, isolation=isolation)] == [kind, kind]
        assert instar.check(top, isolation=isolation).isolation == kind
        jobs = [{"filename": str(tmp_path / name), "size": "1M", "format": "qcow2"} for name in "ab"]
        results = list(instar.create_many(jobs, isolation=isolation))
        assert [result.isolation for result in results if isinstance(result, instar.CreateResult)] == [kind, kind]

    def test_is_nothing_for_a_raw_image_by_itself(self, tmp_path: Path) -> None:
        assert instar.create(str(tmp_path / "raw"), "1M").isolation is None

    @needs_kvm
    def test_is_the_process_that_auto_came_to(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "image").write_bytes(bytes(512))
        monkeypatch.setattr(machine, "take_photo", _raise(PhotoError("no")))
        isolation = Isolation("auto", single_threaded=True)
        assert instar.info(str(tmp_path / "image"), isolation=isolation).isolation == "process"
        monkeypatch.undo()
        assert instar.info(str(tmp_path / "image"), isolation=isolation).isolation == "kvm", "of that call alone"

    def test_of_several_cells_is_the_weakest(self) -> None:
        isolation = Isolation().for_operation()
        assert isolation.weakest is None
        for kind, weakest in (("kvm", "kvm"), ("process", "process"), ("kvm", "process"), ("none", "none")):
            isolation.apart(single_threaded=False).used.add(kind)
            assert isolation.weakest == weakest
