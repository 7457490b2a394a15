"""What a cell may say of a raw image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape

SHAPE = shape("raw")
