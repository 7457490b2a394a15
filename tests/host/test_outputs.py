"""The files of one image appear together or not at all, wherever it goes wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instar.core.errors import HostError, OptionError
from instar.core.plan import Companion
from instar.host.output import Output
from instar.host.outputs import Outputs, companion_path

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent.parent.parent / "src"
NAMES = ("image", "one", "two")
COMPANIONS = (Companion("one"), Companion("two"))


def write(outputs: Outputs, data: bytes = b"new") -> None:
    outputs.begin()
    for output in outputs:
        os.pwrite(output.fd, data, 0)


def make(folder: Path, *companions: Companion) -> None:
    with Outputs(str(folder / "image"), companions or COMPANIONS) as outputs:
        write(outputs)
        outputs.commit()


def state(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def old(folder: Path, *names: str) -> dict[str, str]:
    for name in names:
        (folder / name).write_text(f"old {name}")
    return state(folder)


NEW = dict.fromkeys(NAMES, "new")


class TestEmpty:
    """Each file is judged by itself: an empty one is written itself, others are replaced."""

    def test_files_are_written_and_others_replaced(self, tmp_path: Path) -> None:
        old(tmp_path, "two")
        (tmp_path / "one").touch()
        inodes = {name: (tmp_path / name).stat().st_ino for name in ("one", "two")}
        with Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
            write(outputs)
            assert outputs.in_place == "it is empty"
            outputs.commit()
        assert state(tmp_path) == NEW
        assert (tmp_path / "one").stat().st_ino == inodes["one"]
        assert (tmp_path / "two").stat().st_ino != inodes["two"]

    @pytest.mark.parametrize("empty", [("image",), ("one",), NAMES])
    def test_files_are_empty_again_when_another_cannot_be_placed(
        self, empty: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in empty:
            (tmp_path / name).touch()
        before = state(tmp_path)
        with Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
            write(outputs)

            def fail(output: Output, **_: object) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            monkeypatch.setattr(Output, "put_in_place", fail)
            with pytest.raises(HostError, match="put the new image in place"):
                outputs.commit()
        assert state(tmp_path) == before


class TestPlaced:
    def test_new_files_have_no_name_until_all_are_complete(self, tmp_path: Path) -> None:
        with Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
            write(outputs)
            assert os.listdir(tmp_path) == []
            outputs.commit()
        assert state(tmp_path) == NEW

    def test_what_is_replaced_stays_until_all_are_complete(self, tmp_path: Path) -> None:
        before = old(tmp_path, *NAMES)
        with Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
            write(outputs)
            assert state(tmp_path) == before
            outputs.commit()
        assert state(tmp_path) == NEW

    def test_some_may_be_new_and_some_replaced(self, tmp_path: Path) -> None:
        old(tmp_path, "one", "image")
        make(tmp_path)
        assert state(tmp_path) == NEW

    def test_nothing_is_left_when_they_are_abandoned(self, tmp_path: Path) -> None:
        before = old(tmp_path, "one")
        with contextlib.suppress(KeyboardInterrupt), Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
            write(outputs)
            raise KeyboardInterrupt
        assert state(tmp_path) == before

    def test_companions_stand_beside_the_name_of_the_image_also_where_that_is_a_link(self, tmp_path: Path) -> None:
        """QEMU makes them, and looks for them, there."""
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
        (tmp_path / "here/image").symlink_to("../there/real")
        make(tmp_path / "here")
        assert sorted(os.listdir(tmp_path / "here")) == ["image", "one", "two"]
        assert os.listdir(tmp_path / "there") == ["real"]

    def test_descriptors_are_all_closed(self, tmp_path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            make(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_program_with_few_descriptors_gets_more_for_as_long_as_it_takes(self, tmp_path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limits[1] != resource.RLIM_INFINITY and limits[1] < 1000:
            pytest.skip("this machine does not allow as many")
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        try:
            make(tmp_path, *(Companion(f"c{n}") for n in range(300)))
            make(tmp_path, *(Companion(f"c{n}") for n in range(300)))
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(os.listdir(tmp_path)) == 301


class Fault:
    """Makes the n-th change of a name in this process go wrong, before or after it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, *, late: bool) -> None:
        self.left = number
        self.error = error
        self.late = late
        for name in ("link", "rename", "unlink"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*words: object, **more: object) -> None:
            self.left -= 1
            if self.left == 0 and not self.late:
                raise self.error
            real(*words, **more)
            if self.left == 0:
                raise self.error

        return wrapped


