"""How qemu-img words what is wrong with a qcow2 image's options."""

from __future__ import annotations

from instar.cli.messages.luks import HEADER
from instar.cli.messages.luks import QEMU as LUKS

_V3 = "compatibility level 1.1 and above (use version=v3 or greater)"

#: By ``OptionError.code``; templates over the error's values. ``bad-choice`` and ``image-too-large`` are worded
#: alike for all formats.
QEMU: dict[str, str] = {
    **LUKS,
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
    "qcow2-data-file-raw-backing": "Backing file and data-file-raw cannot be used at the same time",
    "qcow2-data-file-space": "Could not update qcow2 header: No space left on device",
    "qcow2-data-file-version": f"External data files are only supported with {_V3}",
    "qcow2-encrypt-format-missing": "Parameter 'encrypt.format' is missing",
    "qcow2-encrypt-unexpected": "Parameter '{key}' is unexpected",
    "qcow2-encryption-twice": "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    "qcow2-extended-l2-cluster-size": (
        "Extended L2 entries are only supported with cluster sizes of at least {limit} bytes"
    ),
    "qcow2-extended-l2-version": f"Extended L2 entries are only supported with {_V3}",
    "qcow2-keep-data-file-alone": "Must not use 'keep_data_file=on' without 'data_file'",
    "qcow2-keep-data-file-overwritten": (
        "Preallocating more than only metadata would overwrite the external data file's content and is therefore"
        " incompatible with 'keep_data_file=on'"
    ),
    "qcow2-keep-data-file-unmapped": (
        "'keep_data_file=on' requires 'preallocation=metadata' or 'data_file_raw=on', or the file contents will not be"
        " visible"
    ),
    "qcow2-lazy-refcounts-version": f"Lazy refcounts only supported with {_V3}",
    "qcow2-refcount-bits": "Refcount width must be a power of two and may not exceed 64 bits",
    "qcow2-refcount-bits-version": (
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
    ),
    "device-preallocation": (
        "Could not resize image: Failed to resize underlying file:"
        " Preallocation mode '{value}' unsupported for this non-regular file"
    ),
    "qcow2-size-negative": "Could not resize image: Image size cannot be negative",
    "qcow2-size-offset": "Could not resize image: offset({value}) exceeds maximum({limit})",
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    **HEADER,
    ("invalid-format", "magic"): "Image is not in qcow2 format",
    ("unsupported-feature", "version"): "Unsupported qcow2 version {value}",
    ("unsupported-feature", "cluster_bits"): "Unsupported cluster size: 2^{value}",
    ("corrupt", "header_length"): "qcow2 header too short",
    ("too-large", "header_length"): "qcow2 header exceeds cluster size",
    ("corrupt", "backing_file_offset"): "Invalid backing file offset",
    ("unsupported-feature", "compression_type"): "qcow2: unknown compression type: {value}",
    ("corrupt", "incompatible_features"): "qcow2: Compression type incompatible feature bit must not be set",
    ("corrupt", "compression_type"): "qcow2: Compression type incompatible feature bit must be set",
    ("corrupt", "refcount_order"): "Reference count entry width too large; may not exceed 64 bits",
    ("corrupt", "refcount_table_clusters"): "Image does not contain a reference count table",
    ("too-large", "refcount_table_clusters"): "Reference count table too large",
    ("corrupt", "refcount_table_offset"): "Reference count table offset invalid",
    ("out-of-bounds", "refcount_table_offset"): "Reference count table offset invalid",
    ("too-large", "nb_snapshots"): "Snapshot table too large",
    ("corrupt", "snapshots_offset"): "Snapshot table offset invalid",
    ("out-of-bounds", "snapshots_offset"): "Snapshot table offset invalid",
    ("too-large", "l1_size"): "Active L1 table too large",
    ("corrupt", "l1_table_offset"): "Active L1 table offset invalid",
    ("out-of-bounds", "l1_table_offset"): "Active L1 table offset invalid",
    ("too-large", "size"): "Image is too big",
    ("out-of-bounds", "size"): "Could not refresh total sector count: File too large",
    ("corrupt", "l1_size"): "L1 table is too small",
    ("unsupported-feature", "crypt_method"): "Unsupported encryption method {value}",
    ("invalid-format", "crypt_method"): "CRYPTO header extension only expected with LUKS encryption method",
    ("corrupt", "crypt_method"): "Missing CRYPTO header for crypt method {value}",
    ("corrupt", "length"): "Header extension too large",
    ("corrupt", "backing_file_size"): "Backing file name too long",
    ("too-large", "extra_data_size"): "Too much extra metadata in snapshot table entry",
    ("too-large", "size of the table"): "Snapshot table is too big",
}

