#!/usr/bin/env python3
"""Fetch real qemu-img releases, to compare instar with, without installing them.

    tools/fetch_qemu.py [VERSION...]     fetch these versions (default: all)
    tools/fetch_qemu.py --list           print what is cached: VERSION, FOLDER OF ITS PROGRAMS

Debian's suites carry several generations of QEMU. For each version this script
gives apt a private state in which nothing is installed, downloads the package
with its whole library closure (C library included), unpacks it into
CACHE/VERSION/root and writes a wrapper for each program into CACHE/VERSION/bin.
The machine's own packages are not touched, and no privilege is needed.

The cache is $INSTAR_QEMU_CACHE, or instar/qemu in the user's cache folder.
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
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "qemu-utils"
PROGRAMS = ("qemu-img", "qemu-io", "qemu-nbd")

#: Where each version is to be found, in order of preference. The first suite of
#: a row is the one to take the package from, the others complete it. Some suites
#: move on to newer versions, so what was fetched is always asked what it is.
ORIGINS: dict[str, tuple[tuple[str, ...], ...]] = {
    "5.2": (("bullseye", "bullseye-security"),),
    "7.2": (("bookworm", "bookworm-security"),),
    "10.0": (("trixie", "trixie-security"), ("bookworm-backports", "bookworm")),
    "11.1": (("forky",), ("trixie-backports", "trixie"), ("sid",)),
}

#: Suites by which Debian's own archive is told from other package sources.
DEBIAN_SUITES = frozenset(
    ("bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable"),
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

APT_CONFIG = """\
Dir::State "{home}/state";
Dir::State::Lists "{home}/state/lists";
Dir::State::status "{home}/state/status";
Dir::Cache "{home}/cache";
Dir::Etc::sourcelist "{home}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""


class FetchError(Exception):
    """A version could not be fetched; the message says why."""


