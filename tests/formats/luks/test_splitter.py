"""Anti-forensic splitting: what is split comes back, and the diffusion is that of the specification."""

from __future__ import annotations

import hashlib

import pytest

from instar.formats.luks.splitter import merge, split


@pytest.mark.parametrize("hash_name", ["md5", "sha1", "sha256", "sha512", "ripemd160"])
@pytest.mark.parametrize("size", [16, 24, 32, 48, 64])
def test_a_split_key_comes_back(size: int, hash_name: str) -> None:
    key = hashlib.shake_256(b"key").digest(size)
    stripes = hashlib.shake_256(b"stripes").digest(size * 9)
    material = split(key, stripes, hash_name)
    assert len(material) == 10 * size
    assert merge(material, size, hash_name) == key


def test_every_stripe_is_needed() -> None:
    stripes = hashlib.shake_256(b"stripes").digest(32 * 5)
    material = split(bytes(32), stripes, "sha256")
    for at in range(0, len(material), 32):
        changed = bytearray(material)
        changed[at] ^= 1
        assert merge(bytes(changed), 32, "sha256") != bytes(32)


def test_diffuses_as_the_specification_says() -> None:
    """Two stripes of 40 bytes by hand: a whole digest of SHA-1, then one more, each with its number before it."""
    first = bytes(range(40))
    mixed = b"".join(hashlib.sha1(n.to_bytes(4, "big") + first[20 * n : 20 * n + 20]).digest() for n in (0, 1))
    key = bytes(40)
    assert split(key, first, "sha1") == first + mixed
