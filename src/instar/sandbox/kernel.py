"""What Python has no function for: some system calls, by number, and memory by address, to be overwritten.

Law: cheap to import. ``ctypes`` costs 3 to 8 ms, as much as starting and sealing a cell, so the C module below it
is used, by its few names that have been the same since Python 2.5; should they change, ``ctypes`` takes over.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Call numbers by machine (linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
NUMBERS = {
    "x86_64": {
        "prctl": 157,
        "capset": 126,
        "unshare": 272,
        "mmap": 9,
        "munmap": 11,
        "ppoll": 271,
        # The rest is for the monitor of a kvm cell, which there is on this machine only.
        "read": 0,
        "write": 1,
        "pread64": 17,
        "pwrite64": 18,
        "madvise": 28,
        "arch_prctl": 158,
        "process_vm_writev": 311,
    },
    "aarch64": {
        "prctl": 167,
        "capset": 91,
        "unshare": 97,
        "mmap": 222,
        "munmap": 215,
        "ppoll": 73,
        "process_vm_writev": 271,
    },
}
#: These are the same on every architecture.
_COMMON = {"close_range": 436, "landlock_create_ruleset": 444, "landlock_restrict_self": 446}


Tools = tuple["Callable[..., int]", "Callable[[int, int, int], object]", "Callable[[int], int]", "Callable[[str], int]"]


def _with_c_module() -> Tools:
    """Return ``syscall(2)``, ``memmove``, ``strlen``, ``dlsym``; arguments are machine words or addresses of bytes."""
    import _ctypes

    class Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "P"

    class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "l"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = Long
        _argtypes_ = (Word,) * 7

    class Move(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL
        _restype_ = Word
        _argtypes_ = (Word,) * 3

    class Length(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL
        _restype_ = Long
        _argtypes_ = (Word,)

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]

    def find(name: str) -> int:
        return int(_ctypes.dlsym(program, name))

    function, move, length = Function(find("syscall")), Move(find("memmove")), Length(find("strlen"))

    def call(number: int, *arguments: int | bytes | None) -> int:
        result = function(number, *arguments, *(0,) * (6 - len(arguments)))
        return -int(_ctypes.get_errno()) if result == -1 else int(result)

    return call, move, length, find


def _with_ctypes() -> Tools:
    """Return the same, made of public names."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = (ctypes.c_void_p,) * 7

    def call(number: int, *arguments: int | bytes | None) -> int:
        result = libc.syscall(number, *arguments, *(0,) * (6 - len(arguments)))
        return -ctypes.get_errno() if result == -1 else int(result)

    libc.strlen.restype = ctypes.c_size_t
    libc.strlen.argtypes = (ctypes.c_void_p,)

    def find(name: str) -> int:
        return ctypes.addressof(ctypes.c_char.in_dll(libc, name))

    return call, ctypes.memmove, libc.strlen, find


try:
    _tools = _with_c_module()
except (ImportError, AttributeError, TypeError, OSError):
    _tools = _with_ctypes()

_call = _tools[0]
#: ``move(to, from, length)`` copies memory by address, ``length_at`` measures a text of C's, ``address_of_symbol``
#: finds what the C library calls so. Nothing checks an address; a wrong one is a crash.
move, length_at, address_of_symbol = _tools[1:]

_numbers = {**_COMMON, **NUMBERS.get(os.uname().machine, {})}


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call; return what it gives, or the negative ``errno``.

    Bytes are passed by address and must be at least as long as the kernel reads. Unused arguments are 0.

    Raises:
        KeyError: the call's number is not known on this machine.
    """
    return _call(number_of(name), *arguments)


def number_of(name: str) -> int:
    """Return a system call's number on this machine.

    Raises:
        KeyError: it is not known.
    """
    return _numbers[name]


def address_of(data: bytes) -> int:
    """Return where the bytes of an object lie; valid as long as it lives.

    For structures that point to others. CPython keeps the bytes at the end of the object, before a final zero.
    """
    return id(data) + bytes.__basicsize__ - 1
