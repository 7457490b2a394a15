#!/usr/bin/env python3
"""Run instar on AArch64: boot a stock Debian kernel and Debian's Python in an emulated machine, and run commands there.

    ./dev test-arm                              run COMMANDS on Debian 12, pages of 4 KiB
    ./dev test-arm --suite trixie-16k           the same on Debian 13 with pages of 16 KiB
    ./dev test-arm --command 'python3 -m pytest tests/host/test_gate.py' [--as-user]
                                                run this instead of COMMANDS; may be given often

No privilege is needed: apt downloads the other machine's packages through a private state, pip its wheels, and QEMU
(TCG) emulates the processor. There is no KVM in it, so cells are sealed processes.

What was downloaded is kept in instar/arm in the user's cache folder; remove it to get newer ones. The exit status is 0
if every command ended as it should, 1 if not, and 77 if something is missing that this machine cannot offer.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fetch_qemu import FetchError, private_apt, run
from tools.machine import EXIT_MISSING, USER, Command, Missing, boot, complaints, stage_project, stop, write_initramfs

QEMU = "qemu-system-aarch64"


@dataclass(frozen=True)
class Suite:
    """Where a machine's kernel and programs come from."""

    suites: tuple[str, ...]
    kernel: str
    python: str


SUITES = {
    "bookworm": Suite(("bookworm", "bookworm-security"), "linux-image-arm64", "3.11"),
    "trixie-16k": Suite(("trixie", "trixie-security"), "linux-image-arm64-16k", "3.13"),
}
#: What the commands and the tests that they run work with. The C library comes along.
PACKAGES = ("busybox-static", "strace", "acl", "util-linux", "libc6")
#: Wheels for the other machine.
WHEELS = ("pytest", "hypothesis", "cryptography")

_INSTAR = ("python3", "-m", "instar", "--isolation=process")
_PYTEST = ("python3", "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider")


def _round_trip(format: str, *options: str, check: int = 0) -> tuple[Command, ...]:
    """Return the commands that make an image, describe it and check it; `check` is the status of the last."""
    path = f"/tmp/a.{format}"
    return (
        Command((*_INSTAR, "create", "-f", format, *options, path, "1G")),
        Command((*_INSTAR, "info", "--output=json", "-f", format, path)),
        Command((*_INSTAR, "check", "-f", format, path), expect=check),
    )


#: What is run, in turn. A new command is a new row.
COMMANDS = (
    Command((*_INSTAR[:3], "sandbox", "--isolation=process"), user=0),
    Command((*_INSTAR[:3], "sandbox", "--isolation=process")),
    *_round_trip("raw", check=63),  # has no metadata that could be checked
    *_round_trip("qcow2"),
    *_round_trip("vmdk"),
    *_round_trip("vpc"),
    *_round_trip("vhdx"),
    *_round_trip("vdi"),
    *_round_trip("qed"),
    *_round_trip("qcow"),
    *_round_trip("parallels"),
    *_round_trip("luks", "--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"),
    Command((*_PYTEST, *(f"tests/sandbox/test_{name}.py" for name in ("policy", "arguments", "misbehaviour")))),
    # They look into cells, which only root may.
    Command((*_PYTEST, *(f"tests/sandbox/test_{name}.py" for name in ("seal", "isolation", "kernel"))), user=0),
)

VENV = "/venv"
ENVIRONMENT = {
    "PATH": f"{VENV}/bin:/usr/bin:/usr/sbin:/bin",
    "PYTHONPATH": f"/project/src:{VENV}/packages",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "NO_COLOR": "1",
    # Found by itself, hypothesis would have the assertions of all its modules rewritten, which takes long here.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "-p _hypothesis_pytestplugin",
}
MACHINE = ("-M", "virt", "-cpu", "max,pauth-impdef=on", "-accel", "tcg,thread=multi", "-m", "3G")
BOOT = "console=ttyAMA0 quiet loglevel=3 panic=-1 nokaslr mitigations=off random.trust_cpu=on"


def cache_folder() -> Path:
    """Return the folder that holds what was downloaded, by suite."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "instar" / "arm"


# --- what is in the machine -----------------------------------------------------------------------------------------


def fetch(suite: Suite, home: Path) -> None:
    """Put `vmlinuz`, `package`, the programs (`root`) and the wheels (`packages`) into the new folder `home`."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as scratch:
        tree, apt = Path(scratch, "tree"), Path(scratch, "apt")
        tree.mkdir()
        config = private_apt(suite.suites, apt, "arm64")
        python = f"python{suite.python}"
        run("apt-get", "install", "-qy", "--download-only", python, *PACKAGES, config=config)
        for package in (apt / "cache/archives").glob("*.deb"):
            run("dpkg-deb", "-x", package, tree / "root")
        said = run("apt-cache", "depends", "--important", suite.kernel, config=config)
        kernel = next(line.split()[1] for line in said.splitlines() if "Depends: linux-image" in line)
        run("apt-get", "download", "-q", kernel, config=config, cwd=Path(scratch))
        file = next(Path(scratch).glob("linux-image*.deb"))
        run("dpkg-deb", "-x", file, Path(scratch, "kernel"))
        shutil.copy(next(Path(scratch, "kernel/boot").glob("vmlinuz-*")), tree / "vmlinuz")
        (tree / "package").write_text(file.stem)
        run(
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"),
            *("--platform=manylinux2014_aarch64", "--platform=manylinux_2_28_aarch64", "--implementation=cp"),
            *(f"--python-version={suite.python}", "--target", tree / "packages", *WHEELS),
        )
        tree.rename(home)


