"""A new image appears whole or not at all, whatever happens on the way and wherever it is put."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support import instar

from instar.core.errors import HostError
from instar.host.locks import hold
from instar.host.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent.parent.parent / "src"
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def write(path: Path | str, data: bytes = b"new") -> Output:
    with Output(str(path)) as output:
        output.begin()
        os.pwrite(output.fd, data, 0)
        output.commit()
        return output


def refused(path: Path | str) -> HostError:
    with pytest.raises(HostError) as caught:
        write(path)
    return caught.value


@contextlib.contextmanager
def mounted(folder: Path, kind: str, *options: str, source: str = "none") -> Iterator[Path]:
    """Mount a small file system, or skip."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", kind, *options, source, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take unnamed files away, as on file systems that lack them."""
    real = os.open

    def fake(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", fake)


class TestNewFile:
    def test_has_no_name_until_it_is_complete(self, tmp_path: Path) -> None:
        with Output(str(tmp_path / "a")) as output:
            output.begin()
            os.pwrite(output.fd, b"part", 0)
            assert os.listdir(tmp_path) == []
            output.commit()
            assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"part"

    def test_never_appears_if_it_is_not_committed(self, tmp_path: Path) -> None:
        with contextlib.suppress(KeyboardInterrupt), Output(str(tmp_path / "a")) as output:
            output.begin()
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []

    @pytest.mark.usefixtures("no_tmpfile")
    def test_never_appears_if_it_is_not_committed_where_files_must_have_names(self, tmp_path: Path) -> None:
        with contextlib.suppress(KeyboardInterrupt), Output(str(tmp_path / "a")) as output:
            output.begin()
            (name,) = os.listdir(tmp_path)
            assert name.startswith(".a.")
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []

    @pytest.mark.usefixtures("no_tmpfile")
    def test_appears_by_rename_where_files_must_have_names(self, tmp_path: Path) -> None:
        write(tmp_path / "a")
        write(tmp_path / "a", b"again")
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"again"

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o644), (0o027, 0o640)])
    @pytest.mark.parametrize("named", [False, True])
    def test_has_the_mode_that_the_mask_leaves(
        self, mask: int, mode: int, named: bool, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        if named:
            request.getfixturevalue("no_tmpfile")
        old = os.umask(mask)
        try:
            write(tmp_path / "a")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode

    def test_replaces_what_another_process_has_put_there_meanwhile(self, tmp_path: Path) -> None:
        with Output(str(tmp_path / "a")) as output:
            output.begin()
            os.pwrite(output.fd, b"mine", 0)
            (tmp_path / "a").write_text("theirs")
            output.commit()
        assert (tmp_path / "a").read_bytes() == b"mine"
        assert os.listdir(tmp_path) == ["a"]

    def test_leaves_nothing_where_a_folder_has_been_put_there_meanwhile(self, tmp_path: Path) -> None:
        with Output(str(tmp_path / "a")) as output:
            output.begin()
            (tmp_path / "a").mkdir()
            with pytest.raises(HostError, match="put the new image in place"):
                output.commit()
        assert os.listdir(tmp_path) == ["a"]

    @pytest.mark.parametrize("name", ["x" * 255, "é" * 127, os.fsdecode(b"\xff" * 200), "a b\n"])
    def test_may_have_any_name_that_the_system_takes(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / name)
        write(tmp_path / name, b"again")
        assert os.listdir(tmp_path) == [name]

    def test_is_made_where_a_dangling_link_points(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("target")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == b"new"

    def test_can_be_made_in_a_folder_that_may_not_be_listed(self, tmp_path: Path) -> None:
        folder = tmp_path / "drop"
        folder.mkdir(mode=0o300)
        write(folder / "a")
        folder.chmod(0o700)
        assert (folder / "a").read_bytes() == b"new"


class TestRefused:
    def test_where_the_folder_is_missing_with_a_hint(self, tmp_path: Path) -> None:
        error = refused(tmp_path / "no" / "a")
        assert error.errno == errno.ENOENT
        assert "create the folder first" in str(error)

    @pytest.mark.parametrize("name", [".", "sub", "sub/", "new/", "sub/.", "/"])
    def test_where_the_target_is_a_folder(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        assert refused(name if name == "/" else f"{tmp_path}/{name}").errno == errno.EISDIR

    def test_where_the_target_is_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert refused(tmp_path / "file" / "a").errno == errno.ENOTDIR

    def test_where_the_target_is_a_pipe_without_waiting(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        assert refused(tmp_path / "fifo").errno == errno.EINVAL

    @pytest.mark.parametrize("device", ["/dev/tty", "/dev/ptmx"])
    def test_where_the_target_is_a_character_device(self, device: str) -> None:
        assert refused(device).errno == errno.EINVAL
        assert stat.S_ISCHR(os.stat(device).st_mode)

    def test_where_a_device_has_no_room(self) -> None:
        with Output("/dev/null") as output:
            output.begin()
            with pytest.raises(HostError, match="No space left"):
                output.resize(1)

    def test_where_the_target_is_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        assert refused(tmp_path / "a").errno == errno.ELOOP

    @pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 300])
    def test_where_the_name_is_none(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        refused(name)
        assert os.listdir(tmp_path) == []


def as_nobody(program: str, folder: Path) -> str:
    """Run a program as a user without rights, with the folder readable to it; return what it printed."""
    for path in (folder, *folder.parents):
        if path.stat().st_uid == 0 and path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    begin = f"""
