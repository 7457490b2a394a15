"""Sectors encrypted and decrypted: ciphers, modes, and how a sector's number becomes its initial vector.

Law: ciphers come from the library ``cryptography``, which is imported when the first one is needed and not before;
a cipher that it does not have is refused by name. Modes that it lacks for a cipher are built on its ECB here.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.formats.luks.ondisk import SECTOR, block_size, essiv_key_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from cryptography.hazmat.primitives.ciphers import Cipher, CipherAlgorithm

    Crypt = Callable[[bytes, int], bytes]

#: What the library has, by the names that a header uses, and what it calls them.
IN_LIBRARY = {"aes": "AES", "cast5": "CAST5", "sm4": "SM4"}
INSTALL = "it needs the library 'cryptography': pip install 'instar[crypto]'"
#: XTS multiplies by x modulo x^128 + x^7 + x^2 + x + 1 (IEEE 1619-2007, 5.2).
_XTS_FEEDBACK = 0x87
_XTS_MASK = (1 << 128) - 1


class Spec:
    """How sectors are encrypted.

    Attributes:
        cipher: ``aes`` …; ``key_bytes``: of its key, without the doubling of XTS.
        mode, generator, generator_hash: names as in a header.
    """

    __slots__ = ("cipher", "generator", "generator_hash", "key_bytes", "mode")

    def __init__(self, cipher: str, key_bytes: int, mode: str, generator: str, generator_hash: str | None) -> None:
        self.cipher = cipher
        self.key_bytes = key_bytes
        self.mode = mode
        self.generator = generator
        self.generator_hash = generator_hash

    @property
    def master_key_bytes(self) -> int:
        """Bytes of the key as a whole."""
        return 2 * self.key_bytes if self.mode == "xts" else self.key_bytes


_loaded: list[tuple[type[Cipher[Any]], ModuleType, ModuleType] | None] = []


def load() -> bool:
    """Import the library, once; tell whether it is there. Where nothing can be imported later, to be called before."""
    if not _loaded:
        try:
            from cryptography.hazmat.primitives import ciphers
            from cryptography.hazmat.primitives.ciphers import algorithms, modes
        except ImportError:
            _loaded.append(None)
        else:
            _loaded.append((ciphers.Cipher, algorithms, modes))
    return _loaded[0] is not None


def library() -> tuple[type[Cipher[Any]], ModuleType, ModuleType]:
    """Return the library's ``Cipher``, ``algorithms`` and ``modes``.

    Raises:
        OptionError: ``crypto-missing``.
    """
    if load() and (found := _loaded[0]):
        return found
    raise OptionError("crypto-missing", f"an encrypted image cannot be made or read here; {INSTALL}")


def algorithm(cipher: str, key: bytes) -> CipherAlgorithm:
    """Return a cipher of the library under a key.

    Raises:
        OptionError: ``crypto-missing``, ``luks-cipher-library``.
    """
    _, algorithms, _ = library()
    if cipher not in IN_LIBRARY:
        raise OptionError(
            "luks-cipher-library",
            f"the library 'cryptography' has no cipher '{cipher}'; use aes-256",
            value=cipher,
        )
    if cipher == "cast5":
        try:
            from cryptography.hazmat.decrepit.ciphers import algorithms
        except ImportError:
            pass  # before version 43 it stands with the others
    made: CipherAlgorithm = getattr(algorithms, IN_LIBRARY[cipher])(key)
    return made


class Sectors:
    """Sectors of 512 bytes under one key; a sector's number decides its initial vector."""

    __slots__ = ("_decrypt", "_encrypt")

    def __init__(self, spec: Spec, key: bytes) -> None:
        """Take a key of ``spec.master_key_bytes`` bytes.

        Raises:
            OptionError: ``crypto-missing``, ``luks-cipher-library``, ``crypto-unsupported``.
        """
        try:
            vector = _vectors(spec, key)
            self._encrypt, self._decrypt = _mode(spec, key, vector)
            self._encrypt(bytes(SECTOR), 0)
        except OptionError:
            raise
        except Exception as error:  # whatever a build of the library finds to say about a cipher that it lacks
            raise OptionError(
                "crypto-unsupported",
                f"the library 'cryptography' refuses {spec.cipher} in mode {spec.mode} ({type(error).__name__})",
                value=spec.cipher,
            ) from None

    def encrypt(self, data: bytes, first: int = 0) -> bytes:
        """Encrypt ``data`` from sector ``first`` on; the last sector may be short, by whole blocks."""
        return b"".join(self._encrypt(piece, number) for number, piece in _sectors(data, first))

    def decrypt(self, data: bytes, first: int = 0) -> bytes:
        """Decrypt ``data`` from sector ``first`` on; the last sector may be short, by whole blocks."""
        return b"".join(self._decrypt(piece, number) for number, piece in _sectors(data, first))


