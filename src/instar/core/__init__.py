"""The words every room uses. Pure: no file, clock, socket or randomness is touched here."""

#: The newest qemu-img whose output is known, and the default for whoever asks for none: ``(major, minor)``.
NEWEST = (11, 1)
