"""The words every room uses. Pure: no file, clock, socket or randomness is touched here."""

#: The newest qemu-img whose output is known, and the default for whoever asks for none: ``(major, minor)``.
NEWEST = (11, 1)


def version_of(text: str) -> tuple[int, int] | None:
    """Return the ``(major, minor)`` of a version such as ``7.2`` or ``10.0.13``; ``None`` if it is none."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0] or "0"
    if not (major.isdecimal() and minor.isdecimal() and len(major) < 4 and len(minor) < 4):
        return None
    return int(major), int(minor)
