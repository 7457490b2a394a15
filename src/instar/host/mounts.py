"""What kind of file system a file or folder lies on, as /proc tells it; ``statfs`` cannot tell devtmpfs from tmpfs.

Law: only descriptors are asked about, never names. Where there is no /proc, nothing is known.
"""

from __future__ import annotations

import os

_PIECE = 1 << 16
#: File systems that a kernel makes up: what is in them is devices, processes and settings, not anybody's files.
_MADE_UP = (
    *("binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl"),
    *("mqueue", "nfsd", "nsfs", "proc", "pstore", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs"),
    *("sysfs", "tracefs"),
)


def mount_of(fd: int) -> str | None:
    """Return the number of the mount a descriptor belongs to. A file mounted over a name is not on its folder's."""
    text = _read(f"/proc/self/fdinfo/{fd}")
    _, found, rest = text.partition("mnt_id:")
    return rest.split("\n", 1)[0].strip() if found else None


def is_made_up(fd: int) -> bool:
    """Tell whether a file or folder is one that the kernel makes up: on devtmpfs, proc, sysfs and the like."""
    return kind_of(fd) in _MADE_UP


def kind_of(fd: int) -> str:
    """Return the name of the file system that a descriptor belongs to, or nothing if it is on a disk or not known."""
    if os.major(os.fstat(fd).st_dev):
        return ""  # so nothing has to be looked up
    mount = mount_of(fd)
    for line in _read("/proc/self/mountinfo").splitlines() if mount else ():
        # proc(5): the number of the mount, five fields and some optional ones, a dash, the kind of file system.
        if line.startswith(f"{mount} "):
            return line.partition(" - ")[2].partition(" ")[0]
    return ""


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces).decode("utf-8", "surrogateescape")
