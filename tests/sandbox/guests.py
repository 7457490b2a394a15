"""Guests for ``exploited.run_exploited``: light, as the command that runs them is measured."""

from __future__ import annotations

from tests.sandbox.exploited import replying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from instar.sandbox.cell import Guest


def raw_of_one_mebibyte() -> Guest:
    """Describe whatever it is as a raw disk of 1 MiB."""
    from instar.core.image import ImageFacts

    return replying(ImageFacts("raw", 1 << 20).to_wire())
