"""How qemu-img words what is wrong with a VMDK."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. What qemu-img has no sentence for, because it writes
#: a broken image instead (``vmdk-text``, ``vmdk-file-name``, ``vmdk-backing-name``, ``vmdk-descriptor-size``),
#: is said in instar's own words. The option grain_size is ours.
QEMU: dict[str, str] = {
    "vmdk-backing-fmt": "backing_file must be a vmdk image",
    "vmdk-backing-format": "Invalid backing file format: {value}. Must be vmdk",
    "vmdk-choice": "invalid parameter value: {value}",
    "vmdk-compat6-hwversion": "compat6 cannot be enabled with hwversion set",
    "vmdk-flat-backing": "Flat image can't have backing file",
    "vmdk-flat-zeroed-grain": "Flat image can't enable zeroed grain",
    "vmdk-grain-size": "Grain size must be a power of two between 8k and 64M",
    "vmdk-parent-cid": "Failed to read parent CID",
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "file length"): "File is too small, not a valid image",
    ("invalid-format", "createType"): "invalid VMDK image descriptor",
    ("invalid-format", "CID"): "Could not open '{path}': Invalid argument",
    ("invalid-format", "parentCID"): "Could not open '{path}': Invalid argument",
    ("unsupported-feature", "version"): "Unsupported VMDK version {value}",
    ("too-large", "numGTEsPerGT"): "L2 table size too big",
    ("too-large", "grainSize"): "Invalid granularity, image may be corrupt",
    ("too-large", "grain directory entries"): "L1 size too big",
    ("corrupt", "grainSize"): "L1 entry size is invalid",
    ("corrupt", "footer"): "Invalid footer",
    ("out-of-bounds", "bytes expected"): "File truncated, expecting at least {value} bytes",
    ("unsupported-feature", "createType"): "Unsupported image type '{quoted}'",
    ("corrupt", "offset"): "Invalid extent line: {tail}",
    ("invalid-format", "magic"): "Image not in VMDK format",
    ("invalid-format", "constant magic"): "Bad const header magic: 0x{hex:0>16}",
}

#: By ``Finding.code``; templates over its values. qemu-img's check stops there.
FINDINGS: dict[str, str] = {
    "vmdk-past-end": "ERROR: cluster offset for sector {0} points after EOF",
    "vmdk-lost": "ERROR: could not get cluster_offset for sector {0}",
}