@pytest.mark.parametrize("existing", [(), ("one",), ("image",), NAMES])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "")], ids=["interrupt", "error"])
def test_a_fault_at_any_step_leaves_all_or_none(
    error: BaseException, late: bool, existing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    while True:
        steps += 1
        folder = tmp_path / str(steps)
        folder.mkdir()
        before = old(folder, *existing)
        with monkeypatch.context() as patch:
            fault = Fault(patch, steps, error, late=late)
            try:
                make(folder)
            except (KeyboardInterrupt, HostError):
                interrupted = True
            else:
                interrupted = False
        found = state(folder)
        # A backup that cannot be removed once everything is in place is all that may be left over.
        assert {k: v for k, v in found.items() if not k.endswith(".instar")} in (before, NEW), (steps, found)
        if interrupted and not isinstance(error, KeyboardInterrupt):
            assert found == before
        if fault.left > 0:
            break
        shutil.rmtree(folder)
    assert steps > 3


def test_a_folder_in_the_place_of_the_last_file_takes_all_back(tmp_path: Path) -> None:
    before = old(tmp_path, "one")
    with Outputs(str(tmp_path / "image"), COMPANIONS) as outputs:
        write(outputs)
        (tmp_path / "image").mkdir()
        with pytest.raises(HostError, match="image: cannot put the new image in place"):
            outputs.commit()
    (tmp_path / "image").rmdir()
    assert state(tmp_path) == before


def test_a_folder_in_the_place_of_a_companion_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with pytest.raises(HostError, match="two: cannot create it: Is a directory") as caught:
        make(tmp_path)
    assert caught.value.role == "companion"
    assert os.listdir(tmp_path) == ["two"]


class TestSameFile:
    def test_two_names_of_one_new_file(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError) as caught:
            make(tmp_path, Companion("image"))
        assert caught.value.code == "companion-same-file"
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_links_to_one_file(self, link: Callable[[Path, Path], None], tmp_path: Path) -> None:
        old(tmp_path, "image")
        link(tmp_path / "image", tmp_path / "one")
        with pytest.raises(OptionError) as caught:
            make(tmp_path)
        assert caught.value.code == "companion-same-file"
        assert (tmp_path / "image").read_text() == "old image"

    def test_folders_by_two_names(self, tmp_path: Path) -> None:
        (tmp_path / "sub").symlink_to(".")
        with pytest.raises(OptionError):
            make(tmp_path, Companion("sub/image"))


class TestKept:
    def test_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(HostError) as caught:
            make(tmp_path, Companion("one", keep=True))
        assert (caught.value.errno, caught.value.role) == (errno.ENOENT, "companion")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(("size", "length"), [(0, 7), (3, 7), (7, 7), (9, 9)])
    def test_only_grows(self, size: int, length: int, tmp_path: Path) -> None:
        old(tmp_path, "one")
        with Outputs(str(tmp_path / "image"), [Companion("one", keep=True)]) as outputs:
            outputs.begin()
            outputs[1].resize(size)
            outputs.commit()
        assert (tmp_path / "one").read_bytes() == b"old one".ljust(length, b"\0")

    def test_has_its_length_back_when_something_goes_wrong(self, tmp_path: Path) -> None:
        before = old(tmp_path, "one")
        kept = [Companion("one", keep=True)]
        with contextlib.suppress(KeyboardInterrupt), Outputs(str(tmp_path / "image"), kept) as outputs:
            outputs.begin()
            outputs[1].resize(100)
            assert (tmp_path / "one").stat().st_size == 100
            raise KeyboardInterrupt
        assert state(tmp_path) == before


class TestNames:
    @pytest.mark.parametrize(
        ("image", "companion", "path"),
        [
            ("image", Companion("one"), "one"),
            ("a/image", Companion("one"), "a/one"),
            ("a/image", Companion("b:c"), "a/b:c"),
            ("a/image", Companion("/x/one"), "/x/one"),
            ("a/image", Companion("one", from_cwd=True), "one"),
            ("a/image", Companion("file:one", from_cwd=True), "one"),
        ],
    )
    def test_are_seen_from_the_folder_of_the_image_or_from_here(
        self, image: str, companion: Companion, path: str
    ) -> None:
        assert companion_path(image, companion) == path

    def test_of_other_protocols_are_refused(self) -> None:
        with pytest.raises(OptionError) as caught:
            companion_path("image", Companion("nbd:one", from_cwd=True))
        assert caught.value.code == "unknown-protocol"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("existing", [False, True])
def test_a_signal_during_a_real_create_leaves_all_or_none_and_loses_nothing(
    number: signal.Signals, existing: bool, tmp_path: Path
) -> None:
    """The files are told apart by their size: 1 MiB before, 5 GiB in three of them after."""
    random.seed(f"{number}{existing}")
    words = [sys.executable, "-m", "instar", "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}

    def create(size: str) -> subprocess.Popen[bytes]:
        line = [*words, str(tmp_path / "d.vmdk"), size]
        return subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def sizes() -> list[int]:
        return [path.stat().st_size for path in sorted(tmp_path.glob("d-f*"))]

    new = [2 << 30, 2 << 30, 1 << 30]
    started = time.monotonic()
    assert create("5G").wait() == 0
    takes = time.monotonic() - started
    assert sizes() == new
    early = 0
    for _ in range(6):
        for path in tmp_path.iterdir():
            path.unlink()
        before = []
        if existing:
            (tmp_path / "d.vmdk").touch()
            (tmp_path / "d-f001.vmdk").write_bytes(bytes(1 << 20))
            before = [1 << 20]
        with create("5G") as child:
            time.sleep(takes * random.random())
            child.send_signal(number)
        early += child.returncode != 0
        if number != signal.SIGKILL:
            assert sizes() in (before, new)
            assert len(os.listdir(tmp_path)) == len(sizes()) + bool(sizes())
        elif existing and sizes() != new:
            # Killed between two renames: what was there is still there, under whatever name.
            assert 1 << 20 in [path.stat().st_size for path in tmp_path.iterdir()]
    assert early > 1, "the signals came too late to show anything"
