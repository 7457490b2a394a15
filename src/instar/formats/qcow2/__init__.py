"""qcow2: QEMU's copy-on-write format, versions 2 and 3. See README.md in this folder."""
