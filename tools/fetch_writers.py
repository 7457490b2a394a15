#!/usr/bin/env python3
"""Fetch programs that write disk images and are not QEMU's, to try instar on what they make, without installing them.

    python -m tools.fetch_writers [PROGRAM...]     fetch these programs (default: all)
    python -m tools.fetch_writers --list           print what is cached: PROGRAM, ITS PATH

As ``fetch_qemu`` does it: a private state of apt, a package with the libraries that it needs, unpacked into
CACHE/PACKAGE/root, and a wrapper for each program in CACHE/bin. What such a package wants beside libraries (kernel
modules, desktops) is left out: these programs do not need it. The cache is instar/writers in the user's cache folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tools.fetch_qemu import FetchError, private_apt, run
from tools.fetch_qemu import command as command_of


class Origin(NamedTuple):
    """Where a program comes from: package, Debian suite, folder of the program, folders with libraries of its own."""

    package: str
    suite: str
    folder: str = "usr/bin"
    libraries: tuple[str, ...] = ()
    components: str = "main"


ORIGINS: dict[str, Origin] = {
    "vmdk-convert": Origin("open-vmdk", "sid"),
    "vbox-img": Origin("virtualbox", "sid", "usr/lib/virtualbox", ("usr/lib/virtualbox",), "main contrib"),
    "bximage": Origin("bximage", "bookworm"),
    "cryptsetup": Origin("cryptsetup-bin", "bookworm", "sbin"),
}
#: Packages with libraries, by their names.
_LIBRARY = re.compile(r"(lib|zlib1g)[^ ,|:]*")


def cache_folder() -> Path:
    """Return the folder that holds the wrappers in ``bin``, and one folder for each package."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "instar" / "writers"


def path_of(program: str) -> Path:
    """Return where a program is, once it was fetched."""
    return cache_folder() / "bin" / program


def is_cached(program: str) -> bool:
    """Tell whether a program is in the cache and runs: none of them is killed when it is asked for help."""
    try:
        done = subprocess.run(
            [path_of(program), "--help"], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode in (0, 1) and b"error while loading" not in done.stderr


def needed(package: str, config: Path) -> list[str]:
    """Return the libraries that a package depends on, the first of each choice."""
    told = run("apt-cache", "show", "--no-all-versions", package, config=config)
    depends = re.search(r"^Depends: (.*)$", told, re.MULTILINE)
    names = [part.split()[0] for part in (depends[1].split(", ") if depends else [])]
    return [name for name in names if _LIBRARY.fullmatch(name)]


def fetch(program: str) -> None:
    """Make sure that a program is in the cache.

    Raises:
        FetchError: it cannot be had.
    """
    if is_cached(program):
        return
    origin = ORIGINS[program]
    cache = cache_folder()
    (cache / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        home, tree = Path(scratch, "apt"), Path(scratch, "tree")
        tree.mkdir()
        config = private_apt((origin.suite,), home, components=origin.components)
        archives = home / "cache/archives"
        run("apt-get", "install", "-qy", "--download-only", *needed(origin.package, config), config=config)
        run("apt-get", "download", "-q", origin.package, config=config, cwd=archives)
        for package in archives.glob("*.deb"):
            run("dpkg", "-x", package, tree / "root")
        place = cache / origin.package
        shutil.rmtree(place, ignore_errors=True)
        tree.rename(place)
    words = command_of(place / "root", program, folder=origin.folder, libraries=origin.libraries)
    path_of(program).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path_of(program).chmod(0o755)
    if not is_cached(program):
        raise FetchError("it was fetched, and does not run")


def main() -> int:
    """Fetch what the command line asks for; return 0 if all of it is there."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print what is cached, fetch nothing")
    parser.add_argument("program", nargs="*", help=f"of {', '.join(ORIGINS)} (default: all)")
    arguments = parser.parse_args()
    wanted: list[str] = arguments.program or list(ORIGINS)
    if unknown := [program for program in wanted if program not in ORIGINS]:
        parser.error(f"no package is known for {', '.join(unknown)}")
    if not arguments.list:
        for program in wanted:
            try:
                fetch(program)
            except (FetchError, OSError) as error:
                print(f"{program}: {error}", file=sys.stderr)
    there = [program for program in wanted if is_cached(program)]
    for program in there:
        print(program, path_of(program))
    return 0 if arguments.list or there == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