_LEAKED = "\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
#: By ``Finding.code``: qemu-img's line on standard error; templates over the finding's values.
FINDINGS: dict[str, str] = {
    "qcow2-bitmaps-stale": (
        "qemu-img: warning: a program lacking bitmap support modified this file,"
        " so all bitmaps are now considered inconsistent" + _LEAKED
    ),
    "qcow2-bitmaps-in-version-2": (
        "qemu-img: warning: This qcow2 v2 image contains bitmaps, but they may have been modified by a program without"
        " persistent bitmap support; so now they must all be considered inconsistent" + _LEAKED
    ),
    "qcow2-refcount-leak": "Leaked cluster {0} refcount={1} reference={2}",
    "qcow2-refcount-corruption": "ERROR cluster {0} refcount={1} reference={2}",
    "qcow2-refcount-unreadable": "Can't get refcount for cluster {0}: Input/output error",
    "qcow2-refcount-overflow": (
        "ERROR: overflow cluster offset=0x{0:x}\n"
        "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the"
        " image cannot be opened for writing"
    ),
    "qcow2-outside-file": (
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more:"
        " offset 0x{0:x} size 0x{1:x}"
    ),
    "qcow2-l1-reserved": "ERROR found L1 entry with reserved bits set: {0:x}",
    "qcow2-l1-unaligned": "ERROR l2_offset={0:x}: Table is not cluster aligned; L1 entry corrupted",
    "qcow2-l2-reserved": "ERROR found l2 entry with reserved bits set: {0:x}",
    "qcow2-l2-unaligned": "ERROR offset={0:x}: Data cluster is not properly aligned; L2 entry corrupted.",
    "qcow2-l2-unaligned-preallocated": (
        "ERROR offset={0:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
    ),
    "qcow2-l2-subclusters": "ERROR offset={0:x}: Allocated cluster has corrupted subcluster allocation bitmap",
    "qcow2-l2-subclusters-unallocated": "ERROR: Unallocated cluster has non-zero subcluster allocation map",
    "qcow2-l2-compressed-copied": "ERROR: coffset=0x{0:x}: copied flag must never be set for compressed clusters",
    "qcow2-l2-compressed-data-file": "ERROR compressed cluster {0} with data file, entry=0x{1:x}",
    "qcow2-l2-compressed-subclusters": (
        "ERROR compressed cluster {0} with non-zero subcluster allocation bitmap, entry=0x{1:x}"
    ),
    "qcow2-copied-l1": "ERROR OFLAG_COPIED L2 cluster: l1_index={0} l1_entry={1:x} refcount={2}",
    "qcow2-copied-l2": "ERROR OFLAG_COPIED data cluster: l2_entry={0:x} refcount={1}",
    "qcow2-refcount-table-reserved": "ERROR refcount table entry {0} has reserved bits set",
    "qcow2-refcount-table-unaligned": (
        "ERROR refcount block {0} is not cluster aligned; refcount table entry corrupted"
    ),
    "qcow2-refcount-table-outside": "ERROR refcount block {0} is outside image",
    "qcow2-refcount-block-shared": "ERROR refcount block {0} refcount={1}",
    "qcow2-snapshot-incomplete": "ERROR snapshot table entry {0} is incomplete",
    "qcow2-snapshots-data-file": "ERROR {0} snapshots in image with data file",
}
