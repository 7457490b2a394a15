"""What an image may name: the policy is the text's first, then every component's, then the file's own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instar.core.errors import HostError, ImageError, InstarError
from instar.host.files import open_image
from instar.host.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent.parent.parent / "src"


class Place:
    """A folder ``home`` with an image and neighbours, and a folder ``outside`` beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.outside = root / "outside"
        (self.home / "sub" / "deep").mkdir(parents=True)
        self.outside.mkdir()
        self.image = self.home / "top.img"
        for path in (self.image, self.home / "base", self.home / "sub" / "base", self.home / "sub" / "deep" / "base"):
            path.write_text(path.relative_to(root).as_posix())
        (self.outside / "secret").write_text("outside/secret")

    def open(
        self,
        name: str | bytes,
        *,
        allow: tuple[str, ...] = (),
        image: Path | str | None = None,
        relative_to: str | None = None,
    ) -> str:
        with open_image(str(image or self.image)) as opened:
            gate = Gate(opened, allow)
            written = name if isinstance(name, bytes) else os.fsencode(name)
            with gate.open(written, relative_to=relative_to or opened.home) as file:
                assert file.path == os.fsdecode(name)
                return os.pread(file.fd, 100, 0).decode()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path.resolve())


def denied(place: Place, name: str | bytes, **options: object) -> str:
    """Fail unless a name is denied; return why."""
    with pytest.raises(ImageError) as caught:
        place.open(name, **options)  # type: ignore[arg-type]
    assert caught.value.kind == "denied"
    return str(caught.value)