def _sectors(data: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    for number, at in enumerate(range(0, len(data), SECTOR), first):
        yield number, data[at : at + SECTOR]


def _vectors(spec: Spec, key: bytes) -> Callable[[int], bytes]:
    """Return what makes a sector's initial vector, as long as a block."""
    size = 16 if spec.mode == "xts" else block_size(spec.cipher)
    if spec.generator == "plain":
        return lambda number: (number & 0xFFFFFFFF).to_bytes(4, "little").ljust(size, b"\0")
    if spec.generator == "plain64":
        return lambda number: number.to_bytes(8, "little").ljust(size, b"\0")
    import hashlib

    salt = hashlib.new(str(spec.generator_hash), key).digest()
    if essiv_key_bytes(spec.cipher, spec.key_bytes, len(salt)) is None:
        raise ValueError(spec.generator_hash)
    cipher, _, modes = library()
    encryptor = cipher(algorithm(spec.cipher, salt), modes.ECB()).encryptor()
    return lambda number: bytes(encryptor.update(number.to_bytes(8, "little").ljust(size, b"\0")))


def _mode(spec: Spec, key: bytes, vector: Callable[[int], bytes]) -> tuple[Crypt, Crypt]:
    """Return what encrypts, and what decrypts, one sector."""
    if spec.mode == "xts" and spec.key_bytes == 24:
        return _xts(spec, key, vector)
    if spec.mode == "ctr" and spec.cipher == "cast5":
        crypt = _ctr(spec, key, vector)
        return crypt, crypt
    cipher, _, modes = library()
    made = algorithm(spec.cipher, key)
    if spec.mode == "ecb":
        ecb = cipher(made, modes.ECB())
        return lambda data, _: ecb.encryptor().update(data), lambda data, _: ecb.decryptor().update(data)
    mode = getattr(modes, spec.mode.upper())

    def encrypt(data: bytes, number: int) -> bytes:
        return bytes(cipher(made, mode(vector(number))).encryptor().update(data))

    def decrypt(data: bytes, number: int) -> bytes:
        return bytes(cipher(made, mode(vector(number))).decryptor().update(data))

    return encrypt, decrypt


def _xts(spec: Spec, key: bytes, vector: Callable[[int], bytes]) -> tuple[Crypt, Crypt]:
    """XTS over ECB (IEEE 1619-2007, 5.3), for AES-192, which OpenSSL has in ECB alone. Whole blocks."""
    cipher, _, modes = library()
    data_key = cipher(algorithm(spec.cipher, key[: spec.key_bytes]), modes.ECB())
    tweak_key = cipher(algorithm(spec.cipher, key[spec.key_bytes :]), modes.ECB()).encryptor()

    def tweaks(number: int, size: int) -> int:
        """Return the tweaks of a sector's blocks, one behind the other, as one little-endian integer."""
        tweak = int.from_bytes(tweak_key.update(vector(number)), "little")
        all_of_them = 0
        for shift in range(0, 8 * size, 128):
            all_of_them |= tweak << shift
            tweak = (tweak << 1 & _XTS_MASK) ^ (_XTS_FEEDBACK if tweak >> 127 else 0)
        return all_of_them

    def crypt(update: Callable[[bytes], bytes], data: bytes, number: int) -> bytes:
        mask = tweaks(number, len(data))
        data = (int.from_bytes(data, "little") ^ mask).to_bytes(len(data), "little")
        return (int.from_bytes(update(data), "little") ^ mask).to_bytes(len(data), "little")

    return (
        lambda data, number: crypt(data_key.encryptor().update, data, number),
        lambda data, number: crypt(data_key.decryptor().update, data, number),
    )


def _ctr(spec: Spec, key: bytes, vector: Callable[[int], bytes]) -> Crypt:
    """CTR over ECB (NIST SP 800-38A, 6.5), for CAST5, which OpenSSL has in ECB and CBC. Big-endian counter."""
    cipher, _, modes = library()
    encryptor = cipher(algorithm(spec.cipher, key), modes.ECB()).encryptor()
    size = block_size(spec.cipher)

    def crypt(data: bytes, number: int) -> bytes:
        first = int.from_bytes(vector(number), "big")
        top = 1 << 8 * size
        counters = b"".join(((first + n) % top).to_bytes(size, "big") for n in range(len(data) // size))
        return (int.from_bytes(data, "big") ^ int.from_bytes(encryptor.update(counters), "big")).to_bytes(
            len(data), "big"
        )

    return crypt
