"""luks: LUKS version 1, an encrypted disk behind a header with eight key slots. See README.md in this folder."""
