"""The matrix of creations that are compared with the real qemu-img: format × options × size.

Every value of every option appears, alone and in the combinations that change the layout.
"""

from __future__ import annotations

import os
from typing import NamedTuple

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Case(NamedTuple):
    """One creation. ``backing`` is the format of a backing file to be made first, or empty."""

    format: str
    options: tuple[tuple[str, str], ...]
    size: int
    backing: str = ""

    @property
    def preallocated(self) -> bool:
        """Whether space is given to the guest's data from the start (of formats that have metadata)."""
        return self.format == "qcow2" and dict(self.options).get("preallocation", "off") != "off"

    @property
    def name(self) -> str:
        """A stable name of the case."""
        options = ",".join(f"{k}={v}" for k, v in self.options) or "plain"
        return f"{self.format}:{options}:{self.size}" + (f":on-{self.backing}" if self.backing else "")


#: Sizes that every option set meets, and odd ones that the plain sets meet besides.
SIZES = (MiB, GiB, TiB)
ODD = (0, 1, 511, 512, 513, 65535, 65537, MiB - 512, MiB + 1, 32 * MiB + 513, 10 * GiB + 512, 3 * TiB + 12345)


def _options(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((k, v) for k, _, v in (member.partition("=") for member in text.split(",") if member))


RAW = ("", "preallocation=off", "preallocation=falloc", "preallocation=full", "nocow=on", "extent_size_hint=2M")
QCOW2 = (
    "",
    "compat=0.10",
    "compat=v2",
    "compat=1.1",
    "compat=v3",
    *(f"cluster_size={512 << n}" for n in range(13)),
    "cluster_size=4k,compat=0.10",
    *(f"refcount_bits={1 << n}" for n in range(7)),
    "refcount_bits=1,cluster_size=512",
    "refcount_bits=64,cluster_size=512",
    "refcount_bits=64,cluster_size=2M",
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "compression_type=zlib",
    "compression_type=zstd",
    "lazy_refcounts=on,compression_type=zstd,extended_l2=on",
)
QCOW2_PREALLOCATED = (
    "preallocation=metadata",
    "preallocation=metadata,compat=0.10",
    "preallocation=metadata,cluster_size=512",
    "preallocation=metadata,cluster_size=4k,refcount_bits=64",
    "preallocation=metadata,cluster_size=2M,refcount_bits=1",
    "preallocation=metadata,extended_l2=on",
    "preallocation=falloc",
    "preallocation=falloc,cluster_size=4k",
    "preallocation=falloc,refcount_bits=64",
    "preallocation=full",
    "preallocation=full,cluster_size=1M",
)
VMDK = (
    "",
    "subformat=monolithicSparse",
    "subformat=streamOptimized",
    *(f"adapter_type={a}" for a in ("ide", "buslogic", "lsilogic", "legacyESX")),
    "hwversion=4",
    "hwversion=13",
    "hwversion=undefined",
    "compat6=on",
    "toolsversion=7",
    "zeroed_grain=on",
    "zeroed_grain=on,subformat=streamOptimized,adapter_type=lsilogic,compat6=on,toolsversion=2147483647",
)
VPC = ("", "subformat=dynamic", "subformat=fixed", "force_size=on", "force_size=on,subformat=fixed")
#: Every geometry of qed, and every choice of qcow, is compared in tests/formats.
QED = ("", "cluster_size=4k", "cluster_size=1M,table_size=8", "table_size=2")
QCOW = ("",)
VDI = ("", "static=on")
#: ``(options, sizes)``. Of these qemu-img's own check finds fault with none: see test_vdi_parallels.py.
PARALLELS = (
    ("", (MiB, GiB, *(size for size in ODD if size < TiB))),
    ("cluster_size=512", (0, 1, 1000)),
    ("cluster_size=64k", (MiB, 10 * MiB + 513, 1000 * MiB)),
    ("cluster_size=4M", (10 * MiB + 513, TiB)),
    ("cluster_size=16M", (3 * TiB + 12345,)),
)
VHDX = (
    "",
    "subformat=dynamic",
    "subformat=fixed",
    *(f"block_size={n}M" for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "log_size=1M",
    "log_size=3M",
    "log_size=1500000",
    "block_state_zero=on",
    "block_state_zero=off",
    "block_state_zero=off,subformat=fixed",
    "block_size=1M,block_state_zero=off,subformat=fixed",
)


def takes_long(case: Case) -> bool:
    """Tell whether a case takes ten seconds and more, for tables of gigabytes that smaller disks have as well."""
    if case.format == "vmdk":
        return case.size > TiB or (case.size == TiB and case.options != ())
    options = dict(case.options)
    full = options.get("preallocation") == "metadata"
    return full and (case.size == TiB or (options.get("cluster_size") == "512" and case.size == GiB))


def ordinary_cases() -> list[Case]:
    """Return the matrix without what takes long, save on demand (``INSTAR_ALL_CASES=1``)."""
    return [case for case in cases() if os.environ.get("INSTAR_ALL_CASES") or not takes_long(case)]


def cases() -> list[Case]:
    """Return the whole matrix."""
    found = []
    for format, sets in (
        ("raw", RAW),
        ("qcow2", QCOW2),
        ("vmdk", VMDK),
        ("vpc", VPC),
        ("vhdx", VHDX),
        ("qed", QED),
        ("qcow", QCOW),
        ("vdi", VDI),
    ):
        for text in sets:
            sizes = SIZES if text else (*SIZES, *ODD)
            for size in (*sizes, 10 * MiB + 513) if text else sizes:
                # Space is really taken: keep the disk of the machine whole.
                if "falloc" in text or "full" in text:
                    size = min(size, 64 * MiB + 1)
                found.append(Case(format, _options(text), size))
    for text in QCOW2_PREALLOCATED:
        sizes = (MiB, 10 * MiB + 513, 64 * MiB, GiB if "metadata" in text else 100 * MiB + 512)
        found.extend(Case("qcow2", _options(text), size) for size in sizes)
    found.append(Case("qcow2", _options("preallocation=metadata"), TiB))
    for backing in ("raw", "qcow2", "vmdk", "vpc", "vhdx"):
        found.append(Case("qcow2", (), 64 * MiB, backing))
        found.append(Case("qcow2", _options("compat=0.10,cluster_size=4k"), 64 * MiB, backing))
    for mode, format in (("metadata", "qcow2"), ("falloc", "raw"), ("full", "qcow2")):
        found.append(
            Case("qcow2", _options(f"extended_l2=on,cluster_size=128k,preallocation={mode}"), 64 * MiB, format)
        )
    for format, backing in (("qed", "raw"), ("qed", "qcow2"), ("qcow", "raw"), ("qcow", "qed")):
        found.append(Case(format, (), 64 * MiB + 513, backing))
    for text, sizes in PARALLELS:
        found.extend(Case("parallels", _options(text), size) for size in sizes)
    found.append(Case("vmdk", (), 64 * MiB, "vmdk"))
    found.append(Case("vmdk", _options("subformat=streamOptimized"), 64 * MiB, "vmdk"))
    return list(dict.fromkeys(found))