class TestInside:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("base", "home/base"),
            ("./base", "home/base"),
            ("sub/base", "home/sub/base"),
            ("sub//deep/./base", "home/sub/deep/base"),
            ("sub/../base", "home/base"),
            ("sub/deep/../../sub/base", "home/sub/base"),
            ("../home/base", "home/base"),
            ("../../{up}/home/sub/base", "home/sub/base"),
            ("{home}/base", "home/base"),
            ("/{home}/base", "home/base"),
            ("{home}/../home/./base", "home/base"),
        ],
    )
    def test_a_name_is_followed(self, name: str, found: str, place: Place) -> None:
        assert place.open(name.format(home=place.home, up=place.root.name)) == found

    def test_a_link_to_the_inside_is_followed(self, place: Place) -> None:
        (place.home / "link").symlink_to("sub/base")
        (place.home / "sub" / "back").symlink_to("../base")
        (place.home / "absolute").symlink_to(place.home / "base")
        (place.home / "chain").symlink_to("link")
        assert place.open("link") == "home/sub/base"
        assert place.open("sub/back") == "home/base"
        assert place.open("absolute") == "home/base"
        assert place.open("chain") == "home/sub/base"

    def test_a_folder_that_is_a_link_to_the_inside_is_followed(self, place: Place) -> None:
        (place.home / "folder").symlink_to("sub/deep")
        assert place.open("folder/base") == "home/sub/deep/base"
        assert place.open("folder/../base") == "home/sub/base"  # as the kernel reads it, not the text

    def test_names_that_are_no_utf8_are_followed(self, place: Place) -> None:
        (place.home / os.fsdecode(b"\xff\xfe")).write_text("odd")
        assert place.open(b"\xff\xfe") == "odd"

    def test_the_folder_is_that_of_the_name_by_which_the_image_was_opened(self, place: Place) -> None:
        links = place.root / "links"
        links.mkdir()
        (links / "top.img").symlink_to(place.image)
        (links / "base").write_text("links/base")
        assert place.open("base", image=links / "top.img") == "links/base"
        assert place.open(str(place.home / "base"), image=links / "top.img") == "home/base"

    def test_the_folder_may_itself_be_reached_through_a_link(self, place: Place) -> None:
        (place.root / "alias").symlink_to("home")
        image = place.root / "alias" / "top.img"
        assert place.open("base", image=image) == "home/base"
        assert place.open(f"{place.root}/alias/base", image=image) == "home/base"
        assert place.open(f"{place.home}/base", image=image) == "home/base"

    def test_names_are_seen_from_the_layer_that_has_them(self, place: Place) -> None:
        assert place.open("base", relative_to=str(place.home / "sub" / "middle")) == "home/sub/base"
        assert place.open("../base", relative_to=str(place.home / "sub" / "middle")) == "home/base"

    def test_relative_images_are_seen_from_the_working_folder(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(place.home / "sub")
        Path("x.img").touch()
        assert place.open("base", image="../top.img") == "home/base"
        assert place.open("base", image="x.img") == "home/sub/base"


class TestOutside:
    @pytest.mark.parametrize(
        "name",
        [
            "../outside/secret",
            "{out}/secret",
            "/etc/passwd",
            "sub/../../outside/secret",
            "./../outside/./secret",
            "../outside/nothing",
            "/proc/self/fd/0",
            "..",
            ".",
            "",
            "/",
            "//",
            "../home-sibling",
            "{home}-sibling/x",
        ],
    )
    def test_a_name_is_denied(self, name: str, place: Place) -> None:
        (place.root / "home-sibling").mkdir()
        denied(place, name.format(home=place.home, out=place.outside))

    @pytest.mark.parametrize(
        "name",
        [
            "json:{}",
            'json:{"driver":"file","filename":"base"}',
            "nbd://host/x",
            "nbd:unix:/run/x",
            "file:base",
            "file:///etc/passwd",
            "host_device:/dev/sda",
            "fat:/etc",
            "ssh://host/x",
            "https://host/x",
            "rbd:pool/x",
            "a:b",
            ":x",
            "blkdebug::x",
        ],
    )
    def test_a_protocol_is_never_opened(self, name: str, place: Place) -> None:
        if "/" not in name:
            (place.home / name).write_text("a file of that name")
        denied(place, name)
        denied(place, name, allow=("/",))

    @pytest.mark.parametrize("name", [b"a\0b", b"\0"])
    def test_a_name_with_a_nul_is_denied(self, name: bytes, place: Place) -> None:
        denied(place, name)

    def test_a_link_to_the_outside_is_denied(self, place: Place) -> None:
        (place.home / "a").symlink_to(place.outside / "secret")
        (place.home / "b").symlink_to("../outside/secret")
        (place.home / "c").symlink_to("a")
        (place.home / "sub" / "d").symlink_to("../b")
        (place.home / "e").symlink_to("/etc/passwd")
        for name in ("a", "b", "c", "sub/d", "e"):
            denied(place, name)

    def test_a_folder_that_is_a_link_to_the_outside_is_denied(self, place: Place) -> None:
        (place.home / "folder").symlink_to(place.outside)
        denied(place, "folder/secret")
        # by its text this stays inside; the kernel would go to the folder beside the link's target
        (place.root / "base").write_text("the wrong one")
        denied(place, "folder/../base")

    @pytest.mark.parametrize("target", ["loop", "./loop", "sub/../loop", "pair"])
    def test_a_loop_of_links_is_denied(self, target: str, place: Place) -> None:
        (place.home / "loop").symlink_to(target)
        (place.home / "pair").symlink_to("loop")
        assert "loop of links" in denied(place, "loop")

    def test_a_link_that_grows_is_denied(self, place: Place) -> None:
        (place.home / "grow").symlink_to("grow/grow/x/x/x")
        with pytest.raises(InstarError):
            place.open("grow")

    def test_the_message_says_how_to_allow_it(self, place: Place) -> None:
        assert f"--allow-path={place.outside}" in denied(place, f"{place.outside}/secret")

    def test_an_image_in_the_root_folder_does_not_open_the_whole_machine(self, place: Place) -> None:
        image = Path(f"/instar-test-{os.getpid()}.img")
        try:
            image.touch()
        except OSError as error:
            pytest.skip(f"needs to write to the root folder: {error}")
        try:
            denied(place, "/etc/passwd", image=image)
            denied(place, "etc/passwd", image=image)
            with pytest.raises(ImageError) as caught:
                place.open("no-such-neighbour", image=image)
            assert caught.value.kind == "not-found"
            assert place.open("/etc/passwd", image=image, allow=("/",))
        finally:
            image.unlink()


class TestAllowed:
    def test_a_folder_and_what_lies_below_is_opened(self, place: Place) -> None:
        allow = (str(place.outside),)
        assert place.open("../outside/secret", allow=allow) == "outside/secret"
        assert place.open(f"{place.outside}/secret", allow=allow) == "outside/secret"
        (place.home / "link").symlink_to(place.outside / "secret")
        assert place.open("link", allow=allow) == "outside/secret"

    def test_a_folder_may_be_named_by_a_link(self, place: Place) -> None:
        (place.root / "alias").symlink_to("outside")
        assert place.open(f"{place.root}/alias/secret", allow=(f"{place.root}/alias",)) == "outside/secret"
        assert place.open(f"{place.outside}/secret", allow=(f"{place.root}/alias",)) == "outside/secret"

    def test_a_link_out_of_it_is_denied(self, place: Place) -> None:
        third = place.root / "third"
        third.mkdir()
        (third / "x").write_text("x")
        (place.outside / "link").symlink_to(third / "x")
        denied(place, f"{place.outside}/link", allow=(str(place.outside),))

    def test_it_does_not_open_a_folder_whose_name_only_begins_alike(self, place: Place) -> None:
        (place.root / "outside2").mkdir()
        (place.root / "outside2" / "x").write_text("x")
        denied(place, f"{place.root}/outside2/x", allow=(str(place.outside),))


class TestKinds:
    def test_only_regular_files_are_opened(self, place: Place) -> None:
        os.mkfifo(place.home / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.home / "socket"))
            for name in ("fifo", "socket", "sub", "sub/"):
                assert "regular file" in denied(place, name)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make device nodes")
    def test_devices_are_denied_and_not_even_opened(self, place: Place) -> None:
        os.mknod(place.home / "null", 0o20666, os.makedev(1, 3))
        os.mknod(place.home / "loop", 0o60666, os.makedev(7, 99))
        denied(place, "null")
        denied(place, "loop")
        denied(place, "null", allow=(str(place.home),))

    @pytest.mark.parametrize("name", ["nothing", "sub/nothing", "nothing/nothing", "base/below", "dangling"])
    def test_what_is_not_there_is_not_found(self, name: str, place: Place) -> None:
        (place.home / "dangling").symlink_to("sub/nothing")
        with pytest.raises(ImageError) as caught:
            place.open(name)
        assert caught.value.kind == "not-found"

    def test_what_may_not_be_read_is_an_error_of_the_system_about_that_name(self, place: Place) -> None:
        program = f"""
import os, sys
sys.path[:0] = [{str(SOURCE)!r}]
from instar.host.files import open_image
from instar.host.gate import Gate
from instar.core.errors import HostError
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
image = open_image({str(place.image)!r})
try:
    Gate(image).open(b"sub/base", relative_to=image.home)
except HostError as error:
    print(error)
"""
        for folder in (place.root, *place.root.parents):
            if folder.stat().st_mode & 0o005 != 0o005 and folder.owner() == "root" and folder != Path("/"):
                folder.chmod(0o755)
        (place.home / "sub" / "base").chmod(0)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "sub/base: cannot open: Permission denied\n", done.stderr

    def test_nothing_stays_open_after_a_refusal(self, place: Place) -> None:
        (place.home / "link").symlink_to("../outside/secret")
        before = os.listdir("/proc/self/fd")
        for name in ("../x", "link", "nothing", "sub", "sub/deep/nothing"):
            with pytest.raises(ImageError):
                place.open(name)
        assert os.listdir("/proc/self/fd") == before

    @pytest.mark.parametrize("path", ["\0", "a\0b", "\ud800"])
    def test_an_image_path_that_is_none_is_an_error_of_the_system(self, path: str) -> None:
        with pytest.raises(HostError, match="cannot be a file name"):
            open_image(path)

    def test_a_folder_to_allow_that_is_none_is_an_error_of_the_system(self, place: Place) -> None:
        with pytest.raises(HostError, match="cannot be a file name"):
            place.open("base", allow=("a\0b",))


