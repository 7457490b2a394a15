"""What a guest that has been taken over would try, by call number: no cell and no monitor of one may do any of it.

The numbers are those of x86-64, and rows of calls that only that has are left out elsewhere (see ``numbers``).
Pointers are good, so that it is not for them that a call fails.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from tests.sandbox.numbers import here

from instar.sandbox.process.policy import FD_DOWN, FD_FILES, FD_UP

_BUFFER = ctypes.create_string_buffer(b"/etc/passwd", 4096)
_AT = ctypes.addressof(_BUFFER)
_PAGE = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_PAGE_AT = ctypes.addressof(ctypes.c_char.from_buffer(_PAGE))
_HOST = os.getpid()

#: Files that are granted for reading, for writing, and for both.
READ, WRITE, BOTH = FD_FILES, FD_FILES + 1, FD_FILES + 2

#: Name, call number, arguments.
_ROWS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("open", 2, (_AT, 0)),
    ("openat", 257, (-100, _AT, 0)),
    ("openat2", 437, (-100, _AT, _AT, 24)),
    ("open_by_handle_at", 304, (-100, _AT, 0)),
    ("creat", 85, (_AT, 0)),
    ("close", 3, (READ,)),
    ("close_range", 436, (3, 100, 0)),
    ("stat", 4, (_AT, _AT)),
    ("fstat", 5, (READ, _AT)),
    ("lseek", 8, (READ, 0, 0)),
    ("dup", 32, (READ,)),
    ("dup2", 33, (READ, 1)),
    ("dup3", 292, (READ, 1, 0)),
    ("fcntl", 72, (READ, 1)),
    ("ioctl", 16, (READ, 0x5401, _AT)),
    ("ftruncate", 77, (BOTH, 0)),
    ("fallocate", 285, (BOTH, 0, 0, 4096)),
    ("fsync", 74, (BOTH,)),
    ("sendfile", 40, (BOTH, READ, 0, 100)),
    ("splice", 275, (FD_DOWN, 0, BOTH, 0, 100, 0)),
    ("copy_file_range", 326, (READ, 0, BOTH, 0, 100, 0)),
    ("unlink", 87, (_AT,)),
    ("unlinkat", 263, (-100, _AT, 0)),
    ("linkat", 265, (-100, _AT, -100, _AT, 0)),
    ("rename", 82, (_AT, _AT)),
    ("renameat", 264, (-100, _AT, -100, _AT)),
    ("renameat2", 316, (-100, _AT, -100, _AT, 0)),
    ("chmod", 90, (_AT, 0)),
    ("fchmodat", 268, (-100, _AT, 0)),
    ("newfstatat", 262, (-100, _AT, _AT, 0)),
    ("statx", 332, (-100, _AT, 0, 0xFFF, _AT)),
    ("mount", 165, (_AT, _AT, _AT, 0, 0)),
    ("chroot", 161, (_AT,)),
    ("socket", 41, (2, 1, 0)),
    ("socketpair", 53, (1, 1, 0, _AT)),
    ("connect", 42, (READ, _AT, 16)),
    ("sendmsg", 46, (FD_UP, _AT, 0)),
    ("recvmsg", 47, (FD_DOWN, _AT, 0)),
    ("pipe", 22, (_AT,)),
    ("pipe2", 293, (_AT, 0)),
    ("ppoll", 271, (_AT, 0, _AT, 0, 0)),
    ("vmsplice", 278, (FD_UP, _AT, 1, 0)),
    ("reboot", 169, (0, 0, 0, 0)),
    ("memfd_create", 319, (_AT, 0)),
    ("memfd_secret", 447, (0,)),
    ("userfaultfd", 323, (0,)),
    ("fork", 57, ()),
    ("vfork", 58, ()),
    ("clone", 56, (17, 0, 0, 0, 0)),
    ("clone3", 435, (_AT, 88)),
    ("execve", 59, (_AT, 0, 0)),
    ("execveat", 322, (-100, _AT, 0, 0, 0)),
    ("exit (of one thread)", 60, (0,)),
    ("ptrace", 101, (16, _HOST, 0, 0)),
    ("process_vm_readv", 310, (_HOST, _AT, 1, _AT, 1, 0)),
    ("process_vm_writev", 311, (_HOST, _AT, 1, _AT, 1, 0)),
    ("process_madvise", 440, (3, _AT, 1, 4, 0)),
    ("pidfd_open", 434, (_HOST, 0)),
    ("pidfd_getfd", 438, (3, 0, 0)),
    ("kill of the host", 62, (_HOST, 9)),
    ("kill of itself", 62, (0, 0)),
    ("tkill", 200, (_HOST, 9)),
    ("tgkill", 234, (_HOST, _HOST, 9)),
    ("rt_sigaction", 13, (11, 0, 0, 8)),
    ("rt_sigprocmask", 14, (0, 0, _AT, 8)),
    ("rt_sigreturn", 15, ()),
    ("sigaltstack", 131, (0, _AT)),
    ("prctl", 157, (4, 1, 0, 0, 0)),
    ("arch_prctl", 158, (0x1004, _AT)),
    ("seccomp", 317, (1, 0, _AT)),
    ("personality", 135, (0x400000,)),
    ("setrlimit", 160, (9, _AT)),
    ("prlimit64", 302, (0, 9, _AT, 0)),
    ("setuid", 105, (0,)),
    ("capset", 126, (_AT, _AT)),
    ("unshare", 272, (0x10000000,)),
    ("setns", 308, (READ, 0)),
    ("bpf", 321, (0, _AT, 120)),
    ("perf_event_open", 298, (_AT, 0, -1, -1, 0)),
    ("io_uring_setup", 425, (8, _AT)),
    ("io_uring_enter", 426, (READ, 1, 1, 0, 0, 0)),
    ("io_setup", 206, (8, _AT)),
    ("keyctl", 250, (0, 0, 0)),
    ("add_key", 248, (_AT, _AT, _AT, 1, 0)),
    ("shmget", 29, (0, 4096, 0o1600)),
    ("mq_open", 240, (_AT, 0o100, 0o600, 0)),
    ("futex", 202, (_AT, 0, 0, 0, 0, 0)),
    ("nanosleep", 35, (_AT, 0)),
    ("getrandom", 318, (_AT, 1, 0)),
    ("getpid", 39, ()),
    ("sched_setaffinity", 203, (0, 8, _AT)),
    ("readv", 19, (FD_DOWN, _AT, 0)),
    ("writev", 20, (FD_UP, _AT, 0)),
    ("preadv", 295, (READ, _AT, 0, 0, 0)),
    ("pwritev", 296, (BOTH, _AT, 0, 0, 0)),
    ("preadv2", 327, (READ, _AT, 0, 0, 0, 0)),
    ("pwritev2", 328, (BOTH, _AT, 0, 0, 0, 0)),
    # allowed calls with other arguments
    ("pread of a file granted for writing", 17, (WRITE, _AT, 1, 0)),
    ("pread of a descriptor never granted", 17, (BOTH + 1, _AT, 1, 0)),
    ("pread of standard input", 17, (0, _AT, 1, 0)),
    ("pread of the channel", 17, (FD_DOWN, _AT, 1, 0)),
    ("pread with high bits in the number of a stranger", 17, ((1 << 32) | 0, _AT, 1, 0)),
    ("pwrite to a file granted for reading", 18, (READ, _AT, 1, 0)),
    ("pwrite to a descriptor never granted", 18, (BOTH + 1, _AT, 1, 0)),
    ("pwrite to the channel", 18, (FD_UP, _AT, 1, 0)),
    ("read of what it writes to the host", 0, (FD_UP, _AT, 1)),
    ("read of a granted file, which would move its offset", 0, (READ, _AT, 1)),
    ("write to what it reads from the host", 1, (FD_DOWN, _AT, 1)),
    ("write to a granted file", 1, (BOTH, _AT, 1)),
    ("write to standard error", 1, (2, _AT, 1)),
    ("mmap of executable memory", 9, (0, 4096, 7, 0x22, -1, 0)),
    ("mmap of a granted file", 9, (0, 4096, 1, 0x01, READ, 0)),
    ("mprotect to executable", 10, (_PAGE_AT, 4096, 5)),
    ("mprotect", 10, (_PAGE_AT, 4096, 1)),
    ("pkey_mprotect", 329, (_PAGE_AT, 4096, 5, -1)),
    ("remap_file_pages", 216, (_PAGE_AT, 4096, 0, 0, 0)),
    ("mlock", 149, (_PAGE_AT, 4096)),
    ("shmat", 30, (0, 0, 0)),
    ("madvise that poisons a page of the machine", 28, (_PAGE_AT, 4096, 100)),
    ("a call of the x32 ABI", 0x40000000 | 17, (READ, _AT, 1, 0)),
    ("a call that does not exist", 9999, ()),
    ("call number -1", -1, ()),
)
FORBIDDEN = tuple(row for row in _ROWS if here(row[1]) is not None)
