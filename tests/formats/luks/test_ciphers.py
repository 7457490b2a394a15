"""Sectors under every cipher and mode: published vectors, modes of ours against those of the library, and refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest

from instar.core.errors import OptionError
from instar.formats.luks import ciphers
from instar.formats.luks.ciphers import Sectors, Spec

KINDS = [
    *[("aes", size, mode) for size in (16, 24, 32) for mode in ("ecb", "cbc", "ctr", "xts")],
    *[("cast5", 16, mode) for mode in ("ecb", "cbc", "ctr")],
    ("sm4", 16, "ecb"),
]


@pytest.mark.parametrize("generator", ["plain", "plain64", "essiv"])
@pytest.mark.parametrize(("cipher", "size", "mode"), KINDS)
def test_what_is_encrypted_comes_back(cipher: str, size: int, mode: str, generator: str) -> None:
    spec = Spec(cipher, size, mode, generator, "md5" if cipher != "aes" else "sha256")
    sectors = Sectors(spec, bytes(range(spec.master_key_bytes)))
    data = bytes(range(256)) * 6
    hidden = sectors.encrypt(data, 5)
    assert hidden != data
    assert sectors.decrypt(hidden, 5) == data
    assert sectors.decrypt(hidden[512:1024], 6) == data[512:1024]
    assert (sectors.encrypt(bytes(512), 0) == sectors.encrypt(bytes(512), 1)) == (mode == "ecb")


def test_xts_of_ours_is_that_of_the_library() -> None:
    """Both can do AES-128: ours is made to."""
    spec = Spec("aes", 16, "xts", "plain64", None)
    key = bytes(range(7, 39))
    encrypt, decrypt = ciphers._xts(spec, key, ciphers._vectors(spec, key))
    data = bytes(range(256)) * 2
    for number in (0, 1, 1 << 40):
        hidden = Sectors(spec, key).encrypt(data, number)
        assert encrypt(data, number) == hidden
        assert decrypt(hidden, number) == data


def test_ctr_of_ours_is_that_of_the_library() -> None:
    spec = Spec("aes", 32, "ctr", "essiv", "sha256")
    key = bytes(range(9, 41))
    data = bytes(range(256)) * 2
    assert ciphers._ctr(spec, key, ciphers._vectors(spec, key))(data, 77) == Sectors(spec, key).encrypt(data, 77)


def test_aes_xts_gives_the_vector_of_the_standard() -> None:
    """IEEE 1619-2007, annex B, vector 4 (its data unit is a sector of 512 bytes, number 0)."""
    key = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
    hidden = Sectors(Spec("aes", 16, "xts", "plain64", None), key).encrypt(bytes(range(256)) * 2, 0)
    assert hidden[:32].hex() == "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"


def test_plain_counts_in_32_bits_and_plain64_does_not() -> None:
    key = bytes(range(16))
    short, long = (Sectors(Spec("aes", 16, "cbc", name, None), key) for name in ("plain", "plain64"))
    far = (1 << 32) + 3
    assert short.encrypt(bytes(512), far) == short.encrypt(bytes(512), 3) == long.encrypt(bytes(512), 3)
    assert long.encrypt(bytes(512), far) != long.encrypt(bytes(512), 3)


@pytest.mark.parametrize("cipher", ["serpent", "twofish"])
def test_a_cipher_that_the_library_lacks_is_refused_by_name(cipher: str) -> None:
    with pytest.raises(OptionError, match=f"no cipher '{cipher}'") as caught:
        Sectors(Spec(cipher, 32, "xts", "plain64", None), bytes(64))
    assert caught.value.code == "luks-cipher-library"


def test_without_the_library_a_refusal_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from instar.formats.luks import ciphers, make\n"
        "from instar.core.errors import OptionError\n"
        "make.preload({})\n"
        "try: ciphers.library()\n"
        "except OptionError as error: print(error.code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": "src"}
    )
    assert done.stdout.startswith("crypto-missing ")
    assert "pip install 'instar[crypto]'" in done.stdout


def test_no_error_holds_a_key() -> None:
    with pytest.raises(OptionError) as caught:
        Sectors(Spec("aes", 32, "xts", "plain64", None), b"hunter2" * 4)
    assert "hunter" not in repr(caught.value) + str(caught.value.facts())
    assert caught.value.__cause__ is None
