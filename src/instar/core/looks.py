"""What a file may look like that is read as something else, and what to tell people then.

Law: the list is closed. A cell says a word of it; the sentences are made here, out of nothing that the file says.
"""

from __future__ import annotations

#: Formats of disks that can be told by sight, under the names that the table of formats has for them.
FORMATS = (
    *("qcow", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed", "parallels", "luks"),
    *("bochs", "cloop", "dmg"),
)
#: What is read as raw and may be a fixed VHD, which has its footer behind the bytes of the disk.
VHD_FOOTER = "vhd-footer"
#: Files that are no disk but hold one, and what helps.
ARCHIVES = {
    "gzip": "it is compressed with gzip; unpack it first",
    "xz": "it is compressed with xz; unpack it first",
    "zip": "it is a zip archive; unpack it first",
    "7z": "it is a 7z archive; unpack it first",
    "tar": "it is a tar archive, as an OVA is; take the disk out of it first",
}
WORDS = (*FORMATS, VHD_FOOTER, *ARCHIVES)


def advice(word: object, switch: str = "-f") -> str | None:
    """Return what to tell people of a file that looks like ``word``; ``None`` if that is no word of the list."""
    if not isinstance(word, str):
        return None
    if word in FORMATS:
        return f"it looks like {word}; if that is what it should be, give {switch} {word}"
    if word == VHD_FOOTER:
        return f"it ends with a VHD footer; if it is a fixed VHD, give {switch} vpc"
    return ARCHIVES.get(word)
