"""Passphrases are found by name, stay out of everything that is shown, and their cost is measured where it counts."""

from __future__ import annotations

import hashlib
import time

import pytest

from instar.core.errors import OptionError
from instar.core.options import Option, Settings
from instar.core.plan import Seed
from instar.formats import find
from instar.host.request import Request
from instar.host.secrets import find_secret, key_rate

PASSPHRASE = b"correct horse"


def request(format: str = "qcow2", **values: str) -> Request:
    settings = Settings()
    for name, value in values.items():
        settings.set(Option(name.replace("__", ".").replace("_", "-"), "str", ""), value)
    row = find(format)
    assert row is not None
    return Request("image", row, (), settings)


def test_is_found_by_the_name_in_either_option() -> None:
    secrets = {"a": PASSPHRASE, "b": b"other"}
    assert find_secret(request("luks", key_secret="a"), secrets) == PASSPHRASE
    assert find_secret(request(encrypt__key_secret="b"), secrets) == b"other"
    assert find_secret(request(), secrets) is None


def test_one_that_was_not_given_is_refused_by_its_name_alone() -> None:
    with pytest.raises(OptionError, match="no secret 'b'") as caught:
        find_secret(request(encrypt__key_secret="b"), {"a": PASSPHRASE})
    assert caught.value.code == "no-secret"
    assert "horse" not in f"{caught.value!r}{caught.value.facts()}"


def test_is_not_shown_with_the_seed() -> None:
    assert "horse" not in repr(Seed(secret=PASSPHRASE)) + str(Seed(secret=PASSPHRASE))


def test_rate_is_measured_for_luks_only() -> None:
    assert key_rate(request()) == 0
    assert key_rate(request("qcow", encrypt__format="aes")) == 0
    assert key_rate(request("luks")) > 1000
    assert key_rate(request(encrypt__format="luks")) > 1000


@pytest.mark.parametrize("name", ["sha1", "sha512"])
def test_rate_is_that_of_the_hash(name: str) -> None:
    rate = key_rate(request("luks", hash_alg=name))
    start = time.thread_time()
    hashlib.pbkdf2_hmac(name, b"x", bytes(32), rate // 5)
    assert 0.05 < time.thread_time() - start < 0.8


def test_rate_of_an_unknown_hash_is_still_one() -> None:
    assert key_rate(request("luks", hash_alg="nosuch")) > 1000
