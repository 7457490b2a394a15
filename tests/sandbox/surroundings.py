"""Surroundings that a program may be started in: ``python surroundings.py STEP ... -- PROGRAM ARGUMENT ...``.

Steps are taken in the order given, by the real system calls, and the program then takes this process's place. A step
that this machine does not allow ends it with ``CANNOT`` and the reason, which a test takes for a skip.

    limit=NAME:VALUE           a resource limit, soft and hard (AS, CPU, NOFILE ...)
    namespaces=user,mount,...  new namespaces; in a new user namespace this user is root
    tree=FOLDER:WORD,WORD...   a root of its own: the interpreter, instar, FOLDER, /dev/null, nothing else; words:
                               ``kvm`` for /dev/kvm, ``proc`` for /proc, ``read-only``, and ``pivot``, without which
                               it is a chroot
    disk=FOLDER:BYTES          a small file system there
    device=MODE:GROUP          the mode and the group of /dev/kvm in that tree
    user=UID:GID:GROUP...      an ordinary user, in no other groups than these
    no-capabilities            give up all of them, for good
    no-new-privileges
    deny=ERROR:NUMBER,...      system calls that give this error
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

CANNOT = 77

_CLONE = {
    "mount": 0x20000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
# linux/sched.h, linux/mount.h, linux/prctl.h, seccomp and BPF as in ``process.policy``; numbers of x86-64.
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PIVOT_ROOT, _CAPSET = 155, 126
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_ERRORS = {"EPERM": 1, "ENOSYS": 38, "EACCES": 13}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> None:
    """Raise what a system call of the C library said."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def limit(argument: str) -> None:
    name, _, value = argument.partition(":")
    what = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(what, (int(value), int(value)))


def namespaces(argument: str) -> None:
    names = argument.split(",")
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(sum(_CLONE[name] for name in names)), "unshare")
    if "user" in names:
        for path, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{path}", "w") as file:
                file.write(text)
    if "mount" in names:
        mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    if "pid" in names and (child := os.fork()):
        # The program is the child; this process says what became of it.
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def tree(argument: str) -> None:
    folder, _, rest = argument.partition(":")
    words = rest.split(",")
    root = os.path.join(folder, "root")
    os.mkdir(root)
    mount("tree", root, "tmpfs", 0, "mode=755,size=1m")
    shown = [
        "/usr",
        *places_of_python(),
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        folder,
    ]
    for place in shown:
        bind(place, root)
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", root)
    os.mkdir(f"{root}/dev")
    for name in ("null", *(["kvm"] if "kvm" in words else [])):
        try:
            os.mknod(f"{root}/dev/{name}", 0o20666, os.stat(f"/dev/{name}").st_rdev)
            os.chmod(f"{root}/dev/{name}", 0o666)
            os.close(os.open(f"{root}/dev/{name}", os.O_RDWR))
        except OSError:  # in a user namespace there are no nodes to be made
            if os.path.lexists(f"{root}/dev/{name}"):
                os.unlink(f"{root}/dev/{name}")
            bind(f"/dev/{name}", root)
    if "proc" in words:
        os.mkdir(f"{root}/proc")
        mount("proc", f"{root}/proc", "proc", 0)
    os.chdir(root)
    if "pivot" in words:
        check(libc.syscall(ctypes.c_long(_PIVOT_ROOT), b".", b"."), "pivot_root")
        check(libc.umount2(b".", _MNT_DETACH), "umount")
    else:
        os.chroot(".")
    if "read-only" in words:
        mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    os.chdir(folder)


def disk(argument: str) -> None:
    folder, _, size = argument.rpartition(":")
    os.makedirs(folder, exist_ok=True)
    mount("disk", folder, "tmpfs", 0, f"mode=755,size={size}")


def places_of_python() -> list[str]:
    """Return the folders that this interpreter needs."""
    return [place for place in {sys.prefix, sys.base_prefix} if not place.startswith("/usr")]


def bind(place: str, root: str) -> None:
    target = root + place
    if os.path.isdir(place):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        open(target, "w").close()
    mount(place, target, None, _MS_BIND | _MS_REC)


def device(argument: str) -> None:
    mode, _, group = argument.partition(":")
    os.chown("/dev/kvm", 0, int(group))
    os.chmod("/dev/kvm", int(mode, 8))


def user(argument: str) -> None:
    number, group, *groups = map(int, argument.split(":"))
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(number, number, number)


def no_capabilities(_: str) -> None:
    for number in range(64):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header = struct.pack("=Ii", 0x20080522, 0)
    check(libc.syscall(ctypes.c_long(_CAPSET), header, bytes(24)), "capset")


def no_new_privileges(_: str) -> None:
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def deny(argument: str) -> None:
    error, _, numbers = argument.partition(":")
    rows = [(0x20, 0, 0, 0)]
    for number in numbers.split(","):
        rows += [(0x15, 0, 1, int(number)), (0x06, 0, 0, 0x50000 | _ERRORS[error])]
    rows.append((0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
    program = struct.pack("@HP", len(rows), ctypes.addressof(code))
    no_new_privileges("")
    check(libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


STEPS = {
    "limit": limit,
    "namespaces": namespaces,
    "tree": tree,
    "disk": disk,
    "device": device,
    "user": user,
    "no-capabilities": no_capabilities,
    "no-new-privileges": no_new_privileges,
    "deny": deny,
}


def main(words: list[str]) -> None:
    """Take the steps, then become the program."""
    end = words.index("--")
    for step in words[:end]:
        name, _, argument = step.partition("=")
        try:
            STEPS[name](argument)
        except OSError as error:
            print(f"{name}: {error.strerror}", file=sys.stderr)
            os._exit(CANNOT)
    os.execv(words[end + 1], words[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
