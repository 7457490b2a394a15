"""Start kvm cells: a process cell whose guest runs in a virtual machine.

Law: as in ``process.cell``. Nothing of KVM but the descriptor of its device is in the host.
"""

from __future__ import annotations

import errno
import os

from instar.core.errors import SandboxError
from instar.sandbox.kvm.device import DEVICE, Kvm
from instar.sandbox.process.cell import ProcessCell
from instar.sandbox.process.channel import StartFailed
from instar.sandbox.process.seal import machine, why_foreign
from instar.sandbox.process.seal import why_unavailable as why_no_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from instar.sandbox.cell import Grant, Limits, Serve


class KvmCell(ProcessCell):
    """A virtual machine in a sealed process. For ``direct`` and ``guest`` see ``ProcessCell``."""

    name = "kvm"

    def _run(self, job: bytes, files: Sequence[Grant], limits: Limits, serve: Serve, kvm: int | None) -> bytes:
        if self._direct:
            import instar.sandbox.kvm.monitor  # noqa: F401 - once here, not in each fork
        try:
            kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            _raise_if_passing(error)
            raise SandboxError("unavailable", f"{DEVICE}: {error.strerror}") from None
        try:
            return super()._run(job, files, limits, serve, kvm)
        finally:
            os.close(kvm)


#: Errors of a moment: a program short of descriptors or memory does not get a weaker cell for that.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)


def _raise_if_passing(error: OSError) -> None:
    if error.errno in _PASSING:
        raise StartFailed("unavailable", f"{DEVICE}: {error.strerror}; --isolation=process may work") from None


def why_unavailable() -> str | None:
    """Say why no machine can be made on this host; ``None`` if nothing speaks against it.

    Raises:
        SandboxError: ``unavailable``, but for no reason that holds for the host.
    """
    if reason := why_foreign():
        return reason
    if machine() != "x86_64":
        return f"no machine is known for {machine()}, only for x86_64"
    try:
        kvm = Kvm()
    except OSError as error:
        _raise_if_passing(error)
        return f"{DEVICE}: {error.strerror}"
    try:
        return kvm.why_unusable() or why_no_process()
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    finally:
        os.close(kvm.fd)
