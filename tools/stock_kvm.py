#!/usr/bin/env python3
"""Run instar's KVM cell on an ordinary KVM: boot a stock Debian kernel in an emulated machine, and run commands there.

    ./dev test-stock-kvm                        run COMMANDS
    ./dev test-stock-kvm --npt 0                the same, with shadow paging instead of nested paging
    ./dev test-stock-kvm --isolation process    the same, with another kind of cell in the round trip
    ./dev test-stock-kvm --command 'python3 -m pytest tests/core' [--as-user]
                                                run this instead of COMMANDS; may be given often

The KVM of the machine at hand may be none, or an unusual one. QEMU emulates (TCG) a processor with AMD's SVM, on which
an unchanged kernel of Debian loads its own kvm_amd. Nothing has to be installed but QEMU, and no privilege is needed:
apt downloads the kernel through a private state, and the initramfs holds this Python, pytest without xdist (no -n), and
the checkout.

The kernel is kept in instar/stock-kvm in the user's cache folder; remove it to get a newer one. The exit status is 0 if
every command ended as it should, 1 if not, and 77 if something is missing that this machine cannot offer.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.fetch_qemu import FetchError, private_apt, run
from tools.initramfs import InitramfsError, compile_all, modules, stage_python
from tools.machine import (
    EXIT_MISSING,
    USER,
    Command,
    Missing,
    boot,
    complaints,
    stage_project,
    stop,
    write_initramfs,
)

QEMU = "qemu-system-x86_64"


def _round_trip(format: str, check: int = 0) -> tuple[Command, ...]:
    """Return the commands that make an image, describe it and check it; `check` is the status of the last."""
    instar, path = ("python3", "-m", "instar", "--isolation={isolation}"), f"/tmp/a.{format}"
    return (
        Command((*instar, "create", "-f", format, path, "1G")),
        Command((*instar, "info", "--output=json", "-f", format, path)),
        Command((*instar, "check", "-f", format, path), expect=check),
    )


#: A third of what a guest's code may do wrong: each takes three seconds here. The self-test tries the calls.
MISBEHAVIOUR = (
    "kvm and TestCode and (null or data or past or ud2 or hlt or cli or calls or cr3 or int3 or steps or x32"
    " or old or loop or division)"
)

#: What is run, in turn. A new command is a new row.
COMMANDS = (
    Command(("python3", "-m", "instar", "sandbox", "--isolation=kvm", "--quick"), user=0),
    Command(("python3", "-m", "instar", "sandbox", "--isolation=kvm")),
    Command(
        (
            "python3",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            MISBEHAVIOUR,
            "tests/sandbox/test_misbehaviour.py",
        )
    ),
    *_round_trip("raw", check=63),  # has no metadata that could be checked
    *_round_trip("qcow2"),
    *_round_trip("vmdk"),
    *_round_trip("vpc"),
    *_round_trip("vhdx"),
)

#: Where the kernel comes from, and which of its packages will do: the first that has the module.
SUITES = {
    "bookworm": ("bookworm", "bookworm-security"),
    "trixie": ("trixie", "trixie-security"),
}
KERNELS = ("linux-image-cloud-amd64", "linux-image-amd64")
MODULE = "kvm_amd"

VENV = Path("/venv")
PACKAGES = ("pytest", "hypothesis")
#: What the commands find in their environment. Neither PYTHONHOME nor a writable checkout: programs have to do without.
ENVIRONMENT = {
    "PATH": f"{VENV}/bin:/usr/bin:/bin",
    "PYTHONPATH": "/project/src",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "NO_COLOR": "1",
    # Found by itself, hypothesis would have the assertions of all its modules rewritten, which takes long here.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "-p _hypothesis_pytestplugin",
}

#: Without AVX2 the C library takes string functions that are emulated faster: a quarter of all time.
MACHINE = (
    "-machine",
    "pc,hpet=off",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max,svm=on,la57=off,avx2=off",
    "-m",
    "2048",
)
BOOT = "console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off no_timer_check random.trust_cpu=on"


def cache_folder() -> Path:
    """Return the folder that holds one kernel for each suite."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "instar" / "stock-kvm"


# --- the kernel -----------------------------------------------------------------------------------------------------


def fetch_kernel(suite: str, home: Path) -> str:
    """Put `vmlinuz`, `package` and the modules of a kernel that has KVM into the new folder `home`."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as scratch:
        config = private_apt(SUITES[suite], Path(scratch, "apt"))
        reasons = []
        for number, name in enumerate(KERNELS):
            said = run("apt-cache", "depends", "--important", name, config=config)
            package = next((line.split()[1] for line in said.splitlines() if "Depends: linux-image" in line), None)
            if package is None:
                reasons.append(f"{name} depends on no kernel")
                continue
            folder = Path(scratch, str(number))
            folder.mkdir()
            run("apt-get", "download", "-q", package, config=config, cwd=folder)
            file = next(folder.glob("*.deb"))
            run("dpkg-deb", "-x", file, folder / "root")
            try:
                found = modules(folder / "root", MODULE)
            except InitramfsError as error:
                reasons.append(f"{package}: {error}")
                continue
            tree = folder / "tree"
            tree.mkdir()
            for module, data in found.items():
                (tree / f"{module}.ko").write_bytes(data)
            shutil.copy(next((folder / "root/boot").glob("vmlinuz-*")), tree / "vmlinuz")
            (tree / "package").write_text(file.stem)
            tree.rename(home)
            return package
    raise FetchError("; ".join(reasons))


def kernel(suite: str) -> Path:
    """Return the folder of a suite's kernel, fetched if it is not there."""
    home = cache_folder() / suite
    if not (home / "package").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        try:
            fetch_kernel(suite, home)
        except (FetchError, OSError) as error:
            raise Missing(f"no kernel of {suite} can be had: {error}") from error
    return home