import os, sys
sys.path[:0] = {[str(SOURCE)]!r}
from instar.host.output import Output
from instar.core.errors import HostError
import instar.core.errors, instar.host.files, instar.host.locks
os.chdir({str(folder)!r})
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def write(path):
    try:
        with Output(path) as output:
            output.begin()
            os.pwrite(output.fd, b"new", 0)
            output.commit()
            print(output.in_place)
    except HostError as error:
        print(os.strerror(error.errno))
"""
    done = subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.rstrip("\n")


class TestReplaced:
    def test_only_by_a_complete_image(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        with Output(str(tmp_path / "a")) as output:
            output.begin()
            os.pwrite(output.fd, b"part", 0)
            assert (tmp_path / "a").read_text() == "old"
        assert (tmp_path / "a").read_text() == "old"
        assert write(tmp_path / "a").in_place is None
        assert (tmp_path / "a").read_text() == "new"
        assert os.listdir(tmp_path) == ["a"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o4755, 0o2755, 0o1644])
    @pytest.mark.parametrize("data", ["", "old"])
    def test_keeps_its_mode_but_nobodys_rights_to_run_with(self, data: str, mode: int, tmp_path: Path) -> None:
        (tmp_path / "a").write_text(data)
        (tmp_path / "a").chmod(mode)
        write(tmp_path / "a")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode & 0o777

    @pytest.mark.usefixtures("no_tmpfile")
    def test_is_not_open_to_others_while_it_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o600)
        with Output(str(tmp_path / "a")):
            (name,) = set(os.listdir(tmp_path)) - {"a"}
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600

    @is_root
    def test_keeps_its_owner(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        os.chown(tmp_path / "a", 1234, 2345)
        write(tmp_path / "a")
        assert ((tmp_path / "a").stat().st_uid, (tmp_path / "a").stat().st_gid) == (1234, 2345)

    def test_keeps_its_extended_attributes(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        try:
            os.setxattr(tmp_path / "a", "user.origin", b"a cloud")
        except OSError:
            pytest.skip("this file system has no extended attributes")
        write(tmp_path / "a")
        assert os.getxattr(tmp_path / "a", "user.origin") == b"a cloud"

    @pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed")
    def test_keeps_its_access_list_and_takes_none_from_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "with").write_text("old")
        (tmp_path / "without").write_text("old")
        (tmp_path / "without").chmod(0o600)
        subprocess.run(["setfacl", "-m", "u:65534:r", tmp_path / "with"], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:65534:rw", tmp_path], check=True)
        before = os.listxattr(tmp_path / "with"), os.listxattr(tmp_path / "without")
        write(tmp_path / "with")
        write(tmp_path / "without")
        assert (os.listxattr(tmp_path / "with"), os.listxattr(tmp_path / "without")) == before

    def test_follows_a_link_and_keeps_it(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a").write_text("old")
        (tmp_path / "link").symlink_to("real/a")
        write(tmp_path / "link")
        assert os.readlink(tmp_path / "link") == "real/a"
        assert (tmp_path / "real" / "a").read_text() == "new"
        assert os.listdir(tmp_path / "real") == ["a"]

    def test_leaves_the_old_image_under_its_other_names(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        os.link(tmp_path / "a", tmp_path / "other")
        write(tmp_path / "a")
        assert ((tmp_path / "a").read_text(), (tmp_path / "other").read_text()) == ("new", "old")

    def test_not_if_it_is_read_only(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o444)
        tmp_path.chmod(0o777)
        assert as_nobody("write('a')", tmp_path) == "Permission denied"
        assert (tmp_path / "a").read_text() == "old"


class TestEmpty:
    """An empty file has nothing to lose: it is written itself, for whoever made it and has it open."""

    def test_stays_the_same_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.touch(mode=0o600)
        os.link(path, tmp_path / "other")
        with contextlib.suppress(OSError):
            os.setxattr(path, "user.origin", b"x")
        before = path.stat(), os.listxattr(path)
        with path.open("rb") as held:
            assert write(path).in_place == "it is empty"
            assert held.read() == b"new"
        after = path.stat(), os.listxattr(path)
        for name in ("st_dev", "st_ino", "st_uid", "st_gid", "st_mode", "st_nlink"):
            assert getattr(after[0], name) == getattr(before[0], name)
        assert after[1] == before[1]
        assert (tmp_path / "other").read_text() == "new"
        assert sorted(os.listdir(tmp_path)) == ["a", "other"]

    @is_root
    def test_of_another_user_stays_his(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        os.chown(tmp_path / "a", 1234, 2345)
        write(tmp_path / "a")
        assert ((tmp_path / "a").stat().st_uid, (tmp_path / "a").stat().st_gid) == (1234, 2345)

    def test_is_found_by_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").touch()
        (tmp_path / "link").symlink_to("real")
        inode = (tmp_path / "real").stat().st_ino
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert ((tmp_path / "real").stat().st_ino, (tmp_path / "real").read_text()) == (inode, "new")

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, ""), ValueError()])
    def test_is_empty_again_after_a_failure(self, error: BaseException, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        inode = (tmp_path / "a").stat().st_ino
        with contextlib.suppress(type(error)), Output(str(tmp_path / "a")) as output:
            output.begin()
            output.resize(1 << 20)
            os.pwrite(output.fd, b"part", 0)
            raise error
        assert ((tmp_path / "a").stat().st_size, (tmp_path / "a").stat().st_ino) == (0, inode)

    def test_is_not_touched_before_it_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        before = (tmp_path / "a").stat().st_mtime_ns
        with Output(str(tmp_path / "a")):
            pass
        assert (tmp_path / "a").stat().st_mtime_ns == before

    def test_is_left_to_whoever_writes_to_it_meanwhile(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        with Output(str(tmp_path / "a")) as output:
            (tmp_path / "a").write_text("theirs")
            with pytest.raises(HostError, match="being written by another"):
                output.begin()
        assert (tmp_path / "a").read_text() == "theirs"

    def test_that_a_machine_uses_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        with (tmp_path / "a").open("rb") as held:
            hold(held.fileno(), "a", True, False)
            assert refused(tmp_path / "a").lock is not None
        assert (tmp_path / "a").stat().st_size == 0

    def test_keeps_no_image_that_could_not_be_made_lasting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").touch()
        with Output(str(tmp_path / "a")) as output:
            output.begin()
            os.pwrite(output.fd, b"new", 0)

            def fail(fd: int) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            monkeypatch.setattr(os, "dup", fail)
            with pytest.raises(HostError, match="put the new image in place"):
                output.commit()
        assert (tmp_path / "a").stat().st_size == 0


class TestOpenFile:
    """A name such as /dev/stdout means the file that is open, with data in it or without, whatever its name is now."""

    @pytest.mark.parametrize("old", ["", "old and longer"])
    @pytest.mark.parametrize("name", ["/dev/fd/{fd}", "/proc/self/fd/{fd}", "{folder}/link"])
    def test_is_written_in_place(self, name: str, old: str, tmp_path: Path) -> None:
        (tmp_path / "a").write_text(old)
        with (tmp_path / "a").open("r+b") as held:
            (tmp_path / "link").symlink_to(f"/dev/fd/{held.fileno()}")
            assert write(name.format(fd=held.fileno(), folder=tmp_path)).in_place == "it is a file that is open already"
            assert held.read() == b"new"

    def test_is_written_also_where_its_name_is_gone(self, tmp_path: Path) -> None:
        with (tmp_path / "a").open("w+b") as held:
            (tmp_path / "a").unlink()
            write(f"/dev/fd/{held.fileno()}")
            assert held.read() == b"new"
        assert os.listdir(tmp_path) == []


@is_root
class TestLinksOfOthers:
    """In a folder like /tmp only one's own links and the folder owner's are followed (fs.protected_symlinks)."""

    @pytest.fixture
    def shared(self, tmp_path: Path) -> Path:
        folder = tmp_path / "shared"
        folder.mkdir()
        folder.chmod(0o1777)
        (tmp_path / "precious").write_text("mine")
        return folder

    @staticmethod
    def link(path: Path, target: str, owner: int) -> None:
        path.symlink_to(target)
        os.chown(path, owner, owner, follow_symlinks=False)

    @pytest.mark.parametrize("target", ["../precious", "../new"])
    def test_are_not_followed(self, target: str, shared: Path) -> None:
        self.link(shared / "a", target, 1234)
        assert refused(shared / "a").errno == errno.EACCES
        assert (shared.parent / "precious").read_text() == "mine"
        assert not (shared.parent / "new").exists()

    def test_are_not_followed_at_the_end_of_ones_own(self, shared: Path) -> None:
        self.link(shared / "a", "../precious", 1234)
        (shared.parent / "own").symlink_to("shared/a")
        assert refused(shared.parent / "own").errno == errno.EACCES

    @pytest.mark.parametrize(("owner", "mode"), [(0, 0o1777), (1234, 0o777), (1234, 0o1755)])
    def test_are_followed_where_the_kernel_follows_them(self, owner: int, mode: int, shared: Path) -> None:
        shared.chmod(mode)
        self.link(shared / "a", "../precious", owner)
        write(shared / "a")
        assert (shared.parent / "precious").read_text() == "new"

    def test_the_folders_owner_may_have_links_there(self, shared: Path) -> None:
        os.chown(shared, 1234, 1234)
        self.link(shared / "a", "../precious", 1234)
        write(shared / "a")
        assert (shared.parent / "precious").read_text() == "new"

    @pytest.mark.parametrize("call", ["stat", "open", "readlink"])
    @pytest.mark.parametrize("earlier", ["", "old", None], ids=["empty", "data", "new"])
    def test_that_come_between_two_steps_are_not_followed(
        self, earlier: str | None, call: str, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever call a stranger waits for, on whatever name."""
        hits = 0
        for number in range(20):
            path = shared / f"a{number}"
            if earlier is not None:
                path.write_text(earlier)
            count = 0
            real = getattr(os, call)

            def strike(*words: object, path: Path = path, number: int = number, **more: object) -> object:
                nonlocal count, hits
                try:
                    return real(*words, **more)  # noqa: B023 - it is always the same
                finally:
                    count += 1
                    if count == number + 1:
                        hits += 1
                        path.unlink(missing_ok=True)
                        self.link(path, "../precious", 1234)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, strike)
                with contextlib.suppress(HostError):
                    write(path)
            assert (shared.parent / "precious").read_text() == "mine", (call, number)
        assert hits or call == "readlink"


