"""How qemu-img words what is wrong with a VHDX image."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. ``bad-choice`` is worded alike for all formats.
QEMU: dict[str, str] = {
    "vhdx-size": "Image size too large; max of 64TB",
    "vhdx-log-size-max": "Log size must be smaller than 4 GB",
    "vhdx-log-size": "Log size must be a multiple of 1 MB",
    "vhdx-block-size": "Block size must be a power of two",
    "vhdx-empty-disk": "Failed to write the BAT: Input/output error",
}

_INVALID = "Could not open '{path}': Invalid argument"
_UNSUPPORTED = "Could not open '{path}': Operation not supported"
_NO_HEADER = "No valid VHDX header found"
_REPLAY = (
    "VHDX image file '{path}' opened read-only, but contains a log that needs to be replayed\n"
    "To replay the log, run:\n"
    "qemu-img check -r all '{path}'"
)

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "signature"): _INVALID,
    ("corrupt", "header"): _NO_HEADER,
    ("corrupt", "sequence_number"): _NO_HEADER,
    ("corrupt", "log_offset"): _INVALID,
    ("corrupt", "log_version"): _INVALID,
    ("corrupt", "log_length"): _INVALID,
    ("out-of-bounds", "flushed_file_offset"): _REPLAY,
    ("corrupt", "tail"): _REPLAY,
    ("corrupt", "data_sector"): _REPLAY,
    ("corrupt", "descriptor_offset"): _REPLAY,
    ("corrupt", "last_file_offset"): _REPLAY,
    ("too-large", "descriptor_count"): _REPLAY,
    ("too-large", "entry_length"): _INVALID,
    ("corrupt", "region_table"): _INVALID,
    ("corrupt", "guid"): _INVALID,
    ("unsupported-feature", "guid"): _UNSUPPORTED,
    ("out-of-bounds", "region_end"): "Could not open '{path}': Input/output error",
    ("corrupt", "file_offset"): _INVALID,
    ("corrupt", "signature"): _INVALID,
    ("too-large", "entry_count"): _INVALID,
    ("unsupported-feature", "entry_count"): _UNSUPPORTED,
    ("corrupt", "item_id"): _INVALID,
    ("unsupported-feature", "item_id"): _UNSUPPORTED,
    ("corrupt", "has_parent"): _INVALID,
    ("unsupported-feature", "has_parent"): _UNSUPPORTED,
    ("corrupt", "block_size"): _INVALID,
    ("unsupported-feature", "logical_sector_size"): _UNSUPPORTED,
    ("too-large", "virtual_disk_size"): _INVALID,
    ("corrupt", "length"): _INVALID,
    # Differencing disks, which qemu-img does not read at all.
    ("unsupported-feature", "locator_type"): _UNSUPPORTED,
    ("too-large", "length"): _UNSUPPORTED,
    ("too-large", "key_value_count"): _UNSUPPORTED,
    ("too-large", "key_length"): _UNSUPPORTED,
    ("too-large", "value_length"): _UNSUPPORTED,
    ("out-of-bounds", "end"): _UNSUPPORTED,
    ("corrupt", "key_offset"): _UNSUPPORTED,
}
