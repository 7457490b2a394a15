from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instar.core.image import MAX_NAME
from instar.core.winpath import from_windows, to_windows

NAMES = st.text(st.characters(exclude_characters="\\/\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("p", ".\\p"),
        ("./p", ".\\p"),
        ("a//b", ".\\a\\b"),
        ("../a/../p", "..\\a\\..\\p"),
        ("/p", "\\p"),
        ("//a/p", "\\a\\p"),
        ("...", ".\\..."),
        ("C:p", ".\\C:p"),
    ],
)
def test_separators_are_turned_and_relative_paths_start_with_a_dot(path: str, made: str) -> None:
    assert to_windows(path) == made


@given(st.lists(NAMES, min_size=1, max_size=5), st.booleans())
def test_what_is_written_is_read_back_as_the_same_path(parts: list[str], absolute: bool) -> None:
    path = "/".join(parts)
    read = from_windows(to_windows("/" + path if absolute else path).encode()).decode()
    assert read == "/" + path if absolute else read in (path, "./" + path)


@pytest.mark.parametrize("path", ["a\\b", "/a\\b/c", "\udcff", "a" * MAX_NAME])
def test_refuses_what_would_become_another_path(path: str) -> None:
    with pytest.raises(ValueError, match=r"backslash|UTF-8|longer"):
        to_windows(path)


@pytest.mark.parametrize("name", [b"C:\\p", b"c:p", b"\\\\host\\share\\p", b"\\\\?\\Volume{1}\\p"])
def test_leaves_drives_servers_and_volumes_as_they_are(name: bytes) -> None:
    assert from_windows(name) == name
