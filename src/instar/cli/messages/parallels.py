"""How qemu-img words what is wrong with a Parallels image."""

from __future__ import annotations

#: By ``OptionError.code``; templates over the error's values. ``image-too-large`` is worded alike for all formats.
QEMU: dict[str, str] = {
    "parallels-cluster-size": "Cluster size is too large",
    "parallels-size": "Image size is too large for this cluster size",
}

_NOT = "Image not in Parallels format"

#: By ``(kind, field)`` of an ``ImageError``; templates over its facts. ``Could not open 'FILE': `` goes before them.
QEMU_OPEN: dict[tuple[str, str], str] = {
    ("invalid-format", "magic"): _NOT,
    ("invalid-format", "version"): _NOT,
    ("corrupt", "tracks"): "Invalid image: Zero sectors per track",
    ("too-large", "tracks"): "Invalid image: Too big cluster",
    ("too-large", "bat_entries"): "Catalog too large",
    ("corrupt", "nb_sectors"): "Invalid image: Catalog size too small for advertised disk size",
    ("too-large", "nb_sectors"): "Could not refresh total sector count: File too large",
    ("out-of-bounds", "ext_off"): "Invalid image: Too big offset",
    ("out-of-bounds", "ext_off end"): "Failed to read Format Extension cluster: Input/output error",
    ("corrupt", "magic"): "Wrong parallels Format Extension magic: 0x{hex}, expected: 0xab234cef23dcea87",
    ("corrupt", "m_CheckSum"): "Wrong checksum in Format Extension header. Format extension is corrupted.",
    ("corrupt", "features"): (
        "Can not read feature header, as remaining bytes ({value}) in Format Extension is less than Feature header"
        " size ({limit})"
    ),
    ("unsupported-feature", "flags"): "Flags for extension feature are unsupported",
    ("out-of-bounds", "data_size"): "Feature data_size exceedes Format Extension cluster",
    ("unsupported-feature", "magic"): "Unknown feature: 0x{hex}",
    ("corrupt", "bitmap"): (
        "Too small Bitmap Feature area in Parallels Format Extension: {value} bytes, expected at least {limit} bytes"
    ),
    ("corrupt", "size"): "Bitmap size (in sectors) {value} differs from disk size in sectors {expected}",
    ("out-of-bounds", "l1_size"): "Bitmaps feature corrupted: l1 table exceeds extension data_size",
    ("corrupt", "l1_size"): (
        "Bitmap table size {value} does not correspond to bitmap size and cluster size. Expected {expected}"
    ),
    ("out-of-bounds", "l1 entry"): "Failed to read bitmap data cluster: Input/output error",
}

#: By ``Finding.code``; templates over its values.
FINDINGS: dict[str, str] = {
    "parallels-unclean": "ERROR image was not closed correctly",
    "parallels-data-off": "ERROR data_off field has incorrect value",
    "parallels-outside": "ERROR cluster {0} is outside image",
    "parallels-leak": "ERROR space leaked at the end of the image {0}",
    "parallels-duplicate": "ERROR duplicate offset in BAT entry {0}",
}
