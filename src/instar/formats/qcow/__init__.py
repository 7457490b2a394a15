"""qcow: QEMU copy on write, version 1. See README.md in this folder."""
