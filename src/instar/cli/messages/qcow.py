"""How qemu-img words what is wrong with a qcow image of version 1."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. qemu-img has no sentence for a name that is too long,
#: because it writes an image that it cannot open; this one is what it says then.
QEMU: dict[str, str] = {
    "no-secret": "No secret with id '{id}'",
    "qcow-backing-format": "unrecognized backing format '{value}'",
    "qcow-backing-name-length": "Backing file name too long",
    "qcow-encrypt-format-missing": "Parameter 'encrypt.format' is missing",
    "qcow-encryption-twice": "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    "qcow-key-secret-missing": "Parameter 'encrypt.key-secret' is required for cipher",
    "qcow-luks": "Unsupported encryption format",
    "qcow-size-zero": "Image size is too small, cannot be zero length",
    "secret-not-utf8": "Data from secret {id} is not valid UTF-8",
}

_UNREADABLE = "Could not open '{path}': Input/output error"

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "magic"): "Image not in qcow format",
    ("unsupported-feature", "version"): "qcow (v1) does not support qcow version {value}",
    ("unsupported-feature", "version of qcow2"): (
        "qcow (v1) does not support qcow version {value}\nTry the 'qcow2' driver instead."
    ),
    ("corrupt", "size"): "Image size is too small (must be at least 2 bytes)",
    ("corrupt", "cluster_bits"): "Cluster size must be between 512 and 64k",
    ("corrupt", "l2_bits"): "L2 table size must be between 512 and 64k",
    ("unsupported-feature", "crypt_method"): "invalid encryption method in qcow header",
    ("too-large", "size"): "Image too large",
    ("out-of-bounds", "l1_table_offset"): _UNREADABLE,
    ("too-large", "backing_file_size"): "Backing file name too long",
    ("out-of-bounds", "backing_file_offset"): _UNREADABLE,
}