class TestInPlace:
    def test_in_a_folder_that_may_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old and longer")
        (tmp_path / "a").chmod(0o666)
        tmp_path.chmod(0o555)
        assert as_nobody("write('a')\nwrite('b')", tmp_path) == "its folder may not be written\nPermission denied"
        assert (tmp_path / "a").read_text() == "new"

    @is_root
    def test_where_the_owner_could_not_be_kept(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o666)
        tmp_path.chmod(0o777)
        assert as_nobody("write('a')", tmp_path) == "a new file could not be given its owner"
        assert (tmp_path / "a").stat().st_uid == 0
        assert os.listdir(tmp_path) == ["a"]

    @is_root
    def test_in_a_sticky_folder_of_others(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o666)
        tmp_path.chmod(0o1777)
        assert "sticky" in as_nobody("write('a')", tmp_path)
        assert (tmp_path / "a").read_text() == "new"

    @is_root
    @pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
    def test_of_a_file_that_is_mounted_over_a_name(self, tmp_path: Path) -> None:
        """As containers get single files; both names lie on one file system, so device numbers do not tell."""
        (tmp_path / "a").write_text("hidden")
        (tmp_path / "b").write_text("old")
        program = f"""
import sys
sys.path[:0] = [{str(SOURCE)!r}]
from instar.host.output import Output
import os
with Output({str(tmp_path / "a")!r}) as output:
    assert open({str(tmp_path / "a")!r}).read() == "old", "emptied too early"
    output.begin()
    os.pwrite(output.fd, b"new", 0)
    output.commit()
    print(output.in_place)
"""
        script = 'mount --bind "$1" "$2" && exec "$3" -c "$4"'
        words = [f"{tmp_path}/b", f"{tmp_path}/a", sys.executable, program]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False
        )
        if "mount:" in done.stderr:
            pytest.skip(f"a file cannot be mounted here: {done.stderr.strip()}")
        assert done.stdout == "it is a mount point\n", done.stderr
        assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("hidden", "new")

    @is_root
    @pytest.mark.skipif(shutil.which("losetup") is None, reason="losetup is not installed")
    def test_of_a_block_device(self, tmp_path: Path) -> None:
        (tmp_path / "store").write_bytes(b"\xff" * (1 << 20))
        done = subprocess.run(
            ["losetup", "--find", "--show", tmp_path / "store"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"there is no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            with Output(device) as output:
                assert (output.in_place, output.is_device, output.size) == ("it is a block device", True, 1 << 20)
                output.begin()
                with pytest.raises(HostError, match="device of 1048576"):
                    output.resize((1 << 20) + 1)
                output.resize(1 << 20)
                os.pwrite(output.fd, b"new", 0)
                output.commit()
            assert Path(device).is_block_device()
        finally:
            subprocess.run(["losetup", "-d", device], check=True)
        assert (tmp_path / "store").read_bytes()[:5] == b"new\xff\xff"


@is_root
class TestNoSpace:
    def test_leaves_the_old_image_and_nothing_else(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "tmpfs", "-o", "size=1m") as folder:
            (folder / "a").write_text("old")
            done = instar("create", "-f", "qcow2", "-o", "preallocation=metadata", folder / "a", "100G")
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert (folder / "a").read_text() == "old"
            assert os.listdir(folder) == ["a"]
            done = instar("create", "-o", "preallocation=full", folder / "b", "10M")
            assert "No space left on device" in done.stderr
            assert os.listdir(folder) == ["a"]
            assert os.statvfs(folder).f_bavail > 200

    @pytest.mark.parametrize("kind", ["auto", "process", "none"])
    def test_is_said_of_the_file_that_could_not_be_written(self, kind: str, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "tmpfs", "-o", "size=1m") as folder:
            words = ["create", f"--isolation={kind}", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]
            done = instar(*words, folder / "t.vmdk", "900G")
            warned = r"instar: warning: [^\n]*\n" if kind == "none" else ""
            said = rf"{warned}instar: {re.escape(str(folder))}/t-s\d+\.vmdk: cannot write it: No space"
            assert re.match(said, done.stderr), done.stderr
            assert os.listdir(folder) == []


class TestWithoutUnnamedFiles:
    """On a file system that has none, a signal that ends the program takes the temporary file along."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_leaves_no_temporary_file(self, number: signal.Signals, tmp_path: Path) -> None:
        program = f"""
import errno, os, sys, time
sys.path[:0] = [{str(SOURCE)!r}]
real = os.open
def fake(path, flags, *rest, **more):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "")
    return real(path, flags, *rest, **more)
os.open = fake
from instar.host.output import Output
with Output({str(tmp_path / "a")!r}) as output:
    print("ready", flush=True)
    time.sleep(60)
"""
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            assert len(os.listdir(tmp_path)) == 1
            child.send_signal(number)
        assert child.returncode == -number, "it ended as if nothing had been caught"
        assert os.listdir(tmp_path) == []

    @pytest.mark.usefixtures("no_tmpfile")
    def test_handlers_of_the_program_are_left_alone(self, tmp_path: Path) -> None:
        mine = lambda number, frame: None  # noqa: E731
        old = signal.signal(signal.SIGTERM, mine)
        try:
            with Output(str(tmp_path / "a")):
                assert signal.getsignal(signal.SIGTERM) is mine
                assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        finally:
            signal.signal(signal.SIGTERM, old)

    def test_no_handler_is_set_where_it_is_not_needed(self, tmp_path: Path) -> None:
        with Output(str(tmp_path / "a")) as output:
            if any(tmp_path.iterdir()):
                pytest.skip("this file system has no unnamed files")
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            output.commit()

    @is_root
    @pytest.mark.parametrize("kind", ["vfat", "ramfs", "overlay"])
    def test_images_are_made_on_other_file_systems(self, kind: str, tmp_path: Path) -> None:
        options: tuple[str, ...] = ()
        source = "none"
        if kind == "vfat":
            if shutil.which("mkfs.vfat") is None:
                pytest.skip("mkfs.vfat is not installed")
            source = str(tmp_path / "fat")
            subprocess.run(["mkfs.vfat", "-C", source, "1024"], check=True, capture_output=True)
        if kind == "overlay":
            base = tmp_path / "layers"
            for name in ("lower", "upper", "work"):
                (base / name).mkdir(parents=True)
            (base / "lower" / "disk").write_text("old")
            options = ("-o", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
        with mounted(tmp_path / "mnt", kind, *options, source=source) as folder:
            for _ in range(2):
                done = instar("create", "-f", "qcow2", "-v", folder / "disk", "1M")
                assert done.returncode == 0, done.stderr
                assert "in place" not in done.stderr
                assert os.listdir(folder) == ["disk"]


class TestInterrupted:
    """Signals at random moments of a real ``create`` that takes a while."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
    @pytest.mark.parametrize("existing", [None, "old", ""], ids=["new", "old", "empty"])
    def test_leaves_the_target_as_it_was(self, number: signal.Signals, existing: str | None, tmp_path: Path) -> None:
        random.seed(f"{number}{existing}")
        target = tmp_path / "disk"
        words = [sys.executable, "-m", "instar", "create", "-f", "qcow2", "-o", "preallocation=metadata"]
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        started = time.monotonic()
        subprocess.run([*words, target, "200G"], env=env, check=True, capture_output=True)
        takes = time.monotonic() - started
        whole = target.stat().st_size
        target.unlink()
        early = 0
        for _ in range(12):
            if existing is not None:
                target.write_text(existing)
            child = subprocess.Popen(
                [*words, str(target), "200G"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            with child:
                time.sleep(takes * random.random())
                child.send_signal(number)
                _, said = child.communicate(timeout=60)
            if child.returncode != 0:
                early += 1
                # An interrupt may come before Python has begun with the program, which then ends as Python likes.
                assert child.returncode == -number or number == signal.SIGINT, said
                if target.exists() and target.stat().st_size == whole:
                    target.unlink()  # it came when all was done, but before the program had ended
                    continue
                assert os.listdir(tmp_path) == ([] if existing is None else ["disk"])
                if existing == "" and number == signal.SIGKILL:
                    continue  # nobody could empty it again; there was nothing to lose
                assert existing is None or target.read_text() == existing
            else:
                assert os.listdir(tmp_path) == ["disk"]
                assert target.stat().st_size > 1 << 20
                target.unlink()
        assert early > 2, "the signals came too late to show anything"
