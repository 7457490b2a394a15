"""What encryption adds to a new image: the choices, the header field, and for LUKS a header in clusters of its own.

Law: pure, and loaded only when an image is to be encrypted. The legacy format (``aes``) stores nothing but its number:
the passphrase's first 16 bytes are the key.
"""

from __future__ import annotations

from instar.core.errors import OptionError
from instar.core.plan import Allocate, Write
from instar.formats.luks.ciphers import Sectors, Spec
from instar.formats.luks.make import make, passphrase_of
from instar.formats.luks.make import preload as preload_luks
from instar.formats.luks.options import choose as choose_luks
from instar.formats.luks.options import cipher_rows
from instar.formats.qcow2.ondisk import CRYPT_AES, CRYPT_LUKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from instar.core.options import Settings
    from instar.core.plan import Item, Seed
    from instar.formats.luks.make import Made

PREFIX = "encrypt."
KEY_SECRET = "encrypt.key-secret"
#: In the order in which QEMU names the first one that is too much.
_LUKS_ALONE = ("cipher-alg", "iter-time", "cipher-mode", "ivgen-alg", "hash-alg", "ivgen-hash-alg")
_AES_KEY_SIZE = 16


def choose(format: str, given: Settings) -> dict[str, int | bool | str]:
    """Judge the choices but for the passphrase's name; ``format`` is ``aes`` or ``luks``.

    Returns:
        ``encrypt.format``, and for LUKS the cipher's options, each with ``encrypt.`` before its name.

    Raises:
        OptionError: ``bad-choice``, ``qcow2-encrypt-unexpected``.
    """
    chosen: dict[str, int | bool | str] = {"encrypt.format": format}
    if format == "luks":
        return {**chosen, **choose_luks(given, cipher_rows(PREFIX), PREFIX)}
    for word in _LUKS_ALONE:
        if PREFIX + word in given.values:
            raise OptionError(
                "qcow2-encrypt-unexpected",
                f"option '{PREFIX}{word}' has no effect with encrypt.format=aes; use encrypt.format=luks",
                key=PREFIX + word,
            )
    return chosen


class Encryption:
    """The encryption of one new image.

    Attributes:
        method: for the header's ``crypt_method``.
        header_size: bytes of the LUKS header with its key slots, 0 for the legacy format.
    """

    __slots__ = ("_made", "header_size", "method")

    def __init__(self, options: Mapping[str, int | bool | str], seed: Seed) -> None:
        """Judge the passphrase and, for LUKS, what does not fit; derive the keys.

        Raises:
            OptionError: see ``formats.luks.make.make``.
        """
        self._made: Made | None = None
        self.header_size = 0
        if options["encrypt.format"] == "aes":
            passphrase_of(options, PREFIX, seed.secret)
            self.method = CRYPT_AES
            return
        self.method = CRYPT_LUKS
        self._made = make(options, seed, prefix=PREFIX)
        self.header_size = self._made.size

    def items(self, offset: int, length: int) -> Iterator[Item]:
        """Yield the LUKS header in its clusters, ``length`` bytes at ``offset``; all of them get storage."""
        made = self._made
        if made is None:
            return
        start = offset + made.material_offset
        end = start + len(made.material)
        yield Write(offset, made.header, "LUKS header")
        gap = offset + len(made.header)
        yield Allocate(gap, start - gap, "rest of the LUKS header", mode="falloc")
        yield Write(start, made.material, "key material of slot 0")
        yield Allocate(end, offset + length - end, "other key slots", mode="falloc")


def preload(options: Mapping[str, object]) -> None:
    """Import what LUKS imports on use, where later nothing can be imported."""
    if options.get("encrypt.format") != "aes":
        preload_luks({})


def legacy_sectors(passphrase: bytes) -> Sectors:
    """Return the cipher of the legacy format: AES-128-CBC; sectors count in the guest's disk, not in the file.

    Source: qcow2.rst, "Header", ``crypt_method`` 1.

    Raises:
        OptionError: ``crypto-missing``.
    """
    return Sectors(Spec("aes", _AES_KEY_SIZE, "cbc", "plain64", None), passphrase[:_AES_KEY_SIZE].ljust(16, b"\0"))
