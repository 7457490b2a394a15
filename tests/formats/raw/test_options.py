from __future__ import annotations

import pytest
from tests.support import needs_qemu_img, qemu_img

from instar.core.errors import OptionError
from instar.core.options import Settings, read_settings
from instar.formats.raw.options import CREATE, resolve


@pytest.mark.parametrize("size", [0, 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_raw_image_needs_no_options_whatever_its_size(size: int) -> None:
    assert resolve(size, Settings(), None) == {}


def test_size_is_the_only_option() -> None:
    assert read_settings(CREATE, [("size", "1M")], format="raw").values == {"size": 1 << 20}
    with pytest.raises(OptionError) as caught:
        read_settings(CREATE, [("cluster_size", "1M")], format="raw")
    assert caught.value.code == "unknown-option"


@needs_qemu_img
def test_rows_are_those_of_qemu() -> None:
    lines = qemu_img("create", "-f", "raw", "-o", "help").stdout.splitlines()
    assert [row.help_line() for row in CREATE] == [line.rstrip() for line in lines if line.startswith("  ")]
