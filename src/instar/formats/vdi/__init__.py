"""vdi: VirtualBox's disk image. See README.md in this folder."""
