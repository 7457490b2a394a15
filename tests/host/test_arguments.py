"""The library takes any kind of path, and open files; of what it cannot take an ``OptionError`` says what it can."""

from __future__ import annotations

import copy
import fcntl
import os
import pathlib
import pickle

import pytest

import instar
from instar.host import files

KINDS = {"text": str, "bytes": os.fsencode, "Path": pathlib.Path}


class BytesPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return os.fsencode(self.path)


class Number:
    def __index__(self):
        return 1 << 20


KINDS["os.PathLike of bytes"] = BytesPath


@pytest.fixture
def image(tmp_path):
    path = str(tmp_path / "disk.qcow2")
    instar.create(path, "4M", format="qcow2")
    return path


@pytest.fixture
def overlay(image, tmp_path):
    path = str(tmp_path / "top.qcow2")
    instar.create(path, format="qcow2", backing=image, backing_format="qcow2")
    return path


@pytest.fixture
def opened(image):
    fd = os.open(image, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestPaths:
    def test_name_an_image_everywhere(self, kind, tmp_path):
        base, top = str(tmp_path / "base \udcff"), str(tmp_path / "top")
        made = instar.create(kind(base), "1M", format="qcow2")
        assert made.filename == base
        instar.create(kind(top), format="qcow2", backing=kind(base), backing_format="qcow2")
        assert instar.info(kind(top)).full_backing_filename == base
        assert [found.filename for found in instar.info_chain(kind(top))] == [top, base]
        assert instar.check(kind(top)).filename == top

    @pytest.mark.parametrize("many", [False, True], ids=["one", "several"])
    def test_name_folders_that_are_allowed(self, kind, many, tmp_path):
        (tmp_path / "far").mkdir()
        (tmp_path / "near").mkdir()
        base, top = str(tmp_path / "far" / "base"), str(tmp_path / "near" / "top")
        instar.create(base, "1M", format="qcow2")
        instar.create(top, format="qcow2", backing=base, backing_format="qcow2")
        with pytest.raises(instar.ImageError, match="not inside the image's folder"):
            instar.info_chain(top)
        folder = kind(str(tmp_path / "far"))
        assert len(instar.info_chain(top, allow=[folder] if many else folder)) == 2

    def test_are_values_of_options(self, kind, tmp_path):
        made = instar.create(
            str(tmp_path / "disk"), "1M", format="qcow2", options={"data_file": kind(str(tmp_path / "data"))}
        )
        assert [name for name, _ in made.files] == [str(tmp_path / "disk"), str(tmp_path / "data")]


class TestPathObjects:
    def test_mean_a_file_also_where_a_text_would_mean_a_protocol(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        instar.create(pathlib.Path("nbd:x"), 512)
        assert os.listdir() == ["nbd:x"]
        assert instar.info(pathlib.Path("nbd:x")).virtual_size == 512
        instar.create("top", format="qcow2", backing=pathlib.Path("nbd:x"), backing_format="raw")
        assert [image.virtual_size for image in instar.info_chain("top")] == [512, 512]
        with pytest.raises(instar.OptionError, match="protocol"):
            instar.create("nbd:y", 512)


class TestDescriptors:
    def test_are_read_without_moving_or_closing_them(self, image, opened):
        os.lseek(opened, 7, os.SEEK_SET)
        named = instar.info(image)
        found = instar.info(instar.Fd(opened))
        assert (found.filename, found.virtual_size, found.identity) == (
            f"descriptor {opened}",
            4 << 20,
            named.identity,
        )
        assert instar.check(instar.Fd(opened, image)).filename == image
        assert os.lseek(opened, 0, os.SEEK_CUR) == 7

    def test_may_be_files_of_python_and_of_no_name(self, image, tmp_path):
        with open(tmp_path / "gone", "w+b") as file, open(image, "rb") as source:
            file.write(source.read())
            file.flush()
            os.unlink(file.name)
            assert instar.info(instar.Fd(file)).virtual_size == 4 << 20
        memory = os.memfd_create("x")
        os.truncate(memory, 1 << 20)
        assert instar.info(instar.Fd(memory), format="raw").virtual_size == 1 << 20
        os.close(memory)

    def test_have_no_folder(self, overlay, image, tmp_path):
        relative = str(tmp_path / "relative.qcow2")
        instar.create(relative, format="qcow2", backing="disk.qcow2", backing_format="qcow2")
        for path, allow, said in (
            (overlay, (), "no folder is open"),
            (relative, str(tmp_path), "a descriptor has no folder"),
            (relative, (), "a descriptor has no folder"),
        ):
            with open(path, "rb") as file, pytest.raises(instar.ImageError, match=said) as error:
                instar.info_chain(instar.Fd(file, path), allow=allow)
            assert error.value.kind == "denied"
        with open(overlay, "rb") as file:
            chain = instar.info_chain(instar.Fd(file), allow=tmp_path)
        assert [found.filename for found in chain][1:] == [image]

    def test_that_cannot_be_opened_again_are_read_all_the_same(self, image, opened, monkeypatch):
        real = os.open

        def refuse(path, *args, **kwargs):
            if str(path).startswith("/proc/self/fd/"):
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **kwargs)

        os.lseek(opened, 9, os.SEEK_SET)
        # Locks of this open file are the caller's, and stay.
        fcntl.fcntl(opened, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
        monkeypatch.setattr(files.os, "open", refuse)
        assert instar.info(instar.Fd(opened)).virtual_size == 4 << 20
        assert instar.check(instar.Fd(opened)).clean
        monkeypatch.undo()
        assert os.lseek(opened, 0, os.SEEK_CUR) == 9
        with open(image, "r+b") as other:
            found = fcntl.fcntl(other, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        assert found[:2] != _lock(fcntl.F_UNLCK)[:2]

    def test_leave_the_callers_locks_alone(self, image, opened):
        fcntl.fcntl(opened, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
        assert instar.check(instar.Fd(opened)).clean
        with open(image, "r+b") as other:
            found = fcntl.fcntl(other, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        assert found[:2] != _lock(fcntl.F_UNLCK)[:2]

    def test_that_cannot_be_read_are_refused(self, image, tmp_path):
        write, path, closed = os.open(image, os.O_WRONLY), os.open(image, os.O_PATH), os.open(image, os.O_RDONLY)
        os.close(closed)
        for fd, said in ((closed, "is closed"), (write, "is not open for reading"), (path, "O_PATH")):
            with pytest.raises(instar.OptionError, match=said):
                instar.info(instar.Fd(fd))
        os.close(write)
        os.close(path)
        folder = os.open(tmp_path, os.O_RDONLY)
        pipe = os.pipe()
        for fd, said in ((folder, "Is a directory"), (pipe[0], "neither a regular file")):
            with pytest.raises(instar.HostError, match=said):
                instar.info(instar.Fd(fd))
            os.close(fd)
        os.close(pipe[1])

    def test_are_numbers_of_open_files(self):
        with open(os.devnull) as file:
            pass
        for wrong in (None, "3", -1, True, 1.5, 1 << 40, file):
            with pytest.raises(instar.OptionError) as error:
                instar.Fd(wrong)
            assert error.value.code == "bad-descriptor"

    def test_are_copied_but_not_pickled(self, opened):
        fd = instar.Fd(opened, "x")
        for copied in (copy.copy(fd), copy.deepcopy(fd)):
            assert (copied.fd, copied.name) == (opened, "x")
        with pytest.raises(TypeError, match="another process"):
            pickle.dumps(fd)


def _lock(kind: int) -> bytes:
    from instar.host.locks import _FLOCK

    return _FLOCK.pack(kind, os.SEEK_SET, 203, 1, 0)


class TestDescriptorsToFill:
    @pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx"])
    def test_keep_their_file(self, format, tmp_path):
        with open(tmp_path / "disk", "w+b") as file:
            before = os.fstat(file.fileno())
            made = instar.create(instar.Fd(file, "mine"), "4M", format=format)
            after = os.fstat(file.fileno())
            assert (made.filename, made.files) == ("mine", [("mine", after.st_size)])
            assert file.tell() == 0
        assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
        assert os.listdir(tmp_path) == ["disk"]
        assert instar.info(tmp_path / "disk", format=format).virtual_size == 4 << 20

    def test_are_empty_again_after_a_failure(self, tmp_path, monkeypatch):
        from instar.host import create as module

        def fail(*_args, **_kwargs):
            raise instar.HostError(5, f"/proc/self/fd/{file.fileno()}", "write it", "Input/output error")

        monkeypatch.setattr(module, "make_in_cell", fail)
        with open(tmp_path / "disk", "w+b") as file:
            with pytest.raises(instar.HostError) as error:
                instar.create(instar.Fd(file, "mine"), "4M", format="qcow2")
            assert error.value.path == "mine"
            assert os.fstat(file.fileno()).st_size == 0

    def test_are_refused_if_there_is_something_to_lose(self, tmp_path):
        (tmp_path / "full").write_bytes(b"x")
        for mode, name, said in (("r+b", "full", "not an empty"), ("rb", "full", "not open for writing")):
            with open(tmp_path / name, mode) as file, pytest.raises(instar.OptionError, match=said):
                instar.create(instar.Fd(file), 512)
        assert (tmp_path / "full").read_bytes() == b"x"
        pipe = os.pipe()
        with pytest.raises(instar.OptionError, match="not an empty regular file"):
            instar.create(instar.Fd(pipe[1]), 512)
        os.close(pipe[0])
        os.close(pipe[1])

    def test_are_refused_for_what_needs_a_folder(self, image, tmp_path):
        with open(tmp_path / "disk", "w+b") as file:
            fd = instar.Fd(file)
            for words in (
                {"size": 512, "format": "vmdk", "options": {"subformat": "monolithicFlat"}},
                {"format": "qcow2", "backing": "disk.qcow2", "backing_format": "qcow2"},
                {"format": "qcow2", "options": {"backing_file": "disk.qcow2", "backing_fmt": "qcow2"}},
            ):
                with pytest.raises(instar.OptionError, match="has no folder"):
                    instar.create(fd, **words)
            made = instar.create(fd, format="qcow2", backing=image, backing_format="qcow2")
            assert made.virtual_size == 4 << 20


WRONG_TO_CREATE = {
    "size": (True, 1.5, -1, b"1M", [], "", "1x", 10**5000, -(1 << 64), float("nan")),
    "format": (None, 3, b"raw", "none", "\ud800", "x" * 5000),
    "options": (None, 3, "a=b", b"a", [None], [("a",)], {1: "x"}, {"nocow": None}, {"nocow": 1.5}, {"nocow": []}),
    "backing": (3, 1.5, [], object()),
    "backing_format": (3, b"raw", []),
    "open_backing": (None, 0, 1, "no"),
    "isolation": (3, "", "vax", [], object()),
    "generation": (None, 7, "7.2", (7,), (7, 2, 1), (7, "2"), (True, 2), (-1, 2), (7.0, 2), (1 << 200, 2)),
    "secrets": (3, "x", {"a": "b"}, {1: b"x"}, {"a": 5}, [1]),
    "announce": (3, "x"),
    "progress": (3, "x"),
    "warn": (3, "x"),
    "as_qemu": (None, 1),
}
WRONG_TO_INSPECT = {
    "path": (None, 3, True, 1.5, [], object(), memoryview(b"x")),
    "format": (3, b"raw", "\ud800"),
    "allow": (None, 3, [None], [3], "", [""], ["a\0b"], object()),
    "isolation": WRONG_TO_CREATE["isolation"],
    "generation": WRONG_TO_CREATE["generation"],
    "force_share": (None, 1, "yes"),
}


def rows(wrong):
    return [
        pytest.param(name, value, id=f"{name}={type(value).__name__}-{n}")
        for name in wrong
        for n, value in enumerate(wrong[name])
    ]


class TestWrong:
    @pytest.mark.parametrize(("name", "value"), [*rows(WRONG_TO_CREATE), *rows({"path": WRONG_TO_INSPECT["path"]})])
    def test_arguments_of_create_are_told_and_make_nothing(self, name, value, tmp_path):
        words = {"path": str(tmp_path / "disk"), "size": 512, "isolation": "none", name: value}
        with pytest.raises(instar.OptionError) as error:
            instar.create(**words)
        assert len(str(error.value)) < 6000
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("call", [instar.info, instar.info_chain, instar.check])
    @pytest.mark.parametrize(("name", "value"), rows(WRONG_TO_INSPECT))
    def test_arguments_of_what_looks_at_images_are_told(self, call, name, value, image):
        with pytest.raises(instar.OptionError) as error:
            call(**{"path": image, "isolation": "none", name: value})
        assert name in str(error.value) or error.value.code in ("bad-isolation", "bad-folder")

    @pytest.mark.parametrize(
        "words", [{"jobs": None}, {"jobs": 3}, {"together": 0}, {"together": 1.5}, {"isolation": 3}, {"secrets": 3}]
    )
    def test_arguments_of_create_many_are_told(self, words):
        with pytest.raises(instar.OptionError):
            list(instar.create_many(**{"jobs": [], **words}))

    @pytest.mark.parametrize("job", [None, 3, "x", [], {"filename": 3}, {"filename": "x", "size": True}, {}])
    def test_jobs_are_told_one_by_one(self, job):
        (found,) = instar.create_many([job], isolation="none")
        assert isinstance(found, instar.OptionError)

    @pytest.mark.parametrize("words", [{"isolation": 3}, {"quick": None}])
    def test_arguments_of_self_test_are_told(self, words):
        with pytest.raises(instar.OptionError):
            instar.self_test(**words)

    def test_passphrases_are_in_no_error(self):
        with pytest.raises(instar.OptionError) as error:
            instar.create("x", 512, secrets={"a": "hush"})
        assert "hush" not in repr(error.value) + str(error.value.facts())


class TestRight:
    def test_numbers_of_other_types_are_sizes(self, tmp_path):
        assert instar.create(tmp_path / "disk", Number()).virtual_size == 1 << 20

    def test_options_are_text_numbers_and_truths(self, tmp_path):
        made = instar.create(
            tmp_path / "disk", "1M", format="qcow2", options={"cluster_size": Number(), "lazy_refcounts": True}
        )
        assert (made.unit, made.options["lazy_refcounts"]) == (1 << 20, True)

    def test_a_cell_has_a_name(self, image):
        assert instar.check(image, isolation="process").clean
