"""parallels: Parallels' expandable disk image. See README.md in this folder."""
