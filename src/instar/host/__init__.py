"""Has rights: files, the backing policy, atomic output; one module per operation."""
