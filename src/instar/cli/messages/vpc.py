"""How qemu-img words what is wrong with a VHD."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. ``bad-choice`` and ``image-too-large`` are worded
#: alike for all formats. The option block_size is ours; these are in qemu-img's manner.
QEMU: dict[str, str] = {
    "vpc-block-size": "Block size must be a power of two between 512k and 256M",
    "vpc-block-size-fixed": "Block size can only be set for subformat 'dynamic'",
}

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "file length"): "File too small for a VHD header",
    ("invalid-format", "cookie"): "invalid VPC image",
    ("corrupt", "checksum"): "Incorrect header checksum",
    ("too-large", "geometry"): "Could not open '{path}': File too large",
    ("too-large", "current_size"): "Could not open '{path}': File too large",
    ("out-of-bounds", "data_offset"): "Error reading dynamic VHD header",
    ("corrupt", "cookie"): "Invalid header magic",
    ("corrupt", "block_size"): "Invalid block size {value}",
    ("corrupt", "max_table_entries"): "Page table too small",
    ("too-large", "max_table_entries"): "Max Table Entries too large ({value})",
    ("out-of-bounds", "table_offset"): "Error reading pagetable",
    ("out-of-bounds", "end"): "block-vpc: free_data_block_offset points after the end of file."
    " The image has been truncated.",
    ("out-of-bounds", "end of block"): "block-vpc: free_data_block_offset points after the end of file."
    " The image has been truncated.",
}
