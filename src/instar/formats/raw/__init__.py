"""raw: plain bytes, no metadata. See README.md in this folder."""
