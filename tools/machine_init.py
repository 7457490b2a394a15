"""Be the first process of a machine that `tools.machine` boots: load modules, prove KVM, run commands, report.

Runs as /init of the initramfs, without site-packages. What to do stands in /job.json. What commands print goes to the
first serial line; the second gets one line at the very end, which is what the caller believes.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MOUNTS = (
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/dev/shm", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
)
END = "machine: end "
READY = "machine: ready "
KVM_GROUP = 108

SYS_INIT_MODULE = {"x86_64": 175, "aarch64": 105}
LINUX_REBOOT_CMD_RESTART = 0x01234567

#: linux/kvm.h; the first answer never changes.
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41
KVM_API_VERSION = 12

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise the system's error if a call of the C library failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount_all() -> None:
    """Mount what every program expects; /tmp and /dev/shm are anybody's."""
    for source, target, kind in MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        data = b"mode=1777" if kind == "tmpfs" else None
        checked(libc.mount(source.encode(), target.encode(), kind.encode(), 0, data), f"mount {target}")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        Path("/dev", name).symlink_to(f"/proc/self/fd/{number}")
    Path("/dev/fd").symlink_to("/proc/self/fd")


def load(path: str, parameters: str) -> None:
    """Load one kernel module."""
    data = Path(path).read_bytes()
    result = libc.syscall(SYS_INIT_MODULE[os.uname().machine], data, ctypes.c_ulong(len(data)), parameters.encode())
    checked(result, f"loading {path} {parameters}".rstrip())


def prove() -> None:
    """Check that /dev/kvm answers as a kernel's KVM does, and makes a machine with a processor."""
    with open("/dev/kvm", "rb", buffering=0) as kvm:
        version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            raise OSError(f"/dev/kvm has API version {version} instead of {KVM_API_VERSION}")
        machine = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        os.close(fcntl.ioctl(machine, KVM_CREATE_VCPU, 0))
        os.close(machine)
    os.chown("/dev/kvm", 0, KVM_GROUP)
    os.chmod("/dev/kvm", 0o660)


def run(number: int, command: dict[str, Any], environment: dict[str, str]) -> int:
    """Run one command to its end and return its exit status, negative for a signal."""
    user = command["user"]
    home = f"/tmp/home-{user}"
    if not os.path.exists(home):
        os.mkdir(home, 0o700)
        os.chown(home, user, user)
    try:
        done = subprocess.run(
            command["argv"],
            check=False,
            cwd="/project",
            env=environment | {"HOME": home, "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis"},
            user=user,
            group=user,
            extra_groups=[KVM_GROUP] if user else [],
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        print(f"machine: command {number}: {error}", flush=True)
        return 127
    return done.returncode


def work(report: dict[str, Any]) -> None:
    """Do the job, and note in the report what came of it."""
    mount_all()
    job = json.loads(Path("/job.json").read_text())
    for name, parameters in job["modules"]:
        load(f"/modules/{name}.ko", parameters)
    system = os.uname()
    about = f"Linux {system.release}, {system.machine}, pages of {os.sysconf('SC_PAGESIZE')} bytes"
    if kvm := job["kvm"]:
        prove()
        about += f", {kvm} npt={Path(f'/sys/module/{kvm}/parameters/npt').read_text().strip()}"
    report["about"] = about
    uptime = Path("/proc/uptime").read_text().split()[0]
    print(f"{READY}{about}, up {uptime} s", flush=True)
    for number, command in enumerate(job["commands"], 1):
        who = f"user {command['user']}" if command["user"] else "root"
        print(f"+ [{number}/{len(job['commands'])} {who}] {' '.join(command['argv'])}", flush=True)
        start = time.monotonic()
        status = run(number, command, job["environment"])
        taken = round(time.monotonic() - start, 1)
        print(f"  exit status {status}, {taken} s", flush=True)
        report["codes"].append(status)
        report["seconds"].append(taken)


def main() -> None:
    """Work, report, and stop the machine whatever happened."""
    report: dict[str, Any] = {"codes": [], "seconds": []}
    try:
        work(report)
    except BaseException as error:
        traceback.print_exc()
        report["error"] = str(error)
    sys.stdout.flush()
    try:
        with open(json.loads(Path("/job.json").read_text())["report"], "wb", buffering=0) as line:
            line.write(f"{END}{json.dumps(report)}\n".encode())
            libc.tcdrain(line.fileno())
        libc.tcdrain(1)
    finally:
        libc.reboot(LINUX_REBOOT_CMD_RESTART)  # which QEMU is told to end at


if __name__ == "__main__":
    main()
