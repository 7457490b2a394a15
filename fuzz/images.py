"""Images that others made, as seeds: by each qemu-img of this machine, with data, snapshots and bitmaps in them."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.compat.versions import programs

SIZE = "3M"
#: Options of ``create``; ``DATA`` is written to each.
_KINDS: dict[str, tuple[str, ...]] = {
    "raw": ("",),
    "qcow2": ("", "compat=0.10", "cluster_size=4k,lazy_refcounts=on", "extended_l2=on", "compression_type=zstd"),
    "qed": ("", "cluster_size=4k,table_size=2"),
    "qcow": ("",),
    "vmdk": ("", "subformat=streamOptimized", "zeroed_grain=on"),
    "vpc": ("", "subformat=fixed"),
    "vhdx": ("block_size=1M", "subformat=fixed"),
    "vdi": ("", "static=on"),
    "parallels": ("cluster_size=64k",),
}
_DATA = ("write -P 1 100k 70k", "write -P 2 2M 512", "write -z 1M 128k", "write -c -P 3 2560k 64k")


@cache
def made_by_others(format: str) -> tuple[bytes, ...]:
    """Return images of a format, of each kind by each version; none of an unknown format, or without qemu-img."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t")
        for _, program in sorted(programs().items()):
            for options in _KINDS.get(format, ()):
                words = ["-o", options] if options else []
                if _run(program, "create", "-q", "-f", format, *words, str(path), SIZE):
                    continue  # an option that this version does not have
                for command in _DATA:
                    _run("qemu-io", "-f", format, "-c", command, str(path))
                if format == "qcow2":
                    _run("qemu-img", "snapshot", "-c", "a", str(path))
                    _run("qemu-img", "bitmap", "--add", "-f", "qcow2", str(path), "b")
                made.append(path.read_bytes())
    return tuple(dict.fromkeys(made))


def _run(*words: str) -> int:
    try:
        return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode
    except OSError:
        return 1
