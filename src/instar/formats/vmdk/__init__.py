"""vmdk: VMware's sparse and stream-optimised disks. See README.md in this folder."""