def cache_folder() -> Path:
    """Return the folder that holds one folder for each version."""
    if own := os.environ.get("INSTAR_QEMU_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "instar" / "qemu"


def run(*argv: str | Path, config: Path | None = None, cwd: Path | None = None) -> str:
    """Run a program and return what it printed, or raise `FetchError` with its last words."""
    environment = os.environ | {"LC_ALL": "C"}
    if config:
        environment["APT_CONFIG"] = str(config)
    try:
        done = subprocess.run(
            argv,
            check=False,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise FetchError(f"{argv[0]}: {error.strerror}") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FetchError(f"{argv[0]}: {words[-1]}")
    return done.stdout


def archives() -> tuple[str, str | None]:
    """Return the URIs of Debian's archive and its security archive, as this machine's apt has them.

    Asking apt, instead of reading its files, covers every form a source may be written in.
    """
    uris: dict[str, str] = {}
    for uri, suite in re.findall(
        r"^'(\S+?)/dists/(\S+)/InRelease'", run("apt-get", "--print-uris", "update"), re.MULTILINE
    ):
        name = suite.removesuffix("-security")
        if name in DEBIAN_SUITES:
            uris.setdefault("main" if name == suite else "security", uri.rstrip("/"))
    if "main" not in uris:
        raise FetchError("apt has no source for Debian's archive")
    return uris["main"], uris.get("security")


def private_apt(
    suites: tuple[str, ...], home: Path, architecture: str | None = None, *, components: str = "main"
) -> Path:
    """Make an apt state of its own in `home`, which knows `suites` and nothing installed; return its configuration.

    `architecture` is Debian's word for another machine's (`arm64`); `components` are those of the archive.
    """
    main, security = archives()
    lines = []
    for suite in suites:
        uri = security if suite.endswith("-security") else main
        if uri:
            lines.append(f"deb [signed-by={KEYRING}] {uri} {suite} {components}\n")
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (home / folder).mkdir(parents=True)
    (home / "state/status").touch()
    (home / "sources.list").write_text("".join(lines))
    config = home / "apt.conf"
    foreign = (
        f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n' if architecture else ""
    )
    config.write_text(APT_CONFIG.format(home=home) + foreign)
    run("apt-get", "update", "-q", "--error-on=any", config=config)
    return config


def download(suites: tuple[str, ...], home: Path) -> Iterator[Path]:
    """Download the package and all it depends on through an apt state of its own in `home`."""
    config = private_apt(suites, home)
    release = ("-t", suites[0]) if suites[0].endswith("-backports") else ()
    run("apt-get", "install", "-qy", "--download-only", *release, PACKAGE, config=config)
    return (home / "cache/archives").glob("*.deb")


def command(root: Path, program: str, *, folder: str = "usr/bin", libraries: tuple[str, ...] = ()) -> list[str]:
    """Return the words that run `program` of the unpacked tree `root` with the tree's libraries."""
    folders = [*root.glob("lib/*-linux-gnu*"), *root.glob("usr/lib/*-linux-gnu*"), *(root / own for own in libraries)]
    loaders = [loader for folder in folders for loader in folder.glob("ld-linux*.so.*")]
    if not loaders:
        raise FetchError("no dynamic loader among the packages")
    words = [str(loaders[0]), "--library-path", ":".join(map(str, folders))]
    usage = subprocess.run([loaders[0], "--help"], check=False, capture_output=True, text=True)
    if "--argv0" in usage.stdout:  # since C library 2.33
        words += ["--argv0", program]
    return [*words, str(root / folder / program)]


def version_of(*argv: str | Path) -> str:
    """Return the major and minor version that a qemu program says it is."""
    said = run(*argv, "--version")
    if match := re.search(r"\s(\d+\.\d+)\.\d+\s", said):
        return match[1]
    raise FetchError(f"{argv[0]}: no version in {said[:80]!r}")


def is_cached(version: str) -> bool:
    """Tell whether every program of `version` is in the cache and runs."""
    programs = cache_folder() / version / "bin"
    try:
        return all(version_of(programs / program) == version for program in PROGRAMS)
    except FetchError:
        return False


def fetch_from(suites: tuple[str, ...]) -> str:
    """Put what `suites` carry into the cache, and return which version it was."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        tree = Path(scratch, "tree")
        tree.mkdir()
        for package in download(suites, Path(scratch, "apt")):
            run("dpkg", "-x", package, tree / "root")
        version = version_of(*command(tree / "root", PROGRAMS[0]))
        if is_cached(version):
            return version
        home = cache / version
        shutil.rmtree(home, ignore_errors=True)
        tree.rename(home)
    (home / "bin").mkdir()
    for program in PROGRAMS:
        wrapper = home / "bin" / program
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command(home / "root", program))} "$@"\n')
        wrapper.chmod(0o755)
    return version


def fetch(version: str) -> None:
    """Make sure that `version` is in the cache; raise `FetchError` if it cannot be had."""
    if is_cached(version):
        return
    reasons = []
    for suites in ORIGINS[version]:
        try:
            found = fetch_from(suites)
        except (FetchError, OSError) as error:
            reasons.append(f"{suites[0]}: {error}")
            continue
        if is_cached(version):
            return
        reasons.append(f"{suites[0]}: has {found}")
    raise FetchError("; ".join(reasons))


def main() -> int:
    """Fetch what the command line asks for; return 0 if all of it is there."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print what is cached, fetch nothing")
    parser.add_argument("version", nargs="*", help=f"of {', '.join(ORIGINS)} (default: all)")
    arguments = parser.parse_args()
    wanted: list[str] = arguments.version or list(ORIGINS)
    if unknown := [version for version in wanted if version not in ORIGINS]:
        parser.error(f"no suite is known for {', '.join(unknown)}")
    if not arguments.list:
        for version in wanted:
            try:
                fetch(version)
            except FetchError as error:
                print(f"{version}: {error}", file=sys.stderr)
    there = [version for version in wanted if is_cached(version)]
    for version in there:
        print(version, cache_folder() / version / "bin")
    return 0 if arguments.list or there == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