#: A name that an image gives, and what shells would do with it.
UNSAFE = "/tmp/$(touch x)/`y`/it's;z/f"


@contextlib.contextmanager
def bound(source: Path | str, target: Path) -> Iterator[None]:
    """Mount something a second time, or skip."""
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


class TestOwnFolder:
    """An image opens its folder only if it is a file among people's files."""

    @pytest.fixture
    def shared(self) -> Iterator[Path]:
        """Return a file in /dev/shm that an image in /dev would have below its own folder."""
        path = Path(f"/dev/shm/instar-test-{os.getpid()}")
        try:
            path.write_text("secret")
        except OSError as error:
            pytest.skip(f"there is no /dev/shm: {error}")
        yield path
        path.unlink()

    @pytest.mark.parametrize("image", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "{home}/in"])
    def test_is_none_of_a_descriptor_by_name(self, image: str, place: Place, shared: Path) -> None:
        (place.home / "in").symlink_to("/dev/stdin")
        earlier = os.dup(0)
        with place.image.open() as file:
            os.dup2(file.fileno(), 0)
        try:
            image = image.format(home=place.home)
            for name in (f"shm/{shared.name}", str(shared), "base", str(place.home / "base"), "null", "fd/0"):
                denied(place, name, image=image)
            assert place.open(str(shared), image=image, allow=("/dev/shm",)) == "secret"
            assert place.open(str(place.home / "base"), image=image, allow=(str(place.home),)) == "home/base"
        finally:
            os.dup2(earlier, 0)
            os.close(earlier)

    def test_is_none_of_a_device(self, place: Place, shared: Path) -> None:
        (place.home / "link").symlink_to("/dev/null")
        for image in ("/dev/null", "/dev/zero", str(place.home / "link")):
            for name in (f"shm/{shared.name}", str(shared), "base", str(place.home / "base")):
                denied(place, name, image=image)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make device nodes")
    def test_is_none_of_a_device_that_lies_among_files(self, place: Place) -> None:
        os.mknod(place.home / "node", 0o20666, os.makedev(1, 3))
        denied(place, "base", image=place.home / "node")

    @pytest.mark.parametrize("image", ["/proc/self/status", "/proc/version", "/sys/kernel/notes"])
    def test_is_none_of_what_the_kernel_makes_up(self, image: str, place: Place) -> None:
        if not os.access(image, os.R_OK):
            pytest.skip(f"there is no {image} here")
        for name in ("status", "version", "notes", "../version", "base"):
            denied(place, name, image=image)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
    def test_is_none_where_the_kernels_folders_have_other_names(self, place: Place) -> None:
        (place.home / "file").touch()
        with bound("/proc/version", place.home / "file"):
            denied(place, "base", image=place.home / "file")
        (place.home / "folder").mkdir()
        with bound("/proc/sys/kernel", place.home / "folder"):
            denied(place, "hostname", image=place.home / "folder/ostype")
        device = Path(f"/dev/instar-test-{os.getpid()}")
        device.write_text("an image on devtmpfs")
        try:
            with bound("/dev", place.home / "folder"):
                denied(place, "null", image=place.home / "folder" / device.name)
                assert "no folder is open" in denied(place, device.name, image=place.home / "folder" / device.name)
        finally:
            device.unlink()

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to put a link into /dev")
    def test_is_none_of_a_file_that_is_named_by_way_of_dev(self, place: Place) -> None:
        link = Path(f"/dev/instar-test-{os.getpid()}")
        link.symlink_to(place.image)
        (place.home / "there").symlink_to(link)
        try:
            for image in (link, place.home / "there"):
                denied(place, "base", image=image)
                denied(place, str(place.home / "base"), image=image)
        finally:
            link.unlink()

    def test_is_that_of_a_file_in_shared_memory(self, place: Place, shared: Path) -> None:
        assert place.open(shared.name, image=shared) == "secret"
        denied(place, "../null", image=shared)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
    def test_is_that_of_a_file_that_is_mounted_over_a_name(self, place: Place) -> None:
        """As containers get single files."""
        with bound(place.outside / "secret", place.image):
            assert place.open("base") == "home/base"

    def test_is_none_of_a_file_that_has_gone_from_there(self, place: Place) -> None:
        with open_image(str(place.image)) as image:
            place.image.rename(place.outside / "gone")
            place.image.write_text("another")
            with pytest.raises(ImageError, match="no folder is open to an image like this"):
                Gate(image).open(b"base", relative_to=image.home)

    def test_is_none_of_a_file_without_a_name(self, place: Place) -> None:
        with open_image(str(place.image)) as image:
            image.home = None
            with pytest.raises(ImageError, match="a descriptor has no folder"):
                Gate(image, (str(place.home),)).open(b"base", relative_to=None)
            for name in (bytes(place.home / "base"), b"/etc/passwd"):
                with pytest.raises(ImageError, match="--allow-path="):
                    Gate(image).open(name, relative_to=None)
            with Gate(image, (str(place.home),)).open(bytes(place.home / "base"), relative_to=None) as file:
                assert file.size == len("home/base")


