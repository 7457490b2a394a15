"""Reserving and zeroing."""

from __future__ import annotations

import errno
import os

import pytest

from instar.host import space


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_space_is_taken_and_reads_as_zeros(mode, file):
    space.allocate(file, 4096, 1 << 20, mode)
    status = os.fstat(file)
    assert status.st_size == (1 << 20) + 4096
    assert status.st_blocks * 512 >= 1 << 20
    assert os.pread(file, 1 << 20, 4096) == bytes(1 << 20)


def test_full_makes_zeros_of_what_was_there_and_falloc_keeps_it(file):
    os.pwrite(file, b"x" * 8192, 0)
    space.allocate(file, 0, 4096, "full")
    space.allocate(file, 4096, 4096, "falloc")
    assert os.pread(file, 8192, 0) == bytes(4096) + b"x" * 4096


def test_zeros_are_written_where_the_file_system_cannot_zero(file, monkeypatch):
    """The only way to see the fallback on a file system that has the call."""
    monkeypatch.setattr(space, "_FALLOC_FL_ZERO_RANGE", 0x4000)  # a flag that no kernel knows: EOPNOTSUPP
    os.pwrite(file, b"x" * 5000, 0)
    seen = []
    space.allocate(file, 0, (3 << 20) + 1, "full", progress=lambda done, total: seen.append((done, total)))
    assert os.pread(file, 5000, 0) == bytes(5000)
    assert os.fstat(file).st_size == (3 << 20) + 1
    assert seen[-1] == ((3 << 20) + 1, (3 << 20) + 1)


def test_progress_reaches_the_whole(file):
    seen = []
    space.allocate(file, 0, 20 << 20, "falloc", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20 << 20, 20 << 20)


def test_nothing_to_reserve_is_no_error(file):
    space.allocate(file, 0, 0, "falloc")
    assert os.fstat(file).st_size == 0


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_what_cannot_fit_is_refused_before_the_disk_is_filled(mode, file):
    with pytest.raises(OSError, match="No space left") as caught:
        space.allocate(file, 0, 1 << 55, mode)
    assert caught.value.errno == errno.ENOSPC
    assert os.fstat(file).st_blocks == 0
