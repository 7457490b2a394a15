"""Time cells from a process that has loaded nothing but instar, as the command line is one.

``python -I -S bench/launch.py FOLDER-OF-SOURCES KIND FILE`` reads words from standard input, one a line, and prints
for each how many seconds it took: ``empty`` is a cell from its order to its reply, with nothing to do; a number reads
FILE in pieces of so many bytes, again and again, ``PASSES`` times. KIND is a cell's name, or ``outside`` for the same
work in this process; ``kvm-in-advance`` is a cell of a program that has a moment between two calls, in which the fork
server makes the next one.
"""

from __future__ import annotations

import os
import sys
import time

PASSES = 4
#: Long enough for the fork server to make a machine.
_MOMENT = 0.05


def main(source: str, kind: str, path: str) -> None:
    """Serve until the input ends."""
    sys.path.insert(0, source)
    from instar.core.wire import encode
    from instar.guest.main import preload
    from instar.sandbox.cell import Grant, Isolation, Limits

    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    piece = 0

    def guest(job: bytes, files: list[object], ask: object) -> bytes:
        if piece:
            file = files[0]
            for offset in list(range(0, size, piece)) * PASSES:
                file.read(offset, piece)  # type: ignore[attr-defined]
        return b"done"

    # What the command line has loaded when it starts a cell.
    preload(encode({"op": "info", "args": {"format": "qcow2"}}))
    if kind == "outside":
        from instar.sandbox.inline import InlineCell

        cell: object = InlineCell(accept_no_isolation=True, guest=guest)  # type: ignore[arg-type]
    elif kind == "kvm-in-advance":
        cell = Isolation("kvm").open()
    else:
        cell = Isolation(kind, single_threaded=True).open()
        cell._guest = guest  # type: ignore[attr-defined]
    limits = Limits()
    # An operation that there is not: answered by the guest of the fork server, which is not ours to choose.
    nothing = encode({"op": "nothing", "args": {}})
    for line in sys.stdin:
        word = line.strip()
        piece = 0 if word == "empty" else int(word)
        start = time.perf_counter()
        cell.run(nothing, [Grant(fd, "r", size)], limits, lambda request: None)  # type: ignore[attr-defined]
        took = time.perf_counter() - start
        if kind == "kvm-in-advance":
            time.sleep(_MOMENT)
        print(took, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