class TestMessages:
    def test_quote_a_folder_for_the_shell(self, place: Place) -> None:
        said = denied(place, UNSAFE)
        (word,) = shlex.split("x" + said.partition("--allow-path=")[2])
        assert word == "x" + os.path.dirname(UNSAFE)

    @pytest.mark.parametrize(
        "name", ["/tmp/\x1b[2J/x", "/tmp/\u200b/x", "/tmp/\udcff/x", "/" + "y" * 500 + "/x", "../rel/x"]
    )
    def test_name_no_folder_that_cannot_be_shown(self, name: str, place: Place) -> None:
        assert denied(place, os.fsencode(name)).endswith("--allow-path=DIR")

    def test_escape_what_a_terminal_would_act_on(self, place: Place) -> None:
        for name in (b"../\x1b[2J\x07x", b"\x1b]0;x\x07", b"json:\x9b2J", b"no\nsuch\r\xff"):
            with pytest.raises(ImageError) as caught:
                place.open(name)
            text = str(caught.value)
            assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)
            text.encode()

    def test_are_short_for_long_names(self, place: Place) -> None:
        with pytest.raises(ImageError) as caught:
            place.open(b"../" + b"x/" * 2000)
        assert len(str(caught.value)) < 600


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
class TestSystemCalls:
    """What the system is asked about a name, as the kernel sees it."""

    def _trace(self, place: Place, *names: bytes) -> str:
        program = f"""
import os, sys
sys.path[:0] = [{str(SOURCE)!r}]
from instar.core.errors import InstarError
from instar.host.files import open_image
from instar.host.gate import Gate
image = open_image({str(place.image)!r})
gate = Gate(image)
for name in {names!r}:
    os.stat("/begin")  if os.path.exists("/begin") else None
    try:
        gate.open(name, relative_to=image.home).close()
    except InstarError as error:
        print(error.kind)
"""
        trace = place.root / "trace"
        subprocess.run(
            ["strace", "-f", "-e", "trace=%file,%desc", "-o", trace, sys.executable, "-c", program],
            check=True,
            capture_output=True,
        )
        return trace.read_text().partition('"/begin"')[2]

    def test_nothing_is_asked_about_what_may_not_be_named(self, place: Place) -> None:
        (place.home / "link").symlink_to(place.outside / "secret")
        (place.home / "folder").symlink_to("../outside")
        names = (
            b"../outside/secret",
            bytes(place.outside / "secret"),
            b"link",
            b"folder/secret",
            b"sub/../../outside/x",
        )
        trace = self._trace(place, *names)
        assert "home" in trace, "the trace shows nothing at all"
        for line in trace.splitlines():
            path = re.search(r'"([^"]*)"', line)
            if path is not None and "readlink" not in line:
                assert "outside" not in path[1], line
                assert "secret" not in path[1], line

    def test_components_are_opened_one_by_one_without_following(self, place: Place) -> None:
        trace = self._trace(place, b"sub/deep/base")
        for component in ("sub", "deep", "base"):
            assert re.search(rf'openat\(\d+, "{component}", O_RDONLY\|O_NOFOLLOW\|O_CLOEXEC\|O_PATH', trace), component
        assert re.search(r'openat\(AT_FDCWD, "/proc/self/fd/\d+", O_RDONLY', trace)
