"""How qemu-img words what is wrong with a VDI."""

from __future__ import annotations

_MAX = "max supported is 0x1fffff8000000"

#: By ``OptionError.code``; templates over the error's values. The preallocation of static images is ours.
QEMU: dict[str, str] = {
    "vdi-size": f"Unsupported VDI image size (size is 0x{{hex}}, {_MAX})",
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("too-large", "disk_size"): f"Unsupported VDI image size (size is 0x{{hex}}, {_MAX})",
    ("invalid-format", "signature"): "Image not in VDI format (bad signature {hex:0>8})",
    ("unsupported-feature", "version"): "unsupported VDI image (version {high}.{low})",
    ("unsupported-feature", "offset_bmap"): "unsupported VDI image (unaligned block map offset 0x{hex})",
    ("unsupported-feature", "offset_data"): "unsupported VDI image (unaligned data offset 0x{hex})",
    ("unsupported-feature", "sector_size"): "unsupported VDI image (sector size {value} is not {expected})",
    ("unsupported-feature", "block_size"): "unsupported VDI image (block size {value} is not {expected})",
    ("corrupt", "disk_size"): "unsupported VDI image (disk size {value}, image bitmap has room for {limit})",
    ("unsupported-feature", "uuid_link"): "unsupported VDI image (non-NULL link UUID)",
    ("unsupported-feature", "uuid_parent"): "unsupported VDI image (non-NULL parent UUID)",
    ("too-large", "blocks_in_image"): "unsupported VDI image (too many blocks {value}, max is {limit})",
}

#: By ``Finding.code``; templates over its values.
FINDINGS: dict[str, str] = {
    "vdi-duplicate": "ERROR: block index {0} also used by {1}",
    "vdi-too-large": "ERROR: block index {0} too large, is {1}",
    "vdi-allocated": "ERROR: allocated blocks mismatch, is {0}, should be {1}",
}
