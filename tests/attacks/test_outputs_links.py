"""Where new images go, and what is said to the caller: links of strangers, bits of programs, and words for a shell."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.laws import attack, facts, image_of, obey
from tests.sandbox.exploited import replying
from tests.support import instar as run_instar

from instar.core.wire import decode, encode, take

if TYPE_CHECKING:
    from collections.abc import Iterator

_STRANGER = 65534


@pytest.fixture
def sticky() -> Iterator[Path]:
    """Make a folder like /tmp, of a stranger's for all that matters."""
    import shutil
    import tempfile

    if os.geteuid() != 0:
        pytest.skip("only root can make what strangers own")
    folder = Path(tempfile.mkdtemp(prefix="attacked-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def _stranger_s(link: Path, target: Path | str) -> Path:
    link.symlink_to(target)
    os.lchown(link, _STRANGER, _STRANGER)
    return link


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "luks"])
@pytest.mark.parametrize("link", ["file", "missing", "chain", "relative"])
def test_stranger_s_link_in_a_sticky_folder(link: str, format: str, sticky: Path, tmp_path: Path) -> None:
    victim = tmp_path / "bashrc"
    if link != "missing":
        victim.write_text("the caller's own\n")
    target = sticky / "disk"
    if link == "chain":
        _stranger_s(target, _stranger_s(sticky / "second", victim))
    elif link == "relative":
        _stranger_s(target, os.path.relpath(victim, sticky))
    else:
        _stranger_s(target, victim)
    words = ["create", "-q", "-f", format]
    if format == "luks":
        words = ["create", "-q", "--object", "secret,id=s,data=x", "-f", format, "-o", "key-secret=s,iter-time=10"]
    done = run_instar(*words, str(target), "1M")
    assert done.returncode == 1, done
    assert (victim.read_text() == "the caller's own\n") if link != "missing" else not victim.exists()


def test_link_that_comes_between_look_and_use(sticky: Path, tmp_path: Path) -> None:
    """A stranger swaps a file for a link as fast as can be; the caller makes images there all the while."""
    import sys

    victim = tmp_path / "bashrc"
    victim.write_text("the caller's own\n")
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\nos.setuid(65534)\n"
        "while 1:\n"
        " try:\n"
        "  os.symlink(sys.argv[2], 'l'); os.rename('l', 'disk'); os.unlink('disk')\n"
        "  open('disk', 'w').close(); os.chmod('disk', 0o666); os.unlink('disk')\n"
        " except OSError: pass\n"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", code, str(sticky), str(victim)])
    import instar

    try:
        for _ in range(150):
            try:
                instar.create(str(sticky / "disk"), "1M", format="raw")
            except instar.InstarError:
                pass
            assert victim.read_text() == "the caller's own\n"
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o1777, 0o7777])
@pytest.mark.parametrize("content", [b"", b"x" * 4096])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_bits_of_a_program_do_not_survive(format: str, content: bytes, mode: int, tmp_path: Path) -> None:
    target = tmp_path / "program"
    target.write_bytes(content)
    target.chmod(mode)
    done = run_instar("create", "-q", "-f", format, str(target), "1M")
    assert done.returncode == 0, done
    assert stat.S_IMODE(target.stat().st_mode) & 0o7000 == 0


def test_hard_link_to_another_s_file_is_not_written_through(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "images" / "disk"
    victim.write_text("the caller's own\n")
    target.parent.mkdir()
    os.link(victim, target)
    assert run_instar("create", "-q", "-f", "qcow2", str(target), "1M").returncode == 0
    assert victim.read_text() == "the caller's own\n"


@pytest.mark.parametrize(
    "name",
    [
        "/tmp/$(touch {mark})/x", "/tmp/`touch {mark}`/x", "/tmp/a;touch {mark};/x", "/tmp/a\ntouch {mark}\n/x",
        "/tmp/a'$(touch {mark})'/x", '/tmp/a"$(touch {mark})"/x', "/tmp/a|touch {mark}/x", "/tmp/a&touch {mark}&/x",
        "/tmp/a\\';touch {mark};/x", "/-n $(touch {mark})/x", "/tmp/${{IFS}}touch {mark}/x", "/tmp/a\rtouch {mark}\r/x",
        "/tmp/~$(touch {mark})/x", "/tmp/\u2028touch {mark}/x", "/tmp/!!/x", "/tmp/a\t;touch {mark}/x",
        "/--isolation=none /x", "/tmp/{mark} --isolation=none/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["extent", "backing"])
def test_hint_that_is_copied_into_a_shell(place: str, name: str, tmp_path: Path) -> None:
    """What stands behind --allow-path= in a hint is one word to a shell, and runs nothing."""
    mark = tmp_path / "mark"
    text = name.format(mark=mark).encode()

    def guest(job: bytes, files: object, ask: Any) -> bytes:
        if take(decode(job), "args", dict).get("announce"):
            ask({"do": "format", "format": "vmdk"})
        role = "extents.0" if place == "extent" else "backing"
        return encode({"ok": facts("vmdk", references=[[role, text, "raw", place == "extent"]])})

    image = image_of(tmp_path)
    for words in (["info", "--backing-chain"], ["info", "--backing-chain", "--output=json"]):
        done = obey(attack(guest, *words, image))
        assert done.code != 0
        _, found, hint = done.err.partition("--allow-path=")
        if not found or words[-1] == "--output=json":
            continue
        hint = hint.split("\n")[0].removesuffix('"')
        subprocess.run(["bash", "-c", f"true --allow-path={hint}"], check=False, timeout=10, cwd=tmp_path)
        assert not mark.exists(), hint
        assert len(shlex.split(f"--allow-path={hint}")) == 1, hint


@pytest.mark.parametrize("where", ["environment", "switch"])
@pytest.mark.parametrize("words", [["info"], ["check"], ["create"], ["batch"], ["-v", "info"], ["qemu-img"], ["json"]])
def test_no_walls_is_always_said(words: list[str], where: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    run_instar("create", "-q", "-f", "qcow2", str(image), "1M")
    new = str(tmp_path / "new")
    (tmp_path / "jobs").write_text(f'{{"filename": "{new}", "size": "1M", "format": "qcow2"}}\n')
    command = {
        "create": ["create", "-q", "-f", "qcow2", new, "1M"],
        "batch": ["create", "--batch", str(tmp_path / "jobs")],
        "-v": ["-v", "info", str(image)],
        "qemu-img": ["--dialect=qemu-img", "info", str(image)],
        "json": ["info", "--output=json", str(image)],
    }.get(words[0], [words[0], str(image)])
    if where == "environment":
        done = run_instar(*command, INSTAR_ISOLATION="none")
    else:
        before = [w for w in command if w.startswith("--dialect")]
        done = run_instar(*before, "--isolation=none", *[w for w in command if w not in before])
    assert "isolation" in done.stderr or "sandbox" in done.stderr or "without" in done.stderr, done


def test_description_names_no_kind_of_cell_that_was_not_used(tmp_path: Path) -> None:
    obey(
        attack(replying(facts(extra={"isolation": "kvm"})), "info", "--output=json", image_of(tmp_path)),
        json_asked=True,
    )
