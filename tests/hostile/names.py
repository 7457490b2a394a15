"""Names of other files in every format that has any: outside, protocols, links, pipes, and bytes that are no text.

Law: whatever is named, ``test_opened_files`` looks at what was opened. Names are short enough for each format.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from tests.formats.qcow import images as qcow
from tests.formats.qcow2.images import changed, planned, with_extensions
from tests.formats.qed import images as qed
from tests.formats.vmdk.images import image, text
from tests.formats.vpc.images import differencing
from tests.hostile.corpus import Hostile, MiB, sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: What an image may call a file that is none of its business, or none at all. A name starts with ``!`` where the
#: real qemu-img would wait for it, or go to a network.
OUTSIDE = (
    b"/etc/shadow",
    b"../../../../../../../../../../etc/shadow",
    b"sub/../../../../../../../../etc/shadow",
    b"//etc/shadow",
    b"file:/etc/shadow",
    b"./../outside",
    b"link-out",
    b"link-folder/shadow",
    b'json:{"driver":"file","filename":"/etc/shadow"}',
    b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}',
    b"!nbd:127.0.0.1:1",
    b"!nbd+unix:///x?socket=/run/x",
    b"!http://127.0.0.1:1/x",
    b"!ssh://127.0.0.1/etc/shadow",
    b"!fat:rw:/etc",
    b"host_device:/dev/sda",
    b"blkdebug::/etc/shadow",
    b"null-co://",
    b"!fifo",
    b"!/dev/zero",
    b"!/dev/stdin",
    b"!/proc/self/mem",
    b"!/dev/kvm",
    b"folder",
    b"folder/",
    b"socket",
    b"image",
    b"./image",
    b"sub/../image",
    b"hard",
    b"link",
    b"link-loop",
    b"nowhere",
    b"nowhere\0/etc/shadow",
    b"",
    b".",
    b"..",
    b"/",
    b"\x1b[2J\x1b]0;evil\x07",
    b"a\r\nbacking file format: raw",
    b"\xff\xfe\x80.img",
    "\u202egnp.\u2028\u0085\u200b".encode(),
    b"%s%n%x",
    b"'\"`$(id)\\",
    b"a" * 255,
    b"a" * 256,
    b"a/" * 500,
    b"../" * 300 + b"etc/shadow",
)


def surroundings(folder: Path) -> None:
    """Put beside an image what names may stand for."""
    (folder / "sub").mkdir()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    os.symlink("/etc/shadow", folder / "link-out")
    os.symlink("/etc", folder / "link-folder")
    os.symlink("image", folder / "link")
    os.symlink("link-loop", folder / "link-loop")
    sparse(folder / "base", {}, MiB)
    if (folder / "image").exists():
        os.link(folder / "image", folder / "hard")


def named(data: bytes) -> Callable[[Path], None]:
    """Return what writes an image among the surroundings."""

    def make(folder: Path) -> None:
        sparse(folder / "image", {0: data})
        surroundings(folder)

    return make


def backing(name: bytes, *, format: bytes = b"") -> bytes:
    """Return a qcow2 image with a backing file."""
    plain = planned(MiB)
    made = with_extensions(plain, (0xE2792ACA, format)) if format else plain
    made = changed(made, backing_file_offset=1024, backing_file_size=len(name))
    return made[:1024] + name + made[1024 + len(name) :]


def data_file(name: bytes) -> bytes:
    """Return a qcow2 image whose data is in another file."""
    made = with_extensions(planned(MiB), (0x44415441, name))
    return changed(made, incompatible_features=4)


def qed_backing(name: bytes) -> bytes:
    made = qed.empty(features=5, backing_filename_offset=64, backing_filename_size=len(name))
    return made[:64] + name + made[64 + len(name) :]


def qcow_backing(name: bytes) -> bytes:
    made = qcow.empty(backing_file_offset=1024, backing_file_size=len(name), l1_table_offset=4096)
    return made[:1024] + name + made[1024 + len(name) :].ljust(65536, b"\0")


def vmdk_parent(name: bytes) -> bytes:
    """Return a sparse VMDK with a parent."""
    made = bytes(image(MiB))
    body = text('RW 2048 SPARSE "image"', type="monolithicSparse", parent="1").replace(
        b"# Extent", b'parentFileNameHint="' + name + b'"\n# Extent'
    )
    return made[:512] + body[: 20 * 512].ljust(20 * 512, b"\0") + made[21 * 512 :]


def vmdk_extent(name: bytes, kind: bytes = b"FLAT") -> bytes:
    return text().replace(
        b"# Extent description", b'RW 2048 %s "%s"%s' % (kind, name, b" 0" if kind == b"FLAT" else b"")
    )


def vhd_parent(name: bytes) -> bytes:
    return differencing([(0x57327275, name.decode("latin-1").encode("utf-16-le"))])


#: Format, role, what writes it.
ROLES: tuple[tuple[str, str, Callable[[bytes], bytes]], ...] = (
    ("qcow2", "backing file", backing),
    ("qcow2", "data file", data_file),
    ("qcow", "backing file", qcow_backing),
    ("qed", "backing file", qed_backing),
    ("vmdk", "parent", vmdk_parent),
    ("vmdk", "extent", vmdk_extent),
    ("vmdk", "sparse extent", lambda name: vmdk_extent(name, b"SPARSE")),
    ("vpc", "parent", vhd_parent),
)


def cases() -> Iterator[Hostile]:
    for format, role, build in ROLES:
        for written in OUTSIDE:
            name = written.removeprefix(b"!")
            yield Hostile(
                format,
                f"{role} {name[:60]!r} of {len(name)} bytes",
                named(build(name)),
                judged=not written.startswith(b"!"),
            )
    for length in (1023, 1024, 65536):
        yield Hostile("qcow2", f"a backing name of {length} bytes", named(backing(b"x" * length)))
    for format in (b"raw", b"qcow2", b"nonsense", b"\x1b[2J", b"nbd", b"json:{}", b"x" * 15, b"host_device"):
        yield Hostile("qcow2", f"backing format {format!r}", named(backing(b"base", format=format)))
    both = struct.pack(">II", 0x44415441, 4) + b"base" + bytes(4) + struct.pack(">II", 0x44415441, 11) + b"/etc/shadow"
    twice = changed(planned(MiB), incompatible_features=4)
    yield Hostile("qcow2", "two data files", named(twice[:112] + both + bytes(13) + twice[112 + len(both) + 13 :]))
