"""Paths as VHD and VHDX write them: separated by backslashes, in UTF-16.

Law: text only. A path that cannot be told in the other manner is refused, never bent into another path.
"""

from __future__ import annotations

from instar.core.image import MAX_NAME


def to_windows(path: str) -> str:
    r"""Return a path of this system with backslashes; one that is relative starts with a dot.

    Raises:
        ValueError: it holds a backslash or bytes that are no text, or is longer than ``MAX_NAME`` bytes.

    >>> print(to_windows("dir/p.vhd"), to_windows("../p.vhd"), to_windows("/imgs/p.vhd"))
    .\dir\p.vhd ..\p.vhd \imgs\p.vhd
    """
    if "\\" in path:
        raise ValueError("it holds a backslash, which separates folders there")
    parts = [part for part in path.split("/") if part]
    if path.startswith("/"):
        parts.insert(0, "")
    elif parts[:1] not in (["."], [".."]):
        parts.insert(0, ".")
    made = "\\".join(parts)
    try:
        length = len(made.encode())
    except UnicodeEncodeError:
        raise ValueError("it holds bytes that are no text in UTF-8, and is written in UTF-16 there") from None
    if length > MAX_NAME:
        raise ValueError(f"it is longer than {MAX_NAME} bytes")
    return made


def from_windows(name: bytes) -> bytes:
    r"""Return a name out of an image as a path of this system.

    One with a drive, a server or a volume has no counterpart here, and stays as it is.

    >>> from_windows(rb".\dir\p.vhd"), from_windows(rb"\imgs\p.vhd"), from_windows(rb"C:\p.vhd")
    (b'./dir/p.vhd', b'/imgs/p.vhd', b'C:\\p.vhd')
    """
    if name.startswith(b"\\\\") or (name[:1].isalpha() and name[1:2] == b":"):
        return name
    return name.replace(b"\\", b"/")
