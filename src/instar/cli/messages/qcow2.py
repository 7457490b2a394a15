"""How qemu-img words what is wrong with a qcow2 image's options."""

from __future__ import annotations

_V3 = "compatibility level 1.1 and above (use version=v3 or greater)"

#: By ``OptionError.code``; templates over the error's values. ``bad-choice`` and ``image-too-large`` are worded
#: alike for all formats.
QEMU: dict[str, str] = {
    "qcow2-backing-format-alone": "Backing format cannot be used without backing file",
    "qcow2-backing-name-length": "Could not assign backing file '{value}' with format '{format}': Invalid argument",
    "qcow2-backing-name-space": (
        "Could not assign backing file '{value}' with format '{format}': No space left on device"
    ),
    "qcow2-backing-preallocation": (
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    ),
    "qcow2-cluster-size": "Cluster size must be a power of two between 512 and 2048k",
    "qcow2-compression-type-version": f"Non-zlib compression type is only supported with {_V3}",
    "qcow2-data-file-raw-alone": "data-file-raw requires data-file",
    "qcow2-encrypt-format-missing": "Parameter 'encrypt.format' is missing",
    "qcow2-encryption-twice": "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    "qcow2-extended-l2-cluster-size": (
        "Extended L2 entries are only supported with cluster sizes of at least {limit} bytes"
    ),
    "qcow2-extended-l2-version": f"Extended L2 entries are only supported with {_V3}",
    "qcow2-keep-data-file-alone": "Must not use 'keep_data_file=on' without 'data_file'",
    "qcow2-lazy-refcounts-version": f"Lazy refcounts only supported with {_V3}",
    "qcow2-refcount-bits": "Refcount width must be a power of two and may not exceed 64 bits",
    "qcow2-refcount-bits-version": (
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
    ),
    "qcow2-size-negative": "Could not resize image: Image size cannot be negative",
    "qcow2-size-offset": "Could not resize image: offset({value}) exceeds maximum({limit})",
}