def fetched(name: str) -> Path:
    """Return the folder of a suite, fetched if it is not there."""
    home = cache_folder() / name
    if not (home / "package").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        try:
            fetch(SUITES[name], home)
        except (FetchError, OSError, StopIteration) as error:
            raise Missing(f"{name} for arm64 cannot be had: {error}") from error
    return home


def stage_programs(tree: Path, home: Path, python: str) -> None:
    """Put the other machine's programs and libraries below `tree`, where Debian has them."""
    for top in ("bin", "sbin", "lib"):
        (tree / "usr" / top).mkdir(parents=True, exist_ok=True)
        (tree / top).symlink_to(f"usr/{top}")
    ignore = shutil.ignore_patterns("__pycache__", "doc", "man", "locale", "gconv", "perl*", "test", "idlelib")
    for top in ("usr", "lib", "bin", "sbin"):
        source = home / "root" / top
        if source.is_dir() and not source.is_symlink():
            target = tree / "usr" if top == "usr" else tree / "usr" / top
            shutil.copytree(source, target, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(
        home / "packages", tree / VENV.lstrip("/") / "packages", ignore=shutil.ignore_patterns("__pycache__")
    )
    programs = tree / VENV.lstrip("/") / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(f"/usr/bin/python{python}")
    for shell in ("sh", "true", "sleep"):
        if not (tree / "usr/bin" / shell).exists():
            (tree / "usr/bin" / shell).symlink_to("busybox")


def compile_modules(tree: Path, python: str) -> None:
    """Compile every module below `tree` to bytecode, if there is a Python here of the version that will run it."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == python:
        program: str | None = sys.executable
    else:
        program = shutil.which(f"python{python}")
    if program is None:
        return
    words = (
        "-m",
        "compileall",
        "-q",
        "-j0",
        "--invalidation-mode=unchecked-hash",
        "-s",
        str(tree),
        "-p",
        "/",
        str(tree),
    )
    subprocess.run([program, *words], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# --- the command line -----------------------------------------------------------------------------------------------


def try_all(arguments: argparse.Namespace) -> int:
    """Do everything the command line asks for; return the exit status."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise Missing(f"{QEMU} is not installed (Debian: qemu-system-arm)")
    user = USER if arguments.as_user else 0
    commands = [Command(tuple(shlex.split(text)), user=user) for text in arguments.command] or list(COMMANDS)
    suite, start = SUITES[arguments.suite], time.monotonic()
    home = fetched(arguments.suite)
    with tempfile.TemporaryDirectory(prefix="arm-") as scratch:
        initramfs, second, tree = Path(scratch, "initramfs"), Path(scratch, "second-line"), Path(scratch, "tree")
        stage_programs(tree, home, suite.python)
        stage_project(tree)
        compile_modules(tree, suite.python)
        job: dict[str, Any] = {"modules": [], "kvm": None, "report": "/dev/ttyS0", "environment": ENVIRONMENT}
        write_initramfs(initramfs, tree, f"/usr/bin/python{suite.python}", job, commands)
        shutil.rmtree(tree)
        size = initramfs.stat().st_size >> 20
        print(f"{(home / 'package').read_text()}; initramfs of {size} MiB; {len(commands)} commands", flush=True)
        argv = [
            *(qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", *MACHINE),
            *("-smp", str(arguments.smp), "-serial", "stdio"),
            *("-chardev", f"file,id=report,path={second}", "-device", "pci-serial,chardev=report"),
            *("-kernel", str(home / "vmlinuz"), "-initrd", str(initramfs)),
            *("-append", f"{BOOT} {arguments.append}".strip()),
        ]
        print(f"+ {shlex.join(argv)}", file=sys.stderr, flush=True)
        ran = boot(argv, second, arguments.timeout)
    wrong = complaints(ran, commands, arguments.timeout)
    for text in wrong:
        print(f"arm: {text}")
    ready = f"{ran.ready:.1f} s" if ran.ready is not None else "never"
    print(f"arm: {'failed' if wrong else 'passed'}; boot {ready}, all {time.monotonic() - start:.1f} s")
    return 1 if wrong else 0


def main() -> int:
    """Read the command line and run; return the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="./dev test-arm", description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="bookworm", help="where kernel and programs come from")
    parser.add_argument("--smp", type=int, default=2, help="processors of the machine (default: 2)")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds after which QEMU is killed (default: 1800)"
    )
    parser.add_argument("--command", action="append", default=[], help="run this instead of what is run by default")
    parser.add_argument("--as-user", action="store_true", help="run what --command says as an ordinary user")
    parser.add_argument("--append", default="", help="further words for the kernel's command line")
    signal.signal(signal.SIGTERM, stop)
    try:
        return try_all(parser.parse_args())
    except Missing as reason:
        print(f"arm: skipped: {reason}", file=sys.stderr)
        return EXIT_MISSING


if __name__ == "__main__":
    sys.exit(main())
