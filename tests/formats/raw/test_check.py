from __future__ import annotations

import pytest
from tests.support import QEMU_IMG, BytesReader, needs_qemu_img, run

from instar.core.errors import ImageError
from instar.formats.raw.check import check


@pytest.mark.parametrize("data", [b"", b"QFI\xfb", bytes(4096)])
def test_refuses_to_check_what_has_no_metadata(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        check(BytesReader(data), (), generation=(11, 1))
    assert caught.value.kind == "unsupported-feature"
    assert caught.value.format == "raw"


@needs_qemu_img
def test_qemu_refuses_too(tmp_path) -> None:
    (tmp_path / "t").write_bytes(bytes(512))
    done = run(str(QEMU_IMG), "check", "-f", "raw", tmp_path / "t")
    assert (done.returncode, done.stderr) == (63, "qemu-img: This image format does not support checks\n")