# --- the initramfs --------------------------------------------------------------------------------------------------


def build_initramfs(file: Path, tree: Path, home: Path, commands: Sequence[Command], parameters: str) -> None:
    """Write the initramfs to `file`; `tree` is a new folder to gather it in, `home` has the kernel's modules."""
    stage_python(tree, VENV, PACKAGES)
    stage_project(tree)
    compile_all(tree)
    loaded = modules(home, MODULE)
    (tree / "modules").mkdir()
    for name, data in loaded.items():
        (tree / "modules" / f"{name}.ko").write_bytes(data)
    job = {
        "modules": [(name, parameters if name == MODULE else "") for name in loaded],
        "kvm": MODULE,
        "report": "/dev/ttyS1",
        "environment": ENVIRONMENT,
    }
    write_initramfs(file, tree, str(Path(sys.executable).resolve()), job, commands)


# --- the command line -----------------------------------------------------------------------------------------------


def chosen(arguments: argparse.Namespace) -> list[Command]:
    """Return the commands that the command line asks for, with the kind of cell in its place."""
    user = USER if arguments.as_user else 0
    own = [Command(tuple(shlex.split(text)), user=user) for text in arguments.command]
    kind = arguments.isolation
    return [
        replace(command, argv=tuple(word.replace("{isolation}", kind) for word in command.argv))
        for command in own or COMMANDS
    ]


def try_all(arguments: argparse.Namespace) -> int:
    """Do everything the command line asks for; return the exit status."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Missing("this is not Linux on x86-64")
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise Missing(f"{QEMU} is not installed (Debian: qemu-system-x86)")
    commands, start = chosen(arguments), time.monotonic()
    home = kernel(arguments.suite)
    fetched = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stock-kvm-") as scratch:
        initramfs, second = Path(scratch, "initramfs"), Path(scratch, "second-line")
        try:
            tree = Path(scratch, "tree")
            build_initramfs(initramfs, tree, home, commands, f"npt={arguments.npt}")
            shutil.rmtree(tree)
        except InitramfsError as error:
            raise Missing(f"the initramfs cannot be made: {error}") from error
        built = time.monotonic()
        size = initramfs.stat().st_size >> 20
        print(f"{(home / 'package').read_text()}; initramfs of {size} MiB; {len(commands)} commands", flush=True)
        argv = [
            *(qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", *MACHINE),
            *("-smp", str(arguments.smp)),
            *("-serial", "stdio", "-serial", f"file:{second}"),
            *(
                "-kernel",
                str(home / "vmlinuz"),
                "-initrd",
                str(initramfs),
                "-append",
                f"{BOOT} {arguments.append}".strip(),
            ),
        ]
        print(f"+ {shlex.join(argv)}", file=sys.stderr, flush=True)
        ran = boot(argv, second, arguments.timeout)
        ended = time.monotonic()
    wrong = complaints(ran, commands, arguments.timeout)
    for text in wrong:
        print(f"stock-kvm: {text}")
    ready = f"{ran.ready:.1f} s" if ran.ready is not None else "never"
    print(
        f"stock-kvm: {'failed' if wrong else 'passed'}; kernel {fetched - start:.1f} s, "
        f"initramfs {built - fetched:.1f} s, boot {ready}, machine {ended - built:.1f} s, all {ended - start:.1f} s"
    )
    return 1 if wrong else 0


def main() -> int:
    """Read the command line and run; return the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="./dev test-stock-kvm", description=__doc__.partition("\n")[0])
    parser.add_argument("--npt", type=int, choices=(0, 1), default=1, help="nested paging (1) or shadow paging (0)")
    parser.add_argument("--isolation", default="kvm", help="kind of cell in the round trip (default: kvm)")
    parser.add_argument("--suite", choices=SUITES, default="bookworm", help="where the kernel comes from")
    parser.add_argument("--smp", type=int, default=1, help="processors of the machine (default: 1; more are no faster)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which QEMU is killed (default: 600)")
    parser.add_argument("--command", action="append", default=[], help="run this instead of what is run by default")
    parser.add_argument("--as-user", action="store_true", help="run what --command says as an ordinary user")
    parser.add_argument("--append", default="", help="further words for the kernel's command line")
    signal.signal(signal.SIGTERM, stop)
    try:
        return try_all(parser.parse_args())
    except Missing as reason:
        print(f"stock-kvm: skipped: {reason}", file=sys.stderr)
        return EXIT_MISSING


if __name__ == "__main__":
    sys.exit(main())
