"""What Python has no word for and a virtual machine needs: memory by address, C functions by name, a held GIL.

Law: addresses come from the kernel (``mmap``, ``/proc/self/maps``), never from a guest without a look at the map
of its memory (see ``memory``). Like ``kernel``, this uses the C module below ``ctypes``, which is slow to import.
"""

from __future__ import annotations

import os

from instar.sandbox.kernel import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# linux/mman.h
_PROT_NONE = 0
_PROT_READ_WRITE = 3
_MAP_SHARED = 1
_MAP_PRIVATE_ANONYMOUS = 0x22
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_HUGEPAGE = 14
_PAGE = 4096
# PyBUF_READ, PyBUF_WRITE (Include/object.h)
_READ = 0x100
_WRITE = 0x200

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_NEVER = (1 << 31) - 1
_STEP = 1 << 20
_LARGE = 32 << 20

Tools = tuple[
    "Callable[[int, int, int, int, int, int, int], int]",
    "Callable[[], int]",
    "Callable[[int, int, int], memoryview]",
    "Callable[[str], int]",
    "Callable[[int, int], int]",
]


def _with_c_module() -> Tools:
    """Return what the names below are bound to."""
    import _ctypes

    class Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "P"

    class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "l"

    class Object(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "O"

    class Syscall(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = Long
        _argtypes_ = (Word,) * 7

    class FromMemory(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
        _restype_ = Object
        _argtypes_ = (Word, Long, Long)

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    function = Syscall(_ctypes.dlsym(program, "syscall"))
    from_memory = FromMemory(_ctypes.dlsym(program, "PyMemoryView_FromMemory"))

    class Mallopt(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
        _restype_ = Long
        _argtypes_ = (Long, Long)

    def option(number: int, value: int) -> int:
        return int(Mallopt(_ctypes.dlsym(program, "mallopt"))(number, value))

    def find(name: str) -> int:
        return int(_ctypes.dlsym(program, name))

    return function, _ctypes.get_errno, from_memory, find, option


def _with_ctypes() -> Tools:
    """Return the same, made of public names."""
    import ctypes

    library = ctypes.PyDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    library.syscall.argtypes = (ctypes.c_void_p,) * 7
    from_memory = library.PyMemoryView_FromMemory
    from_memory.restype = ctypes.py_object
    from_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)

    def symbol(name: str) -> int:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0

    def option(number: int, value: int) -> int:
        return int(library.mallopt(number, value))

    return library.syscall, ctypes.get_errno, from_memory, symbol, option


try:
    _tools = _with_c_module()
except (ImportError, AttributeError, TypeError, OSError):
    _tools = _with_ctypes()

#: ``syscall(2)`` as the C function that it is, for a number and six words. It keeps the GIL, so the interpreter stands
#: still in the middle of it, and enters no Python frame. Gives -1 for an error, of which ``last_error`` is the number.
plain_syscall, last_error = _tools[:2]
#: ``symbol`` returns the address of a C function of this program.
_from_memory, symbol, _mallopt = _tools[2:]


def ask_seldom_for_memory() -> None:
    """Have the C library's allocator take memory in larger steps, and keep what it has.

    What costs a system call nothing costs a guest an exit of its machine, thirty times as much.
    """
    try:
        for number, value in ((_M_MMAP_THRESHOLD, _LARGE), (_M_TOP_PAD, _STEP), (_M_TRIM_THRESHOLD, _NEVER)):
            _mallopt(number, value)
    except (AttributeError, OSError):
        pass  # another C library


def view_at(address: int, length: int, *, writable: bool = False) -> memoryview:
    """Return the bytes of memory that this process has mapped. Nothing checks that; a wrong address is a crash."""
    return _from_memory(address, length, _WRITE if writable else _READ)


def new_memory(length: int, *, align: int) -> int:
    """Map zeroed private memory of this process, aligned, and return its address; none is used before it is touched.

    It has a hole before and behind it, so that it is a mapping of its own in ``/proc/self/maps``.

    Raises:
        OSError: as the system says.
    """
    hole = _map(0, length + align + 2 * _PAGE, _PROT_NONE, _MAP_PRIVATE_ANONYMOUS | _MAP_NORESERVE, -1)
    start = hole + _PAGE + align - 1 & -align
    address = _map(start, length, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED, -1)
    syscall("madvise", address, length, _MADV_HUGEPAGE)  # a wish: without it there are more page faults
    return address


def map_shared(fd: int, length: int) -> int:
    """Map a device's memory, for reading and writing, and return its address.

    Raises:
        OSError: as the system says.
    """
    return _map(0, length, _PROT_READ_WRITE, _MAP_SHARED, fd)


def _map(address: int, length: int, protection: int, flags: int, fd: int) -> int:
    result = syscall("mmap", address, length, protection, flags, fd, 0)
    if -4096 < result < 0:
        raise OSError(-result, f"mmap of {length >> 10} KiB: {os.strerror(-result)}")
    return result
