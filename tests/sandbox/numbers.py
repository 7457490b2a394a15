"""System calls by number on either machine: rows of the tests have x86-64's, and AArch64's stand here beside them.

The source is the kernel's table for each (asm/unistd_64.h, asm-generic/unistd.h); from 424 on both have the same.
"""

from __future__ import annotations

import platform

#: Whether this is the one of the two machines that has no KVM cells.
ARM = platform.machine() == "aarch64"
#: Above user space: the end of its addresses.
USER_TOP = 1 << (48 if ARM else 47)

_AARCH64 = {
    0: 63,  # read
    1: 64,  # write
    3: 57,  # close
    5: 80,  # fstat
    8: 62,  # lseek
    9: 222,  # mmap
    10: 226,  # mprotect
    11: 215,  # munmap
    12: 214,  # brk
    13: 134,  # rt_sigaction
    14: 135,  # rt_sigprocmask
    15: 139,  # rt_sigreturn
    16: 29,  # ioctl
    17: 67,  # pread64
    18: 68,  # pwrite64
    19: 65,  # readv
    20: 66,  # writev
    25: 216,  # mremap
    28: 233,  # madvise
    29: 194,  # shmget
    30: 196,  # shmat
    32: 23,  # dup
    35: 101,  # nanosleep
    39: 172,  # getpid
    40: 71,  # sendfile
    41: 198,  # socket
    42: 203,  # connect
    46: 211,  # sendmsg
    47: 212,  # recvmsg
    53: 199,  # socketpair
    56: 220,  # clone
    59: 221,  # execve
    60: 93,  # exit
    62: 129,  # kill
    72: 25,  # fcntl
    74: 82,  # fsync
    77: 46,  # ftruncate
    101: 117,  # ptrace
    105: 146,  # setuid
    126: 91,  # capset
    131: 132,  # sigaltstack
    135: 92,  # personality
    149: 228,  # mlock
    157: 167,  # prctl
    160: 164,  # setrlimit
    161: 51,  # chroot
    165: 40,  # mount
    169: 142,  # reboot
    200: 130,  # tkill
    202: 98,  # futex
    203: 122,  # sched_setaffinity
    206: 0,  # io_setup
    216: 234,  # remap_file_pages
    228: 113,  # clock_gettime
    231: 94,  # exit_group
    234: 131,  # tgkill
    240: 180,  # mq_open
    248: 217,  # add_key
    250: 219,  # keyctl
    257: 56,  # openat
    262: 79,  # newfstatat
    263: 35,  # unlinkat
    264: 38,  # renameat
    265: 37,  # linkat
    268: 53,  # fchmodat
    271: 73,  # ppoll
    272: 97,  # unshare
    275: 76,  # splice
    278: 75,  # vmsplice
    285: 47,  # fallocate
    288: 242,  # accept4
    292: 24,  # dup3
    293: 59,  # pipe2
    295: 69,  # preadv
    296: 70,  # pwritev
    298: 241,  # perf_event_open
    302: 261,  # prlimit64
    304: 265,  # open_by_handle_at
    308: 268,  # setns
    310: 270,  # process_vm_readv
    311: 271,  # process_vm_writev
    316: 276,  # renameat2
    317: 277,  # seccomp
    318: 278,  # getrandom
    319: 279,  # memfd_create
    321: 280,  # bpf
    322: 281,  # execveat
    323: 282,  # userfaultfd
    326: 285,  # copy_file_range
    327: 286,  # preadv2
    328: 287,  # pwritev2
    329: 288,  # pkey_mprotect
    332: 291,  # statx
}


def here(number: int) -> int | None:
    """Return the number that a call of x86-64 has on this machine, ``None`` if it has no such call.

    Numbers that are no call's, such as -1 or 9999, stay what they are.
    """
    if not ARM or number in _AARCH64:
        return _AARCH64[number] if ARM else number
    return number if number < 0 or 424 <= number < 1 << 30 else None


def number_of(number: int) -> int:
    """Return the same for a call that both machines have."""
    found = here(number)
    assert found is not None, f"call {number} of x86-64 has no number here"
    return found
