"""Give up rights: descriptors, limits, namespaces, capabilities, Landlock, seccomp. In the child, once, for good.

Law: every step that the kernel offers is taken, in an order that needs no right given up before. Landlock
and namespaces may be missing (older kernels, containers); the descriptors, limits and seccomp may not.
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
import sys

from instar.sandbox.kernel import address_of, syscall
from instar.sandbox.posix import hold_all_signals_but, make_lethal
from instar.sandbox.process.policy import AUDIT_ARCH, FD_DOWN, FD_FILES, FD_UP, RULES, build_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.sandbox.cell import Grant, Limits
    from instar.sandbox.process.policy import Rule

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
# linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522
# linux/landlock.h
_LANDLOCK_CREATE_RULESET_VERSION = 1
#: By ABI version: how many access rights to files exist.
_LANDLOCK_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_EFAULT = 14
_SIGKILL = 9
_SIGXCPU = 24
_INT64_MAX = (1 << 63) - 1
_MAX_ERRNO = 4095
# linux/mman.h
_MAP_PRIVATE_ANONYMOUS = 0x22


class SealError(Exception):
    """A step that must not fail did; the cell ends before any guest code runs."""


def machine() -> str:
    """Return the architecture in the words of ``uname -m``."""
    return os.uname().machine


def _prctl(option: int, value: int) -> bool:
    return syscall("prctl", option, value) == 0


def close_from(first: int) -> None:
    """Close every descriptor from ``first`` on, also those above a limit that was lowered later."""
    if syscall("close_range", first, 0xFFFFFFFF) == 0:
        return
    # Kernels before 5.9. ``os.closerange`` may be a million calls there, so ask which are open.
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        os.closerange(first, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20))
        return
    for number in numbers:
        if number >= first:
            try:
                os.close(number)
            except OSError:
                pass  # the one that listed the folder


def arrange_descriptors(up: int, down: int, files: Sequence[Grant], *others: int) -> int:
    """Put the channel and the granted files at their numbers, ``others`` behind them, and close everything else.

    Returns the number of the first of the others.
    """
    wanted = [(up, FD_UP), (down, FD_DOWN)]
    wanted += [(fd, FD_FILES + n) for n, fd in enumerate((*(g.fd for g in files), *others))]
    end = FD_UP + len(wanted)
    # First out of the way of every final number, then each into its place.
    moved = [(fcntl.fcntl(fd, fcntl.F_DUPFD, end), number) for fd, number in wanted]
    for fd, number in moved:
        os.dup2(fd, number, inheritable=False)
    os.closerange(0, FD_UP)
    close_from(end)
    return FD_FILES + len(files)


def limit_resources(limits: Limits, *, kernel_threads: bool = False) -> None:
    """Set the kernel's limits; never raises one that is already lower.

    ``kernel_threads``: leave room for those that KVM makes for a process that runs a machine (Linux 6.12).
    """
    mapped = _mapped_bytes()
    for what, value in (
        (resource.RLIMIT_AS, mapped + limits.memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        *(() if kernel_threads else ((resource.RLIMIT_NPROC, 0),)),
    ):
        value = min(value, _INT64_MAX, *(limit for limit in resource.getrlimit(what) if limit >= 0))
        ceiling = value
        if what == resource.RLIMIT_CPU:
            # The soft limit comes a second earlier and as SIGXCPU, which names it; the hard one is a bare SIGKILL.
            ceiling = value + 1
            hard = resource.getrlimit(what)[1]
            if 0 <= hard < ceiling:
                value, ceiling = max(min(1, hard), hard - 1), hard
        resource.setrlimit(what, (value, ceiling))


def _mapped_bytes() -> int:
    """Return how much address space this process has in use."""
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _mapped_by_trial()
    mapped = int(os.read(statm, 100).split()[0]) * resource.getpagesize()
    os.close(statm)
    return mapped


def _mapped_by_trial() -> int:
    """Return the same where there is no ``/proc``: the least limit under which one more page can be had."""
    page = resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, min(limit if limit >= 0 else 1 << 47 for limit in (soft, hard))
    while high - low > page:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        address = syscall("mmap", 0, page, 0, _MAP_PRIVATE_ANONYMOUS, -1, 0)
        if -_MAX_ERRNO <= address < 0:
            low = middle
        else:
            syscall("munmap", address, page)
            high = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


def leave_namespaces() -> bool:
    """Enter new user, network and IPC namespaces; tell whether the kernel allowed it."""
    return syscall("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0


def drop_capabilities() -> None:
    """Give up root's rights, those over the new user namespace and, where there is none, those over the machine.

    Raises:
        SealError: the kernel refused it.
    """
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    result = syscall("capset", header, bytes(24))
    if result < 0:
        raise SealError(f"capabilities: {os.strerror(-result)}")


def landlock() -> bool:
    """Give up every right on files, TCP ports, abstract sockets and signals; tell whether the kernel has Landlock."""
    abi = landlock_version()
    if abi < 1:
        return False
    files = (1 << _LANDLOCK_FS_BITS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = syscall("landlock_create_ruleset", attributes, size)
    if ruleset < 0:
        return False
    done = syscall("landlock_restrict_self", ruleset)
    os.close(ruleset)
    return done == 0


def landlock_version() -> int:
    """Return the version of Landlock's interface that the kernel has; 0 or less if it has none."""
    return syscall("landlock_create_ruleset", None, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def seccomp(program: list[tuple[int, int, int, int]]) -> None:
    """Load a filter (see ``policy.build_filter``).

    Raises:
        SealError: the kernel refused it.
    """
    code = b"".join(struct.pack("=HBBI", *row) for row in program)
    header = struct.pack("@HP", len(program), address_of(code))
    result = syscall("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)
    if result < 0:
        raise SealError(f"seccomp: {os.strerror(-result)}")


def seal(
    files: Sequence[Grant],
    limits: Limits,
    parent: int,
    *,
    namespaces: bool = True,
    rules: tuple[Rule, ...] = RULES,
    processor: tuple[int, list[int]] = (-1, []),
    signals: Sequence[int] = (),
) -> None:
    """Give up all rights; comes after ``arrange_descriptors``. On return only the calls of ``rules`` work.

    ``parent`` is this process's parent, which it must not outlive. ``namespaces`` is false where the parent has
    entered them already. ``processor`` is for ``build_filter``. ``signals`` are those that this process handles.

    Raises:
        SealError, OSError: a step that must not fail failed.
    """
    # The host ends a cell, no signal does. What is sent to the whole terminal (Ctrl-C) passes it by.
    make_lethal(_SIGXCPU)
    hold_all_signals_but(_SIGXCPU, *signals)
    if namespaces:
        leave_namespaces()
    _prctl(_PR_SET_DUMPABLE, 0)
    if not _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        raise SealError("no_new_privs was refused")
    drop_capabilities()
    # Last of what touches credentials, because a change of those would undo it.
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        raise SealError("the host is gone")
    limit_resources(limits, kernel_threads=processor[0] >= 0)
    landlock()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    numbers = [(FD_FILES + n, g.mode) for n, g in enumerate(files)]
    windows = {FD_FILES + n: (g.offset, g.offset + g.size) for n, g in enumerate(files) if g.offset is not None}
    seccomp(
        build_filter(
            machine(),
            readable=[n for n, mode in numbers if "r" in mode],
            writable=[n for n, mode in numbers if "w" in mode],
            windows=windows,
            rules=rules,
            processor=processor,
        )
    )


def why_foreign() -> str | None:
    """Say why this program cannot use the kernel as instar knows it; ``None`` if it can. Asks nothing of the kernel."""
    if os.uname().sysname != "Linux":
        return "seccomp is Linux's"
    if sys.maxsize < 1 << 32:
        # On a 64-bit kernel too, its system calls have the numbers of another architecture.
        return "this Python is a 32-bit program; cells need a 64-bit one"
    return None


def why_unavailable() -> str | None:
    """Say why a process cannot be sealed on this machine; ``None`` if it can."""
    if reason := why_foreign():
        return reason
    if machine() not in AUDIT_ARCH:
        return f"no system call policy for {machine()}"
    # EFAULT: the kernel has seccomp filters and looked for the program.
    result = syscall("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None)
    if result != -_EFAULT:
        return f"seccomp filters: {os.strerror(-result)}"
    return None
