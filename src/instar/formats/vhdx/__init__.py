"""vhdx: Hyper-V's second virtual disk format. See README.md in this folder."""
