"""Give up rights: descriptors, limits, namespaces, Landlock, seccomp. Runs in the child, once, and for good.

Law: every step that the kernel offers is taken, in an order that needs no right given up before. Landlock
and namespaces may be missing (older kernels, containers); the descriptors, limits and seccomp may not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import struct

from instar.sandbox.process.policy import AUDIT_ARCH, FD_DOWN, FD_FILES, FD_UP, build_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.sandbox.cell import Grant, Limits

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
# linux/sched.h
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
# linux/landlock.h; the call numbers are the same on every architecture
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
#: By ABI version: how many access rights to files exist.
_LANDLOCK_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_SIGKILL = 9
_SIGINT = 2
_SIG_IGN = 1

_libc = ctypes.CDLL(None, use_errno=True)


class SealError(Exception):
    """A step that must not fail did; the cell ends before any guest code runs."""


def machine() -> str:
    """Return the architecture in the words of ``uname -m``."""
    return os.uname().machine


def arrange_descriptors(up: int, down: int, files: Sequence[Grant]) -> None:
    """Put the channel and the granted files at their numbers and close everything else."""
    wanted = [(up, FD_UP), (down, FD_DOWN), *((g.fd, FD_FILES + n) for n, g in enumerate(files))]
    end = FD_FILES + len(files)
    # First out of the way of every final number, then each into its place.
    moved = [(fcntl.fcntl(fd, fcntl.F_DUPFD, end), number) for fd, number in wanted]
    for fd, number in moved:
        os.dup2(fd, number, inheritable=False)
    os.closerange(0, FD_UP)
    os.closerange(end, _open_max())


def _open_max() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Descriptors above a limit lowered later may still be open; CPython hands large ranges to close_range(2).
    return max(soft if soft > 0 else 0, 1 << 20)


def limit_resources(limits: Limits) -> None:
    """Set the kernel's limits; never raises one that is already lower."""
    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for what, value in (
        (resource.RLIMIT_AS, mapped + limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = min(value, (1 << 63) - 1)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        # One second more on the hard side, so that a CPU limit arrives as SIGXCPU, which names it.
        ceiling = (
            value + 1 if what == resource.RLIMIT_CPU and (hard == resource.RLIM_INFINITY or value < hard) else value
        )
        resource.setrlimit(what, (value, ceiling))


def leave_namespaces() -> bool:
    """Enter new user, network and IPC namespaces; tell whether the kernel allowed it."""
    return bool(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0)


def landlock() -> bool:
    """Give up every right on files, TCP ports, abstract sockets and signals; tell whether the kernel has Landlock."""
    abi = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION),
    )
    if abi < 1:
        return False
    files = (1 << _LANDLOCK_FS_BITS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET), attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        return False
    done = _libc.syscall(ctypes.c_long(_SYS_LANDLOCK_RESTRICT_SELF), ctypes.c_long(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
    return bool(done == 0)


def seccomp(program: list[tuple[int, int, int, int]]) -> None:
    """Load a filter (see ``policy.build_filter``).

    Raises:
        SealError: the kernel refused it.
    """
    code = b"".join(struct.pack("=HBBI", *row) for row in program)
    rows = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(rows))
    if (
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), header, ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        raise SealError(f"seccomp: {os.strerror(ctypes.get_errno())}")


def seal(up: int, down: int, files: Sequence[Grant], limits: Limits, parent: int | None) -> None:
    """Give up all rights. On return only the calls of ``policy.RULES`` work.

    ``parent`` is the process this one must not outlive, if it is its direct child.

    Raises:
        SealError: a step that must not fail failed.
    """
    _libc.signal(_SIGINT, ctypes.c_void_p(_SIG_IGN))  # the host ends the cell; a Ctrl-C must not do so in mid-write
    if parent is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            raise SealError("the host is gone")
    arrange_descriptors(up, down, files)
    leave_namespaces()
    _libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)
    if (
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        raise SealError("no_new_privs was refused")
    limit_resources(limits)
    landlock()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    numbers = [(FD_FILES + n, g.mode) for n, g in enumerate(files)]
    seccomp(
        build_filter(
            machine(),
            readable=[n for n, mode in numbers if "r" in mode],
            writable=[n for n, mode in numbers if "w" in mode],
        )
    )


def why_unavailable() -> str | None:
    """Say why a process cannot be sealed on this machine; ``None`` if it can."""
    if os.uname().sysname != "Linux":
        return "seccomp is Linux's"
    if machine() not in AUDIT_ARCH:
        return f"no system call policy for {machine()}"
    # EFAULT: the kernel has seccomp filters and looked for the program.
    if (
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        errno = ctypes.get_errno()
        if errno != 14:
            return f"seccomp filters: {os.strerror(errno)}"
    return None
