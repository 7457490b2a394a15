"""Runs commands of instar and measures each: processor time, memory, output, and every file that Python opened for it.

Law: a command runs in a fork of this process, which has imported what the command line imports and little more, so
that what is measured is the command and its cells. Reads one JSON object a line, answers with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

#: Seconds after which a command is ended whatever it does; bounds are in processor time, and are shorter.
PATIENCE = 120
#: Most bytes of output that are looked at.
MOST = 64 << 20
#: Events of ``sys.addaudithook`` that reach out of the process: a file, a folder, a program, a connection.
_WATCHED = ("os.", "socket.", "subprocess.", "shutil.", "ctypes.dlopen", "fcntl.ioctl")

#: What the library was seen to open.
_SEEN: list[list[Any]] = []


def watch(seen: list[list[Any]]) -> None:
    """Note what this process opens, lists, links, removes, or connects to."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            seen.append([event, str(args[0]), args[2]])
        elif event.startswith(_WATCHED) and event not in ("os.fork", "os.putenv", "os.unsetenv"):
            seen.append([event, str(args[0]) if args else "", 0])

    sys.addaudithook(hook)


def watch_library(folder: str) -> list[list[Any]]:
    """Give an image to every operation of the library, in this process; return what Python opened meanwhile."""
    import instar

    os.chdir(folder)
    cell = instar.Isolation("process")
    if not _SEEN:
        # What a library does once: it imports, and starts the server whose forks are cells.
        instar.create("first", "1M", format="qcow2", isolation=cell)
        preload()
        watch(_SEEN)
    _SEEN[:] = [["open", folder, 0]]
    for operation in (
        lambda: instar.info("image", isolation=cell),
        lambda: instar.info_chain("image", isolation=cell),
        lambda: instar.check("image", isolation=cell),
        lambda: instar.create("top", format="qcow2", backing="image", isolation=cell),
    ):
        with contextlib.suppress(instar.InstarError):
            operation()
    # Each order goes to the server through a pair of sockets that are connected to nothing else.
    return [event for event in _SEEN if event[0] not in ("socket.__new__", "socket.sendmsg")]


def preload() -> None:
    """Import what commands import, so that a fork need not."""
    from instar.formats import creatable
    from instar.guest.main import preload_all

    preload_all()
    for row in creatable():
        import_module(f"instar.formats.{row.name}.options")


def _command(words: list[str], folder: str, streams: list[int], log: int) -> None:
    """Be the command; never returns."""
    seen: list[list[Any]] = []
    code = 255
    try:
        os.chdir(folder)
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, fd in enumerate((nothing, *streams)):
            os.dup2(fd, number)
        from instar.cli.main import main

        watch(seen)
        code = main(["instar", *words])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        own = resource.getrusage(resource.RUSAGE_SELF)
        cells = resource.getrusage(resource.RUSAGE_CHILDREN)
        facts = {
            "host_cpu": own.ru_utime + own.ru_stime,
            "cell_cpu": cells.ru_utime + cells.ru_stime,
            "host_rss": own.ru_maxrss << 10,
            "cell_rss": cells.ru_maxrss << 10,
            "seen": seen,
        }
        os.write(log, json.dumps(facts).encode())
        os._exit(code & 0xFF)


def run(words: list[str], folder: str) -> dict[str, Any]:
    """Run one command to its end; return its exit code, output, and what it used."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as log:
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _command(words, folder, [out.fileno(), err.fileno()], log.fileno())
        status = None
        while status is None:
            done, found = os.waitpid(pid, os.WNOHANG)
            if done:
                status = found
            elif time.monotonic() - start > PATIENCE:
                os.kill(pid, 9)
            else:
                time.sleep(0.001)
        read = {name: os.pread(file.fileno(), MOST, 0) for name, file in (("out", out), ("err", err))}
        facts = json.loads(os.pread(log.fileno(), MOST, 0) or b"{}")
        return {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - start,
            **{name: data.decode("utf-8", "surrogateescape") for name, data in read.items()},
            **facts,
        }


def serve() -> None:
    """Answer orders until there are no more."""
    preload()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        sys.stdout.buffer.write(json.dumps(run(order["words"], order["folder"])).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
