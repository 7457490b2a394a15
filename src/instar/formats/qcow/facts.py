"""What a cell may say of a qcow image: the shape of its facts."""

from __future__ import annotations

from instar.core.image import shape
from instar.core.schema import number
from instar.formats.qcow.ondisk import FORMAT

SHAPE = shape(FORMAT, extra={"l2_bits": number(), "mtime": number()})
