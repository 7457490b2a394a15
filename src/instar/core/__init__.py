"""The words every room uses. Pure: no file, clock, socket or randomness is touched here."""
