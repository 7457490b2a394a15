"""``/etc/instar.toml``: who may have written it, what it may say, and that nothing else is passed over."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from fuzz.targets import config

import instar
from instar.host import configuration
from instar.host.configuration import MAX_BYTES, parse, read_configuration

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can write a file that instar takes")

FULL = b"""\
# What holds on this machine.
allow-path = [
    "/var/lib/nova/instances/_base",   # Nova
    "/var/lib/one/datastores",
]
minimum-isolation = "process"
qemu-version = "10.0"
"""


def written(folder: Path, data: bytes, mode: int = 0o644) -> str:
    path = folder / "instar.toml"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def refused(path: str) -> instar.OptionError:
    with pytest.raises(instar.OptionError) as caught:
        read_configuration(path)
    assert caught.value.code == "bad-configuration"
    assert caught.value.values["path"] == path
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_no_file_is_no_configuration(tmp_path):
    assert read_configuration(str(tmp_path / "instar.toml")) is None


@as_root
def test_all_of_it_is_read(tmp_path):
    found = read_configuration(written(tmp_path, FULL))
    assert found is not None
    assert found.allow == ("/var/lib/nova/instances/_base", "/var/lib/one/datastores")
    assert (found.minimum_isolation, found.generation) == ("process", (10, 0))
    for data in (b"", b"# nothing\n", b"\n\n", b"allow-path = []"):
        found = read_configuration(written(tmp_path, data))
        assert found is not None
        assert (found.allow, found.minimum_isolation, found.generation) == ((), None, None)


@as_root
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602, 0o777])
def test_a_file_that_others_may_write_is_refused(mode, tmp_path):
    assert "chmod go-w" in str(refused(written(tmp_path, FULL, mode)))


@as_root
def test_a_file_of_another_user_is_refused(tmp_path):
    path = written(tmp_path, FULL)
    os.chown(path, 1000, 0)
    assert "chown root" in str(refused(path))


def test_a_file_of_an_ordinary_user_is_refused(tmp_path):
    path = written(tmp_path, FULL)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    assert "not to root" in str(refused(path))


@as_root
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe", "socket", "device"])
def test_only_a_regular_file_is_taken(kind, tmp_path):
    path = tmp_path / "instar.toml"
    if kind == "link":
        (tmp_path / "real").write_bytes(FULL)
        path.symlink_to("real")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    else:
        path = Path("/dev/null")
    refused(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "Permission denied" in str(refused(written(tmp_path, FULL, 0)))


@as_root
def test_the_length_is_bounded(tmp_path):
    assert read_configuration(written(tmp_path, b"#" * (MAX_BYTES - 1) + b"\n")) is not None
    assert str(MAX_BYTES) in str(refused(written(tmp_path, b"#" * MAX_BYTES + b"\n")))
    path = tmp_path / "instar.toml"
    os.truncate(path, 1 << 40)
    refused(str(path))


@as_root
@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b'minimum-isolation = "none"', 1, "process or kvm, not 'none'"),
        (b'minimum-isolation = "auto"', 1, "process or kvm"),
        (b'\nminimum-isolation = "KVM"', 2, "not 'KVM'"),
        (b'minimum-isolation = ["kvm"]', 1, "is one text"),
        (b'allow-path = "/a"', 1, "a list of texts"),
        (b'allow-path = ["a/b"]', 1, "'a/b' is not the whole path"),
        (b'allow-path = ["~/b"]', 1, "from / on"),
        (b'allow-path = [""]', 1, "'' is not"),
        (b'allow-path = ["/' + b"x" * 5000 + b'"]', 1, "not the whole path"),
        (b'qemu-version = "new"', 1, "no version of qemu-img"),
        (b'qemu-version = "1000"', 1, "no version"),
        (b'isolation = "kvm"', 1, "there is no 'isolation'; it may say allow-path, minimum-isolation"),
        (b'# a\n\nqemu-version = "7.2"\nqemu-version = "7.2"', 4, "twice"),
        (b"qemu-version = 10.0", 1, "a text in double quotes is missing before '1'"),
        (b"qemu-version = '10.0'", 1, "double quotes"),
        (b'qemu-version = """10.0"""', 1, "the end of the line is missing before '\"'"),
        (b'qemu-version = "10.0', 1, "closing quote"),
        (b'qemu-version = "10\n.0"', 1, "closing quote"),
        (b'qemu-version = "\\u0031"', 1, "backslashes"),
        (b'qemu-version "10.0"', 1, "'=' is missing"),
        (b"qemu-version\n= 1", 1, "'=' is missing before the end of the line"),
        (b"qemu-version =", 1, "missing before the end"),
        (b'"qemu-version" = "7.2"', 1, "a key is missing"),
        (b'a.b = "7.2"', 1, "'=' is missing before '.'"),
        (b'[instar]\nqemu-version = "7.2"', 1, "a key is missing before '['"),
        (b'qemu-version = "7.2" minimum-isolation = "kvm"', 1, "the end of the line"),
        (b'allow-path = ["/a"\n"/b"]', 2, "',' or ']'"),
        (b'allow-path = ["/a",, "/b"]', 1, "double quotes is missing before ','"),
        (b"allow-path = [,]", 1, "double quotes"),
        (b'allow-path = ["/a"', 1, "',' or ']' is missing before the end"),
        (b'allow-path = [\n["/a"]]', 2, "double quotes is missing before '['"),
        (b'allow-path = [\n"/a\x00"]', 2, "control character"),
        (b"# a\x1b[2J", 1, "control character"),
        (b'qemu-version = "7.2"\r', 1, "the end of the line"),
        (b"# \xff", 1, "UTF-8"),
        (b'a = "b"\n\n# \xc3', 3, "UTF-8"),
        (b'\xef\xbb\xbfqemu-version = "7.2"', 1, "a key is missing"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(data, line, words, tmp_path):
    error = refused(written(tmp_path, data))
    assert f"instar.toml, line {line}: " in str(error)
    assert error.values["line"] == line
    assert words in str(error)


@pytest.mark.parametrize("data", [FULL, *config.seeds()[:-1]])
def test_what_is_taken_means_the_same_as_toml(data):
    assert {key: value for key, (_, value) in parse(data).items()} == tomllib.loads(data.decode())


@as_root
def test_it_is_judged_and_read_by_one_descriptor(tmp_path, monkeypatch):
    """Whatever is put in its place meanwhile: there is no second look at the name."""
    path = written(tmp_path, FULL)
    names = []
    real = os.open
    monkeypatch.setattr(configuration.os, "open", lambda *words, **more: names.append(words[0]) or real(*words, **more))
    monkeypatch.setattr(configuration.os, "stat", None)
    monkeypatch.setattr(configuration.os, "lstat", None)
    assert read_configuration(path) is not None
    assert names == [path]


@as_root
def test_reading_it_costs_little(tmp_path):
    path = written(tmp_path, FULL)
    took = []
    for _ in range(200):
        start = time.perf_counter()
        read_configuration(path)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.0003


def test_the_module_loads_nothing_heavy():
    code = "import sys; import instar.host.configuration; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, 'src'); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"re", "tomllib", "json", "typing"} & set(done.stdout.split())
