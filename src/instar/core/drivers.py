"""The names of QEMU's block drivers, as a format records or accepts them for its backing file.

Law: names only. That one stands here does not mean that instar can open what it names.
"""

from __future__ import annotations

#: Drivers that every build of QEMU 7.2 to 11.1 has: formats, protocols, filters.
BUILT_IN = (
    *("raw", "qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels", "luks", "bochs", "cloop", "dmg"),
    *("vvfat", "file", "host_device", "host_cdrom", "nbd", "nvme", "null-aio", "null-co", "quorum", "replication"),
    *("throttle", "compress", "preallocate", "copy-on-read", "copy-before-write", "snapshot-access", "blkdebug"),
    *("blklogwrites", "blkverify"),
)
#: Drivers that QEMU's schema names but that may be missing in a build (QAPI, ``BlockdevDriver``).
OPTIONAL = (
    *("http", "https", "ftp", "ftps", "ssh", "nfs", "iscsi", "rbd", "gluster", "io_uring", "nvme-io_uring"),
    *("virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", "blkreplay"),
)
DRIVERS = BUILT_IN + OPTIONAL
#: Drivers that are no formats of images that could be made, without those of protocols, which QEMU would try to open.
CANNOT_CREATE = (
    *("vvfat", "quorum", "throttle", "blkdebug", "blkverify", "blklogwrites", "null-co", "null-aio", "copy-on-read"),
    *("compress", "replication", "preallocate", "copy-before-write", "snapshot-access"),
)
#: What stands before the ``:`` of a name, and the driver that it means in every build of QEMU.
PROTOCOLS = {
    **dict.fromkeys(("nbd", "nbd+tcp", "nbd+unix", "nbds"), "nbd"),
    **{name: name for name in ("nvme", "host_device", "host_cdrom", "null-co", "null-aio", "blkdebug", "blkverify")},
    "fat": "vvfat",
}
