"""qed: QEMU enhanced disk. See README.md in this folder."""
