"""Guests for ``exploited.run_exploited``: light, as the command that runs them is measured."""

from __future__ import annotations

from tests.sandbox.exploited import replying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sandbox.exploited import Ask

    from instar.sandbox.cell import Guest
    from instar.sandbox.files import GrantedFile


def raw_of_one_mebibyte() -> Guest:
    """Describe whatever it is as a raw disk of 1 MiB."""
    from instar.core.image import ImageFacts

    return replying(ImageFacts("raw", 1 << 20).to_wire())


#: What a guest looks for, backwards, so that it is not in the memory that it searches for that.
CANARY = "yranac-a-fo-eulav-eht"


def canaries() -> Guest:
    """Search all memory for the canary; the disk is so many KiB long as there are copies of it.

    In bytes, and as the interpreter keeps what it was started with, in characters of four bytes.
    """
    return _counting(lambda: [CANARY[::-1].encode(), b"".join(b"%c\0\0\0" % ord(c) for c in CANARY[::-1])])


def command_lines() -> Guest:
    """The same for the command line as the kernel has it, with the end of the one word and the start of the next."""
    return _counting(lambda: [b"info\0" + CANARY[::-1].encode()])


def _counting(needles: Callable[[], list[bytes]]) -> Guest:
    import ctypes
    import os

    from instar.core.image import ImageFacts
    from instar.sandbox.kernel import address_of

    libc = ctypes.CDLL(None)
    libc.memmem.restype = ctypes.c_void_p
    libc.memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
    libc.sbrk.restype = ctypes.c_void_p
    libc.sbrk.argtypes = (ctypes.c_ssize_t,)
    maps: list[list[str]] = []

    def look_at_maps() -> None:
        with open("/proc/self/maps") as file:
            maps[:] = [line.split() for line in file]

    os.register_at_fork(after_in_child=look_at_maps)

    def guest(job: bytes, files: list[GrantedFile], ask: Ask) -> bytes:
        count = 0
        for needle in needles():
            for span, rights, *rest in maps:
                if rights[0] != "r" or rights[3] == "s" or (rest[3:] and rest[3].startswith(("[vvar", "[vsys"))):
                    continue
                at, end = (int(text, 16) for text in span.split("-"))
                if rest[-1] == "[heap]":  # the C library may have given back its end since
                    end = min(end, libc.sbrk(0))
                while at < end and (found := libc.memmem(at, end - at, needle, len(needle))):
                    count += found != address_of(needle)
                    at = found + 1
        return replying(ImageFacts("raw", count << 10).to_wire(), format="raw")(job, files, ask)

    return guest
