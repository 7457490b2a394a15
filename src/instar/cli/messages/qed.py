"""How qemu-img words what is wrong with a QED image."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. qemu-img has no sentence for a name that does not
#: fit, because it writes a broken image instead; this one is in its manner.
QEMU: dict[str, str] = {
    "qed-backing-name-length": "QED backing filename must be within range [1, {limit}] bytes",
    "qed-cluster-size": "QED cluster size must be within range [4096, 67108864] and power of 2",
    "qed-size": "QED image size must be a non-zero multiple of cluster size and less than {limit} bytes",
    "qed-table-size": "QED table size must be within range [1, 16] and power of 2",
    "qed-table-size-number": "Parameter 'table-size' expects integer",
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "magic"): "Image not in QED format",
    ("unsupported-feature", "features"): "Unsupported QED features: {hex}",
    ("corrupt", "cluster_size"): "QED cluster size is invalid",
    ("corrupt", "table_size"): "QED table size is invalid",
    ("corrupt", "image_size"): "QED image size is invalid",
    ("too-large", "image_size"): "QED image size is invalid",
    ("out-of-bounds", "l1_table_offset"): "QED table offset is invalid",
    ("too-large", "header_size"): "QED header size is too large",
    ("corrupt", "backing_filename_offset"): "QED backing filename offset is invalid",
    ("too-large", "backing_filename_size"): "Failed to read backing filename",
}

#: By ``Finding.code``. qemu-img counts what it finds and says no more.
FINDINGS: dict[str, str] = {"qed-leak": "", "qed-reference": ""}
