"""File names as QEMU reads them: which have a protocol, and what a name inside an image is relative to.

Law: text only. Nothing here asks the system whether a file exists.
"""

from __future__ import annotations


def protocol_of(name: str) -> str | None:
    """Return the protocol of a file name: what stands before a ``:`` that comes before any ``/``; else ``None``.

    >>> protocol_of("nbd://host/x"), protocol_of("json:{}"), protocol_of("./a:b"), protocol_of("a/b:c")
    ('nbd', 'json', None, None)
    """
    head, colon, _ = name.partition(":")
    return head if colon and "/" not in head else None


def strip_file_protocol(name: str) -> str:
    """Return the name without a leading ``file:``, the one protocol that means a plain file."""
    return name[5:] if name.startswith("file:") else name


def combine(base: str, name: str) -> str:
    """Return ``name`` as seen from the folder of the file ``base``; absolute and protocol names stay as they are.

    >>> combine("dir/top.qcow2", "base.qcow2"), combine("dir/top", "/abs"), combine("top", "base")
    ('dir/base.qcow2', '/abs', 'base')
    """
    if name.startswith("/") or protocol_of(name) is not None:
        return name
    folder, slash, _ = base.rpartition("/")
    return f"{folder}{slash}{name}"
