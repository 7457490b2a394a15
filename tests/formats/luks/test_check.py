"""What a check finds in a volume without its key."""

from __future__ import annotations

import pytest
from tests.formats.luks.test_parse import BROKEN, PLAIN, header, slot
from tests.formats.luks.volumes import NOW, volume
from tests.support import BytesReader

from instar.core.errors import ImageError
from instar.formats.luks.check import check
from instar.formats.luks.ondisk import KEY_DISABLED, KEY_ENABLED


def found(data: bytes) -> list[tuple[str, str]]:
    return [(f.severity, f.structure) for f in check(BytesReader(data), [], generation=NOW).findings]


@pytest.mark.parametrize("options", ["", "cipher-alg=cast5-128,cipher-mode=ctr", "ivgen-alg=essiv"])
def test_new_volume_is_clean(options: str) -> None:
    assert found(volume(options)) == []


def test_key_material_behind_the_end_of_the_file_is_a_corruption() -> None:
    assert found(PLAIN[:50000]) == [("corruption", "LUKS key slot"), ("corruption", "LUKS header")]
    assert found(PLAIN[: 4096 + 64000]) == [("corruption", "LUKS header")]


def test_key_slots_out_of_use_may_lie_anywhere_before_the_data() -> None:
    assert found(slot(7, active=KEY_DISABLED)) == []
    assert found(slot(7, active=KEY_ENABLED, iterations=1000)) == []


def test_few_iterations_are_worth_a_warning() -> None:
    assert found(slot(0, iterations=999)) == [("warning", "LUKS key slot")]


def test_a_volume_that_no_passphrase_opens_is_worth_a_warning() -> None:
    assert found(slot(0, active=KEY_DISABLED)) == [("warning", "LUKS header")]


def test_data_behind_the_end_of_the_file_is_a_corruption() -> None:
    assert found(header(payload_offset=1 << 20)) == [("corruption", "LUKS header")]


@pytest.mark.parametrize("index", range(len(BROKEN)))
def test_any_bytes_give_a_report_or_an_image_error(index: int) -> None:
    try:
        said = [finding.detail for finding in check(BytesReader(BROKEN[index]()), [], generation=NOW).findings]
    except ImageError as error:
        said = [str(error)]
    assert "".join(said).isprintable()
