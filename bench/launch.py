"""Time cells from a process that has loaded nothing but instar, as the command line is one.

``python -I -S bench/launch.py FOLDER-OF-SOURCES KIND FILE`` reads words from standard input, one a line, and prints
for each how many seconds it took: ``empty`` is a cell from its order to its reply, with nothing to do; ``bulk`` reads
FILE in pieces of 1 MiB. KIND is a cell's, or ``outside`` for the same work in this process.
"""

from __future__ import annotations

import os
import sys
import time

PIECE = 1 << 20


def main(source: str, kind: str, path: str) -> None:
    """Serve until the input ends."""
    sys.path.insert(0, source)
    from instar.core.wire import encode
    from instar.guest.main import preload
    from instar.sandbox.cell import Grant, Isolation, Limits

    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    bulk = False

    def guest(job: bytes, files: list[object], ask: object) -> bytes:
        if bulk:
            file = files[0]
            for offset in range(0, size, PIECE):
                file.read(offset, PIECE)  # type: ignore[attr-defined]
        return b"done"

    # What the command line has loaded when it starts a cell.
    preload(encode({"op": "info", "args": {"format": "qcow2"}}))
    if kind == "outside":
        from instar.sandbox.inline import InlineCell

        cell: object = InlineCell(accept_no_isolation=True, guest=guest)  # type: ignore[arg-type]
    else:
        cell = Isolation(kind, single_threaded=True).open()
        cell._guest = guest  # type: ignore[attr-defined]
    limits = Limits()
    for line in sys.stdin:
        bulk = line.strip() == "bulk"
        start = time.perf_counter()
        cell.run(b"", [Grant(fd, "r", size)], limits, lambda request: None)  # type: ignore[attr-defined]
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
