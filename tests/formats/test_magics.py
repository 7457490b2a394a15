"""A file of another kind is told by what stands where the format's magic should: read and expected, never a limit."""

from __future__ import annotations

import pytest
from fuzz.reading import Memory, part

from instar.core import NEWEST
from instar.core.errors import ImageError

#: What each format is known by, as a number in the order of its bytes, or as the format itself reads it.
MAGICS = {
    "qcow2": 0x514649FB,
    "qcow": 0x514649FB,
    "qed": 0x00444551,
    "vdi": 0xBEDA107F,
    "luks": int.from_bytes(b"LUKS\xba\xbe", "big"),
    "vhdx": int.from_bytes(b"vhdxfile", "big"),
}


@pytest.mark.parametrize("format", MAGICS)
@pytest.mark.parametrize("part_name", ["parse", "check"])
def test_a_wrong_magic_is_compared_with_the_right_one(format, part_name):
    run = getattr(part(format, part_name), "info" if part_name == "parse" else "check")
    with pytest.raises(ImageError) as caught:
        run(Memory(bytes(1 << 20)), (), generation=NEWEST)
    error = caught.value
    assert (error.kind, error.value, error.expected, error.limit) == ("invalid-format", 0, MAGICS[format], None)
    assert f"expected {MAGICS[format]:#x}" in str(error) or f"expected 0x{MAGICS[format]:08x}" in str(error)
