"""What others read in an image: libyal's libraries, dissect and OpenStack's inspector, each where it is installed.

Law: an opinion is the size of the disk and the hash of what is on it, or how the reader failed. None of them is always
right, but they cannot tell instar's image from qemu-img's.
"""

from __future__ import annotations

import hashlib
import logging
import signal
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STEP = 1 << 20
#: Seconds that a reader may take for an image.
_PATIENCE = 10
_LIBYAL = {"qcow2": "pyqcow", "qcow": "pyqcow", "vmdk": "pyvmdk", "vpc": "pyvhdi", "vhdx": "pyvhdi"}
_DISSECT = {
    "qcow2": ("dissect.hypervisor.disk.qcow2", "QCow2"),
    "vmdk": ("dissect.hypervisor.disk.vmdk", "VMDK"),
    "vpc": ("dissect.hypervisor.disk.vhd", "VHD"),
    "vhdx": ("dissect.hypervisor.disk.vhdx", "VHDX"),
    "vdi": ("dissect.hypervisor.disk.vdi", "VDI"),
}


def opinions(format: str, path: Path) -> dict[str, tuple[int, str] | str]:
    """Return what each reader that is installed makes of an image."""
    found: dict[str, tuple[int, str] | str] = {}
    for name, read in (("libyal", _libyal), ("dissect", _dissect)):
        # They fail in many ways, and some go round for ever.
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(_PATIENCE)
        try:
            found[name] = read(format, path)
        except Exception as error:
            found[name] = type(error).__name__
        finally:
            signal.alarm(0)
    return found


def _too_long(_number: int, _frame: object) -> None:
    raise TimeoutError


def _digest(size: int, read: Callable[[int, int], bytes]) -> tuple[int, str]:
    sha = hashlib.sha256()
    for offset in range(0, size, _STEP):
        sha.update(read(offset, min(_STEP, size - offset)))
    return size, sha.hexdigest()


def _libyal(format: str, path: Path) -> tuple[int, str]:
    module: Any = import_module(_LIBYAL[format])
    image = module.handle() if format == "vmdk" else module.file()
    image.open(str(path))
    try:
        if format == "vmdk":
            image.open_extent_data_files()
        return _digest(image.get_media_size(), lambda offset, length: image.read_buffer_at_offset(length, offset))
    finally:
        image.close()


def _dissect(format: str, path: Path) -> tuple[int, str]:
    module, kind = _DISSECT[format]
    with path.open("rb") as file:
        disk: Any = getattr(import_module(module), kind)(path if format in ("vmdk", "qcow2") else file)
        stream = disk.open() if hasattr(disk, "open") else disk

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return bytes(stream.read(length))

        return _digest(disk.size, read)


def inspected(path: Path) -> str | None:
    """Return the format that OpenStack's inspector sees, ``None`` if it is not installed."""
    try:
        inspector: Any = import_module("oslo_utils.imageutils.format_inspector")
    except ImportError:
        return None
    logging.disable(logging.CRITICAL)
    try:
        return str(inspector.detect_file_format(str(path)))
    except Exception as error:
        return type(error).__name__
